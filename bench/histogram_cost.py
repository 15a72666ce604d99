"""What Fury's histogram costs beside the libraries ddsketch and hdrhistogram, by turns, and what each gets wrong.

    python -m bench.histogram_cost [--values 200000] [--rounds 7]

All three are set to 1 % (hdrhistogram: two significant digits, of whole microseconds from 1 µs to an hour, and of
whole nanoseconds). Time is that of this thread per call, the loop around it taken off; making whole numbers of seconds for
hdrhistogram is left out. Memory is what
tracemalloc and the growth of a fresh interpreter's resident memory say. Files are those a target would need: the package and
what it depends on, without byte code. It decides which goes to the targets: see the last lines.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddsketch import DDSketch
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

import fury_agent.histogram
from bench.table import report
from fury_agent.histogram import Histogram

ROOT = Path(__file__).resolve().parents[1]
QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
HOUR_S = 3600
MERGES = 50
MICROSECONDS = 1_000_000
NANOSECONDS = 1_000_000_000


@dataclass(frozen=True)
class Kind:
    """One implementation: how to make it, add seconds to it, merge another into it and ask for a quantile."""

    make: Callable[[], Any]
    add: Callable[[Any], Callable[[Any], object]]
    merge: Callable[[Any, Any], object]
    quantile: Callable[[Any, float], float]
    setup: str
    """Statements that import it, make `one` and say how to `add`, for a fresh interpreter."""
    value: Callable[[float], float] = float
    """What it takes for so many seconds."""


def hdr(per_second: int) -> Kind:
    """hdrhistogram, which counts whole numbers: here of so many to the second."""
    making = f"HdrHistogram(1, {HOUR_S * per_second}, 2)"
    return Kind(
        make=lambda: HdrHistogram(1, HOUR_S * per_second, 2),
        add=lambda one: one.record_value,
        merge=lambda one, other: one.add(other),
        quantile=lambda one, quantile: one.get_value_at_percentile(100 * quantile) / per_second,
        setup=f"from hdrh.histogram import HdrHistogram; one = {making}; "
        f"add = lambda value: one.record_value(int(value * {per_second}))",
        value=lambda seconds: int(seconds * per_second),
    )


KINDS = {
    "Fury": Kind(
        make=Histogram,
        add=lambda one: one.add,
        merge=lambda one, other: one.merge(other),
        quantile=lambda one, quantile: one.percentile(quantile),
        setup="from fury_agent.histogram import Histogram; one = Histogram(); add = one.add",
    ),
    "ddsketch": Kind(
        make=lambda: DDSketch(0.01),
        add=lambda one: one.add,
        merge=lambda one, other: one.merge(other),
        quantile=lambda one, quantile: one.get_quantile_value(quantile),
        setup="from ddsketch import DDSketch; one = DDSketch(0.01); add = one.add",
    ),
    "hdrhistogram, µs": hdr(MICROSECONDS),
    "hdrhistogram, ns": hdr(NANOSECONDS),
}
DISTRIBUTIONS = {"Fury": None, "ddsketch": "ddsketch", "hdrhistogram, µs": "hdrhistogram"}


def latencies(values: int) -> list[float]:
    """Latencies like a disk's: most near 200 µs, some a thousand times that; the same at each call."""
    source = random.Random(9475)
    return [source.lognormvariate(math.log(200e-6), 1.2) for _ in range(values)]


def nothing(_value: float) -> None:
    """A call that does nothing."""


def add_ns(add: Callable[[Any], object], values: Sequence[float]) -> float:
    """Nanoseconds of one call, loop included."""
    began = time.thread_time_ns()
    for value in values:
        add(value)
    return (time.thread_time_ns() - began) / len(values)


def merge_us(kind: Kind, part: Any) -> float:
    """Microseconds of merging one filled histogram into another."""
    whole = kind.make()
    began = time.thread_time_ns()
    for _ in range(MERGES):
        kind.merge(whole, part)
    return (time.thread_time_ns() - began) / MERGES / 1000


def memory(kind: Kind) -> tuple[float, float]:
    """KiB by which importing it and making one grows a fresh interpreter, and KiB of one filled with 20,000 latencies."""
    program = f"""
import math, random, tracemalloc
def resident():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))
before = resident()
{kind.setup}
grown = resident() - before
source = random.Random(9475)
values = [source.lognormvariate(math.log(200e-6), 1.2) for _ in range(20000)]
tracemalloc.start()
{kind.setup}
for value in values:
    add(value)
print(grown, tracemalloc.get_traced_memory()[0] / 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True, timeout=120
    )
    grown, one = done.stdout.split()
    return float(grown), float(one)


def installed_kib(distribution: str, seen: set[str]) -> float:
    """KiB of the files of a distribution and all it requires."""
    if distribution in seen:
        return 0.0
    seen.add(distribution)
    found = importlib.metadata.distribution(distribution)
    size = sum(
        Path(str(file.locate())).stat().st_size
        for file in found.files or ()
        if file.suffix != ".pyc" and Path(str(file.locate())).is_file()
    )
    total = size / 1024
    for requirement in found.requires or ():
        name = re.match(r"[\w.-]+", requirement)
        if name is not None and "extra ==" not in requirement:
            total += installed_kib(name[0], seen)
    return total


def greatest_error(kind: Kind, values: Sequence[float]) -> float:
    """The greatest relative error of the quantiles against the exact nearest ranks, in percent."""
    histogram, ordered = kind.make(), sorted(values)
    add = kind.add(histogram)
    for value in values:
        add(kind.value(value))
    exact = {quantile: ordered[math.ceil(quantile * len(ordered)) - 1] for quantile in QUANTILES}
    return max(100 * abs(kind.quantile(histogram, quantile) - value) / value for quantile, value in exact.items())


def main() -> None:
    """Measure by turns and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    values = latencies(options.values)
    parts = {}
    for name, kind in KINDS.items():
        parts[name] = kind.make()
        add = kind.add(parts[name])
        for value in values[:20_000]:
            add(kind.value(value))
    taken = {name: [kind.value(value) for value in values] for name, kind in KINDS.items()}
    rows: dict[str, list[float]] = {f"{name}: add, ns": [] for name in KINDS}
    rows |= {f"{name}: merge, µs": [] for name in KINDS}
    for _ in range(options.rounds):
        loop = add_ns(nothing, values)
        for name, kind in KINDS.items():
            rows[f"{name}: add, ns"].append(add_ns(kind.add(kind.make()), taken[name]) - loop)
        for name, kind in KINDS.items():
            rows[f"{name}: merge, µs"].append(merge_us(kind, parts[name]))
    for name, kind in KINDS.items():
        imported, one = memory(kind)
        rows[f"{name}: memory by import and making one, KiB"] = [imported]
        rows[f"{name}: memory of one filled, KiB"] = [one]
        rows[f"{name}: greatest error, %"] = [greatest_error(kind, values)]
    for name, distribution in DISTRIBUTIONS.items():
        own = Path(fury_agent.histogram.__file__ or "").stat().st_size / 1024
        rows[f"{name}: files, KiB"] = [own if distribution is None else installed_kib(distribution, set())]
    fastest = min(KINDS, key=lambda name: statistics.median(rows[f"{name}: add, ns"]))
    smallest = min(DISTRIBUTIONS, key=lambda name: rows[f"{name}: files, KiB"][0])
    report(
        "histogram_cost",
        rows,
        notes={"values": options.values, "fastest to add to": fastest, "fewest files": smallest},
    )


if __name__ == "__main__":
    main()
