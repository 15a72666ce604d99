"""Real hosts on one machine: a fleet of booted Debian systems with systemd, sshd and a network of their own.

    with Fleet([HostSpec("deb12", "bookworm")]) as fleet:
        fleet.host("deb12").run(["uname", "-n"])
        fleet.controller_run(["ansible-playbook", "-i", str(fleet.inventory(path)), "run.yml"])

Each host is a systemd-nspawn container over an overlay of a cached root tree, in a network namespace that is wired to a
bridge in the controller's namespace; the machine's own namespace sees none of it. `python -m tests.hosts.lab up` does
the same in the foreground, to try things by hand.

Everything a fleet makes is written into a ledger under /run/fury-lab before it is made. Closing a fleet undoes its
ledger; a fleet whose owner was killed is undone by the next one that starts.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

SUITES = {"deb11": "bullseye", "deb12": "bookworm", "deb13": "trixie"}
"""The default fleet: host name to Debian suite, for Python 3.9, 3.11 and 3.13."""

CONTROLLER_ADDRESS = "10.91.0.1"
DISK = "/mnt/disk"
"""Where a host that has a disk of its own sees it."""

_CACHE = Path(os.environ.get("FURY_LAB_CACHE", "/var/cache/fury-lab"))
_STATE = Path("/run/fury-lab")
_CAP_SYS_ADMIN = 21
_TOOLS = "ip losetup mkfs.ext4 mmdebstrap mount nsenter ssh ssh-keygen systemd-nspawn umount"

# --------------------------------------------------------------------------------------------------------------- recipe

# libfaketime and nftables are for faults.
_PACKAGES = "dbus,iproute2,libfaketime,nftables,openssh-server,procps,python3,sudo,systemd,systemd-sysv"
# Of no use in a test and slow to start, or able to change the host under a test.
_MASKED = (
    "apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer"
    " logrotate.timer man-db.timer console-getty.service getty.target systemd-logind.service systemd-networkd.service"
    " systemd-networkd.socket systemd-networkd-wait-online.service systemd-resolved.service systemd-timesyncd.service"
)
_HOOK = f"""#!/bin/sh
set -eu
cd "$1"
rm -f etc/ssh/ssh_host_*_key* etc/apt/apt.conf.d/99mmdebstrap
# Group "operator" is Debian's own, so the user cannot have a group of that name made for it.
chroot . useradd --create-home --gid users --shell /bin/bash operator
echo 'operator ALL=(ALL:ALL) NOPASSWD: ALL' > etc/sudoers.d/operator
chmod 0440 etc/sudoers.d/operator
printf 'MaxStartups 200\\nUseDNS no\\nPrintMotd no\\n' > etc/ssh/sshd_config.d/fury-lab.conf
for unit in {_MASKED}; do ln -sf /dev/null "etc/systemd/system/$unit"; done
install -d -m 0700 root/.ssh
chroot . install -d -m 0700 -o operator -g users /home/operator/.ssh
mkdir -p mnt/disk
"""

# Run in the controller's namespace until sshd at the address (1) sends its banner or the seconds (2) are over.
_AWAIT_SSHD = """
import socket, sys, time
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    try:
        with socket.create_connection((sys.argv[1], 22), 1) as s:
            if s.recv(4) == b"SSH-":
                sys.exit(0)
    except OSError:
        pass
    time.sleep(0.05)
sys.exit(1)
"""
# ssh's ProxyCommand: connects in the controller's namespace and hands the socket over, so nothing stays in between.
_DIAL = """
import socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)
socket.send_fds(socket.socket(fileno=1), [b"\\0"], [connection.fileno()])
"""


class LabError(Exception):
    """The lab could not do what was asked; the message says what failed and what to do."""


def available() -> str | None:
    """None where the lab can run, else one sentence why it cannot."""
    if os.geteuid() != 0:
        return "the host lab needs root"
    packages = Path(__file__).with_name("packages.txt")
    missing = [tool for tool in _TOOLS.split() if shutil.which(tool) is None]
    if missing:
        return f"the host lab needs {', '.join(missing)}: install the packages listed in {packages}"
    if not any(kind == "cgroup2" for _, kind, _ in _mounts()):
        return "the host lab needs a mounted cgroup2 file system"
    effective = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff:"))
    if not int(effective.split()[1], 16) & (1 << _CAP_SYS_ADMIN):
        return "the host lab needs to mount and to make namespaces (CAP_SYS_ADMIN): this container may not"
    return None


def build_base(suite: str, *, cache: Path = _CACHE) -> Path:
    """The root tree of a Debian suite, built on the first call and reused by every later one with the same recipe.

    Parallel callers build it once. About 30 s and 300 MB; needs the machine's own apt sources to be reachable.
    """
    digest = hashlib.sha256("\0".join([suite, _PACKAGES, _HOOK]).encode()).hexdigest()[:12]
    base = cache / f"{suite}-{digest}"
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{suite}.lock"):
        if (base / "stamp").is_file():
            return base / "root"
        for dead in cache.glob(f"{suite}-*.tmp"):  # nobody else builds this suite now: we hold its lock
            shutil.rmtree(dead)
        work = cache / f"{base.name}.tmp"
        work.mkdir()
        hook, options = work / "hook", work / "apt.conf"
        hook.write_text(_HOOK)
        hook.chmod(0o755)
        options.write_text(_apt_options())
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={_PACKAGES}", f"--aptopt={options}"]
        command += ["--dpkgopt=force-unsafe-io", "--dpkgopt=path-exclude=/usr/share/man/*", f"--customize-hook={hook}"]
        _sh([*command, suite, str(work / "root"), f"deb {_mirror()} {suite} main"], timeout_s=900)
        hook.unlink()
        options.unlink()
        (work / "stamp").write_text(f"{suite}\n")
        work.rename(base)
    return base / "root"


def _mirror() -> str:
    """The Debian mirror of this machine's own apt sources: whatever serves its own suite's main component."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    codename = release.get("VERSION_CODENAME", "").strip('"')
    wanted = "$(RELEASE) $(COMPONENT) $(REPO_URI)"
    for line in _sh(["apt-get", "indextargets", "--format", wanted, "Created-By: Packages"]).splitlines():
        suite, component, uri = line.split(" ", 2)
        if (suite, component) == (codename, "main"):
            return uri
    raise LabError(
        f"the host lab takes its mirror from this machine's apt sources, and they name none for {codename} main"
    )


def _apt_options() -> str:
    """This machine's own apt settings for fetching (proxies, dates, retries)."""
    lines = _sh(["apt-config", "dump"]).splitlines()
    wanted = ("Acquire::http", "Acquire::https", "Acquire::Check-", "Acquire::Retries")
    return "".join(f"{line}\n" for line in lines if line.startswith(wanted))


# --------------------------------------------------------------------------------------------------------------- ledger


@dataclass
class _Ledger:
    """What one fleet has made on this machine, kept in a file from before it is made until it is gone."""

    path: Path
    owner: tuple[int, str]
    made: list[tuple[str, str]] = field(default_factory=list)
    """In order: what (cgroup, directory, loop, mount, netns) and which; a loop device is known by its image."""

    def note(self, kind: str, which: str | Path) -> None:
        """Remember on disk what is about to be made."""
        self.made.append((kind, str(which)))
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps({"owner": self.owner, "made": self.made}))
        new.replace(self.path)

    @classmethod
    def load(cls, path: Path) -> _Ledger:
        content = json.loads(path.read_text())
        pid, started = content["owner"]
        return cls(path, (pid, started), [(kind, which) for kind, which in content["made"]])

    def undo(self) -> None:
        """Take back everything in the ledger, then the ledger; raises at what it cannot, and can be repeated."""
        for kind, which in self.made:
            if kind == "cgroup":
                _kill_in_cgroup(Path(which))
        for kind, which in self.made:
            if kind == "netns":
                _kill_in_netns(which)
        for kind, which in reversed(self.made):
            if kind == "mount" and any(where == which for where, _, _ in _mounts()):
                _unmount(which)
            elif kind == "loop":
                for device in _sh(["losetup", "--noheadings", "--output", "NAME", "--associated", which]).split():
                    _sh(["losetup", "--detach", device])
            elif kind == "netns" and Path("/run/netns", which).exists():
                _sh(["ip", "netns", "delete", which])
            elif kind == "cgroup":
                _remove_cgroup(Path(which))
            elif kind == "directory" and Path(which).exists():
                shutil.rmtree(which)
        self.path.unlink(missing_ok=True)


def clean_leftovers() -> list[str]:
    """Undo every fleet whose owner is dead; the ids of those fleets.

    One that can't be undone (held by somebody, or of another version of this lab) is said and left: fleets don't share
    anything, so that it is in no new one's way.
    """
    cleaned = []
    _STATE.mkdir(parents=True, exist_ok=True)
    with _locked(_STATE / "lock"):
        for path in sorted(_STATE.glob("*.json")):
            try:
                ledger = _Ledger.load(path)
                if _started(ledger.owner[0]) != ledger.owner[1]:
                    ledger.undo()
                    cleaned.append(path.stem)
            except (LabError, KeyError, ValueError) as error:
                print(f"lab: {path.stem} can't be cleaned: {type(error).__name__}: {error}", file=sys.stderr)
    return cleaned


# ---------------------------------------------------------------------------------------------------------------- hosts


@dataclass(frozen=True)
class HostSpec:
    """A host to boot.

    `disk_mb` gives it an ext4 file system of its own at /mnt/disk. `backing_mb` puts that disk's image on a tmpfs of so
    many megabytes: a disk larger than its backing has true write-back errors.
    """

    name: str
    suite: str
    disk_mb: int = 0
    backing_mb: int = 0


class Host:
    """One booted Debian system."""

    def __init__(self, fleet: Fleet, spec: HostSpec, number: int) -> None:
        self.name = spec.name
        self.spec = spec
        self.address = f"10.91.0.{10 + number}"
        self.netns = f"fury{fleet.id}-{number}"
        self.port = f"furyp{number}"
        """The host's port on the bridge in the controller's namespace; the host's own end of that cable is eth0."""
        self.directory = fleet.directory / spec.name
        self.root = self.directory / "root"
        """The host's root tree as this machine sees it."""
        self.disk: Path | None = self.directory / "disk" if spec.disk_mb else None
        """The host's own disk as this machine sees it, for remounts and for filling it up from outside."""
        self._fleet = fleet
        self._cgroups = [Path(mount, f"fury{fleet.id}", spec.name) for mount in _cgroup_mounts()]
        self._supervisor: threading.Thread | None = None
        self._boots = 0
        self._unplugged = False
        self._changed = threading.Condition()

    def run(
        self, argv: Sequence[str], *, user: str = "root", check: bool = True, timeout_s: float = 60, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host over ssh; LabError with its output when it fails and `check` is set."""
        command = ["ssh", "-F", str(self._fleet.ssh_config), f"{user}@{self.name}", "--", shlex.join(argv)]
        return self._checked(argv, _capture(command, timeout_s=timeout_s, stdin=stdin), check)

    def enter(
        self, argv: Sequence[str], *, check: bool = True, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host as root without its network, for looking at it while its link is down."""
        command = ["nsenter", f"--target={self.leader()}", "--all", "--", *argv]
        return self._checked(argv, _capture(command, timeout_s=timeout_s), check)

    def net(self, argv: Sequence[str]) -> str:
        """Run one of this machine's commands (ip, tc) in the host's network namespace; its output."""
        return _sh(["ip", "netns", "exec", self.netns, *argv])

    def leader(self) -> int:
        """The process id, on this machine, of the host's init; LabError when the host is off."""
        for procs in (self._cgroups[0] / "payload").rglob("cgroup.procs"):
            for pid in _read(procs).split():
                in_namespaces = [line for line in _read(Path("/proc", pid, "status")).splitlines() if "NSpid:" in line]
                if in_namespaces and in_namespaces[0].split()[2:][-1:] == ["1"]:
                    return int(pid)
        raise LabError(f"{self.name} is off")

    @property
    def running(self) -> bool:
        return self._supervisor is not None and self._supervisor.is_alive()

    def start(self) -> None:
        """Boot the host; returns at once."""
        if self.running:
            raise LabError(f"{self.name} is already running")
        before = self._boots
        self._unplugged = False
        self._supervisor = threading.Thread(target=self._supervise, name=self.name, daemon=True)
        self._supervisor.start()
        with self._changed:
            self._changed.wait_for(lambda: self._boots > before, 10)

    def wait_ready(self, timeout_s: float = 60) -> None:
        """Return once the host has booted to the end and answers ssh."""
        self._await_sshd(timeout_s)
        self.run(["systemctl", "is-system-running", "--wait"], check=False, timeout_s=timeout_s)

    def power_off(self, timeout_s: float = 120) -> None:
        """Shut the host down in order; returns once it is off."""
        os.kill(self.leader(), signal.SIGRTMIN + 4)
        self._await_off(timeout_s)

    def kill(self) -> None:
        """Pull the plug: every process of the host is gone at once. (What it wrote stays in this machine's cache.)"""
        self._unplugged = True
        (self._cgroups[0] / "payload" / "cgroup.kill").write_text("1")
        self._await_off(30)

    def reboot(self, timeout_s: float = 120) -> None:
        """Reboot the host in order; returns once it answers again."""
        before = self._boots
        os.kill(self.leader(), signal.SIGRTMIN + 5)
        with self._changed:
            if not self._changed.wait_for(lambda: self._boots > before, timeout_s):
                raise LabError(f"{self.name} did not go down for its reboot within {timeout_s:g} s")
        self.wait_ready()

    def link_down(self) -> None:
        """Pull the host's network cable: its interface loses the carrier, its addresses and routes stay."""
        _sh(["ip", "-n", self._fleet.netns, "link", "set", self.port, "down"])

    def link_up(self) -> None:
        """Plug the host's network cable in again; returns once it answers, if it runs.

        The kernel takes its time to see a carrier on a busy machine, and to forget that nobody was there.
        """
        _sh(["ip", "-n", self._fleet.netns, "link", "set", self.port, "up"])
        if self.running:
            self._await_sshd(20)

    def _await_sshd(self, timeout_s: float) -> None:
        probe = [sys.executable, "-ISc", _AWAIT_SSHD, self.address, str(timeout_s)]
        if subprocess.run(self._fleet.controller_argv(probe), check=False).returncode != 0:
            raise LabError(f"{self.name} did not answer ssh within {timeout_s:g} s:\n{self.console()[-2000:]}")

    def console(self) -> str:
        """What the host has printed on its console so far."""
        log = self.directory / "console"
        return log.read_text(errors="replace") if log.exists() else ""

    def _checked(
        self, argv: Sequence[str], done: subprocess.CompletedProcess[str], check: bool
    ) -> subprocess.CompletedProcess[str]:
        if check and done.returncode != 0:
            raise LabError(f"{self.name}: {shlex.join(argv)} ended with {done.returncode}: {done.stderr}{done.stdout}")
        return done

    def _await_off(self, timeout_s: float) -> None:
        if self._supervisor is not None:
            self._supervisor.join(timeout_s)
        if self.running:
            raise LabError(f"{self.name} did not power off within {timeout_s:g} s")

    def _supervise(self) -> None:
        """Boot, and boot again when the host asks for it: with --keep-unit systemd-nspawn leaves that to its caller."""
        # Entered twice: nspawn alone joins the namespace only after it has mounted /sys, which then shows another eth0.
        nspawn = ["nsenter", f"--net=/run/netns/{self.netns}"]
        nspawn += ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--console=read-only"]
        nspawn += ["--capability=CAP_NET_ADMIN"]
        nspawn += ["--link-journal=no", "--resolv-conf=off", "--timezone=off", f"--directory={self.root}"]
        nspawn += [f"--machine=fury{self._fleet.id}-{self.name}", f"--hostname={self.name}"]
        nspawn += [f"--network-namespace-path=/run/netns/{self.netns}"]
        if self.disk is not None:
            nspawn.append(f"--bind={self.disk}:{DISK}")
        # A cgroup of its own for each host: else their inits would share one, and kill() would have nothing to kill by.
        script = "set -e\n" + "".join(
            f"echo $$ > {shlex.quote(str(cgroup))}/cgroup.procs\n" for cgroup in self._cgroups
        )
        script += f"exec {shlex.join(nspawn)}"
        environment = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_NSPAWN_TMPFS_TMP": "0"}
        command = ["sh", "-c", script]
        rebooted = 133
        code = rebooted
        while code == rebooted and not self._unplugged:
            with (self.directory / "console").open("ab") as log:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
            with self._changed:
                self._boots += 1
                self._changed.notify_all()
            code = process.wait()


class Fleet:
    """Booted hosts and a controller's network namespace, while the context lasts; nothing is left of them after it."""

    def __init__(self, specs: Sequence[HostSpec] | None = None, *, cache: Path = _CACHE) -> None:
        self.specs = tuple(specs) if specs is not None else tuple(HostSpec(*item) for item in SUITES.items())
        self.id = secrets.token_hex(3)
        self.netns = f"fury{self.id}"
        """The controller's network namespace."""
        self.address = CONTROLLER_ADDRESS
        """The controller's address as the hosts see it."""
        self.directory = cache / f"fleet-{self.id}"
        self.ssh_config = self.directory / "ssh_config"
        """For ssh from the machine's own namespace to the hosts by name."""
        self.key = self.directory / "key"
        self.known_hosts = self.directory / "known_hosts"
        self._cache = cache
        self.hosts = tuple(Host(self, spec, number) for number, spec in enumerate(self.specs, start=1))
        self._ledger: _Ledger | None = None

    def __enter__(self) -> Fleet:
        reason = available()
        if reason is not None:
            raise LabError(reason)
        clean_leftovers()
        with ThreadPoolExecutor(2) as pool:
            suites = sorted({spec.suite for spec in self.specs})
            bases = dict(zip(suites, pool.map(lambda suite: build_base(suite, cache=self._cache), suites)))
        self._ledger = _Ledger(_STATE / f"{self.id}.json", (os.getpid(), _started(os.getpid())))
        try:
            self._lay_out(self._ledger)
            for host in self.hosts:
                self._furnish(self._ledger, host, bases[host.spec.suite])
                host.start()
            with ThreadPoolExecutor(len(self.hosts)) as pool:
                list(pool.map(Host.wait_ready, self.hosts))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take everything down and away, whatever state it is in."""
        if self._ledger is None:
            return
        for host in self.hosts:
            if host.running:
                with contextlib.suppress(OSError, LabError):
                    host.kill()
        self._ledger.undo()
        self._ledger = None

    def host(self, name: str) -> Host:
        """The host of that name."""
        return next(host for host in self.hosts if host.name == name)

    def controller_argv(self, argv: Sequence[str]) -> list[str]:
        """The command that runs `argv` as the controller: this machine's files, the fleet's network."""
        return ["ip", "netns", "exec", self.netns, *argv]

    def controller_run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout_s: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as the controller, with `env` on top of this process's environment; its output is captured."""
        return _capture(self.controller_argv(argv), env=env, cwd=cwd, timeout_s=timeout_s)

    def inventory(self, path: Path, extra: str = "", *, user: str = "root") -> Path:
        """Write an Ansible inventory for the controller's namespace: all hosts in `fury_agents`, then `extra`."""
        options = f"-F /dev/null -o UserKnownHostsFile={self.known_hosts} -o StrictHostKeyChecking=yes"
        options += " -o IdentitiesOnly=yes"
        lines = ["[fury_agents]"]
        lines += [f"{host.name} ansible_host={host.address}" for host in self.hosts]
        lines += ["", "[fury_agents:vars]", f"ansible_user={user}", f"ansible_ssh_private_key_file={self.key}"]
        lines += [f"ansible_ssh_common_args='{options}'"]
        # Fleets have the same addresses: without a directory of its own one would use another's persistent connections.
        lines += [f"ansible_control_path_dir={self.directory}/cp", "", extra]
        path.write_text("\n".join(lines))
        return path

    def describe(self) -> dict[str, object]:
        """What a person or a script needs to use the fleet, as plain values."""
        return {
            "id": self.id,
            "pid": os.getpid(),
            "netns": self.netns,
            "controller_address": self.address,
            "ssh_config": str(self.ssh_config),
            "hosts": {
                host.name: {
                    "address": host.address,
                    "suite": host.spec.suite,
                    "netns": host.netns,
                    "root": str(host.root),
                    "disk": DISK if host.disk else None,
                }
                for host in self.hosts
            },
        }

    def _lay_out(self, ledger: _Ledger) -> None:
        """The network, the keys and the cgroups: all that is there before the first host."""
        ledger.note("directory", self.directory)
        self.directory.mkdir(mode=0o711)
        # Shared, so that what is unmounted here goes from the copies, too, that `ip netns exec` makes of all mounts.
        ledger.note("mount", self.directory)
        _sh(["mount", "--bind", str(self.directory), str(self.directory)])
        _sh(["mount", "--make-shared", str(self.directory)])
        ledger.note("netns", self.netns)
        _sh(["ip", "netns", "add", self.netns])
        ours = ["ip", "-n", self.netns]
        _sh([*ours, "link", "set", "lo", "up"])
        _sh([*ours, "link", "add", "fury0", "type", "bridge"])
        _sh([*ours, "address", "add", f"{self.address}/24", "dev", "fury0"])
        _sh([*ours, "link", "set", "fury0", "up"])
        for host in self.hosts:
            ledger.note("netns", host.netns)
            theirs = ["ip", "-n", host.netns]
            _sh(["ip", "netns", "add", host.netns])
            _sh([*ours, "link", "add", host.port, "type", "veth", "peer", "name", "eth0", "netns", host.netns])
            _sh([*ours, "link", "set", host.port, "master", "fury0", "up"])
            _sh([*theirs, "address", "add", f"{host.address}/24", "dev", "eth0"])
            _sh([*theirs, "link", "set", "lo", "up"])
            _sh([*theirs, "link", "set", "eth0", "up"])
            _sh([*theirs, "route", "add", "default", "via", self.address])
        _keygen(self.key)
        dial = shlex.join(self.controller_argv([sys.executable, "-ISc", _DIAL.strip().replace("\n", "; ")]))
        lines = [f"Host {host.name}\n  HostName {host.address}\n  HostKeyAlias {host.address}" for host in self.hosts]
        lines += [f"Host *\n  User root\n  IdentityFile {self.key}\n  IdentitiesOnly yes\n  BatchMode yes"]
        lines += [f"  UserKnownHostsFile {self.known_hosts}\n  StrictHostKeyChecking yes\n  LogLevel ERROR"]
        lines += ["  ServerAliveInterval 5\n  ServerAliveCountMax 3\n  ProxyUseFdpass yes"]
        lines += [f"  ProxyCommand {dial} %h %p\n"]
        self.ssh_config.write_text("\n".join(lines))
        for mount in _cgroup_mounts():
            ledger.note("cgroup", Path(mount, f"fury{self.id}"))
            for host in self.hosts:
                Path(mount, f"fury{self.id}", host.name).mkdir(parents=True)

    def _furnish(self, ledger: _Ledger, host: Host, base: Path) -> None:
        """The host's root tree, with its name, its keys and its disk."""
        upper, work = host.directory / "upper", host.directory / "work"
        for directory in (host.directory, host.root, upper, work):
            directory.mkdir()
        ledger.note("mount", host.root)
        layers = f"lowerdir={base},upperdir={upper},workdir={work}"
        _sh(["mount", "-t", "overlay", "fury", "-o", layers, str(host.root)])
        etc = host.root / "etc"
        (etc / "hostname").write_text(f"{host.name}\n")
        names = ["127.0.0.1 localhost", f"{self.address} controller", *(f"{it.address} {it.name}" for it in self.hosts)]
        (etc / "hosts").write_text("".join(f"{name}\n" for name in names))
        (etc / "resolv.conf").unlink(missing_ok=True)
        (etc / "resolv.conf").write_text("")
        # A machine id that is there already: without it systemd takes this for a first boot and applies all presets.
        (etc / "machine-id").unlink(missing_ok=True)
        (etc / "machine-id").write_text(f"{secrets.token_hex(16)}\n")
        _keygen(etc / "ssh" / "ssh_host_ed25519_key")
        public = (etc / "ssh" / "ssh_host_ed25519_key.pub").read_text()
        with self.known_hosts.open("a") as known:
            known.write(f"{host.address} {public}")
        shutil.copyfile(f"{self.key}.pub", host.root / "root/.ssh/authorized_keys")
        shutil.copyfile(f"{self.key}.pub", host.root / "home/operator/.ssh/authorized_keys")
        if host.disk is not None:
            self._make_disk(ledger, host, host.disk)

    def _make_disk(self, ledger: _Ledger, host: Host, where: Path) -> None:
        backing = host.directory / "backing"
        backing.mkdir()
        where.mkdir()
        if host.spec.backing_mb:
            ledger.note("mount", backing)
            _sh(["mount", "-t", "tmpfs", "-o", f"size={host.spec.backing_mb * 1_000_000}", "fury", str(backing)])
        image = backing / "image"
        with image.open("xb") as file:
            file.truncate(host.spec.disk_mb * 1_000_000)
        _sh(["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "nodiscard,lazy_itable_init=1", str(image)])
        ledger.note("loop", image)
        loop = _sh(["losetup", "--show", "--find", str(image)]).strip()
        ledger.note("mount", where)
        _sh(["mount", "-t", "ext4", loop, str(where)])


# -------------------------------------------------------------------------------------------------------------- machine


def _capture(
    argv: Sequence[str],
    *,
    timeout_s: float,
    stdin: str = "",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **(env or {})}
    return subprocess.run(
        argv, input=stdin, env=environment, cwd=cwd, timeout=timeout_s, capture_output=True, text=True, check=False
    )


def _sh(argv: Sequence[str], *, timeout_s: float = 60) -> str:
    """The output of one of this machine's commands; LabError when it fails."""
    done = _capture(argv, timeout_s=timeout_s)
    if done.returncode != 0:
        raise LabError(f"{shlex.join(argv)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def _read(path: Path) -> str:
    """The text of a file of the kernel's; empty when what it tells of has gone."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _keygen(path: Path) -> None:
    _sh(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "fury-lab", "-f", str(path)])


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _started(pid: int) -> str:
    """When a process was started, in clock ticks since boot; empty when there is none, or only its corpse."""
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return "" if not fields or fields[0] == "Z" else fields[19]


def _mounts() -> list[tuple[str, str, str]]:
    """This machine's mounts: mount point, file system type, super block options."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, after = line.split(" - ")
        kind, _, options = after.split(" ", 2)
        found.append((before.split()[4], kind, options))
    return found


def _cgroup_mounts() -> list[str]:
    """The cgroup2 mount, and on a machine with version 1 hierarchies the one systemd keeps its own names in."""
    mounts = _mounts()
    unified = [where for where, kind, _ in mounts if kind == "cgroup2"]
    named = [where for where, kind, options in mounts if kind == "cgroup" and "name=systemd" in options]
    return unified[:1] + named[:1]


def _kill_in_cgroup(cgroup: Path) -> None:
    """Kill what is in a fleet's cgroup; returns once it is dead."""
    if not (cgroup / "cgroup.kill").exists():  # gone, or of version 1, whose processes are in the other one as well
        return
    # The hosts before their systemd-nspawn, which then removes its own locks and directories in /run/systemd.
    for payload in cgroup.glob("*/payload/cgroup.kill"):
        payload.write_text("1")
    patience = time.monotonic() + 3
    while "populated 1" in _read(cgroup / "cgroup.events") and time.monotonic() < patience:
        time.sleep(0.02)
    (cgroup / "cgroup.kill").write_text("1")


def _remove_cgroup(cgroup: Path) -> None:
    end = time.monotonic() + 10
    while cgroup.exists():  # what was killed may still be dying
        for directory, _, _ in os.walk(cgroup, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)
        if time.monotonic() > end:
            raise LabError(f"the cgroup {cgroup} cannot be removed: something in it cannot be killed")


def _unmount(where: str) -> None:
    end = time.monotonic() + 10
    while (done := _capture(["umount", where], timeout_s=60)).returncode != 0:
        if time.monotonic() > end:
            raise LabError(f"{where} cannot be unmounted: {done.stderr.strip()}; close what uses it (fuser -m {where})")
        time.sleep(0.1)


def _kill_in_netns(name: str) -> None:
    """Kill what still runs in a network namespace of ours, such as Ansible's lingering ssh connections."""
    if not Path("/run/netns", name).exists():
        return
    end = time.monotonic() + 10
    while pids := _sh(["ip", "netns", "pids", name]).split():
        if time.monotonic() > end:
            raise LabError(f"processes {', '.join(pids)} in the network namespace {name} cannot be killed")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.02)


# -------------------------------------------------------------------------------------------------------------- by hand


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: `up`, `clean` and `build`."""
    parser = argparse.ArgumentParser(prog="python -m tests.hosts.lab", description="Real hosts on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="boot a fleet and keep it until Ctrl-C or SIGTERM")
    up.add_argument("--hosts", type=int, default=3, help="how many, of Debian 11, 12 and 13 in turn (default: 3)")
    up.add_argument("--disk-mb", type=int, default=0, help=f"give each a disk of its own at {DISK} (default: none)")
    up.add_argument("--out", type=Path, default=Path("/tmp/fury-lab.json"), help="file that describes the fleet")
    commands.add_parser("build", help="build the root trees and stop")
    commands.add_parser("clean", help="remove what fleets whose owner was killed have left behind")
    options = parser.parse_args(arguments)
    try:
        if (reason := available()) is not None:
            raise LabError(reason)
        if options.command == "clean":
            print(f"cleaned: {', '.join(clean_leftovers()) or 'nothing to clean'}")
        elif options.command == "build":
            for suite in SUITES.values():
                print(build_base(suite))
        else:
            _up(options.hosts, options.disk_mb, options.out)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0


def _up(count: int, disk_mb: int, out: Path) -> None:
    ended = threading.Event()
    items = list(SUITES.items())
    specs = [
        HostSpec(name if number < len(items) else f"{name}-{number // len(items) + 1}", suite, disk_mb)
        for number, (name, suite) in ((number, items[number % len(items)]) for number in range(count))
    ]

    def stop(*_: object) -> None:
        if ended.is_set():
            return
        ended.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    began = time.monotonic()
    with contextlib.suppress(KeyboardInterrupt), Fleet(specs) as fleet:
        inventory = fleet.inventory(fleet.directory / "inventory")
        description = {**fleet.describe(), "inventory": str(inventory)}
        out.write_text(json.dumps(description, indent=2) + "\n")
        print(json.dumps(description, indent=2))
        print(f"up after {time.monotonic() - began:.1f} s; Ctrl-C ends it", flush=True)
        signal.pause()
    out.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
