"""The lab itself: what it promises to the tests that stand on it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import testinfra

from tests.hosts.lab import DISK, Fleet, HostSpec, LabError, clean_leftovers

pytestmark = pytest.mark.hosts

REPOSITORY = Path(__file__).parents[2]

CONNECT = "import socket, sys; print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 3).recv(4).decode())"
GREET = """
import socket
server = socket.create_server(("", 8000))
print("up", flush=True)
while True:
    server.accept()[0].send(b"FURY")
"""
WRITE = """
import os, sys
file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
for _ in range(80):
    os.write(file, os.urandom(10**6))
print("written", flush=True)
os.fsync(file)
print("durable")
"""


def traces(fleet_id: str) -> list[str]:
    """Everything on this machine that bears a fleet's id: namespaces, mounts, loops, cgroups, processes, files."""
    listings = [["ip", "netns", "list"], ["findmnt", "--list", "--noheadings"], ["losetup", "--list", "--noheadings"]]
    found = [line for argv in listings for line in subprocess.check_output(argv, text=True).splitlines()]
    for top in ("/run/fury-lab", "/run/systemd/nspawn", "/var/cache/fury-lab"):
        found += [str(path) for path in Path(top).glob("*")] + [str(path) for path in Path(top).glob("*/*")]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob("**/fury*")]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended since it was listed
            found.append(f"{process.name} {(process / 'cmdline').read_text(errors='replace')}")
    return [line for line in found if fleet_id in line]


def locks() -> set[str]:
    """systemd-nspawn's locks on root trees, which name an inode and no fleet."""
    return {path.name for path in Path("/run/systemd/nspawn/locks").glob("*")}


@pytest.mark.parametrize(("name", "python"), [("deb11", "3.9"), ("deb12", "3.11"), ("deb13", "3.13")])
def test_hosts_are_three_debian_generations_with_systemd_running(fleet: Fleet, name: str, python: str) -> None:
    """Each host has its own Debian, its own Python, its own name and a systemd without a failed unit."""
    host = fleet.host(name)
    assert host.run(["cat", "/etc/debian_version"]).stdout.startswith(name.removeprefix("deb"))
    assert host.run(["python3", "--version"]).stdout.startswith(f"Python {python}.")
    assert host.run(["uname", "-n"]).stdout == f"{name}\n"
    state = host.run(["systemctl", "is-system-running"], check=False).stdout.strip()
    assert state == "running", host.run(["systemctl", "--failed"]).stdout


@pytest.mark.parametrize("name", ["deb11", "deb12", "deb13"])
def test_testinfra_sees_the_hosts(infra: Mapping[str, testinfra.host.Host], name: str) -> None:
    """Services, sockets, users, files and processes of a host can be looked at with testinfra."""
    host = infra[name]
    assert host.service("ssh").is_running
    assert host.socket("tcp://0.0.0.0:22").is_listening
    assert host.user("operator").home == "/home/operator"
    assert host.file("/etc/hostname").content_string == f"{name}\n"
    assert host.process.filter(user="root", comm="sshd")
    assert host.run("systemctl is-active no-such.service").rc != 0


def test_an_operator_reaches_root_by_sudo(fleet: Fleet) -> None:
    """Each host has an ordinary user with the fleet's key and sudo without a password."""
    for host in fleet.hosts:
        assert host.run(["id", "-un"], user="operator").stdout == "operator\n"
        assert host.run(["sudo", "-n", "id", "-un"], user="operator").stdout == "root\n"


def test_ansible_reaches_every_host_from_the_controller(fleet: Fleet, tmp_path: Path) -> None:
    """The inventory works as it is, and the facts are the host's: its address, its systemd."""
    inventory = fleet.inventory(tmp_path / "hosts", "[fury_collector]\nlocalhost ansible_connection=local\n")
    ansible = str(Path(sys.executable).with_name("ansible"))
    expression = "{{ ansible_default_ipv4.address }} {{ ansible_service_mgr }} {{ ansible_default_ipv4.mtu }}"
    playbook = tmp_path / "play.yml"
    play = {"hosts": "fury_agents", "tasks": [{"ansible.builtin.debug": {"msg": f"<{expression}>"}}]}
    playbook.write_text(json.dumps([play]))
    done = fleet.controller_run([f"{ansible}-playbook", "-i", str(inventory), str(playbook)], cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for host in fleet.hosts:
        assert f"<{host.address} systemd 1500>" in done.stdout


def test_two_fleets_with_the_same_addresses_are_not_mistaken_for_each_other(fleet: Fleet, tmp_path: Path) -> None:
    """Ansible's lingering connection to one fleet's host is not taken for the way to another fleet's."""
    ansible = str(Path(sys.executable).with_name("ansible"))
    with Fleet([HostSpec("other", "bookworm")]) as other:
        assert other.hosts[0].address == fleet.hosts[0].address
        for each in (fleet, other):
            inventory = each.inventory(tmp_path / each.id)
            name = each.hosts[0].name
            command = [ansible, "-i", str(inventory), name, "-m", "ansible.builtin.command", "-a", "uname -n"]
            done = each.controller_run(command, cwd=tmp_path)
            assert done.stdout.splitlines()[-1:] == [name], done.stdout + done.stderr


def test_hosts_reach_the_controller_and_each_other_and_nobody_else_reaches_them(fleet: Fleet) -> None:
    """The fleet's network joins its hosts and its controller; the machine's own namespace is not on it."""
    server = subprocess.Popen(fleet.controller_argv([sys.executable, "-c", GREET]), stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        server.stdout.readline()
        for host in fleet.hosts:
            assert host.run(["python3", "-c", CONNECT, fleet.address, "8000"]).stdout == "FURY\n"
            for peer in fleet.hosts:
                assert host.run(["python3", "-c", CONNECT, peer.name, "22"]).stdout == "SSH-\n"
    finally:
        server.kill()
        server.communicate()
    outside = subprocess.run(
        [sys.executable, "-c", CONNECT, fleet.hosts[0].address, "22"], capture_output=True, check=False
    )
    assert outside.returncode != 0


def test_a_pulled_cable_cuts_one_host_until_it_is_plugged_in_again(fleet: Fleet) -> None:
    """A host whose link is down has no carrier and answers nobody, and keeps its addresses; the others stay."""
    host, peer = fleet.host("deb12"), fleet.host("deb13")
    host.link_down()
    try:
        assert host.run(["true"], check=False).returncode == 255
        assert host.enter(["cat", "/sys/class/net/eth0/carrier"]).stdout == "0\n"
        assert host.address in host.enter(["ip", "-br", "address", "show", "eth0"]).stdout
        assert peer.run(["true"]).returncode == 0
    finally:
        host.link_up()
    host.wait_ready(5)
    assert host.run(["cat", "/sys/class/net/eth0/carrier"]).stdout == "1\n"


@pytest.mark.parametrize(
    ("make", "heal"),
    [
        (
            "ip neigh replace 10.91.0.1 lladdr 02:00:00:00:00:99 dev eth0 nud permanent",
            "ip neigh del 10.91.0.1 dev eth0",
        ),
        ("ip route add blackhole 10.91.0.1", "ip route del blackhole 10.91.0.1"),
        ("ip route add prohibit 10.91.0.1", "ip route del prohibit 10.91.0.1"),
        (
            "nft add table ip lab; nft add chain ip lab o '{ type filter hook output priority 0; policy drop; }'",
            "nft delete table ip lab",
        ),
    ],
    ids=["half-open", "blackhole", "prohibit", "firewall"],
)
def test_a_host_can_be_cut_off_in_many_ways_and_healed(fleet: Fleet, make: str, heal: str) -> None:
    """A host's neighbours, routes and firewall can be broken, and mended without its network."""
    host = fleet.host("deb11")
    host.enter(["sh", "-c", make])
    try:
        assert host.run(["true"], check=False).returncode == 255
    finally:
        host.enter(["sh", "-c", heal])
    host.wait_ready(10)


def test_a_slow_link_slows_a_host_down(fleet: Fleet) -> None:
    """A token bucket on the host's interface holds what it sends to that rate."""
    host = fleet.host("deb13")
    host.net(["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "64kbit", "burst", "4kb", "limit", "64kb"])
    try:
        began = time.monotonic()
        assert len(host.run(["head", "-c", "24000", "/dev/zero"]).stdout) == 24000
        assert time.monotonic() - began > 24000 * 8 / 64000 - 1
    finally:
        host.net(["tc", "qdisc", "del", "dev", "eth0", "root"])


@pytest.mark.parametrize("how", ["from outside", "from inside", "after the plug was pulled"])
def test_a_rebooted_host_keeps_its_disk_and_nothing_else(lab: None, how: str) -> None:
    """A host comes back from a reboot, whoever asked for it, and from a pulled plug, with its files and a new /run."""
    with Fleet([HostSpec("solo", "trixie")]) as fleet:
        host = fleet.host("solo")
        host.run(["touch", "/run/volatile", "/var/lib/lasting"])
        before = host.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout
        if how == "from outside":
            host.reboot()
        elif how == "from inside":
            host.run(["systemctl", "reboot"], check=False)
            deadline = time.monotonic() + 30
            while host.run(["cat", "/proc/sys/kernel/random/boot_id"], check=False).stdout in ("", before):
                assert time.monotonic() < deadline, "the host did not come back"
                time.sleep(0.1)
            host.wait_ready()
        else:
            host.kill()
            assert not host.running
            host.start()
            host.wait_ready()
        assert host.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout != before
        assert host.run(["sh", "-c", "ls /run/volatile /var/lib/lasting 2>/dev/null"], check=False).stdout == (
            "/var/lib/lasting\n"
        )
        host.power_off()
        assert not host.running
        with pytest.raises(LabError, match="solo is off"):
            host.leader()


def test_a_disk_larger_than_its_backing_fails_at_fsync(lab: None) -> None:
    """A host has an ext4 disk of its own, and with `backing_mb` writes succeed that no fsync can make durable."""
    specs = [HostSpec("sound", "bookworm", disk_mb=200), HostSpec("rotten", "bookworm", disk_mb=200, backing_mb=40)]
    with Fleet(specs) as fleet:
        for host in fleet.hosts:
            assert host.run(["stat", "--file-system", "--format=%T", DISK]).stdout == "ext2/ext3\n"
        sound = fleet.host("sound").run(["python3", "-c", WRITE, f"{DISK}/file"])
        assert sound.stdout == "written\ndurable\n"
        rotten = fleet.host("rotten").run(["python3", "-c", WRITE, f"{DISK}/file"], check=False)
        assert rotten.stdout == "written\n"
        assert "OSError" in rotten.stderr


def test_nothing_is_left_of_a_closed_fleet(fleet: Fleet) -> None:
    """Closing a fleet takes away every namespace, mount, loop device, cgroup, process, lock and file of it.

    Also while another fleet's controller runs a command, which holds a copy of all mounts of the time it began.
    """
    before = locks()
    with Fleet([HostSpec("one", "bookworm", disk_mb=100), HostSpec("two", "trixie")]) as other:
        subprocess.Popen(other.controller_argv(["sleep", "600"]))
        holder = subprocess.Popen(fleet.controller_argv(["cat"]), stdin=subprocess.PIPE)
        mine = locks() - before
        assert len(mine) >= 2
        assert len(traces(other.id)) > 10
        other.host("two").power_off()
    try:
        assert traces(other.id) == []
        assert not locks() & mine
    finally:
        holder.communicate()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_fleet_by_hand_ends_with_its_command(fleet: Fleet, tmp_path: Path, how: signal.Signals) -> None:
    """`lab up` describes a fleet in a file and takes it away on a signal; after kill -9 the next fleet does."""
    out = tmp_path / "fleet.json"
    command = [sys.executable, "-m", "tests.hosts.lab", "up", "--hosts", "1", "--disk-mb", "50", "--out", str(out)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not out.exists() or not out.read_text().endswith("}\n"):
            assert process.poll() is None, "lab up ended by itself"
            assert time.monotonic() < deadline, "lab up took too long"
            time.sleep(0.05)
        described = json.loads(out.read_text())
        assert described["hosts"]["deb11"]["disk"] == DISK
        assert Path(described["inventory"]).is_file()
    finally:
        os.kill(process.pid, how)
        process.wait(30)
    if how is signal.SIGKILL:
        assert clean_leftovers() == [described["id"]]
    assert traces(described["id"]) == []
    assert fleet.host("deb11").run(["true"]).returncode == 0, "another, living fleet is left alone"
