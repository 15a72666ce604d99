"""A collector of a benchmark's own on loopback, in plain HTTP unless credentials are given."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def plan(run_id: str, agents: Sequence[Mapping[str, Any]], **parameters: Any) -> dict[str, Any]:
    """A run's plan for agents of {"name": …}; what they don't say is the same for all benchmarks."""
    common = {"host": "bench", "chunk_mb": 20, "seconds": 604_800, "directory": "/var/tmp"}
    return {
        "run_id": run_id,
        "created_at": "2026-01-01T00:00:00Z",
        "parameters": parameters,
        "agents": [{**common, **agent} for agent in agents],
    }


@contextlib.contextmanager
def collector(
    directory: Path,
    document: Mapping[str, Any],
    *options: str,
    database: Path | None = None,
    credentials: Path | None = None,
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The process and its URL, once it listens; killed at the end if it is still there. Its output is in output.txt."""
    (directory / "plan.json").write_text(json.dumps(document))
    state = directory / "collector.json"
    argv = [sys.executable, "-m", "fury_collector", "serve", "--plan", str(directory / "plan.json"), "--port", "0"]
    argv += ["--plain-http"] if credentials is None else ["--credentials-directory", str(credentials)]
    argv += ["--database", str(database or directory / "fury.db"), "--state-file", str(state), *options]
    with (directory / "output.txt").open("wb") as output:
        process = subprocess.Popen(argv, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    try:
        while not state.exists():
            if process.poll() is not None:
                sys.exit(f"the collector did not start: {(directory / 'output.txt').read_text()}")
            time.sleep(0.05)
        yield process, json.loads(state.read_text())["url"]
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
