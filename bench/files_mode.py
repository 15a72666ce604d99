"""Writing over preallocated files against making a new file for each chunk (`files: reuse` and `new`), in turns.

    python -m bench.files_mode [--chunk-mb 20] [--seconds 5] [--rounds 5] [--directory /var/tmp]

What differs: `new` unlinks the file that a chunk replaces, makes the new one, lets the file system find blocks for it, and makes
its name durable with an fsync of the directory after its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.table import report
from bench.write_path import Case, Run, measured


def main() -> None:
    """Measure both in turns, and print rates, CPU and the ratio of each pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunk-mb", type=int, default=20)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    options = parser.parse_args()
    rows: dict[str, list[float]] = {}
    for io in ("buffered", "direct"):
        case = Case(io, 1, 1, options.chunk_mb)
        done: dict[str, list[Run]] = {"reuse": [], "new": []}
        for number in range(options.rounds):
            for files in sorted(done, reverse=bool(number % 2)):
                more = ("--files", files)
                done[files].append(measured("Fury", case, options.directory, seconds=options.seconds, more=more))
        for files, runs in done.items():
            rows[f"{io}, {files}: MB/s"] = [run.rate_mb_s for run in runs]
            rows[f"{io}, {files}: CPU s/GB"] = [run.cpu_s_per_gb for run in runs]
        pairs = zip(done["new"], done["reuse"], strict=True)
        rows[f"{io}: rate, new / reuse"] = [new.rate_mb_s / reuse.rate_mb_s for new, reuse in pairs]
    report("files_mode", rows, notes={"chunk_mb": options.chunk_mb, "directory": str(options.directory)})


if __name__ == "__main__":
    main()
