# Copyright (c) 2026 The Fury authors. MIT license.
"""Puts one Fury service (an agent or the collector) on the host it runs on, and takes it away again without a trace.

The Ansible module ``fury_service`` calls it on every host; a copy lies in each service's home, from where the reaper runs it
when nobody else came. Both remove with the same code. Python 3.9+, standard library only.

    <base>/<kind>-<name>/    the home: /var/lib/fury/agent-alecto, without root ~/.local/state/fury/agent-alecto
        service.json         what is put where: all that removal has to know, written once, before anything else
        tree/                the program with its libraries, and this file
        config.json, …       files for the program
        secrets/             what it is known by; systemd hands copies to its user (LoadCredential=), otherwise it reads them here
        agent.log            what it prints
        state/               what it writes; only this belongs to the service's own user
        directory, chunks/   with systemd: a link to the agent's chunk directory, and where its unit mounts that for it, so that
                             no path of a user's has to stand in a unit, and all other directories can be hidden from it

What is promised when nobody comes back: with systemd the reaper removes everything when the lease is over, and at the next
boot if the host goes down before; what it can't remove (a disk that is read-only or not mounted) it tries again. Without
systemd a reaper process does the same, but no process outlives a reboot: nothing of Fury runs after one, the files stay
until the next run starts on that host or teardown.yml is called, and the same holds if the reaper itself is killed.

With systemd each service has a user of its own, and so none can read what another one is known by, keeps or writes. Without it
all are processes of the one user who started them, and nothing but their good behaviour keeps them apart.

Command line, for the reaper: ``python3 -I fury_host.py reap --home HOME [--run-id ID] [--after SECONDS] [--retry SECONDS]``.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import grp
import hashlib
import json
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

UNITS = Path("/etc/systemd/system")
OWN_UNIT = re.compile(r"^fury-(agent|collector|reaper)-.+\.(service|timer)$")
OWN_USER = re.compile(r"^fury-[a-z0-9-]+$")
USER_COMMENT = "Fury storage stress test"  # by this, and not by its name, a user is known to be ours
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
UNIT_PATH = re.compile(r"/[A-Za-z0-9/._+-]*")  # what needs no escaping anywhere in a unit
MARKER = ".fury.json"
MADE = ".made.json"
CHUNK = re.compile(r"chunk-[0-9]+\.dat")
REAPER = "fury_host.py"
SYSTEM_DIRECTORIES = (
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/boot",
    "/etc",
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
)
# What ProtectHome= and PrivateTmp= hide (systemd.exec(5)).
HOMES = ("/home", "/root", "/run/user")
TEMPORARY = ("/tmp", "/var/tmp")
# A path that holds one of these breaks lines, or is no UTF-8 (surrogates stand for that).
NO_PATH = re.compile("[\0-\x1f\x7f\ud800-\udfff]")
# How the process of a unit ends that systemd could not put into its sandbox (systemd.exec(5)).
NOT_CONFINED = {"217": "USER", "218": "CAPABILITIES", "226": "NAMESPACE", "228": "SECCOMP", "243": "CREDENTIALS"}
STOP_SECONDS = 15.0
READY_SECONDS = 30.0
LOCK_SECONDS = 120.0
COMMAND_SECONDS = 90.0
LOG_BYTES = 4_000_000
RETRY_SECONDS = 600
REAPER_TRIES = 150  # without systemd: about a day
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class HostError(Exception):
    """What can't be done on this host, in one sentence that says what to do."""


def base_directory() -> Path:
    """Where homes lie when nothing else is asked for: of the machine for root, of the user otherwise."""
    if os.geteuid() == 0:
        return Path("/var/lib/fury")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "fury"


def runs_systemd() -> bool:
    """True when systemd is the init of this host (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def slug(name: str) -> str:
    """A form of an agent's name that serves as unit and user name: at most 20 of ``a-z 0-9 -``, distinct for distinct names."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if plain == name and len(plain) <= 20:
        return plain
    return f"{plain[:11].strip('-') or 'agent'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def chunk_directory(directory: str, name: str) -> Path:
    """The one directory in which agent ``name`` writes."""
    return Path(os.path.realpath(directory)) / f"fury-{name}"


# --------------------------------------------------------------------------------------------------------------- processes


def _spawn(argv: Sequence[str], *, cwd: Path, log: Path, env: Mapping[str, str]) -> None:
    """Start ``argv`` as a session of its own that outlives the caller, its output appended to ``log``."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            list(argv),
            cwd=str(cwd),
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    with contextlib.suppress(OSError):  # Popen returns some instants before the kernel shows what was called
        while process.poll() is None and not Path(f"/proc/{process.pid}/cmdline").read_bytes():
            time.sleep(0.001)
    process.returncode = 0  # it is meant to outlive this process: don't warn about that


def _processes(home: Path, *, reapers: bool = False) -> List[int]:
    """The processes of the service of ``home``, or its reapers; never the caller.

    They are known by what they were called with, not by a recorded pid: so none is missed whose parent was killed, and none
    that has taken over the pid of another is taken for ours. Those of containers on this machine are not ours.
    """
    try:
        owner = home.stat().st_uid
    except OSError:
        owner = os.geteuid()
    return [pid for pid in _pids() if _called_for(pid, os.fsencode(home), reapers) and _is_of(pid, owner)]


def _pids() -> List[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and int(entry) != os.getpid()]


def _called_for(pid: int, home: bytes, reapers: bool) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    pairs = list(zip(words, words[1:]))
    if reapers:
        return (b"--home", home) in pairs and b"reap" in words
    return any(a == b"-m" and b.startswith(b"fury_") for a, b in pairs) and any(
        w.startswith(home + b"/") for w in words
    )


def _is_of(pid: int, owner: int) -> bool:
    """True for a process of user ``owner`` in this very PID namespace (proc(5) status: one number in NSpid)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        return os.stat(f"/proc/{pid}").st_uid == owner and not re.search(r"^NSpid:\t\d+\t", status, re.M)
    except OSError:
        return False


def _end(home: Path, *, reapers: bool = False) -> List[str]:
    """End the service's processes (or its reapers): SIGTERM, after ``STOP_SECONDS`` SIGKILL; say which there were."""
    seen = set(_processes(home, reapers=reapers))
    for number, patience_s in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + patience_s
        signalled: set[int] = set()
        while True:
            alive = set(_processes(home, reapers=reapers))
            if not alive:
                return [f"{'reaper ' if reapers else ''}process {pid}" for pid in sorted(seen)]
            if time.monotonic() > deadline:
                break
            for pid in alive - signalled:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                    os.kill(pid, signal.SIGCONT)  # one that was stopped can't end before it goes on
            signalled |= alive
            seen |= alive
            time.sleep(0.05)
    raise HostError(
        f"process {min(alive)} does not end, even after SIGKILL (it hangs in the kernel, most likely on its disk); "
        "see to the disk or reboot the host"
    )


def _run(*argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    # useradd and its like lie in sbin, which is not on every login's PATH.
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    said = " ".join(argv)
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_SECONDS, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise HostError(
            f"{said} has not come to an end within {COMMAND_SECONDS:g} s; see what it hangs on, then try again"
        ) from error
    except OSError as error:
        raise HostError(f"{said} cannot be run here ({error.strerror})") from error
    if check and done.returncode != 0:
        raise HostError(f"{said} failed with {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done


# -------------------------------------------------------------------------------------------------------------------- files


@contextlib.contextmanager
def _in_words(doing: str) -> Iterator[None]:
    """Whatever the system refuses becomes a HostError."""
    try:
        yield
    except (OSError, ValueError, tarfile.TarError) as error:
        where = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        raise HostError(f"{doing}: {where}") from error


def _write(path: Path, content: str, *, mode: int, owner: Optional[str] = None) -> None:
    """Make ``path`` hold ``content`` with ``mode`` and ``owner``: whole or not at all, also when the power fails."""
    uid, gid = (pwd.getpwnam(owner)[2:4]) if owner else (os.geteuid(), os.getegid())
    draft = path.with_name(f".{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        draft.unlink()
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as out:
        out.write(content)
        out.flush()
        os.fchmod(out.fileno(), mode)
        os.fchown(out.fileno(), uid, gid)
        os.fsync(out.fileno())
    draft.replace(path)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_json(path: Path) -> Dict[str, Any]:
    try:
        loaded = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _fill(text: str, places: Mapping[str, str], *, in_json: bool = False) -> str:
    """``text`` with what stands for each of the places replaced, once: what is put in is not looked at again."""

    def place(found: re.Match[str]) -> str:
        value = places[found[1]]
        return json.dumps(value)[1:-1] if in_json else value

    return re.sub(f"@({'|'.join(places)})@", place, text)


def _remove_tree(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _has_user_namespaces() -> bool:
    """False where the administrator forbids them (namespaces(7)), as some guides to secure machines demand."""
    try:
        return Path("/proc/sys/user/max_user_namespaces").read_text().strip() != "0"
    except OSError:
        return False


def _mount_point(path: Path) -> str:
    """Where the file system is mounted on which ``path`` lies (proc(5) mountinfo); bind mounts count."""
    best, wanted = b"/", os.fsencode(path) + b"/"
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        where = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), line.split()[4])
        if len(where) > len(best) and wanted.startswith(where + b"/"):
            best = where
    return os.fsdecode(best)


def _is_locked(descriptor: int) -> bool:
    """True when another process holds the lock of this file; else it is ours until the descriptor is closed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _make_base(base: Path) -> None:
    """Make ``base`` and what is missing above it, and note what that was."""
    if base.is_symlink():
        raise HostError(
            f"{base} is a symbolic link, and Fury makes this directory itself; remove it, or name another base"
        )
    missing, path = [], base
    while not path.exists():
        missing.append(path)
        path = path.parent
    if missing:
        for path in reversed(missing):
            path.mkdir(exist_ok=True, mode=0o755)
        base.chmod(0o711)  # nobody else may open it, and so nobody else holds its lock
        _write(base / MADE, json.dumps({"directories": [str(path) for path in missing]}), mode=0o600)


def _unmake_base(base: Path) -> None:
    """Remove ``base``, and what was made above it, once nothing else lies there; one that was there before stays."""
    with contextlib.suppress(OSError):  # of no harm: it is only empty directories
        if set(os.listdir(base)) - {MADE}:
            return
        made = _read_json(base / MADE).get("directories", [str(base)] if base == base_directory() else [])
        (base / MADE).unlink(missing_ok=True)
        for directory in made:
            os.rmdir(directory)


@contextlib.contextmanager
def _locked(base: Path, *, make: bool) -> Iterator[None]:
    """Hold the lock under which homes below ``base`` come and go; agents of one machine are put there and taken away in turn.

    The lock is on ``base`` itself, so that no file has to be left for it. Where there is no ``base`` and it is not to be made
    there is nothing to lock.
    """
    descriptor = _take_lock(base, make)
    try:
        yield
    finally:
        if descriptor is not None:
            _unmake_base(base)
            os.close(descriptor)


def _take_lock(base: Path, make: bool) -> Optional[int]:
    give_up = time.monotonic() + LOCK_SECONDS
    patience = 100
    while True:
        if make:
            try:
                _make_base(base)
            except FileNotFoundError:
                patience -= 1
                if not patience:  # not whoever was the last to leave, but a place where nothing can be made
                    raise
                time.sleep(0.01)
                continue  # what we were just making was removed by the last to leave
        try:
            descriptor = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            if not make:
                return None
            continue  # whoever was the last to leave has just removed it
        with contextlib.suppress(FileNotFoundError):
            if not _is_locked(descriptor) and os.path.samestat(os.stat(base), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)
        if time.monotonic() > give_up:
            raise HostError(
                f"another installation or removal below {base} has not come to an end within {LOCK_SECONDS:g} s; "
                "see what it hangs on (its disk, most likely), then try again"
            )
        time.sleep(0.05)


# ------------------------------------------------------------------------------------------------------------------ service


class Service:
    """One Fury service on this host: ``check``, ``start`` and ``remove`` it, each as often as one likes."""

    def __init__(self, *, kind: str, name: str, base: Optional[str] = None, mode: str = "auto") -> None:
        if not NAME.fullmatch(name):
            raise HostError(
                f"name: {name!r} is not allowed; 1 to 64 of A-Z a-z 0-9 . _ - starting with a letter or a digit are"
            )
        if base and not os.path.isabs(base):
            raise HostError(f"base: {base!r} is not allowed; an absolute path is (for example /srv/fury)")
        self.kind, self.name = kind, name
        self.last_words = b""  # what the program had printed when it was removed, where that was asked for
        self.base = Path(base) if base else base_directory()
        self.home = self.base / f"{kind}-{name}"
        self.slug = slug(name)
        self.unit = f"fury-{kind}-{self.slug}.service"
        self.reaper = f"fury-reaper-{kind}-{self.slug}"
        self.user = f"fury-{kind}-{self.slug}"
        if mode == "systemd" and not (runs_systemd() and os.geteuid() == 0):
            raise HostError(
                "mode: systemd is not possible here "
                f"(systemd is {'running' if runs_systemd() else 'not the init'}, the user is uid {os.geteuid()}); "
                "use mode auto or process, or become root (--become)"
            )
        systemd = runs_systemd() and os.geteuid() == 0
        self.mode = ("systemd" if systemd else "process") if mode == "auto" else mode
        # A virtual environment may lie where no user of a service's own can go, and the tree brings all that it needs.
        self.python = getattr(sys, "_base_executable", sys.executable) if self.mode == "systemd" else sys.executable

    # -- looking

    def record(self) -> Dict[str, Any]:
        """What was put on this host for this service; empty if nothing, or nothing readable."""
        return _read_json(self.home / "service.json")

    def lives(self) -> bool:
        """True while the service itself runs, or is about to be started again (its reaper does not count)."""
        if self.record().get("mode") == "systemd" and runs_systemd():
            return bool(_active([self.unit])) and _unit_is_of(self.unit, self.home)
        return bool(_processes(self.home))

    def check(self, *, run_id: str, directory: Optional[str], need_bytes: int, port: int) -> Dict[str, Any]:
        """Say whether a run could start here, changing nothing.

        need_bytes: what must be free below ``directory``; port: one that must be free, 0 for none.
        Raises HostError with the reason if not.
        """
        with _in_words(f"{self.kind} {self.name}"):
            return self._check(run_id, directory, need_bytes, port)

    def _check(self, run_id: str, directory: Optional[str], need_bytes: int, port: int) -> Dict[str, Any]:
        self._check_others(run_id)
        self._check_base()
        facts: Dict[str, Any] = {"architecture": os.uname().machine, "python": "{}.{}".format(*sys.version_info)}
        if directory is not None:
            _check_directory(directory)
            if self.mode != "systemd" and not any(
                os.access(path, os.W_OK | os.X_OK) for path in (directory, chunk_directory(directory, self.name))
            ):
                raise HostError(
                    f"directory: {directory} can't be written to by uid {os.geteuid()}; make it writable or name another one"
                )
            target = chunk_directory(directory, self.name)
            self._check_foreign(target, run_id)
            usage = os.statvfs(directory)
            if usage.f_flag & os.ST_RDONLY:
                raise HostError(f"directory: {directory} is on a read-only file system; remount it or name another one")
            free = usage.f_bavail * usage.f_frsize
            with contextlib.suppress(OSError):  # what an earlier run left there will be removed before this one writes
                free += sum(p.stat().st_blocks * 512 for p in target.glob("chunk-*.dat"))
            facts["free_bytes"] = free
            if free < need_bytes:
                raise HostError(
                    f"directory: {directory} has {free} bytes free, {need_bytes} are needed "
                    "(the ring of chunks and free_floor_mb); make room, or use a smaller chunk_mb, keep or free_floor_mb"
                )
        if port and not self.lives():
            self._check_port(port)
        return facts

    def _check_others(self, run_id: str) -> None:
        """Refuse beside an agent of another run, which would measure us and we it; two collectors have two ports."""
        homes = [
            Service(kind=kind, name=name, base=str(self.base)) for kind, name in _homes(self.base) if kind == "agent"
        ]
        for other in homes if self.kind == "agent" else [self]:
            of_run = other.record().get("run_id")
            if of_run != run_id and other.lives():
                hint = "give this run another -e fury_collector_port, " if self.kind == "collector" else ""
                raise HostError(
                    f"the {other.kind} {other.name} of run {of_run} is still running here; {hint}"
                    "wait until that run has ended, or end and remove it with: ansible-playbook teardown.yml"
                )

    def _check_base(self) -> None:
        if self.base.is_symlink():
            raise HostError(
                f"{self.base} is a symbolic link, and Fury makes this directory itself; remove it, or name another base"
            )
        if os.path.lexists(self.home) and not self._is_ours():
            raise self._not_ours()
        existing, fits, flags = self.base, False, 0
        for _ in range(100):  # the base may just be going away with the last that lay there
            existing = next(path for path in [self.base, *self.base.parents] if path.exists())
            with contextlib.suppress(FileNotFoundError):
                fits = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
                flags = os.statvfs(existing).f_flag
                break
        if not fits:
            raise HostError(
                f"{existing} is no directory that uid {os.geteuid()} can write to; name another with -e fury_base"
            )
        if self.kind == "agent" and flags & os.ST_NOEXEC:
            raise HostError(
                f"{existing} is mounted noexec, and the agent's libraries can't be loaded from there; "
                "name another place for them with -e fury_base"
            )
        if self.mode == "systemd" and (UNITS / self.unit).exists() and not _unit_is_of(self.unit, self.home):
            raise HostError(
                f"{UNITS / self.unit} belongs to {self.kind} {self.name} of another base than {self.base}; "
                "remove that one first: ansible-playbook teardown.yml"
            )
        if self.mode == "systemd":
            self._check_unit_paths()
            _check_passable("base", existing)
            _check_passable("ansible_python_interpreter", Path(self.python).parent)

    def _check_unit_paths(self) -> None:
        for what, path, option in (("base", str(self.home), "-e fury_base"),
                                   ("Python", self.python, "ansible_python_interpreter")):  # fmt: skip
            if not UNIT_PATH.fullmatch(path):
                raise HostError(
                    f"{what}: {path!r} can't be written into a systemd unit; "
                    f"name a path of letters, digits and / . _ + - with {option}"
                )

    def _check_foreign(self, target: Path, run_id: str) -> None:
        if target.is_symlink():
            raise HostError(
                f"directory: {target} is a symbolic link, Fury made no such thing; remove it or name another directory"
            )
        if not target.exists():
            return
        if not (target / MARKER).is_file():
            if not target.is_dir() or any(target.iterdir()):
                raise HostError(
                    f"directory: {target} exists and Fury did not make it (no {MARKER} in it); it is left alone: "
                    "move it away or name another directory"
                )
            return
        descriptor = os.open(target / MARKER, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            of_run = _read_json(target / MARKER).get("run_id")
            if of_run != run_id and _is_locked(descriptor):
                raise HostError(f"directory: {target} is in use by run {of_run}; wait until that one has ended")
        finally:
            os.close(descriptor)

    def _check_port(self, port: int) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError as error:
                raise HostError(f"port {port} is not free on this host ({error.strerror}); choose another") from error

    def _is_ours(self) -> bool:
        """True when what lies at the place of the home is one that Fury made, if only half or with a damaged record."""
        found = os.lstat(self.home)
        if not stat.S_ISDIR(found.st_mode) or os.geteuid() not in (0, found.st_uid):
            return False
        record = self.record()
        if record:
            return (record.get("kind"), record.get("name")) == (self.kind, self.name)
        return (self.home / "tree" / REAPER).is_file() or set(os.listdir(self.home)) <= {
            "service.json",
            ".service.json.new",
            "tree",
        }

    def _not_ours(self) -> HostError:
        return HostError(
            f"{self.home} was not made by Fury, or not by this user; it is left alone: look at it, and move it away"
        )

    # -- putting there

    def start(
        self,
        *,
        run_id: str,
        archive: str,
        digest: str,
        files: Mapping[str, str],
        argv: Sequence[str],
        unit: str,
        lease_s: int,
        secrets: Optional[Mapping[str, str]] = None,
        directory: Optional[str] = None,
        own_user: bool = True,
        ready_file: Optional[str] = None,
        log: Optional[str] = None,
        dry: bool = False,
    ) -> bool:
        """Bring the service to life: reaper first, then the program. True if anything had to be changed.

        archive: tar.gz of the program's tree, digest its sha256; files: what goes into the home beside it;
        secrets: files that nobody else may read, made anew by each start and no reason for one;
        argv: the command in process mode; unit: the unit's text in systemd mode. In these three, words in @ stand for what only
        this host knows: ``@HOME@``, ``@USER@``, ``@PYTHON@``, ``@DIRECTORY@`` (the real path of ``directory``),
        ``@CREDENTIALS@`` (where the secrets can be read), and ``@PROTECT_HOME@``, ``@PRIVATE_TMP@``, ``@PRIVATE_USERS@``.
        lease_s: seconds after which the reaper removes everything. log: where its output goes in process mode, default
        ``<kind>.log`` in the home. What can't be brought to life is removed again.
        """
        wanted = hashlib.sha256(
            json.dumps(
                [run_id, digest, dict(files), list(argv), unit, lease_s, directory, own_user, self.mode], sort_keys=True
            ).encode()
        ).hexdigest()
        if self.record().get("fingerprint") == wanted and self.lives():
            return False
        if dry:
            return True
        places = {
            "HOME": str(self.home),
            "USER": self.user,
            "PYTHON": self.python,
            # systemd.exec(5): there LoadCredential= shows a unit's user copies that no other user can read.
            "CREDENTIALS": f"/run/credentials/{self.unit}" if self.mode == "systemd" else str(self.home / "secrets"),
            "DIRECTORY": "" if directory is None else os.path.realpath(directory),
            # What a unit hides from its program, unless the program itself lies there.
            "PROTECT_HOME": "read-only" if self._needs(HOMES) else "yes",
            "PRIVATE_TMP": "no" if self._needs(TEMPORARY) else "yes",
            "PRIVATE_USERS": "yes" if _has_user_namespaces() else "no",
        }
        before = os.umask(0o022)  # the service's own user has to be able to read what is put there
        try:
            with _in_words(f"{self.kind} {self.name} can't be started"):
                self._check_base()
            with _in_words(f"{self.kind} {self.name} can't be started"), _locked(self.base, make=True):
                self._check_others(run_id)  # again, now that nobody can come in between
                self._sweep()
                _, notes = self._remove()
                if notes:
                    raise HostError("; ".join(notes))
                try:
                    user = self.user if self.mode == "systemd" and own_user else None
                    target = None if directory is None else chunk_directory(directory, self.name)
                    self._arm(run_id, archive, digest, target, user, wanted, _fill(unit, places), lease_s)
                    self._install(archive, {k: _fill(v, places, in_json=k.endswith(".json")) for k, v in files.items()},
                                  secrets or {}, target, user, run_id)  # fmt: skip
                    if self.mode == "systemd":
                        self._start_unit()
                    else:
                        self._start_process([_fill(word, places) for word in argv], self._log(log))
                except BaseException:
                    with contextlib.suppress(HostError, OSError):  # the reaper is armed for what can't be removed now
                        self._remove()
                    raise
        finally:
            os.umask(before)
        if ready_file is not None:
            self._wait_for(self.home / ready_file, self._log(log))
        return True

    def _needs(self, directories: Sequence[str]) -> bool:
        """Whether the program or its Python lies below one of these."""
        paths = (str(self.home), self.python, sys.base_prefix)
        return any(_is_below(path, directory) for path in paths for directory in directories)

    def _log(self, asked: Optional[str]) -> Path:
        return Path(asked) if asked else self.home / f"{self.kind}.log"

    def _wait_for(self, path: Path, log: Path) -> None:
        """Return when the service has written ``path``, by which it says that it is ready."""
        deadline = time.monotonic() + READY_SECONDS
        while not path.exists():
            alive = self.lives()
            if not alive or time.monotonic() > deadline:
                with contextlib.suppress(OSError):
                    said = log.read_text(errors="replace").strip().splitlines()
                    if said:
                        raise HostError(f"the {self.kind} did not start: {said[-1]}")
                raise HostError(
                    f"the {self.kind} {f'was not ready after {READY_SECONDS:.0f} s' if alive else 'ended at once'}"
                )
            time.sleep(0.05)

    def _sweep(self) -> None:
        """Remove services that were here before the host's last boot: no run outlives that, and not every reaper either."""
        for kind, name in _homes(self.base):
            other = Service(kind=kind, name=name, base=str(self.base))
            if other.record().get("boot_id", _boot_id()) != _boot_id() and other.home != self.home:
                with contextlib.suppress(HostError, OSError):  # not what we came for: teardown.yml will say it
                    other._remove()

    def _arm(
        self,
        run_id: str,
        archive: str,
        digest: str,
        target: Optional[Path],
        user: Optional[str],
        fingerprint: str,
        unit: str,
        lease_s: int,
    ) -> None:
        """Make the home with its record and set the reaper going: whatever stops us after this is cleaned up."""
        with open(archive, "rb") as packed:
            found = hashlib.sha256(packed.read()).hexdigest()
        if found != digest:
            raise HostError(f"the program's archive arrived damaged (sha256 {found}, expected {digest}); run again")
        self.home.mkdir(mode=0o700)
        record = {"kind": self.kind, "name": self.name, "run_id": run_id, "mode": self.mode, "user": user,
                  "boot_id": _boot_id(), "fingerprint": fingerprint}  # fmt: skip
        if target is not None:
            record.update(directory=str(target), mount=_mount_point(target.parent))
        _write(self.home / "service.json", json.dumps(record, indent=1) + "\n", mode=0o600)
        tree = self.home / "tree"
        tree.mkdir(mode=0o755)
        with tarfile.open(archive, "r:gz") as tar:
            code = tar.extractfile(REAPER)
            if code is None:
                raise HostError(f"the program's archive holds no {REAPER}; run again")
            _write(tree / REAPER, code.read().decode(), mode=0o644)
        reap = [self.python, "-I", str(tree / REAPER), "reap", "--home", str(self.home), "--run-id", run_id]
        if self.mode == "systemd":
            self._arm_units(reap, unit, lease_s)
        else:
            reap += ["--after", str(lease_s), "--retry", str(RETRY_SECONDS)]
            _spawn(reap, cwd=Path("/"), log=self.home / "reaper.log", env={})

    def _arm_units(self, reap: Sequence[str], unit: str, lease_s: int) -> None:
        reaper = (
            f"[Unit]\nDescription=Remove what is left of Fury's {self.kind} {self.name}\n"
            "After=local-fs.target remote-fs.target\n\n"
            f"[Service]\nType=oneshot\nExecStart={' '.join(reap)}\n\n"
            # Enabled and not started: after a reboot it runs at once, for a run does not outlive its host's reboot.
            "[Install]\nWantedBy=multi-user.target\n"
        )
        timer = (
            f"[Unit]\nDescription=The lease of Fury's {self.kind} {self.name}\n\n"
            # It removes its own timer; as long as it could not, it tries again.
            f"[Timer]\nOnActiveSec={lease_s}\nOnUnitInactiveSec={RETRY_SECONDS}\nAccuracySec=1s\n"
            f"Unit={self.reaper}.service\n\n[Install]\nWantedBy=timers.target\n"
        )
        _write(UNITS / f"{self.reaper}.service", reaper, mode=0o644)
        _write(UNITS / f"{self.reaper}.timer", timer, mode=0o644)
        _write(UNITS / self.unit, unit, mode=0o644)
        _run("systemctl", "enable", "--quiet", f"{self.reaper}.service", f"{self.reaper}.timer")  # reloads as well
        for wants in ("multi-user.target.wants", "timers.target.wants"):
            _sync_directory(UNITS / wants)
        _run("systemctl", "start", f"{self.reaper}.timer")

    def _install(
        self,
        archive: str,
        files: Mapping[str, str],
        secrets: Mapping[str, str],
        target: Optional[Path],
        user: Optional[str],
        run_id: str,
    ) -> None:
        if user:
            self._make_user()
        with tarfile.open(archive, "r:gz") as tar:
            # The reaper is there already and may be reading its code just now.
            members = [member for member in tar.getmembers() if member.name != REAPER]
            for member in members:  # our own archive, checked above; refuse to leave the tree all the same
                if (
                    not (member.isfile() or member.isdir())
                    or member.name.startswith(("/", ".."))
                    or "/.." in member.name
                ):
                    raise HostError(f"the program's archive holds {member.name!r}, which does not belong in it")
            tar.extractall(self.home / "tree", members=members)
        for name, content in files.items():
            _write(self.home / name, content, mode=0o600, owner=user)
        (self.home / "secrets").mkdir(mode=0o700)
        for name, content in secrets.items():
            _write(self.home / "secrets" / name, content, mode=0o600)
        state = self.home / "state"
        state.mkdir(mode=0o700)
        if user:
            shutil.chown(state, user, user)
            os.chmod(self.home, 0o711)
        if target is not None:
            self._make_chunks(target, user, run_id)
            if self.mode == "systemd":
                (self.home / "directory").symlink_to(target)
                (self.home / "chunks").mkdir(mode=0o755)

    def _make_chunks(self, target: Path, user: Optional[str], run_id: str) -> None:
        """Make and mark the chunk directory, or take over an empty or a dead one, never through a symbolic link."""
        self._check_foreign(target, run_id)
        with contextlib.suppress(FileExistsError):
            target.mkdir(mode=0o700)
        owner = pwd.getpwnam(user) if user else None
        descriptor = os.open(target, _DIRECTORY)
        try:
            found = os.fstat(descriptor).st_uid
            if found != os.geteuid() and (owner is None or found != owner.pw_uid):
                with contextlib.suppress(KeyError):  # one without a name is a dead run's
                    other = pwd.getpwuid(found).pw_name
                    raise HostError(
                        f"directory: {target} belongs to user {other}; move it away or name another directory"
                    )
            marker = os.open(MARKER, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600, dir_fd=descriptor)
            with os.fdopen(marker, "w") as out:
                if _is_locked(marker):
                    raise HostError(f"directory: {target} is in use by another run; wait until that one has ended")
                out.truncate()
                out.write(json.dumps({"fury": 1, "agent": self.name, "run_id": run_id}) + "\n")
                if owner is not None:
                    os.fchown(marker, owner.pw_uid, owner.pw_gid)
                    os.fchown(descriptor, owner.pw_uid, owner.pw_gid)
        finally:
            os.close(descriptor)

    def _make_user(self) -> None:
        try:
            found = pwd.getpwnam(self.user)
        except KeyError:
            _run("useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent",
                 "--shell", "/usr/sbin/nologin", "--comment", USER_COMMENT, self.user)  # fmt: skip
            return
        if found.pw_gecos != USER_COMMENT:
            raise HostError(
                f"a user {self.user} exists that Fury did not make; rename that user, or give the agent another name"
            )

    def _start_unit(self) -> None:
        done = _run("systemctl", "start", self.unit, check=False)
        if done.returncode == 0:
            return
        shown = _run("systemctl", "show", "--property=ExecMainStatus", self.unit, check=False).stdout
        status = shown.strip().rpartition("=")[2]
        if status in NOT_CONFINED:
            raise HostError(
                f"systemd can't confine {self.unit} here ({NOT_CONFINED[status]}; journalctl -u {self.unit} tells more), "
                "most likely since this is a container itself; use mode process (-e fury_mode=process)"
            )
        raise HostError(f"systemd can't start {self.unit} (status {status}): {done.stderr.strip()}")

    def _start_process(self, argv: Sequence[str], log: Path) -> None:
        if not _processes(self.home, reapers=True):
            said = (self.home / "reaper.log").read_text(errors="replace").strip().splitlines()
            raise HostError(
                f"the reaper of {self.kind} {self.name} ended at once: {said[-1] if said else 'without a word'}"
            )
        log.parent.mkdir(parents=True, exist_ok=True)
        _spawn(argv, cwd=self.home / "tree", log=log, env={"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"})

    # -- taking away

    def stop(self, *, dry: bool = False) -> bool:
        """End the program and leave what it wrote where it is, for it to be fetched; the reaper stays. True if it ran."""
        if not self.lives():
            return False
        if not dry:
            if self.record().get("mode") == "systemd":
                _run("systemctl", "stop", self.unit)
            else:
                _end(self.home)
        return True

    def remove(
        self,
        *,
        directory: Optional[str] = None,
        run_id: Optional[str] = None,
        keep_log: bool = False,
        dry: bool = False,
    ) -> List[str]:
        """Take everything of this service off this host and say what that was; [] if there was nothing.

        directory: where chunks may lie besides where the record says, for when the record is lost. run_id: leave the service
        alone if it is another run's by now. keep_log: leave what the program printed in ``last_words``. Raises HostError for
        what could not be removed or had better be looked at; what can be tried again keeps its record and its reaper.
        """
        if dry:
            return [str(self.home)] if os.path.lexists(self.home) and self._is_ours() else []
        with _in_words(f"{self.kind} {self.name} can't be removed"), _locked(self.base, make=False):
            removed, notes = self._remove(directory=directory, run_id=run_id, keep_log=keep_log)
        if notes:
            raise HostError("; ".join(notes))
        return removed

    def _remove(
        self, *, directory: Optional[str] = None, run_id: Optional[str] = None, keep_log: bool = False
    ) -> Tuple[List[str], List[str]]:
        """What was removed, and what a person should look at. The order is such that the reaper stays until all else is gone."""
        there = os.path.lexists(self.home)
        if there and not self._is_ours():
            raise self._not_ours()
        record = self.record()
        if run_id is not None and (not there or record.get("run_id", run_id) != run_id):
            return [], []
        systemd = runs_systemd() and os.geteuid() == 0
        removed = _stop_unit(self.unit, self.home) if systemd else []
        removed += _end(self.home)
        if keep_log:
            self.last_words = self._tail_of_log()
        done, notes = self._remove_all_chunks(record, directory)
        removed += done
        if systemd and _unit_is_of(self.unit, self.home):  # else it is that of an agent below another base
            removed += _remove_user(self.user)
        if there:
            for entry in self.home.iterdir():
                if entry.name not in ("service.json", "tree"):  # what the reaper needs to try again
                    _remove_tree(entry)
        if systemd:
            removed += _remove_units([self.unit, f"{self.reaper}.timer", f"{self.reaper}.service"], self.home)
        removed += _end(self.home, reapers=True)
        if there:
            _remove_tree(self.home)
            removed.append(str(self.home))
        return removed, notes

    def _tail_of_log(self) -> bytes:
        """What the program printed, at most its last LOG_BYTES; nothing where it printed elsewhere."""
        with contextlib.suppress(OSError), open(self.home / f"{self.kind}.log", "rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - LOG_BYTES))
            left_out = f"({size - LOG_BYTES} bytes before this are left out)\n" if size > LOG_BYTES else ""
            return left_out.encode() + log.read(LOG_BYTES)
        return b""

    def _remove_all_chunks(self, record: Mapping[str, Any], directory: Optional[str]) -> Tuple[List[str], List[str]]:
        removed: List[str] = []
        notes: List[str] = []
        known = record.get("directory")
        if known is None:  # it may still be in what the agent was told
            configured = directory or _read_json(self.home / "config.json").get("directory")
            if isinstance(configured, str):
                known = str(chunk_directory(configured, self.name))
            elif self.kind == "agent" and not record and self.home.is_dir() and any(self.home.iterdir()):
                notes.append(
                    f"the record of agent {self.name} is damaged: look for fury-{self.name} in the directory "
                    "that its run was given, and remove it"
                )
        targets = [known] if known else []
        if directory is not None and str(chunk_directory(directory, self.name)) not in targets:
            targets.append(str(chunk_directory(directory, self.name)))
        for target in targets:
            ours = target == record.get("directory")
            mount = record.get("mount")
            if ours and mount and _mount_point(Path(target).parent) != mount:
                raise HostError(
                    f"{target} lay on the file system mounted at {mount}, which is not there any more; "
                    "mount it again, then: ansible-playbook teardown.yml"
                )
            done, note = _remove_chunks(Path(target), record.get("run_id"), ours=ours)
            removed += done
            notes += note
        return removed, notes


def _remove_chunks(target: Path, run_id: Optional[str], *, ours: bool) -> Tuple[List[str], List[str]]:
    """Remove a chunk directory that carries Fury's marker (or is empty); anything else in its place stays, with a note.

    ours: the record names it, so that what is not as it was left is worth a word. Raises HostError where trying again may help.
    """
    try:
        directory = os.open(target, _DIRECTORY)
    except FileNotFoundError:
        return [], []
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise HostError(f"{target} is left: {error.strerror}") from error
        swapped = f"{target} is not the directory that Fury made: something else was put in its place and is left alone"
        return [], [swapped] if ours else []
    marker = None
    try:
        names = os.listdir(directory)
        if MARKER in names:
            with contextlib.suppress(OSError):
                marker = os.open(MARKER, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
        if names and (marker is None or not stat.S_ISREG(os.fstat(marker).st_mode)):
            chunks = [name for name in names if CHUNK.fullmatch(name)]
            if not ours or not chunks:
                return [], []
            return [], [
                f"{target} is left: it holds {_listed(chunks)} but not Fury's {MARKER}; look at it and remove it"
            ]
        if marker is not None:
            of_run = _marker_run(marker)
            if ours and None not in (of_run, run_id) and of_run != run_id:
                return [], []  # another run has made it anew since
            if _is_locked(marker):
                if not ours:
                    return [], []
                raise HostError(f"{target} is left: a process still writes there; end it, then try again")
        for name in sorted(names, key=lambda name: name == MARKER):  # the marker last, so that what is left is marked
            if name in (MARKER, f".{MARKER}.new") or CHUNK.fullmatch(name):
                with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                    os.unlink(name, dir_fd=directory)
        left = os.listdir(directory)
        if left:
            return [str(target)], [f"{target} is left: it holds {_listed(left)}, which Fury did not make"]
        try:
            os.rmdir(target)
        except PermissionError:
            # Somebody with more rights made it for us where we can't make any; empty, it is as it was.
            if os.geteuid() == 0:
                raise
    except OSError as error:
        raise HostError(f"{target} is left: {error.strerror}") from error
    finally:
        if marker is not None:
            os.close(marker)
        os.close(directory)
    return [str(target)], []


def _marker_run(marker: int) -> Optional[str]:
    """The run that a chunk directory's marker names; None if it is damaged."""
    try:
        run = json.loads(os.pread(marker, 65_536, 0)).get("run_id")
    except (ValueError, AttributeError):
        return None
    return run if isinstance(run, str) else None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _check_directory(directory: str) -> None:
    """Say so if ``directory`` is not one of this host, or the system's own once symbolic links are resolved."""
    real = os.path.realpath(directory)
    shown = directory if real == os.path.normpath(directory) else f"{directory} (really {real})"
    if not os.path.isdir(real):
        trouble = "is not a directory" if os.path.lexists(real) else "does not exist"
        raise HostError(f"directory: {shown} {trouble} on this host; make it (or mount it), or name another one")
    if NO_PATH.search(real):
        raise HostError(
            f"directory: {directory} is really {real!r}, which is not allowed; name a path of UTF-8 without control characters"
        )
    if real == "/" or any(_is_below(real, top) for top in SYSTEM_DIRECTORIES):
        raise HostError(
            f"directory: {shown} is the system's own and Fury does not write there; name one on the storage to be tested"
        )


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory + "/")


def _check_passable(what: str, path: Path) -> None:
    """Say so if a user without rights of its own can't get through to ``path``."""
    for step in [path, *path.parents]:
        mode = stat.S_IMODE(step.stat().st_mode)
        if not mode & 0o001:
            raise HostError(
                f"{what}: {step} (mode {mode:04o}) lets no other user through, and the service runs as a user of its own; "
                f"chmod o+x {step}, name another {what}, or use mode process (-e fury_mode=process)"
            )


def _homes(base: Path) -> List[Tuple[str, str]]:
    """Kind and name of what may be services' homes below ``base``."""
    parts = [home.name.partition("-") for home in sorted(base.glob("*-*"))] if base.is_dir() else []
    return [(kind, name) for kind, _, name in parts if kind in ("agent", "collector") and NAME.fullmatch(name)]


def _unit_is_of(name: str, home: Path) -> bool:
    """True when the unit file names ``home``; one without a file, if it runs, is taken for its own."""
    with contextlib.suppress(OSError):
        text = (UNITS / name).read_text(errors="replace")
        if name.endswith(".timer"):  # it names no path, but stands for the service of its name
            text = (UNITS / name).with_suffix(".service").read_text(errors="replace")
        return _unit_home(text) in (None, home)
    return True


def _unit_home(text: str) -> Optional[Path]:
    """The home that a unit's text names."""
    found = re.search(r"--home (\S+)|^WorkingDirectory=(\S+)/tree$", text, re.M)
    return Path(found[1] or found[2]) if found else None


def _active(names: Sequence[str]) -> List[str]:
    """Those of ``names`` that run or are about to; what systemd does not answer is not taken for a no."""
    answer = _run("systemctl", "is-active", *names, check=False)
    states = answer.stdout.split()
    if len(states) != len(names):
        raise HostError(f"systemd does not say whether {names[0]} runs: {answer.stderr.strip() or 'no answer'}")
    return [name for name, state in zip(names, states) if state not in ("inactive", "failed", "unknown")]


def _stop_unit(name: str, home: Path) -> List[str]:
    if not _active([name]) or not _unit_is_of(name, home):
        return []
    _run("systemctl", "stop", name, check=False)
    if _active([name]):
        raise HostError(f"{name} does not stop; see: systemctl status {name}")
    return []  # it is told once its file is gone


def _remove_units(names: Sequence[str], home: Path) -> List[str]:
    """Stop, disable and delete those of ``names`` that are of ``home``; the caller's own unit is deleted but not stopped."""
    mine = _own_unit()
    wanted = [name for name in names if _unit_is_of(name, home)]
    found = [name for name in wanted if (UNITS / name).exists()]
    stop = [name for name in _active(wanted) if name != mine] if wanted else []
    if not found and not stop:
        return []
    if stop:
        _run("systemctl", "stop", *stop, check=False)
    if found:
        _run("systemctl", "disable", "--quiet", *[n for n in found if n.startswith("fury-reaper-")], check=False)
    for name in found:
        (UNITS / name).unlink(missing_ok=True)
    _run("systemctl", "daemon-reload")
    _run("systemctl", "reset-failed", *[name for name in wanted if name != mine], check=False)
    return sorted({*found, *stop})


def _own_unit() -> Optional[str]:
    """The unit this process belongs to, None outside of one (cgroups(7))."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            name = line.rpartition("/")[2]
            if OWN_UNIT.match(name):
                return name
    return None


def _remove_user(user: str) -> List[str]:
    """Remove ``user`` with its group, if Fury made it."""
    try:
        found = pwd.getpwnam(user)
    except KeyError:
        return []
    if found.pw_gecos != USER_COMMENT or not OWN_USER.match(user):
        return []
    _run("userdel", user)
    with contextlib.suppress(KeyError):
        if grp.getgrnam(user).gr_gid == found.pw_gid:
            _run("groupdel", user)
    return [f"user {user}"]


def remove_everything(*, base: Optional[str] = None, collector: Optional[str] = None, dry: bool = False) -> List[str]:
    """Take every Fury service off this host, whoever put it there, and say what that was; [] if there was nothing.

    collector: of collectors only the one of this name (its port); runs of others may share a controller.
    One that can't be removed keeps none of the others; they are all told in the HostError.
    """
    root = Path(base) if base else base_directory()
    spared = re.compile(
        r"$^" if collector is None else rf"fury-(reaper-)?collector-(?!{re.escape(slug(collector))}(\.|$))"
    )
    services = [Service(kind=kind, name=name, base=str(root)) for kind, name in _homes(root)]
    systemd = runs_systemd() and os.geteuid() == 0 and not base
    strays = (
        sorted(p.name for p in UNITS.glob("fury-*") if OWN_UNIT.match(p.name) and not spared.match(p.name))
        if systemd
        else []
    )
    for name in strays:
        home = _unit_home((UNITS / name).read_text(errors="replace"))
        if home is not None and home.parent != root and home.is_dir():  # put there with a base of its own
            services += [
                Service(kind=k, name=n, base=str(home.parent))
                for k, n in _homes(home.parent)
                if home.name == f"{k}-{n}"
            ]
    removed: List[str] = []
    failed: List[str] = []
    for service in {service.home: service for service in services if not spared.match(service.unit)}.values():
        try:
            removed += service.remove(dry=dry)
        except HostError as error:
            failed.append(str(error))
    if systemd and not failed:
        with _in_words("what is left of removed services can't be removed"):
            for name in [name for name in strays if (UNITS / name).exists()]:
                home = _unit_home((UNITS / name).read_text(errors="replace"))
                removed += [name] if dry else _remove_units([name], home or Path("/"))
            for entry in pwd.getpwall():
                if OWN_USER.match(entry.pw_name) and entry.pw_gecos == USER_COMMENT and not spared.match(entry.pw_name):
                    removed += [f"user {entry.pw_name}"] if dry else _remove_user(entry.pw_name)
    if not dry:
        with _in_words(f"{root} can't be removed"), _locked(root, make=False):
            pass  # the last to leave removes it
    if failed:
        raise HostError("; ".join(failed))
    return list(dict.fromkeys(removed))


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The reaper: remove the service of ``--home`` after ``--after`` seconds of its lease; 1 when something is left."""
    parser = argparse.ArgumentParser(description="Remove a Fury service from this host when its lease is over.")
    parser.add_argument("command", choices=["reap"])
    parser.add_argument("--home", required=True, help="the service's home directory")
    parser.add_argument("--run-id", help="leave the home alone if it is another run's by now")
    parser.add_argument("--after", type=float, default=0.0, help="seconds to wait first (default: none)")
    parser.add_argument(
        "--retry", type=float, help="seconds until the next try when something can't be removed (default: none)"
    )
    options = parser.parse_args(argv)
    home = Path(options.home)
    kind, _, name = home.name.partition("-")
    wait_s, tries = options.after, REAPER_TRIES if options.retry else 1
    for _ in range(tries):
        deadline = time.clock_gettime(time.CLOCK_BOOTTIME) + wait_s  # goes on while the machine sleeps
        while time.clock_gettime(time.CLOCK_BOOTTIME) < deadline:
            time.sleep(min(5.0, max(0.05, deadline - time.clock_gettime(time.CLOCK_BOOTTIME))))
        try:
            Service(kind=kind, name=name, base=str(home.parent)).remove(run_id=options.run_id)
        except HostError as error:
            print(f"{home}: {error}", file=sys.stderr, flush=True)
        if not home.exists():
            return 0
        wait_s = options.retry or 0.0
    return 1


if __name__ == "__main__":
    sys.exit(main())
