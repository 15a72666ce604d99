"""Each role on bare hosts: check mode, converge, converge again with nothing changed, remove, remove again."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fury_controller import tree
from tests.hosts.lab import Fleet
from tests.hosts.test_run import NAMES, snapshot

pytestmark = pytest.mark.hosts

REPO = Path(__file__).parents[2]
PLAYBOOK = str(Path(sys.executable).with_name("ansible-playbook"))

VARIABLES = {
    "fury_agent": {
        "fury_agent_config": {
            "name": "probe",
            "run_id": "roles-1",
            "chunk_mb": 1,
            "seconds": 600,
            "directory": "/var/tmp",
            "free_floor_mb": 1,
            "plain_http": True,
            "collector_url": "http://127.0.0.1:1",  # nobody there: the agent stays armed
        },
        "fury_agent_lease_seconds": 900,
    },
    "fury_collector": {
        "fury_collector_plan": {
            "run_id": "roles-1",
            "created_at": "2026-01-01T00:00:00Z",
            "parameters": {},
            "agents": [{"name": "probe", "host": "h", "chunk_mb": 1, "seconds": 60, "directory": "/var/tmp"}],
        },
        "fury_collector_is_controller": False,
        "fury_collector_lease_seconds": 900,
    },
}
UNIT = {"fury_agent": "fury-agent-probe.service", "fury_collector": "fury-collector-9475.service"}
# The collector needs Python 3.11.
HOSTS = {"fury_agent": NAMES, "fury_collector": ("deb12", "deb13")}


class Applied:
    """One role, applied to the fleet as often as asked."""

    def __init__(self, fleet: Fleet, directory: Path, role: str) -> None:
        self.fleet, self.role = fleet, role
        self.inventory = fleet.inventory(directory / "inventory")
        self.variables = directory / "variables.json"
        self.variables.write_text(json.dumps({**VARIABLES[role], "role": role}))

    def play(self, wanted: str, *more: str) -> dict[str, int]:
        """Changed tasks by host; fails the test if the play fails."""
        argv = [PLAYBOOK, "-i", str(self.inventory), "tests/hosts/role.yml", "-e", f"@{self.variables}"]
        argv += ["-e", f"wanted={wanted}", "--limit", ",".join(HOSTS[self.role]), *more]
        environment = {**os.environ, "ANSIBLE_STDOUT_CALLBACK": "default", "ANSIBLE_CONFIG": str(REPO / "ansible.cfg")}
        done = self.fleet.controller_run(argv, env=environment, cwd=REPO)
        assert done.returncode == 0, done.stdout + done.stderr
        return {name: int(count) for name, count in re.findall(r"^(\S+) +: ok=\d+ +changed=(\d+)", done.stdout, re.M)}


@pytest.fixture(params=["fury_agent", "fury_collector"])
def applied(request: pytest.FixtureRequest, fleet: Fleet, tmp_path: Path) -> Iterator[Applied]:
    """A role that is removed again, however the test ends."""
    if request.param == "fury_collector":  # the controller's namespace has no way to a package index: built beforehand
        for python in ("3.11", "3.13"):
            tree.collector_archive(os.uname().machine, python)
    role = Applied(fleet, tmp_path, request.param)
    yield role
    role.play("absent")


def test_a_role_comes_and_goes_without_a_trace(applied: Applied, fleet: Fleet) -> None:
    """--check tells of a change and makes none; the second converge changes nothing; removal leaves nothing, also twice."""
    hosts = HOSTS[applied.role]
    before = snapshot(fleet)
    assert applied.play("present", "--check") == dict.fromkeys(hosts, 1)
    assert snapshot(fleet) == before
    assert applied.play("present") == dict.fromkeys(hosts, 1)
    for name in hosts:
        assert fleet.host(name).run(["systemctl", "is-active", UNIT[applied.role]]).stdout.strip() == "active"
    assert applied.play("present") == dict.fromkeys(hosts, 0)
    assert applied.play("absent", "--check") == dict.fromkeys(hosts, 1)
    for name in hosts:
        assert fleet.host(name).run(["systemctl", "is-active", UNIT[applied.role]]).stdout.strip() == "active"
    assert applied.play("absent") == dict.fromkeys(hosts, 1)
    assert snapshot(fleet) == before
    assert applied.play("absent") == dict.fromkeys(hosts, 0)


@pytest.mark.parametrize("role", ["fury_agent", "fury_collector"])
def test_defaults_argument_specs_and_readme_agree(role: str) -> None:
    """Every default is specified with the same value, and the README lists exactly the variables that are specified."""
    top = REPO / "roles" / role
    defaults = yaml.safe_load((top / "defaults/main.yml").read_text())
    entries = yaml.safe_load((top / "meta/argument_specs.yml").read_text())["argument_specs"]
    options = entries["main"]["options"]
    assert {name: spec["default"] for name, spec in options.items() if "default" in spec} == defaults
    assert {p.stem for p in (top / "tasks").glob("*.yml")} == set(entries)
    listed = re.findall(rf"^\| `({role}_\w+)` \|", (top / "README.md").read_text(), re.M)
    assert listed == list(options)
