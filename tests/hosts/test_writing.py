"""How it writes on real hosts of three Debian generations, as units with users of their own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.lab import Fleet

pytestmark = pytest.mark.hosts

REPO = Path(__file__).parents[2]
PLAYBOOK = str(Path(sys.executable).with_name("ansible-playbook"))
WAYS = [
    {"io": "direct", "jobs": 2, "verify": "readback", "ramp_seconds": 2},
    {"io": "sync", "files": "new", "rate_mb_s": 20, "compress_percent": 50, "dedupe_percent": 20, "seed": 7},
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way["io"])
def test_each_way_of_writing_is_what_the_results_say(fleet: Fleet, tmp_path: Path, way: dict[str, Any]) -> None:
    """What was asked for is in the parameters, what was found out in the honesty checks and facts, and all add up."""
    variables = {"chunk_mb": 2, "seconds": 6, "fury_results": str(tmp_path), "allow_few_rollovers": True, **way}
    argv = [PLAYBOOK, "-i", str(fleet.inventory(tmp_path / "inventory")), "run.yml", "-e", json.dumps(variables)]
    done = fleet.controller_run(argv, cwd=REPO)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "latest/summary.json").read_text())
    assert way.items() <= summary["parameters"].items()
    for agent in summary["agents"]:
        honesty = agent["honesty"]
        assert honesty["io_used"] == way["io"], agent["name"]
        assert honesty["process_bytes_ratio"] == pytest.approx(1, abs=0.02)
        assert agent["facts"]["file_system"]
        assert 5.9 < agent["seconds"] < 8
        assert (agent["ramp_bytes"] > 0) == ("ramp_seconds" in way)
        if "verify" in way:
            assert agent["read_bytes"] >= agent["written_bytes"] > 0
            assert agent["read_latency_seconds"]["p99"] > 0
        if "rate_mb_s" in way:
            assert agent["throughput_bytes_per_second"] == pytest.approx(20e6, rel=0.03)
