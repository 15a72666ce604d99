"""What a service may do on a host: measured by systemd itself, and tried by processes that would like to do more."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Template

from fury_controller import tree
from tests.hosts.lab import SUITES, Fleet, Host, HostSpec
from tests.hosts.test_host import PLAYBOOK, REPO, UNIT, Place, wait_until

pytestmark = pytest.mark.hosts

MOST_EXPOSED = {"agent": 1.5, "collector": 2.0}
SECRETS = ("ca.pem", "token", "metrics.pem", "readers")
# Each kind of place for a chunk directory, with the modes of what is made for it.
DIRECTORIES = {
    "home": ("/home/operator/data", "install -d -o operator -m 700 /home/operator; install -d -o operator {}"),
    "tmp": ("/tmp", "true"),
    "vartmp": ("/var/tmp", "true"),
    "mnt": ("/mnt/x", "install -d {}"),
    "disk": ("/mnt/disk", "true"),
    "spaces": ("/mnt/two words, and  more", "install -d {}"),
    "shut": ("/root/x", "install -d -m 700 /root {}"),
}


@pytest.fixture(scope="module")
def places(lab: None) -> Iterator[Mapping[str, Place]]:
    """A host of each Debian generation with a disk of its own."""
    agent = tree.agent_archive(os.uname().machine)
    with Fleet([HostSpec(name, suite, disk_mb=200) for name, suite in SUITES.items()]) as fleet:
        yield {host.name: Place(host, agent) for host in fleet.hosts}


@pytest.fixture(params=SUITES)
def place(places: Mapping[str, Place], request: pytest.FixtureRequest) -> Iterator[Place]:
    """Each of the three, left without anything of Fury's."""
    place = places[request.param]
    yield place
    place.call("everything")
    assert place.left() == []


def start(place: Place, name: str, directory: str, mode: str, **config: Any) -> None:
    """An agent without a collector, with secrets of its own, that writes for ten minutes if not told otherwise."""
    values = {"name": name, "run_id": "r1", "directory": "@DIRECTORY@", "state_directory": "@HOME@/state",
              "chunk_mb": 1, "seconds": 600, "free_floor_mb": 1, **config}  # fmt: skip
    unit = Template(UNIT.read_text()).render(
        fury_agent_config=values, fury_agent_lease_seconds=900, __fury_agent_known=True
    )
    _, refused = place.call(
        "start", name=name, mode=mode, run_id="r1", unit=unit, lease_s=900, directory=directory,
        argv=["@PYTHON@", "-s", "-m", "fury_agent.supervisor", "--config", "@HOME@/config.json"],
        files={"config.json": json.dumps(values)}, secrets={secret: f"{secret} of {name}" for secret in SECRETS},
        **place.program)  # fmt: skip
    assert not refused


def exposure(host: Host, unit: str) -> float:
    """By `systemd-analyze security` of the running unit."""
    said = host.run(["systemd-analyze", "security", "--no-pager", unit], check=False).stdout
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert found, said
    return float(found[1])


def test_an_agent_is_little_exposed_wherever_its_chunks_lie(place: Place) -> None:
    """It writes at once, in the real directory, which its log names; what it is allowed is the same everywhere."""
    for name, (directory, make) in DIRECTORIES.items():
        place.sh(make.format(f"'{directory}'"))
        start(place, name, directory, "systemd")
    figures = {name: exposure(place.host, f"fury-agent-{name}.service") for name in DIRECTORIES}
    print(f"\nexposure on {place.host.name}: {figures}")
    assert max(figures.values()) <= MOST_EXPOSED["agent"]
    for name, (directory, _) in DIRECTORIES.items():
        log = f"/var/lib/fury/agent-{name}/agent.log"
        wait_until(lambda log=log: "is writing" in place.sh(f"cat {log}"))  # type: ignore[misc]
        assert f"is writing 1 MB chunks to {directory}/fury-{name} " in place.sh(f"cat {log}")
        assert place.sh(f"ls -A '{directory}/fury-{name}'").split() == [".fury.json", "chunk-0.dat", "chunk-1.dat"]


def test_the_facts_are_those_of_the_real_directory(place: Place) -> None:
    """File system, device, mount point and the kernel's counts are the same as for a plain process, which sees all."""
    found = {}
    for mode in ("process", "systemd"):
        for name, (directory, make) in DIRECTORIES.items():
            place.sh(make.format(f"'{directory}'"))
            start(place, name, directory, mode, seconds=1, allow_few_rollovers=True)
        for name in DIRECTORIES:
            result = f"/var/lib/fury/agent-{name}/state/result.json"
            wait_until(lambda result=result: bool(place.sh(f"cat {result} 2>/dev/null; true")))  # type: ignore[misc]
            summary = json.loads(place.sh(f"cat {result}"))
            assert summary["verdict"] == "PASS", summary["reason"]
            assert summary["honesty"]["process_bytes_ratio"] == pytest.approx(1, abs=0.05) or name == "tmp"
            facts = {key: value for key, value in summary["facts"].items() if "bytes" not in key}
            options = set(facts.pop("mount_options").split(",")) - {"nosuid"}  # NoNewPrivileges= makes it so
            found[mode, name] = {**facts, "options": options, "device": summary["honesty"]["block_device"]}
        place.call("everything")
    for name in DIRECTORIES:
        assert found["systemd", name] == found["process", name]
    assert found["systemd", "disk"]["mount_point"] == "/mnt/disk"
    assert found["systemd", "disk"]["device"].startswith("loop")


def test_two_agents_on_one_host_cannot_read_each_other(place: Place) -> None:
    """Not as the other's user and not inside its unit: secrets, configuration, journal, log, chunks, memory."""
    for name in ("a", "b"):
        start(place, name, "/var/tmp", "systemd")
    home, unit = "/var/lib/fury/agent-b", "fury-agent-b.service"
    pids = {name: place.sh(f"systemctl show -p MainPID --value fury-agent-{name}").strip() for name in ("a", "b")}
    wait_until(lambda: place.sh(f"test -e {home}/state/result.json -o -s /var/tmp/fury-b/chunk-0.dat && echo y") != "")
    foreign = [*(f"{home}/secrets/{secret}" for secret in SECRETS), f"/run/credentials/{unit}/token",
               f"{home}/config.json", f"{home}/agent.log", f"{home}/service.json", f"{home}/state",
               "/var/tmp/fury-b", "/var/tmp/fury-b/.fury.json", "/var/tmp/fury-b/chunk-0.dat",
               f"/proc/{pids['b']}/environ", f"/proc/{pids['b']}/mem", f"/proc/{pids['b']}/fd"]  # fmt: skip
    script = "for path; do if [ -d \"$path\" ]; then ls -A \"$path\"; else head -c 1 \"$path\"; fi && echo \"READ $path\"; done"

    def read(inside: str, user: str) -> set[str]:
        enter = f"nsenter --target {pids[inside]} --mount -- " if inside else ""
        paths = " ".join(foreign)
        said = place.sh(f"{enter}setpriv --reuid {user} --regid {user} --clear-groups "
                        f"sh -c '{script}' sh {paths} 2>/dev/null; true")  # fmt: skip
        return set(re.findall(r"READ (\S+)", said))

    user = {name: place.sh(f"id -u fury-agent-{name}").strip() for name in ("a", "b")}
    assert read("", user["a"]) == set()
    assert read("a", user["a"]) == set()
    assert f"/run/credentials/{unit}/token" in read("b", user["b"])  # its own
    assert f"{home}/secrets/token" not in read("b", user["b"])  # which only root needs
    assert read("", user["b"]) >= {f"{home}/config.json", "/var/tmp/fury-b/chunk-0.dat"}
