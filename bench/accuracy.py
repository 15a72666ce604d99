"""How far the percentiles of Fury's histogram are from the exact ones, on latencies of this disk and on made-up ones.

    python -m bench.accuracy [--blocks 20000] [--directory /var/tmp]

The exact percentile is the nearest rank: the ceil(q × n)-th smallest value. The disk's trace are the times of `pwrite` calls of
1 MiB into a preallocated file, an fsync each 100 of them, recorded as they are. Each trace is also cut into ten parts whose
histograms are merged: buckets, count, minimum and maximum have to be those of the whole.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.table import report
from fury_agent.histogram import Histogram

QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)
PARTS = 10
TARGET = 0.01
BLOCK_BYTES = 1 << 20
BLOCKS = 100
SLACK = 1e-12
"""The bucket's value is computed in floating point, so an error may exceed the bound by its last digits."""


def disk_trace(directory: Path, *, blocks: int) -> list[float]:
    """Seconds of each of so many block writes on the disk of `directory`."""
    data = os.urandom(BLOCK_BYTES)
    latencies = []
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        descriptor = file.fileno()
        os.posix_fallocate(descriptor, 0, BLOCKS * BLOCK_BYTES)
        for number in range(blocks):
            if number % BLOCKS == 0:
                os.fsync(descriptor)
            before = time.monotonic()
            os.pwrite(descriptor, data, number % BLOCKS * BLOCK_BYTES)
            latencies.append(time.monotonic() - before)
    return latencies


def made_traces(*, values: int) -> dict[str, list[float]]:
    """Latencies as disks have them at their worst, the same at each call."""
    source = random.Random(9475)
    return {
        "lognormal, σ 2": [source.lognormvariate(-7, 2) for _ in range(values)],
        "Pareto, α 1.1": [1e-4 * source.paretovariate(1.1) for _ in range(values)],
        "two modes, 1:1000": [
            source.gauss(0.0002, 0.00002) if source.random() > 0.001 else source.uniform(1, 30) for _ in range(values)
        ],
        "whole clock ticks": [source.randrange(1, 50) * 1e-9 for _ in range(values)],
    }


def histogram_of(values: Sequence[float]) -> Histogram:
    """A histogram with these values."""
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


def errors(values: Sequence[float]) -> list[float]:
    """The relative error of each of the quantiles."""
    histogram, ordered = histogram_of(values), sorted(values)
    result = []
    for quantile in QUANTILES:
        exact = ordered[max(1, math.ceil(quantile * len(ordered))) - 1]
        said = histogram.percentile(quantile)
        assert said is not None
        result.append(abs(said - exact) / exact)
    return result


def merged_as_whole(values: Sequence[float]) -> bool:
    """Whether ten merged parts are the same as the whole. Sums may differ in their last digits."""
    whole, merged = histogram_of(values), Histogram()
    for part in range(PARTS):
        merged.merge(histogram_of(values[part::PARTS]))
    return (merged.buckets, merged.zero, merged.minimum, merged.maximum) == (
        whole.buckets,
        whole.zero,
        whole.minimum,
        whole.maximum,
    ) and math.isclose(merged.sum, whole.sum, rel_tol=1e-9)


def main() -> None:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=20_000, help="block writes in the disk's trace")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    options = parser.parse_args()
    traces = {"this disk": disk_trace(options.directory, blocks=options.blocks)}
    traces |= made_traces(values=100_000)
    rows = {f"{name}: error of p50 to max, %": [100 * error for error in errors(v)] for name, v in traces.items()}
    greatest = max(max(values) for values in rows.values()) / 100
    unlike = [name for name, values in traces.items() if not merged_as_whole(values)]
    report(
        "accuracy",
        rows,
        notes={
            "quantiles": ", ".join(f"{quantile:g}" for quantile in QUANTILES),
            "values": {name: len(values) for name, values in traces.items()},
            "greatest relative error, %": f"{100 * greatest:.4f}",
            "error": f"{'PASS' if greatest <= TARGET + SLACK else 'miss'}, wanted ≤ {100 * TARGET:g} %",
            "ten parts merged": f"{'miss, not as the whole: ' + ', '.join(unlike) if unlike else 'PASS, as the whole'}",
        },
    )


if __name__ == "__main__":
    main()
