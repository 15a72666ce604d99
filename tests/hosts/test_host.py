"""Nothing left behind, nothing foreign touched: what the host's side does when things go wrong, on real hosts and here."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2 import Template

from fury_controller import tree
from plugins.module_utils import fury_host
from plugins.module_utils.fury_host import HostError, Service, remove_everything
from tests.hosts.lab import Fleet, Host, HostSpec

REPO = Path(__file__).parents[2]
PLAYBOOK = str(Path(sys.executable).with_name("ansible-playbook"))
HOST_CODE = REPO / "plugins/module_utils/fury_host.py"
UNIT = REPO / "roles/fury_agent/templates/fury-agent.service.j2"

# Stands for an agent: puts a chunk where one would, and waits; told so, it doesn't mind SIGTERM.
STAND_IN = """
import json, os, signal, sys, time
config = json.load(open(sys.argv[1]))
if config.get("stubborn"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open(os.path.join(config["directory"], "fury-" + config["name"], "chunk-0.dat"), "w") as chunk:
    chunk.write("data")
print("there", flush=True)
time.sleep(600)
"""
STAND_IN_UNIT = """[Service]
User=@USER@
ExecStart=@PYTHON@ -s -B -m fury_stand_in @HOME@/config.json
WorkingDirectory=@HOME@/tree
"""
# Calls fury_host on a host as the Ansible module does; a traceback fails the test.
DRIVER = """
import json, os, sys
sys.path.insert(0, "/opt/lab")
import fury_host
asked = json.loads(sys.argv[1])
for name, value in asked.get("set", {}).items():
    setattr(fury_host, name, value)
os.umask(asked.get("umask", 0o022))
try:
    if asked["do"] == "everything":
        said = fury_host.remove_everything(**asked["with"])
    else:
        said = getattr(fury_host.Service(**asked["service"]), asked["do"])(**asked["with"])
    print(json.dumps([said, None]))
except fury_host.HostError as error:
    print(json.dumps([None, str(error)]))
"""
LEFT = r"""
find / /mnt -xdev \( -path /proc -o -path /sys -o -path /opt/lab -o -path /var/log -o -path /run/host -o -path /usr \
     -o -path '*/tree/*' \) -prune -o \( -name '*fury-[acr]*' -o -path '/var/lib/fury*' -o -path '/srv/*' \) -print
getent passwd | grep ^fury-; getent group | grep ^fury-
systemctl list-units --all --no-legend --no-pager 'fury-*'; systemctl list-unit-files --no-legend --no-pager 'fury-*'
ps -eo args --no-headers | grep -e '-m fury_' -e fury_host | grep -v grep
true
"""


def archive(path: Path, *, agent: Path | None = None) -> dict[str, Any]:
    """A program's archive with the host's code, impatient, and the stand-in; with the agent's own tree if it is given."""
    code = HOST_CODE.read_text().replace("STOP_SECONDS = 15.0", "STOP_SECONDS = 2.0")
    ours = {"fury_host.py": code, "fury_stand_in.py": STAND_IN}
    with tarfile.open(path, "w:gz") as tar:
        for name, text in ours.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text.encode()), 0o644
            tar.addfile(member, io.BytesIO(text.encode()))
        if agent is not None:
            with tarfile.open(agent) as packed:
                for member in packed:
                    if member.name not in ours:
                        tar.addfile(member, packed.extractfile(member))
    return {"archive": str(path), "digest": hashlib.sha256(path.read_bytes()).hexdigest()}


def wait_until(true: Callable[[], bool], timeout_s: float = 30) -> None:
    """Return as soon as it is true."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"not true within {timeout_s} s"
        time.sleep(0.2)


# ------------------------------------------------------------------------------------------------------------ real hosts


class Place:
    """A real host with the code under test."""

    def __init__(self, host: Host, agent: Path) -> None:
        self.host = host
        lab = host.root / "opt/lab"
        lab.mkdir(parents=True)
        self.program = archive(lab / "tree.tar.gz", agent=agent) | {"archive": "/opt/lab/tree.tar.gz"}
        (lab / "fury_host.py").write_text(HOST_CODE.read_text())
        (lab / "driver.py").write_text(DRIVER)

    def call(self, do: str, *, name: str = "x", mode: str = "auto", base: str | None = None, more: Any = None,
             path: str = "", **arguments: Any) -> tuple[Any, str]:  # fmt: skip
        """What ``Service.<do>`` returns, and what it refuses with ("" if it does not)."""
        service = {"kind": "agent", "name": name, "mode": mode, "base": base}
        asked = json.dumps({"do": do, "service": service, "with": arguments, **(more or {})})
        said, refused = json.loads(
            self.host.run(["env", f"PATH={path}/usr/bin:/bin", "python3", "-I", "/opt/lab/driver.py", asked]).stdout
        )
        return said, refused or ""

    def start(self, name: str = "x", *, directory: str = "/var/tmp", mode: str = "auto", base: str | None = None,
              real: bool = False, lease_s: int = 600, config: Any = None, more: Any = None, path: str = "",
              run_id: str = "r1", check: bool = True) -> str:  # fmt: skip
        """Start a stand-in, or an agent that writes for ten minutes; what it is refused with, which fails if ``check``."""
        values = {"name": name, "run_id": run_id, "directory": directory, **(config or {})}
        argv = ["@PYTHON@", "-m", "fury_stand_in", "@HOME@/config.json"]
        unit = STAND_IN_UNIT
        if real:
            values = {"chunk_mb": 1, "seconds": 600, "free_floor_mb": 1, "state_directory": "@HOME@/state", **values}
            argv = ["@PYTHON@", "-s", "-m", "fury_agent.supervisor", "--config", "@HOME@/config.json"]
            unit = Template(UNIT.read_text()).render(fury_agent_config=values, fury_agent_lease_seconds=lease_s)
        _, refused = self.call(
            "start", name=name, mode=mode, base=base, more=more, path=path, run_id=run_id, argv=argv, unit=unit,
            files={"config.json": json.dumps(values)}, lease_s=lease_s, directory=directory, **self.program)  # fmt: skip
        if check:
            assert not refused
            chunk = f"{directory}/fury-{name}/chunk-0.dat"
            wait_until(lambda: self.host.run(["test", "-s", chunk], check=False).returncode == 0)
        return refused

    def sh(self, script: str, *, check: bool = True) -> str:
        """The output of a shell script on the host."""
        return self.host.run(["sh", "-c", script], check=check).stdout

    def left(self) -> list[str]:
        """Whatever is Fury's on the host."""
        return sorted(set(self.sh(LEFT).splitlines()) - {"/srv"})

    def pids(self, words: str) -> list[int]:
        """Processes whose command line holds ``words``."""
        return [int(pid) for pid in self.sh(f"pgrep -f -- '{words}' | grep -vw $$; true").split()]


@pytest.fixture(scope="module")
def places(lab: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Place]]:
    """Two hosts of their own, which the tests below break."""
    agent = tree.agent_archive(os.uname().machine)
    with Fleet([HostSpec("deb11", "bullseye"), HostSpec("deb12", "bookworm", disk_mb=300)]) as fleet:
        yield {host.name: Place(host, agent) for host in fleet.hosts}


@pytest.fixture
def deb11(places: dict[str, Place]) -> Iterator[Place]:
    """The host with the oldest Python."""
    yield from _clean(places["deb11"])


@pytest.fixture
def deb12(places: dict[str, Place]) -> Iterator[Place]:
    """The host with a disk of its own."""
    yield from _clean(places["deb12"])


def _clean(place: Place) -> Iterator[Place]:
    yield place
    place.call("everything")
    assert place.left() == []


@pytest.mark.hosts
def test_when_the_lease_is_over_everything_goes(deb11: Place, deb12: Place) -> None:
    """Units, timer, user, chunks, home, reaper, base: also after a reload of systemd, while the agent writes on."""
    for place in (deb11, deb12):
        place.start(real=True, lease_s=6)
        place.sh("systemctl daemon-reload; systemctl daemon-reexec")
        assert place.sh("systemctl is-active fury-agent-x.service").strip() == "active"
    wait_until(lambda: deb11.left() == [])
    wait_until(lambda: deb12.left() == [])


@pytest.mark.hosts
def test_without_systemd_too_whatever_became_of_the_processes(deb12: Place) -> None:
    """Supervisor killed and agent stopped, both stopped, one that ignores SIGTERM: each is gone after its lease."""
    for name in ("orphan", "frozen"):
        deb12.start(name, mode="process", real=True, lease_s=12)
    deb12.start("stubborn", mode="process", lease_s=5, config={"stubborn": True})
    agent = deb12.pids("-m fury_agent --config .*agent-orphan/")[0]
    supervisor = deb12.pids("fury_agent.supervisor.*agent-orphan/")[0]
    deb12.sh(f"kill -STOP {agent}; kill -KILL {supervisor}")
    deb12.sh(f"kill -STOP {' '.join(map(str, deb12.pids('config .*agent-frozen/')))}")
    assert deb12.pids("-m fury_agent --config .*agent-orphan/") == [agent]
    wait_until(lambda: deb12.left() == [])


@pytest.mark.hosts
def test_a_reboot_ends_the_stress_and_cleans_up(places: dict[str, Place]) -> None:
    """Orderly or by pulling the plug: the reaper cleans at boot. Without systemd files stay, until the next run."""
    orderly, pulled = places["deb11"], places["deb12"]
    orderly.start(real=True)
    pulled.start(real=True)
    pulled.start("plain", mode="process", base="/srv/fury", real=True)
    orderly.sh("systemctl reboot", check=False)
    pulled.host.kill()
    pulled.host.start()
    pulled.host.wait_ready()
    wait_until(lambda: [line for line in pulled.left() if "/srv/" not in line and "plain" not in line] == [])
    assert pulled.pids("-m fury_") == []
    assert pulled.sh("ls /var/tmp/fury-plain") != ""
    pulled.start("next", mode="process", base="/srv/fury", run_id="r2")
    assert [line for line in pulled.left() if "plain" in line] == []
    assert (
        pulled.call("everything", base="/srv/fury", more={"do": "everything", "with": {"base": "/srv/fury"}})[1] == ""
    )
    wait_until(lambda: pulled.left() == [])
    orderly.host.wait_ready()
    wait_until(lambda: "reboot" not in orderly.sh("systemctl list-jobs", check=False) and orderly.left() == [])


@pytest.mark.hosts
def test_many_at_once_come_and_go(deb11: Place) -> None:
    """Six agents, half of them as units, installed and removed at the same time: none is in another's way."""
    modes = {f"a{number}": ("systemd", "process")[number % 2] for number in range(6)}
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda name: deb11.start(name, mode=modes[name]), modes))
        removed = list(pool.map(lambda name: deb11.call("remove", name=name), modes))
    assert all(refused == "" and said for said, refused in removed)
    assert deb11.left() == []
    assert deb11.call("remove", name="a0") == ([], "")


@pytest.mark.hosts
@pytest.mark.parametrize("damage", ["rm $H/service.json", "printf '{\"kin' > $H/service.json"])
def test_a_damaged_record_does_not_keep_anything(deb12: Place, damage: str) -> None:
    """Unit, user and chunks are found without it, from what the agent was told."""
    deb12.start()
    deb12.sh(f"H=/var/lib/fury/agent-x; {damage}")
    assert deb12.call("remove")[1] == ""
    assert deb12.left() == []


@pytest.mark.hosts
def test_what_cannot_be_found_any_more_is_said(deb12: Place) -> None:
    """Record and configuration both lost: all else goes, and the sentence says what to look for."""
    deb12.start()
    deb12.sh("rm /var/lib/fury/agent-x/service.json /var/lib/fury/agent-x/config.json")
    assert "look for fury-x in the directory" in deb12.call("remove")[1]
    assert [line for line in deb12.left() if not line.startswith("/var/tmp/fury-x")] == []
    deb12.call("remove", directory="/var/tmp")


@pytest.mark.hosts
def test_a_foreign_user_is_neither_used_nor_removed(deb12: Place) -> None:
    """One of the same name that Fury did not make: refused, nothing left, and the user is still there."""
    deb12.sh("useradd --comment somebody fury-agent-x")
    assert "user fury-agent-x exists that Fury did not make" in deb12.start(check=False)
    assert deb12.call("remove")[1] == ""
    assert [line.split(":")[0] for line in deb12.left()] == ["fury-agent-x", "fury-agent-x"]
    deb12.sh("userdel fury-agent-x")


@pytest.mark.hosts
def test_a_read_only_disk_keeps_the_reaper_until_it_is_writable(deb12: Place) -> None:
    """Removal says what is left and why; the agent is stopped; the reaper tries again and succeeds."""
    deb12.start(directory="/mnt/disk", more={"set": {"RETRY_SECONDS": 2}}, lease_s=4)
    disk = str(deb12.host.disk)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    try:
        assert deb12.call("remove")[1] == "/mnt/disk/fury-x is left: Read-only file system"
        assert deb12.pids("-m fury_") == []
        wait_until(lambda: "Read-only" in deb12.sh("journalctl -u fury-reaper-agent-x.service"))
    finally:
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    wait_until(lambda: deb12.left() == [])


@pytest.mark.hosts
def test_a_vanished_mount_is_named(deb12: Place) -> None:
    """Chunks on a file system that is not mounted any more are not taken for removed."""
    deb12.sh("mkdir -p /opt/lab/store /opt/lab/usb; mount --bind /opt/lab/store /opt/lab/usb; chmod 755 /opt/lab")
    deb12.start(directory="/opt/lab/usb")
    deb12.sh("umount --lazy /opt/lab/usb")
    assert "/opt/lab/usb/fury-x lay on the file system mounted at /opt/lab/usb" in deb12.call("remove")[1]
    deb12.sh("mount --bind /opt/lab/store /opt/lab/usb")
    assert deb12.call("remove")[1] == ""
    assert deb12.sh("ls -A /opt/lab/store; umount /opt/lab/usb") == ""


@pytest.mark.hosts
def test_a_hanging_systemctl_is_a_sentence(deb12: Place) -> None:
    """What does not answer is told, and what is there stays for the next try."""
    deb12.start()
    deb12.sh(
        "mkdir -p /opt/lab/hang; printf '#!/bin/sh\\nexec sleep 60\\n' > /opt/lab/hang/systemctl; chmod +x /opt/lab/hang/*"
    )
    _, refused = deb12.call("remove", path="/opt/lab/hang:", more={"set": {"COMMAND_SECONDS": 1}})
    assert "systemctl is-active fury-agent-x.service has not come to an end within 1 s" in refused
    assert deb12.call("remove")[1] == ""


@pytest.mark.hosts
def test_a_strict_umask_does_not_lock_the_agent_out(deb12: Place) -> None:
    """The agent's own user can read what root put there with umask 077."""
    deb12.start(real=True, more={"umask": 0o077})
    assert deb12.sh("systemctl is-active fury-agent-x.service").strip() == "active"


@pytest.mark.hosts
def test_a_crashed_unit_is_started_again_but_one_that_ended_is_not(deb12: Place) -> None:
    """After kill -9 systemd brings the agent back for the rest of its time; after SIGTERM it stays down."""
    deb12.start(real=True)
    first = deb12.sh("systemctl show -p MainPID fury-agent-x")
    deb12.sh("systemctl kill -s KILL fury-agent-x")
    wait_until(lambda: "has crashed and comes back" in deb12.sh("cat /var/lib/fury/agent-x/agent.log"))
    assert deb12.sh("systemctl show -p MainPID fury-agent-x") != first
    deb12.sh("systemctl kill -s TERM fury-agent-x")
    wait_until(lambda: deb12.sh("systemctl is-active fury-agent-x", check=False).strip() == "failed")
    time.sleep(1.5)
    assert deb12.pids("-m fury_agent") == []


@pytest.mark.hosts
def test_the_end_of_the_runtime_is_no_crash(deb12: Place) -> None:
    """RuntimeMaxSec ends the stress; systemd calls that a timeout and would start it again."""
    deb12.start(real=True, lease_s=600)
    deb12.sh(
        "sed -i s/^RuntimeMaxSec=.*/RuntimeMaxSec=4/ /etc/systemd/system/fury-agent-x.service; systemctl daemon-reload"
    )
    deb12.sh("systemctl restart fury-agent-x")
    wait_until(lambda: deb12.sh("systemctl is-active fury-agent-x", check=False).strip() == "failed")
    time.sleep(1.5)
    assert deb12.sh("systemctl show -p NRestarts fury-agent-x").strip() == "NRestarts=0"
    assert deb12.pids("-m fury_agent") == []


@pytest.mark.hosts
@pytest.mark.parametrize(
    ("prepare", "base", "said"),
    [
        ("mkdir -p /srv/100%h", "/srv/100%h", "can't be written into a systemd unit"),
        ("mkdir -p /srv/real; ln -s real /srv/link", "/srv/link", "/srv/link is a symbolic link"),
        ("mkdir -p -m 700 /srv/shut", "/srv/shut", "lets no other user through"),
        ("mkdir -p /srv/nx; mount -t tmpfs -o noexec none /srv/nx", "/srv/nx/fury", "mounted noexec"),
        ("mkdir -p /srv/ro; mount -t tmpfs -o ro none /srv/ro", "/srv/ro/fury", "no directory that uid 0 can write to"),
        ("mkdir -p /srv/tiny; mount -t tmpfs -o size=100k none /srv/tiny", "/srv/tiny/fury", "No space left"),
    ],
)
def test_a_base_that_will_not_do_is_refused_and_nothing_is_left(
    deb12: Place, prepare: str, base: str, said: str
) -> None:
    """In one sentence, and whatever was begun is taken away again; the foreign base itself stays as it was."""
    deb12.sh(prepare)
    before = deb12.left()
    try:
        assert said in deb12.start(base=base, check=False)
        assert deb12.left() == before
    finally:
        deb12.sh("for m in nx ro tiny; do umount -q /srv/$m; done; rm -r /srv/*")


@pytest.mark.hosts
def test_teardown_finds_services_below_another_base(deb12: Place) -> None:
    """Their units name it; the units of one base are not touched by what is done below another."""
    deb12.start(base="/srv/fury")
    assert "belongs to agent x of another base than /var/lib/fury" in deb12.start(check=False)
    assert deb12.call("remove")[1] == ""
    assert deb12.sh("systemctl is-active fury-agent-x").strip() == "active"
    said, _ = deb12.call("", more={"do": "everything", "with": {}})
    assert "/srv/fury/agent-x" in said


@pytest.mark.hosts
def test_a_crash_in_mid_run_costs_a_restart_and_not_the_run(lab: None, tmp_path: Path) -> None:
    """kill -9 of both agents, as a unit and as a process: new epoch, same end, two epochs in the result, PASS."""
    with Fleet([HostSpec("deb11", "bullseye"), HostSpec("deb13", "trixie")]) as fleet, ThreadPoolExecutor(2) as pool:
        inventory = fleet.inventory(tmp_path / "inventory")

        def run(host: Host, mode: str, port: int) -> subprocess.CompletedProcess[str]:
            argv = [PLAYBOOK, "-i", str(inventory), "run.yml", "--limit", host.name, "-e", "chunk_mb=5"]
            argv += ["-e", "seconds=20", "-e", f"fury_results={tmp_path}/{host.name}", "-e", f"fury_mode={mode}"]
            return fleet.controller_run([*argv, "-e", f"fury_collector_port={port}"], cwd=REPO)

        modes = {"deb11": "process", "deb13": "systemd"}
        runs = [pool.submit(run, host, modes[host.name], 39475 + number) for number, host in enumerate(fleet.hosts)]
        for host, future in zip(fleet.hosts, runs, strict=True):
            log = f"cat /var/lib/fury/agent-{host.name}/agent.log 2>/dev/null; true"
            while "rollover 1:" not in host.run(["sh", "-c", log]).stdout:
                assert not future.done(), future.result().stdout + future.result().stderr
                time.sleep(0.5)
            host.run(["pkill", "-KILL", "-f", "--", "-m fury_agent --config"])
        for host, future in zip(fleet.hosts, runs, strict=True):
            done = future.result()
            assert done.returncode == 0, done.stdout + done.stderr
            (agent,) = json.loads((tmp_path / host.name / "latest/summary.json").read_text())["agents"]
            assert (agent["verdict"], agent["epochs"], agent["cleanup"]) == ("PASS", 2, "confirmed")
            assert "restarted 1" in agent["reason"]
            assert 5 < agent["seconds"] <= 20.5
            assert host.run(["sh", "-c", LEFT]).stdout == ""


# ------------------------------------------------------------------------------------------------------------------ here


class Here:
    """Stand-ins on this machine, as processes."""

    def __init__(self, path: Path, base: Path | None = None) -> None:
        self.base = base or path / "base"
        self.directory = path / "data"
        self.directory.mkdir(parents=True, exist_ok=True)
        self.program = archive(path / "tree.tar.gz")

    def service(self, name: str = "x") -> Service:
        return Service(kind="agent", name=name, base=str(self.base), mode="process")

    def start(self, name: str = "x", *, run_id: str = "r1", dry: bool = False, wait: bool = True) -> Service:
        service = self.service(name)
        config = {"name": name, "run_id": run_id, "directory": str(self.directory), "state_directory": "@HOME@/state"}
        argv = ["@PYTHON@", "-m", "fury_stand_in", "@HOME@/config.json"]
        service.start(
            run_id=run_id, argv=argv, unit="", lease_s=600, directory=str(self.directory), dry=dry,
            files={"config.json": json.dumps(config)}, **self.program)  # fmt: skip
        if wait and not dry:
            wait_until(lambda: (self.directory / f"fury-{name}/chunk-0.dat").exists(), 10)
        return service

    def files(self) -> list[str]:
        return sorted(str(path) for top in (self.base, self.directory) for path in top.rglob("*"))


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    """A place for stand-ins, which are gone after the test."""
    place = Here(tmp_path)
    yield place
    for process in fury_host._pids():
        if str(tmp_path).encode() in _words(process) and (
            b"fury_stand_in" in _words(process) or b"reap" in _words(process)
        ):
            os.kill(process, signal.SIGKILL)


def _words(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_removal_leaves_a_base_that_was_there_and_takes_one_that_was_made(here: Here, tmp_path: Path) -> None:
    """Directories above it that had to be made go, too; a foreign one stays, even empty."""
    here.base = tmp_path / "some/where/base"
    here.start().remove()
    assert not (tmp_path / "some").exists()
    here.base.mkdir(parents=True)
    assert here.start().remove()
    assert list(here.base.iterdir()) == []
    assert here.service().remove() == []


@pytest.mark.parametrize("odd", ["a b", "50%h", "$HOME", 'it\'s "so"', "a:b", "grün", "back\\slash"])
def test_odd_paths_are_only_paths(tmp_path: Path, odd: str) -> None:
    """As base and as directory, without systemd: started, looked at, removed."""
    here = Here(tmp_path / odd, tmp_path / odd / "@USER@")
    try:
        service = here.start()
        assert service.lives()
        service.check(run_id="r1", directory=str(here.directory), need_bytes=1, port=0)
    finally:
        here.service().remove()
    assert here.files() == []


def test_dry_calls_touch_nothing(here: Here) -> None:
    """Neither before there is anything, nor when there is."""
    here.start(dry=True)
    assert here.service().remove(dry=True) == remove_everything(base=str(here.base), dry=True) == []
    assert not here.base.exists()
    service = here.start()
    before = here.files()
    home = [str(service.home)]
    assert service.remove(dry=True) == remove_everything(base=str(here.base), dry=True) == home
    here.start(run_id="r2", dry=True)
    service.check(run_id="r1", directory=str(here.directory), need_bytes=1, port=0)
    assert here.files() == before
    assert service.lives()
    service.remove()


def test_a_home_that_is_not_ours_is_left_alone(here: Here) -> None:
    """Whatever has the name of a home but not its contents: refused, by every way of asking."""
    foreign = here.base / "agent-x" / "thesis.txt"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("years of work")
    for ask in (lambda: here.start(), lambda: here.service().remove(), lambda: remove_everything(base=str(here.base)),
                lambda: here.service().check(run_id="r", directory=None, need_bytes=0, port=0)):  # fmt: skip
        with pytest.raises(HostError, match="was not made by Fury"):
            ask()
    foreign.with_name("service.json").write_text('{"kind": "database", "name": "x"}')
    with pytest.raises(HostError, match="was not made by Fury"):
        here.service().remove()
    assert foreign.read_text() == "years of work"
    (here.base / "agent-y").symlink_to(here.directory)
    with pytest.raises(HostError, match="was not made by Fury"):
        here.service("y").remove()


def test_a_failure_of_one_does_not_keep_the_others(here: Here) -> None:
    """teardown removes what it can, and says the rest."""
    here.start()
    (here.base / "agent-a").mkdir()
    (here.base / "agent-a" / "foreign").touch()
    with pytest.raises(HostError, match=r"agent-a was not made by Fury"):
        remove_everything(base=str(here.base))
    assert os.listdir(here.base) == [".made.json", "agent-a"] or os.listdir(here.base) == ["agent-a", ".made.json"]


def test_what_was_put_into_the_chunk_directory_stays(here: Here) -> None:
    """Foreign files in it, a directory named like a chunk: they stay, and that is said once."""
    service = here.start()
    target = here.directory / "fury-x"
    (target / "photo.jpg").write_text("mine")
    (target / "chunk-7.dat").mkdir()
    with pytest.raises(HostError, match=r"is left: it holds chunk-7.dat, photo.jpg, which Fury did not make"):
        service.remove()
    assert sorted(p.name for p in target.iterdir()) == ["chunk-7.dat", "photo.jpg"]
    assert service.remove() == []
    assert not here.base.exists()


@pytest.mark.parametrize("swap", ["link", "file"])
def test_a_chunk_directory_that_was_replaced_is_not_followed(here: Here, tmp_path: Path, swap: str) -> None:
    """Not even to files that are named like chunks."""
    service = here.start()
    elsewhere = tmp_path / "elsewhere"
    (here.directory / "fury-x").rename(elsewhere)
    if swap == "link":
        (here.directory / "fury-x").symlink_to(elsewhere)
    else:
        (here.directory / "fury-x").write_text("")
    with pytest.raises(HostError, match="something else was put in its place"):
        service.remove()
    assert sorted(p.name for p in elsewhere.iterdir()) == [".fury.json", "chunk-0.dat"]
    assert not here.base.exists()


def test_a_chunk_directory_of_a_later_run_is_left_alone(here: Here) -> None:
    """One that another run made anew since, or that it holds right now, is no business of this one."""
    service = here.start()
    (here.directory / "fury-x" / ".fury.json").write_text('{"fury": 1, "agent": "x", "run_id": "by-hand"}')
    service.remove()
    assert (here.directory / "fury-x" / "chunk-0.dat").exists()
    with (here.directory / "fury-x" / ".fury.json").open() as marker:
        fcntl.flock(marker, fcntl.LOCK_EX)
        with pytest.raises(HostError, match="is in use by run by-hand"):
            here.service().check(run_id="r2", directory=str(here.directory), need_bytes=0, port=0)
        with pytest.raises(HostError, match="is in use by"):
            here.start(run_id="r2")
        assert here.service().remove(directory=str(here.directory)) == []
    assert (here.directory / "fury-x" / "chunk-0.dat").exists()


def test_only_the_services_own_processes_are_ended(here: Here) -> None:
    """Not one that only looks at its files, nor one that has its pid by chance."""
    service = here.start()
    (service.home / "agent.log").touch()
    with subprocess.Popen(["tail", "-f", str(service.home / "agent.log")], stdout=subprocess.DEVNULL) as reader:
        removed = service.remove()
        assert reader.poll() is None
        reader.kill()
    assert sum("process" in word for word in removed) == 2
    assert fury_host._processes(service.home) == []


def test_a_second_run_is_refused_with_the_firsts_name(here: Here) -> None:
    """Agents of one run may share a host; one of another run may not, whatever it is called."""
    service = here.start()
    here.service("y").check(run_id="r1", directory=str(here.directory), need_bytes=0, port=0)
    with pytest.raises(HostError, match="the agent x of run r1 is still running here"):
        here.service("y").check(run_id="r2", directory=str(here.directory), need_bytes=0, port=0)
    service.remove()
    here.service("y").check(run_id="r2", directory=str(here.directory), need_bytes=0, port=0)


def test_a_late_reaper_leaves_the_next_run_alone(here: Here) -> None:
    """It was armed for a run, and goes when that one's home has become another's."""
    here.start().remove()
    service = here.start(run_id="r2")
    reaper = [sys.executable, "-I", str(HOST_CODE), "reap", "--home", str(service.home), "--run-id"]
    assert subprocess.run([*reaper, "r1"], check=False).returncode == 1
    assert service.lives()
    assert subprocess.run([*reaper, "r2"], check=False).returncode == 0
    assert here.files() == []


def test_the_lock_is_passed_on_whatever_happens_while_it_is_held(here: Here) -> None:
    """A missing file in between is its own error, and no lock stays; one that is held too long is told."""
    with pytest.raises(FileNotFoundError), fury_host._locked(here.base, make=True):
        raise FileNotFoundError("the archive")
    assert not here.base.exists()
    here.start()
    with pytest.MonkeyPatch.context() as patch, fury_host._locked(here.base, make=False):
        patch.setattr(fury_host, "LOCK_SECONDS", 0.2)
        with pytest.raises(HostError, match=r"has not come to an end within 0\.2 s"):
            here.service().remove()
    here.service().remove()


def test_one_agent_installed_and_removed_by_several_at_once(here: Here) -> None:
    """They take turns: none sees what another has half done, a second run is refused by name, and the last word holds."""

    def ask(number: int) -> None:
        if number % 3:
            try:
                here.start(run_id=f"r{number}", wait=False)
            except HostError as error:
                assert "is still running here" in str(error)  # noqa: PT017 - any other refusal fails the test
        else:
            here.service().remove()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(9)))
    here.service().remove()
    assert here.files() == []


@pytest.mark.parametrize("name", ["", "../../etc", "a/b", "-x", "a b", "x" * 65, "a\nb"])
def test_a_name_that_is_no_name_is_refused(name: str) -> None:
    """Before any path is made of it."""
    with pytest.raises(HostError, match="name: "):
        Service(kind="agent", name=name, mode="process")


def test_a_relative_base_is_refused() -> None:
    """It would lie wherever Ansible happens to be."""
    with pytest.raises(HostError, match="an absolute path is"):
        Service(kind="agent", name="x", base="here", mode="process")


def test_the_module_documents_its_options() -> None:
    """Paths are plain text there: Ansible's own type would replace what looks like a variable in them."""
    module = (REPO / "plugins/modules/fury_service.py").read_text()
    options = yaml.safe_load(module.split('DOCUMENTATION = r"""')[1].split('"""')[0])["options"]
    assert all(options[name]["type"] == "str" for name in ("base", "directory", "archive", "log"))
