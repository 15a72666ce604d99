"""Wall time of `make run` from a fresh clone, where everything has to be set up, and of the second run.

python -m bench.fresh_clone [--minutes 1]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.table import report

REPO = Path(__file__).parents[1]


def main() -> None:
    """Clone the last commit, run twice, and print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=1)
    options = parser.parse_args()
    rows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="fury-bench-") as name:
        clone = Path(name) / "fury"
        subprocess.run(["git", "clone", "--quiet", str(REPO), str(clone)], check=True)
        for which in ("first run, wall s", "second run, wall s"):
            begun = time.monotonic()
            done = subprocess.run(
                ["make", "run", f"MINUTES={options.minutes}"], cwd=clone, capture_output=True, text=True, check=False
            )
            if done.returncode:
                sys.exit(f"make run ended with {done.returncode}:\n{done.stdout}{done.stderr}")
            rows[which] = [time.monotonic() - begun]
        print(done.stdout)
    report("fresh_clone", rows, notes={"minutes": options.minutes})


if __name__ == "__main__":
    main()
