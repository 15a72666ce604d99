"""Memory of one agent by hand while it writes: resident set size, sampled four times a second.

    python -m bench.agent_memory [--chunk-mb 20] [--seconds 60] [--directory /var/tmp] [-- --jobs 4 …]

What follows `--` goes to the agent. Growth is the median of the last tenth over that of the second tenth.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import psutil

from bench.table import report


def main() -> None:
    """Run an agent, watch it, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunk-mb", type=int, default=20)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--directory", default="/var/tmp")
    parser.add_argument("more", nargs="*", help="options of the agent")
    options = parser.parse_args()
    argv = [sys.executable, "-m", "fury_agent", "memory", "--chunk-mb", str(options.chunk_mb)]
    argv += ["--seconds", str(options.seconds), "--directory", options.directory, *options.more]
    agent = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    process = psutil.Process(agent.pid)
    sizes: list[float] = []
    while agent.poll() is None:
        try:
            sizes.append(process.memory_info().rss / 2**20)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.25)
    if agent.wait():
        sys.exit(f"the agent ended with {agent.returncode}")
    settled = [size for size in sizes[8:] if size > 0]
    tenth = max(1, len(settled) // 10)
    report(
        "agent_memory",
        {
            "RSS, MiB": settled,
            "RSS, second tenth of the time": settled[tenth : 2 * tenth],
            "RSS, last tenth of the time": settled[-tenth:],
            "greatest RSS, MiB": [max(sizes)],
        },
        notes={"chunk_mb": options.chunk_mb, "seconds": options.seconds, "options": " ".join(options.more)},
    )


if __name__ == "__main__":
    main()
