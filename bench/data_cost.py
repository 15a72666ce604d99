"""CPU seconds that Fury spends on making a GB of its data, without writing it.

    python -m bench.data_cost [--gigabytes 4] [--rounds 5] [--block-kb 1024]

Each round makes the blocks of 20 MB chunks, as the writer does before each write, for the default, for `compress_percent` 50
and for `dedupe_percent` 50, and for comparison fills blocks by os.urandom. What making the pool costs once per job is a row
of its own, in seconds. Target: at most 0.10 CPU s/GB each.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import zlib
from collections.abc import Mapping

from bench.table import report
from fury_agent.data import Data

TARGET = 0.10
CHUNK_BYTES = 20_000_768
URANDOM_BYTES = 100_000_000
SAMPLE_BLOCKS = 64
SAMPLE_BYTES = 8 << 20
KINDS: dict[str, dict[str, int]] = {
    "default": {},
    "compress_percent 50": {"compress_percent": 50},
    "dedupe_percent 50": {"dedupe_percent": 50},
}


def made(options: Mapping[str, int], *, block_bytes: int) -> tuple[Data, float]:
    """The data of one job, and the CPU seconds of making its pool."""
    began = time.process_time()
    data = Data(block_bytes=block_bytes, chunk_bytes=CHUNK_BYTES, identity="bench", seed="bench", **options)
    return data, time.process_time() - began


def cost(data: Data, *, block_bytes: int, size: int) -> float:
    """CPU seconds per GB of making so many bytes."""
    block, per_chunk, blocks = data.block, -(-CHUNK_BYTES // block_bytes), size // block_bytes
    began = time.process_time()
    for number in range(blocks):
        block(number // per_chunk, number % per_chunk)
    return (time.process_time() - began) / (blocks * block_bytes / 1e9)


def urandom_cost(*, block_bytes: int) -> float:
    """The same by os.urandom."""
    blocks = max(1, URANDOM_BYTES // block_bytes)
    began = time.process_time()
    for _ in range(blocks):
        os.urandom(block_bytes)
    return (time.process_time() - began) / (blocks * block_bytes / 1e9)


def looks(data: Data, *, block_bytes: int) -> str:
    """What zlib leaves of some blocks, and how many of their 4 KiB are repeats."""
    sample = b"".join(bytes(data.block(0, index)) for index in range(SAMPLE_BLOCKS))
    units = [sample[start : start + 4096] for start in range(0, SAMPLE_BLOCKS * block_bytes, 4096)]
    part = sample[:SAMPLE_BYTES]
    left, repeats = len(zlib.compress(part, 1)) / len(part), 1 - len(set(units)) / len(units)
    return f"zlib leaves {left:.1%}, {repeats:.1%} of 4 KiB are repeats"


def main() -> None:
    """Measure by turns, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--block-kb", type=int, default=1024)
    options = parser.parse_args()
    block_bytes, size = options.block_kb << 10, int(options.gigabytes * 1e9)
    rows: dict[str, list[float]] = {f"{kind}: CPU s/GB": [] for kind in (*KINDS, "os.urandom")}
    rows |= {f"{kind}: CPU s of the pool": [] for kind in KINDS}
    notes: dict[str, object] = {"block_kb": options.block_kb}
    for _ in range(options.rounds):
        for kind, settings in KINDS.items():
            data, pool_s = made(settings, block_bytes=block_bytes)
            rows[f"{kind}: CPU s of the pool"].append(pool_s)
            rows[f"{kind}: CPU s/GB"].append(cost(data, block_bytes=block_bytes, size=size))
        rows["os.urandom: CPU s/GB"].append(urandom_cost(block_bytes=block_bytes))
    for kind, settings in KINDS.items():
        median = statistics.median(rows[f"{kind}: CPU s/GB"])
        notes[kind] = looks(made(settings, block_bytes=block_bytes)[0], block_bytes=block_bytes)
        notes[f"{kind}, target"] = f"{'PASS' if median <= TARGET else 'miss'}, {median:.4f}, wanted ≤ {TARGET}"
    report("data_cost", rows, notes=notes)


if __name__ == "__main__":
    main()
