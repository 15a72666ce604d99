"""The other ways to run: plain processes, a normal user with and without sudo, a collector on a host of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fury_controller import tree
from tests.hosts.lab import Fleet
from tests.hosts.test_run import NAMES, PLAYBOOK, REPO, snapshot

pytestmark = pytest.mark.hosts


def play(fleet: Fleet, directory: Path, *, inventory: str = "", user: str = "root", **variables: Any) -> dict[str, Any]:
    """A short run over the fleet that must pass; its summary."""
    path = fleet.inventory(directory / "inventory", inventory, user=user)
    known = {"chunk_mb": 5, "seconds": 4, "fury_results": f"{directory}/results", **variables}
    done = fleet.controller_run([PLAYBOOK, "-i", str(path), "run.yml", "-e", json.dumps(known)], cwd=REPO)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("PASS: ")
    summary: dict[str, Any] = json.loads((directory / "results/latest/summary.json").read_text())
    assert [agent["name"] for agent in summary["agents"]] == list(NAMES)
    return summary


def test_a_plain_process_does_the_same_and_leaves_nothing(fleet: Fleet, tmp_path: Path) -> None:
    """fury_mode=process on hosts that have systemd: no unit, no user, same results."""
    before = snapshot(fleet)
    play(fleet, tmp_path, fury_mode="process")
    assert snapshot(fleet) == before


def test_a_user_with_sudo_runs_units(fleet: Fleet, tmp_path: Path) -> None:
    """ansible_become=true: the agent still runs as its own user, and the user's home stays as it was."""
    before = snapshot(fleet)
    play(fleet, tmp_path, user="operator", inventory="[fury_agents:vars]\nansible_become=true\n")
    after = snapshot(fleet)
    for name in NAMES:
        assert {line for line in after[name] - before[name] if "/.ansible" not in line} == set()


def test_a_user_without_root_runs_processes(fleet: Fleet, tmp_path: Path) -> None:
    """No sudo asked for: everything runs as that user and below its home."""
    before = snapshot(fleet)
    play(fleet, tmp_path, user="operator")
    after = snapshot(fleet)
    for name in NAMES:
        left = {line for line in after[name] - before[name] if "/.ansible" not in line}
        assert left <= {"/home/operator/.local", "/home/operator/.local/state"}


def test_a_collector_on_a_host_of_its_own(fleet: Fleet, tmp_path: Path) -> None:
    """It is brought there with its libraries, found by the others, gathered, and removed again."""
    tree.collector_archive(os.uname().machine, "3.13")  # here, where there is a way to the package index
    before = snapshot(fleet)
    summary = play(fleet, tmp_path, inventory="[fury_collector]\ndeb13\n")
    assert summary["fleet"]["rollovers"] > 0
    assert (tmp_path / "results/latest/collector.log").read_text()
    assert snapshot(fleet) == before


LATE = """#!/bin/sh
LD_PRELOAD=$(ls /usr/lib/*/faketime/libfaketime.so.1) FAKETIME=%s exec /usr/bin/python3 "$@"
"""


@pytest.mark.parametrize(("shift", "told"), [("+2h", "ahead of"), ("-2h", "behind")])
def test_a_host_whose_clock_is_off_is_refused_before_anything_is_changed(
    fleet: Fleet, tmp_path: Path, shift: str, told: str
) -> None:
    """The run's certificates would not be valid there; only Python's clock is shifted."""
    script = fleet.host("deb12").root / "usr/local/bin/late-python"
    script.write_text(LATE % shift)
    script.chmod(0o755)
    before = snapshot(fleet)
    try:
        late = "[fury_agents]\ndeb12 ansible_python_interpreter=/usr/local/bin/late-python\n"
        path = fleet.inventory(tmp_path / "inventory", late)
        argv = [PLAYBOOK, "-i", str(path), "run.yml", "-e", "chunk_mb=5", "-e", "seconds=4"]
        done = fleet.controller_run([*argv, "-e", f"fury_results={tmp_path}/results"], cwd=REPO)
        assert done.returncode != 0
        (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert sentence.startswith("error: deb12: its clock is 7"), sentence
        assert f" s {told} the controller's, and up to 3000 s are allowed" in sentence
        assert "PRECONDITION: nothing was changed on any host" in done.stdout
        assert snapshot(fleet) == before
    finally:
        script.unlink()
