"""What a service may do on a host: measured by systemd itself, and tried by processes that would like to do more."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Template

from fury_controller import tree
from tests.hosts.lab import SUITES, Fleet, Host, HostSpec
from tests.hosts.test_host import LEFT, PLAYBOOK, REPO, UNIT, Place, wait_until

pytestmark = pytest.mark.hosts

MOST_EXPOSED = {"agent": 1.5, "collector": 2.0}
PASSWORD = "open-sesame"
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
def fleet(lab: None) -> Iterator[Fleet]:
    """A host of each Debian generation with a disk of its own, and a user who becomes root with a password."""
    keeper = f"""
        useradd --create-home keeper
        echo keeper:{PASSWORD} | chpasswd
        echo 'keeper ALL=(ALL:ALL) ALL' > /etc/sudoers.d/keeper
        cp -r /root/.ssh /home/keeper/.ssh
        chown -R keeper /home/keeper/.ssh"""
    with Fleet([HostSpec(name, suite, disk_mb=200) for name, suite in SUITES.items()]) as fleet:
        for host in fleet.hosts:
            host.run(["sh", "-ec", keeper])
        yield fleet


@pytest.fixture(scope="module")
def places(fleet: Fleet) -> Mapping[str, Place]:
    """The same hosts with the code under test."""
    agent = tree.agent_archive(os.uname().machine)
    return {host.name: Place(host, agent) for host in fleet.hosts}


@pytest.fixture(params=SUITES)
def place(places: Mapping[str, Place], request: pytest.FixtureRequest) -> Iterator[Place]:
    """Each of the three, left without anything of Fury's."""
    place = places[request.param]
    yield place
    place.call("everything")
    assert place.left() == []


def start(place: Place, name: str, directory: str, mode: str, *, base: str | None = None, **config: Any) -> None:
    """An agent without a collector, with secrets of its own, that writes for ten minutes if not told otherwise."""
    values = {"name": name, "run_id": "r1", "directory": "@DIRECTORY@", "state_directory": "@HOME@/state",
              "chunk_mb": 1, "seconds": 600, "free_floor_mb": 1, "rate_mb_s": 4, **config}  # fmt: skip
    unit = Template(UNIT.read_text()).render(
        fury_agent_config=values, fury_agent_lease_seconds=900, __fury_agent_known=True
    )
    _, refused = place.call(
        "start", name=name, mode=mode, base=base, run_id="r1", unit=unit, lease_s=900, directory=directory,
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


def result(place: Place, name: str) -> dict[str, Any]:
    """What an agent that ends has to say."""
    file = f"/var/lib/fury/agent-{name}/state/result.json"
    wait_until(lambda: place.host.run(["test", "-s", file], check=False).returncode == 0)
    found: dict[str, Any] = json.loads(place.sh(f"cat {file}"))
    return found


def storage(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of the storage, and the device whose counts were taken."""
    facts = {key: value for key, value in summary["facts"].items() if "bytes" not in key}
    options = set(facts.pop("mount_options").split(",")) - {"nosuid"}  # which NoNewPrivileges= adds
    return {**facts, "options": options, "counted": summary["honesty"]["block_device"]}


def test_an_agent_is_little_exposed_and_sees_its_storage_wherever_its_chunks_lie(place: Place) -> None:
    """It writes in the real directory, and tells the file system, device, mount point and counts of a process that sees all."""
    for name, (directory, make) in DIRECTORIES.items():
        place.sh(make.format(f"'{directory}'"))
        start(place, name, directory, "systemd")
    figures = {name: exposure(place.host, f"fury-agent-{name}.service") for name in DIRECTORIES}
    print(f"\nexposure of agents on {place.host.name}: {figures}")
    assert max(figures.values()) <= MOST_EXPOSED["agent"]
    logs = "/var/lib/fury/agent-*/agent.log"
    wait_until(lambda: int(place.sh(f"grep -l 'is writing' {logs} | wc -l; true")) == len(DIRECTORIES))
    told = place.sh(f"cat {logs}")
    for name, (directory, _) in DIRECTORIES.items():
        assert f"{name} is writing 1 MB chunks to {directory}/fury-{name} " in told
        assert place.sh(f"ls -A '{directory}/fury-{name}'").split() == [".fury.json", "chunk-0.dat", "chunk-1.dat"]
    place.sh("systemctl stop 'fury-agent-*.service'")
    found = {name: storage(result(place, name)) for name in DIRECTORIES}
    assert found["disk"]["mount_point"] == "/mnt/disk"
    assert found["disk"]["counted"].startswith("loop")
    place.call("everything")
    start(place, "disk", "/mnt/disk", "process", seconds=1, allow_few_rollovers=True)
    assert storage(result(place, "disk")) == found["disk"]
    assert {facts["mount_point"] for name, facts in found.items() if name not in ("disk", "tmp")} == {"/"}


def test_a_home_that_the_unit_would_hide_is_not_hidden(place: Place) -> None:
    """fury_base below /home or /tmp: the agent runs there as well, its own home is read-only to it but for its state."""
    for name, base in (("in-home", "/home/fury"), ("in-tmp", "/tmp/fury")):
        start(place, name, "/var/tmp", "systemd", base=base)
        assert exposure(place.host, f"fury-agent-{name}.service") <= MOST_EXPOSED["agent"]
        wait_until(lambda: "is writing" in place.sh(f"cat {base}/agent-{name}/agent.log"))  # noqa: B023


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
    script = 'for path; do if [ -d "$path" ]; then ls -A "$path"; else head -c 1 "$path"; fi && echo "READ $path"; done'

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


def play_argv(fleet: Fleet, directory: Path, *more: str, **variables: str) -> list[str]:
    """The command for a short run as ``keeper`` with these Ansible variables."""
    vars_ = "".join(f"{name}={value}\n" for name, value in variables.items())
    collector = "".join(f"\n[fury_collector]\n{name}\n" for name in more)
    inventory = fleet.inventory(directory / "inventory", f"[all:vars]\n{vars_}{collector}", user="keeper")
    known = {"chunk_mb": 1, "seconds": 5, "free_floor_mb": 1, "rate_mb_s": 5, "fury_results": f"{directory}/results"}
    return fleet.controller_argv([PLAYBOOK, "-i", str(inventory), "run.yml", "-e", json.dumps(known)])


def test_a_user_with_a_sudo_password_runs_units_of_little_exposure(fleet: Fleet, tmp_path: Path) -> None:
    """The collector too, on a host of its own; the password is told nowhere. (test_modes.py has one on Debian 13.)"""
    tree.collector_archive(os.uname().machine, "3.11")  # here, where there is a way to the package index
    argv = play_argv(fleet, tmp_path, "deb12", ansible_become="true", ansible_become_password=PASSWORD)
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(argv, cwd=REPO, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: "started:" in (tmp_path / "output").read_text() or process.poll() is not None, 90)
        host = fleet.host("deb12")
        figure = exposure(host, "fury-collector-9475.service")
        user = host.run(["systemctl", "show", "-p", "User", "--value", "fury-collector-9475"]).stdout.strip()
        assert process.wait(90) == 0, (tmp_path / "output").read_text()
    finally:
        if process.poll() is None:
            process.kill()
    print(f"\nexposure of the collector on {host.name}: {figure}")
    assert figure <= MOST_EXPOSED["collector"]
    assert user == "fury-collector-9475"
    told = "".join(
        path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file() and path.name != "inventory"
    )
    assert PASSWORD not in told
    for host in fleet.hosts:
        assert host.run(["sh", "-c", LEFT.replace("-o -path '/srv/*'", "")]).stdout == ""


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"fury_mode": "systemd"}, ["deb11: ", "systemd is not possible here", "the user is uid", "--become"]),
        ({"ansible_become": "true"}, ["deb11: ", "sudo password"]),
        ({"ansible_become": "true", "ansible_become_password": "wrong"}, ["deb11: ", "sudo password"]),
    ],
    ids=["not asked for", "no password", "wrong password"],
)
def test_who_cannot_become_root_is_told(
    fleet: Fleet, tmp_path: Path, variables: dict[str, str], says: list[str]
) -> None:
    """In a sentence for each host, and nothing is changed there."""
    done = subprocess.run(play_argv(fleet, tmp_path, **variables), cwd=REPO, capture_output=True, text=True, timeout=60)
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "Traceback" not in output
    assert any(all(word in line for word in says) for line in output.splitlines()), output
    assert "nothing was changed on any host" in output
    for host in fleet.hosts:
        assert host.run(["sh", "-c", LEFT.replace("-o -path '/srv/*'", "")]).stdout == ""
