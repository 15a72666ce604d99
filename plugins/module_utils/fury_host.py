# Copyright (c) 2026 The Fury authors. MIT license.
"""Puts one Fury service (an agent or the collector) on the host it runs on, and takes it away again without a trace.

The Ansible module ``fury_service`` calls it on every host; a copy lies in each service's home, from where the reaper runs it
when nobody else came. Both remove with the same code. Python 3.9+, standard library only.

    <base>/<kind>-<name>/    the home: /var/lib/fury/agent-alecto, without root ~/.local/state/fury/agent-alecto
        service.json         what was put where: all that removal has to know
        tree/                the program with its libraries, and this file
        config.json, …       files for the program
        agent.log            what it prints
        state/               what it writes; only this belongs to the service's own user

Command line, for the reaper: ``python3 -I fury_host.py reap --home HOME [--after SECONDS]``.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import grp
import hashlib
import json
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence

UNITS = Path("/etc/systemd/system")
OWN_UNIT = re.compile(r"^fury-(agent|collector|reaper)-.+\.(service|timer)$")
OWN_USER = re.compile(r"^fury-[a-z0-9-]+$")
MARKER = ".fury.json"
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
STOP_SECONDS = 15.0
READY_SECONDS = 30.0


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


def _start_ticks(pid: int) -> Optional[str]:
    """When process ``pid`` started, in clock ticks since boot (proc(5) stat, field 22); None if it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _identity(pid: int) -> Dict[str, Any]:
    return {"pid": pid, "start": _start_ticks(pid)}


def _lives(identity: Optional[Mapping[str, Any]]) -> bool:
    """True when the very process that was recorded still lives; a reused pid is another process."""
    if not identity or not identity.get("start"):
        return False
    return _start_ticks(int(identity["pid"])) == str(identity["start"])


def _spawn(argv: Sequence[str], *, cwd: Path, log: Path, env: Mapping[str, str]) -> Dict[str, Any]:
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
    process.returncode = 0  # it is meant to outlive this process: don't warn about that
    return _identity(process.pid)


def _descendants(pid: int) -> List[int]:
    """Every process below ``pid`` (proc(5) children), deepest last."""
    found: List[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in (int(word) for word in task.read_text().split()):
                found += [child, *_descendants(child)]
    return found


def _end(identity: Optional[Mapping[str, Any]], *, patience_s: float = STOP_SECONDS) -> bool:
    """End the recorded process and all below it: SIGTERM, after ``patience_s`` SIGKILL. True if there was something to end."""
    if not _lives(identity):
        return False
    assert identity is not None
    pid = int(identity["pid"])
    family = [_identity(p) for p in [pid, *_descendants(pid)]]
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    while any(_lives(member) for member in family) and time.monotonic() < deadline:
        time.sleep(0.05)
    for member in family:
        if _lives(member):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(member["pid"]), signal.SIGKILL)
    deadline = time.monotonic() + 5.0
    while any(_lives(member) for member in family) and time.monotonic() < deadline:
        time.sleep(0.05)
    if any(_lives(member) for member in family):
        raise HostError(
            f"process {pid} does not end, even after SIGKILL (it hangs in the kernel, most likely on its disk)"
        )
    return True


def _run(*argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90)
    if check and done.returncode != 0:
        raise HostError(f"{' '.join(argv)} failed with {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done


# -------------------------------------------------------------------------------------------------------------------- files


def _write(path: Path, content: str, *, mode: int, owner: Optional[str] = None) -> bool:
    """Make ``path`` hold ``content`` with ``mode`` and ``owner``, atomically; True if anything changed."""
    uid, gid = (pwd.getpwnam(owner)[2:4]) if owner else (os.geteuid(), os.getegid())
    with contextlib.suppress(FileNotFoundError):
        found = path.stat()
        same = (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (mode, uid, gid)
        if same and path.read_text() == content:
            return False
    draft = path.with_name(f".{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        draft.unlink()
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "w") as out:
        out.write(content)
        os.fchmod(out.fileno(), mode)
        os.fchown(out.fileno(), uid, gid)
    draft.replace(path)
    return True


def _read_json(path: Path) -> Dict[str, Any]:
    try:
        loaded = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


@contextlib.contextmanager
def _locked(base: Path) -> Iterator[None]:
    """Hold the lock under which homes below ``base`` come and go; agents of one machine are put there and taken away in turn.

    The lock does not lie in ``base``, so that ``base`` can be removed while it is held.
    """
    digest = hashlib.sha256(os.fsencode(base)).hexdigest()[:16]
    own = Path("/run") if os.geteuid() == 0 else Path(os.environ.get("XDG_RUNTIME_DIR") or Path.home())
    path = own / f".fury-{digest}.lock"
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                    try:
                        yield
                    finally:
                        path.unlink()
                    return
        finally:
            os.close(descriptor)


# ------------------------------------------------------------------------------------------------------------------ service


class Service:
    """One Fury service on this host: ``check``, ``start`` and ``remove`` it, each as often as one likes."""

    def __init__(self, *, kind: str, name: str, base: Optional[str] = None, mode: str = "auto") -> None:
        self.kind, self.name = kind, name
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

    # -- looking

    def record(self) -> Dict[str, Any]:
        """What was put on this host for this service; empty if nothing."""
        return _read_json(self.home / "service.json")

    def lives(self) -> bool:
        """True while the service itself runs (its reaper does not count)."""
        record = self.record()
        if record.get("mode") == "systemd" and runs_systemd():
            return _run("systemctl", "is-active", "--quiet", str(record.get("unit")), check=False).returncode == 0
        return _lives(record.get("process"))

    def check(self, *, run_id: str, directory: Optional[str], need_bytes: int, port: int) -> Dict[str, Any]:
        """Say whether a run could start here, changing nothing.

        need_bytes: what must be free below ``directory``; port: one that must be free, 0 for none.
        Raises HostError with the reason if not.
        """
        record, lives = self.record(), self.lives()
        if lives and record.get("run_id") != run_id:
            other = "give this run another -e fury_collector_port, " if self.kind == "collector" else ""
            raise HostError(
                f"the {self.kind} {self.name} of run {record.get('run_id')} is still running here; {other}"
                "wait until that run has ended, or end and remove it with: ansible-playbook teardown.yml"
            )
        facts: Dict[str, Any] = {"architecture": os.uname().machine, "python": "{}.{}".format(*sys.version_info)}
        if directory is not None:
            _check_directory(directory)
            target = chunk_directory(directory, self.name)
            self._check_foreign(target)
            usage = os.statvfs(directory)
            free = usage.f_bavail * usage.f_frsize
            with contextlib.suppress(OSError):  # what an earlier run left there will be removed before this one writes
                free += sum(p.stat().st_blocks * 512 for p in target.glob("chunk-*.dat"))
            facts["free_bytes"] = free
            if free < need_bytes:
                raise HostError(
                    f"directory: {directory} has {free} bytes free, {need_bytes} are needed "
                    "(the ring of chunks and free_floor_mb); make room, or use a smaller chunk_mb, keep or free_floor_mb"
                )
        if port and not lives:
            self._check_port(port)
        return facts

    def _check_foreign(self, target: Path) -> None:
        if target.is_symlink():
            raise HostError(
                f"directory: {target} is a symbolic link, Fury made no such thing; remove it or name another directory"
            )
        if target.exists() and not (target / MARKER).is_file() and (not target.is_dir() or any(target.iterdir())):
            raise HostError(
                f"directory: {target} exists and Fury did not make it (no {MARKER} in it); it is left alone: "
                "move it away or name another directory"
            )

    def _check_port(self, port: int) -> None:
        import socket

        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError as error:
                raise HostError(f"port {port} is not free on this host ({error.strerror}); choose another") from error

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
        directory: Optional[str] = None,
        own_user: bool = True,
        ready_file: Optional[str] = None,
        log: Optional[str] = None,
        dry: bool = False,
    ) -> bool:
        """Bring the service to life: reaper first, then the program. True if anything had to be changed.

        archive: tar.gz of the program's tree, digest its sha256; files: what goes into the home beside it;
        argv: the command in process mode; unit: the unit's text in systemd mode. In these three ``@HOME@``, ``@USER@`` and
        ``@PYTHON@`` stand for what only this host knows. lease_s: seconds after which the reaper removes everything. log: where
        its output goes in process mode, default ``<kind>.log`` in the home.
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
        with _locked(self.base):
            if self.home.exists() or self.record():
                self._remove(keep_lock=True)
            self._install(run_id, archive, digest, files, directory, own_user, wanted)
            if self.mode == "systemd":
                self._start_units(_fill(unit, self._places()), lease_s)
            else:
                self._start_processes([_fill(word, self._places()) for word in argv], lease_s, self._log(log))
        if ready_file is not None:
            self._wait_for(self.home / ready_file, self._log(log))
        return True

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

    def _note(self, **more: Any) -> None:
        _write(self.home / "service.json", json.dumps({**self.record(), **more}, indent=1) + "\n", mode=0o600)

    def _install(
        self,
        run_id: str,
        archive: str,
        digest: str,
        files: Mapping[str, str],
        directory: Optional[str],
        own_user: bool,
        fingerprint: str,
    ) -> None:
        with open(archive, "rb") as packed:
            found = hashlib.sha256(packed.read()).hexdigest()
        if found != digest:
            raise HostError(f"the program's archive arrived damaged (sha256 {found}, expected {digest}); run again")
        self.base.mkdir(parents=True, exist_ok=True, mode=0o755)
        self.home.mkdir(mode=0o700)
        user = self.user if self.mode == "systemd" and own_user else None
        # Noted before it is done: whatever stops us half-way, removal knows where to look.
        self._note(kind=self.kind, name=self.name, run_id=run_id, mode=self.mode, fingerprint=fingerprint, user=user)
        if user:
            self._make_user()
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar.getmembers():  # our own archive, checked above; refuse to leave the tree all the same
                if (
                    not (member.isfile() or member.isdir())
                    or member.name.startswith(("/", ".."))
                    or "/.." in member.name
                ):
                    raise HostError(f"the program's archive holds {member.name!r}, which does not belong in it")
            tar.extractall(self.home / "tree")
        places = self._places()
        for name, content in files.items():
            _write(self.home / name, _fill(content, places), mode=0o600, owner=user)
        if directory is not None:
            target = chunk_directory(directory, self.name)
            self._check_foreign(target)
            self._note(directory=str(target))
            target.mkdir(mode=0o700, exist_ok=True)
            _write(
                target / MARKER,
                json.dumps({"fury": 1, "agent": self.name, "run_id": run_id}) + "\n",
                mode=0o600,
                owner=user,
            )
            if user:
                shutil.chown(target, user, user)
        state = self.home / "state"
        state.mkdir(mode=0o700)
        if user:
            shutil.chown(state, user, user)
            os.chmod(self.home, 0o711)

    def _places(self) -> Dict[str, str]:
        return {"HOME": str(self.home), "USER": self.user, "PYTHON": sys.executable}

    def _make_user(self) -> None:
        with contextlib.suppress(KeyError):
            pwd.getpwnam(self.user)
            return
        _run("useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent",
             "--shell", "/usr/sbin/nologin", "--comment", "Fury storage stress test", self.user)  # fmt: skip

    def _start_units(self, unit: str, lease_s: int) -> None:
        reap = f"{sys.executable} -I {self.home}/tree/fury_host.py reap --home {self.home}"
        reaper = (
            f"[Unit]\nDescription=Remove what is left of Fury's {self.kind} {self.name}\n\n"
            f"[Service]\nType=oneshot\nExecStart={reap}\n\n"
            # Enabled and not started: after a reboot it runs at once, for a run does not outlive its host's reboot.
            "[Install]\nWantedBy=multi-user.target\n"
        )
        timer = (
            f"[Unit]\nDescription=The lease of Fury's {self.kind} {self.name}\n\n"
            f"[Timer]\nOnActiveSec={lease_s}\nAccuracySec=1s\nUnit={self.reaper}.service\n\n[Install]\nWantedBy=timers.target\n"
        )
        self._note(unit=self.unit, reaper=self.reaper)
        _write(UNITS / f"{self.reaper}.service", reaper, mode=0o644)
        _write(UNITS / f"{self.reaper}.timer", timer, mode=0o644)
        _write(UNITS / self.unit, unit, mode=0o644)
        _run("systemctl", "daemon-reload")
        _run("systemctl", "enable", "--quiet", f"{self.reaper}.service", f"{self.reaper}.timer")
        _run("systemctl", "start", f"{self.reaper}.timer")
        _run("systemctl", "start", self.unit)

    def _start_processes(self, argv: Sequence[str], lease_s: int, log: Path) -> None:
        tree = self.home / "tree"
        reap = [
            sys.executable,
            "-I",
            str(tree / "fury_host.py"),
            "reap",
            "--home",
            str(self.home),
            "--after",
            str(lease_s),
        ]
        self._note(reaper_process=_spawn(reap, cwd=Path("/"), log=Path(os.devnull), env={}))
        log.parent.mkdir(parents=True, exist_ok=True)
        self._note(
            process=_spawn(argv, cwd=tree, log=log, env={"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"})
        )

    # -- taking away

    def stop(self, *, dry: bool = False) -> bool:
        """End the program and leave what it wrote where it is, for it to be fetched; the reaper stays. True if it ran."""
        if not self.lives():
            return False
        if not dry:
            record = self.record()
            if record.get("mode") == "systemd":
                _run("systemctl", "stop", str(record["unit"]))
            else:
                _end(record.get("process"))
        return True

    def remove(self, *, directory: Optional[str] = None, dry: bool = False) -> List[str]:
        """Take everything of this service off this host and say what that was; [] if there was nothing.

        directory: where chunks may lie besides where the record says, for when the record is lost.
        """
        if dry:
            return [str(self.home)] if self.home.exists() else []
        with _locked(self.base):
            removed = self._remove(keep_lock=False)
            if directory is not None:
                removed += self._remove_chunks(chunk_directory(directory, self.name))
        return removed

    def _remove(self, *, keep_lock: bool) -> List[str]:
        record, removed = self.record(), []
        if runs_systemd() and os.geteuid() == 0:
            removed += _remove_units([self.unit, f"{self.reaper}.timer", f"{self.reaper}.service"])
        if _end(record.get("process")):
            removed.append(f"process {record['process']['pid']}")
        reaper = record.get("reaper_process")
        if reaper and int(reaper["pid"]) != os.getpid() and _end(reaper):
            removed.append(f"reaper process {reaper['pid']}")
        if record.get("directory"):
            removed += self._remove_chunks(Path(record["directory"]))
        if self.home.exists() or self.home.is_symlink():
            _remove_tree(self.home)
            removed.append(str(self.home))
        if os.geteuid() == 0:
            removed += _remove_user(str(record.get("user") or self.user))
        if not keep_lock:
            with contextlib.suppress(OSError):  # other services' homes lie there still, or nothing ever did
                self.base.rmdir()
        return removed

    def _remove_chunks(self, target: Path) -> List[str]:
        """Remove a chunk directory that carries Fury's marker (or is empty); one without is not ours and stays."""
        if target.is_symlink() or not target.is_dir():
            return []
        if not (target / MARKER).is_file() and any(target.iterdir()):
            return []
        for entry in target.iterdir():
            if entry.name == MARKER or re.fullmatch(r"chunk-\d+\.dat|\..+\.new", entry.name):
                entry.unlink()
        with contextlib.suppress(
            OSError
        ):  # something foreign was put into it meanwhile: that stays, and so the directory
            target.rmdir()
        return [str(target)]


def _check_directory(directory: str) -> None:
    """Say so if ``directory`` is not one of this host, or the system's own once symbolic links are resolved."""
    real = os.path.realpath(directory)
    shown = directory if real == os.path.normpath(directory) else f"{directory} (really {real})"
    if not os.path.isdir(real):
        trouble = "is not a directory" if os.path.lexists(real) else "does not exist"
        raise HostError(f"directory: {shown} {trouble} on this host; make it (or mount it), or name another one")
    if real == "/" or any(real == top or real.startswith(top + "/") for top in SYSTEM_DIRECTORIES):
        raise HostError(
            f"directory: {shown} is the system's own and Fury does not write there; name one on the storage to be tested"
        )


def _fill(text: str, places: Mapping[str, str]) -> str:
    for key, value in places.items():
        text = text.replace(f"@{key}@", value)
    return text


def _remove_tree(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
        return
    shutil.rmtree(path, ignore_errors=False)


def _remove_units(names: Sequence[str]) -> List[str]:
    """Stop, disable and delete those of ``names`` that exist; the caller's own unit is deleted but not stopped."""
    mine = _own_unit()
    found = [n for n in names if (UNITS / n).exists()]
    loaded = [
        n for n in names if n in found or _run("systemctl", "is-active", "--quiet", n, check=False).returncode == 0
    ]
    if not loaded:
        return []
    stop = [n for n in loaded if n != mine]
    if stop:
        _run("systemctl", "stop", *stop, check=False)
    if found:
        _run("systemctl", "disable", "--quiet", *[n for n in found if not n.startswith("fury-agent-")], check=False)
    for name in found:
        (UNITS / name).unlink()
    _run("systemctl", "daemon-reload")
    _run("systemctl", "reset-failed", *stop, check=False)
    return list(loaded)


def _own_unit() -> Optional[str]:
    """The unit this process belongs to, None outside of one (cgroups(7))."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            name = line.rpartition("/")[2]
            if OWN_UNIT.match(name):
                return name
    return None


def _remove_user(user: str) -> List[str]:
    if not OWN_USER.match(user):
        return []
    removed = []
    with contextlib.suppress(KeyError):
        pwd.getpwnam(user)
        _run("userdel", user)
        removed.append(f"user {user}")
    with contextlib.suppress(KeyError):
        grp.getgrnam(user)
        _run("groupdel", user)
    return removed


def remove_everything(*, base: Optional[str] = None, dry: bool = False) -> List[str]:
    """Take every Fury service off this host, whoever put it there, and say what that was; [] if there was nothing."""
    root = Path(base) if base else base_directory()
    removed: List[str] = []
    for home in sorted(root.glob("*-*")) if root.is_dir() else []:
        kind, _, name = home.name.partition("-")
        if kind in ("agent", "collector"):
            removed += Service(kind=kind, name=name, base=str(root)).remove(dry=dry)
    if runs_systemd() and os.geteuid() == 0 and not base:
        strays = sorted(p.name for p in UNITS.glob("fury-*") if OWN_UNIT.match(p.name))
        removed += strays if dry else _remove_units(strays)
        for entry in pwd.getpwall():
            if OWN_USER.match(entry.pw_name) and entry.pw_gecos == "Fury storage stress test":
                removed += [f"user {entry.pw_name}"] if dry else _remove_user(entry.pw_name)
    if not dry:
        with contextlib.suppress(OSError):
            root.rmdir()
    return removed


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The reaper: remove the service of ``--home`` after ``--after`` seconds of its lease."""
    parser = argparse.ArgumentParser(description="Remove a Fury service from this host when its lease is over.")
    parser.add_argument("command", choices=["reap"])
    parser.add_argument("--home", required=True, help="the service's home directory")
    parser.add_argument("--after", type=float, default=0.0, help="seconds to wait first (default: none)")
    options = parser.parse_args(argv)
    home = Path(options.home)
    deadline = time.clock_gettime(time.CLOCK_BOOTTIME) + options.after  # goes on while the machine sleeps
    while time.clock_gettime(time.CLOCK_BOOTTIME) < deadline:
        time.sleep(min(5.0, max(0.05, deadline - time.clock_gettime(time.CLOCK_BOOTTIME))))
    kind, _, name = home.name.partition("-")
    try:
        Service(kind=kind, name=name, base=str(home.parent)).remove()
    except HostError as error:
        print(f"{home}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
