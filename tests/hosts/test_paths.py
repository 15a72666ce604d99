"""Directories with names and of kinds that break things: each works from end to end, or is refused before anything is changed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.lab import SUITES, Fleet, HostSpec
from tests.hosts.test_host import LEFT, PLAYBOOK, REPO

pytestmark = pytest.mark.hosts

LONG = "/srv" + "/".join(["", *("l" * 250 for _ in range(14)), "end"])
# What is given, what is made for it on the host, and what it really is.
GOOD = {
    "link": ("/srv/link", "mkdir /srv/real; ln -s real /srv/link", "/srv/real"),
    "hidden-link": ("/home/operator/link", "mkdir /mnt/far; ln -s /mnt/far /home/operator/link", "/mnt/far"),
    "dots": ("/srv/../srv/./dots//d/..", "mkdir -p /srv/dots/d", "/srv/dots"),
    "specials": ("/srv/%n%h%% $X${HOME} a:b:", "mkdir '/srv/%n%h%% $X${HOME} a:b:'", ""),
    "quotes": ('/srv/ it\'s "q"  \\x größe-ひ ', "mkdir '/srv/ it'\\''s \"q\"  \\x größe-ひ '", ""),
    "placeholder": ("/srv/@HOME@@USER@", "mkdir /srv/@HOME@@USER@", ""),
    "long": (LONG, f"mkdir -p {LONG}", ""),
    "tmpfs": ("/srv/memory", "mkdir /srv/memory; mount -t tmpfs -o size=50m none /srv/memory", ""),
}
# What is given, what is made for it, and what has to be said of it.
HOSTS_REFUSE = {
    "read-only": ("/srv/ro", "mkdir /srv/ro; mount -t tmpfs -o ro none /srv/ro", ["/srv/ro", "read-only", "name another"]),
    "missing": ("/srv/none", "true", ["/srv/none does not exist", "name another"]),
    "dangling": ("/srv/gone", "ln -s /srv/nowhere /srv/gone", ["/srv/gone", "/srv/nowhere", "does not exist"]),
    "system": ("/srv/etc", "ln -s /etc /srv/etc", ["/srv/etc (really /etc)", "system's own", "name one"]),
    "a-file": ("/srv/file", "touch /srv/file", ["/srv/file is not a directory", "name another"]),
    "not-utf8": ("/srv/raw", "mkdir \"$(printf '/srv/\\377')\"; ln -s \"$(printf '/srv/\\377')\" /srv/raw",
                 ["/srv/raw is really", "UTF-8"]),
}  # fmt: skip
CONTROLLER_REFUSES = {
    "newline": "/srv/a\nExecStartPre=/bin/false",
    "nul": "/srv/a\0b",
    "escape": "/srv/\x1b[2J",
    "too-long": "/" + "x/" * 2048,
    "relative": "srv",
    "dots-out": "/srv/../etc",
}


@pytest.fixture(scope="module")
def fleet(lab: None) -> Iterator[Fleet]:
    """The oldest and the newest systemd, with all the directories above."""
    made = [make for _, make, _ in (*GOOD.values(), *HOSTS_REFUSE.values())]
    with Fleet([HostSpec(name, SUITES[name]) for name in ("deb11", "deb13")]) as fleet:
        for host in fleet.hosts:
            host.run(["sh", "-ec", "umask 022\n" + "\n".join(made)])
        yield fleet


def play(fleet: Fleet, directory: Path, given: dict[str, str], mode: str) -> subprocess.CompletedProcess[str]:
    """A short run of one agent for each of these directories, on both hosts in turn."""
    inventory: dict[str, Any] = {
        name: {"ansible_host": fleet.hosts[number % len(fleet.hosts)].address, "directory": path}
        for number, (name, path) in enumerate(given.items())
    }
    plain = fleet.inventory(directory / "plain").read_text()
    shared = dict(line.split("=", 1) for line in plain.splitlines() if line.startswith("ansible_"))
    group = {"hosts": inventory, "vars": {name: value.strip("'") for name, value in shared.items()}}
    (directory / "inventory.json").write_text(json.dumps({"fury_agents": group}))
    known = {"chunk_mb": 1, "seconds": 3, "rate_mb_s": 5, "free_floor_mb": 1, "fury_mode": mode}
    known["fury_collector_port"] = 39475  # other tests' collectors run on this machine, too
    argv = [PLAYBOOK, "-i", str(directory / "inventory.json"), "run.yml", "-f", "6", "-e", json.dumps(known)]
    return fleet.controller_run([*argv, "-e", f"fury_results={directory}/results"], cwd=REPO)


def left(fleet: Fleet) -> list[set[str]]:
    """Whatever is Fury's on the hosts, and all that lies where the directories are."""
    script = f"{{ {LEFT} find /srv /mnt /home/operator -xdev; find /srv/memory; }} | tr -d '\\377'"
    return [set(host.run(["sh", "-c", script]).stdout.splitlines()) for host in fleet.hosts]


def one_sentence(output: str, says: Sequence[str]) -> bool:
    """Whether a line of the output has all of these, and is of a length for people."""
    return any(all(word in line for word in says) and len(line) < 500 for line in output.splitlines())


@pytest.mark.parametrize("mode", ["systemd", "process"])
def test_each_of_these_directories_works_and_is_left_as_it_was(fleet: Fleet, tmp_path: Path, mode: str) -> None:
    """Whatever its name means to systemd, a shell, Jinja or JSON; what is memory is said on the terminal."""
    before = left(fleet)
    done = play(fleet, tmp_path, {name: given for name, (given, _, _) in GOOD.items()}, mode)
    assert done.returncode == 0, done.stdout + done.stderr
    assert left(fleet) == before
    assert one_sentence(done.stdout, ["tmpfs", "the directory is memory, not a disk"])
    summary = json.loads((tmp_path / "results/latest/summary.json").read_text())
    facts = {agent["name"]: agent["facts"] for agent in summary["agents"]}
    assert facts["tmpfs"]["file_system"] == "tmpfs"
    assert facts["tmpfs"]["mount_point"] == "/srv/memory"
    for name, (given, _, real) in GOOD.items():
        assert facts[name]["mount_point"] == ("/srv/memory" if name == "tmpfs" else "/"), name
        log = (tmp_path / f"results/latest/agents/{name}/agent.log").read_text()
        assert f"is writing 1 MB chunks to {real or given}/fury-{name} " in log


@pytest.mark.parametrize("mode", ["systemd", "process"])
def test_what_a_host_refuses_is_said_before_anything_is_changed(fleet: Fleet, tmp_path: Path, mode: str) -> None:
    """One sentence for each: the field, its value, what to do."""
    before = left(fleet)
    done = play(fleet, tmp_path, {name: given for name, (given, _, _) in HOSTS_REFUSE.items()}, mode)
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "Traceback" not in output
    assert output.splitlines()[-1] == "PRECONDITION: nothing was changed on any host" or "PRECONDITION" in output
    for name, (_, _, says) in HOSTS_REFUSE.items():
        assert one_sentence(output, [f"{name}: directory: ", *says]), (name, output)
    assert left(fleet) == before


def test_what_the_controller_refuses_never_gets_to_a_host(fleet: Fleet, tmp_path: Path) -> None:
    """Newline, NUL, escapes, 4,096 characters: the field, what is allowed, an example."""
    before = left(fleet)
    done = play(fleet, tmp_path, CONTROLLER_REFUSES, "auto")
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "Traceback" not in output
    assert "\x1b[2J" not in output
    for name in CONTROLLER_REFUSES:
        assert one_sentence(output, [name, "directory: ", "an absolute path", "/var/tmp"]), (name, output)
    assert not (tmp_path / "results").exists()
    assert left(fleet) == before
