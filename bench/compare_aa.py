"""What `fury_collector compare` says of runs that do not differ, and of runs that are 15 % slower: real agents, by turns.

    python -m bench.compare_aa [--rounds 20] [--seconds 20] [--rate-mb-s 100] [--directory /var/tmp] [--keep DIR] [--from DIR]

A round is four runs of two agents with a collector on loopback: two as fast as it goes (unpaced), one paced at
``--rate-mb-s`` an agent and one paced 15 % lower; every second round has a fifth, paced to 85 % of what the round's first
unpaced run did. Odd rounds go through theirs backwards (ABBA), so that a drift of the machine is not taken for a
difference. --keep leaves the databases, --from judges those that an earlier call has left, without a new run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
AGENTS = ("alecto", "megaera")
SLOWER = 0.85


def make_run(
    home: Path,
    run_id: str,
    *,
    seconds: int,
    rate_mb_s: int | None = None,
    chunk_mb: int = 20,
    ramp_seconds: int = 0,
    sample_seconds: int = 10,
    agents: Sequence[str] = AGENTS,
) -> Path:
    """A real run of agents on this machine, all its events in the database whose path is returned."""
    with tempfile.TemporaryDirectory(prefix="fury-aa-", dir=home) as name:
        here = Path(name)
        (here / "data").mkdir()
        database, state = home / f"{run_id}.db", here / "collector.json"
        plan = {
            "run_id": run_id,
            "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "parameters": {
                "chunk_mb": chunk_mb,
                "seconds": seconds,
                "ramp_seconds": ramp_seconds,
                "rate_mb_s": rate_mb_s,
            },
            "agents": [
                {
                    "name": agent,
                    "host": "bench",
                    "chunk_mb": chunk_mb,
                    "seconds": seconds + ramp_seconds,
                    "ramp_seconds": ramp_seconds,
                    "directory": str(here / "data"),
                }
                for agent in agents
            ],
        }
        (here / "plan.json").write_text(json.dumps(plan))
        argv = [sys.executable, "-m", "fury_collector", "serve", "--plan", str(here / "plan.json"), "--port", "0"]
        argv += ["--database", str(database), "--state-file", str(state)]
        collector = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        writers: list[subprocess.Popen[bytes]] = []
        try:
            while not state.exists():
                if collector.poll() is not None:
                    raise RuntimeError("the collector did not start")
                time.sleep(0.05)
            for agent in agents:
                (here / agent).mkdir()
                argv = [sys.executable, "-m", "fury_agent", agent, "--run-id", run_id, "--chunk-mb", str(chunk_mb)]
                argv += ["--seconds", str(seconds), "--ramp-seconds", str(ramp_seconds)]
                argv += ["--sample-seconds", str(sample_seconds), "--directory", str(here / "data")]
                argv += ["--state-directory", str(here / agent), "--collector-url", json.loads(state.read_text())["url"]]
                argv += ["--rate-mb-s", str(rate_mb_s)] if rate_mb_s is not None else []
                writers.append(
                    subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                )
            codes = [writer.wait() for writer in writers]
            if any(codes):
                raise RuntimeError(f"the agents of {run_id} ended with {codes}")
            collector.wait(60)
        finally:
            for process in (*writers, collector):
                if process.poll() is None:
                    process.kill()
                    process.wait()
    os.sync()  # the next run does not pay for what this one left to write back
    return database
