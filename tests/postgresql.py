"""A PostgreSQL server of the tests' own: its data in a temporary directory, its socket there too, and a port of loopback."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Optional

import sqlalchemy as sa

PASSWORD = "correct-horse/battery@staple"  # of loopback; the socket trusts
_DEBIAN = Path("/usr/lib/postgresql")


def programs() -> Optional[Path]:
    """The directory of initdb and postgres, None if there is none."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    versions = sorted(_DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return versions[-1].parent if versions else None


def missing() -> Optional[str]:
    """Why no server can be had here; None if one can."""
    if programs() is None:
        return "needs PostgreSQL's initdb (postgresql-15, tests/packages.txt)"
    return None


class Server:
    """A server that can be stopped and started again; postgres refuses root, so another user runs it there."""

    def __init__(self, directory: Path, programs: Path) -> None:
        """Make the data in an empty directory."""
        self._directory, self._programs = directory, programs
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._numbers = itertools.count()
        self._user = _unprivileged() if os.geteuid() == 0 else None
        if self._user is not None:
            os.chown(directory, self._user.pw_uid, self._user.pw_gid)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        secret = directory / "password"
        secret.write_text(PASSWORD)
        with (directory / "initdb.log").open("wb") as log:
            initdb = ["--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={secret}", "--username=fury"]
            made = self._run("initdb", f"--pgdata={directory / 'data'}", "--encoding=UTF8", *initdb, log=log).wait(120)
        assert made == 0, (directory / "initdb.log").read_text()

    def _run(self, program: str, *arguments: str, log: IO[bytes]) -> subprocess.Popen[bytes]:
        user = self._user
        return subprocess.Popen(
            [str(self._programs / program), *arguments],
            cwd=self._directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            user=None if user is None else user.pw_uid,
            group=None if user is None else user.pw_gid,
            extra_groups=None if user is None else [],
        )

    def start(self, *settings: str) -> None:
        """Start it with further settings (name=value) and wait until it answers."""
        options = [f"-c{one}" for one in (f"unix_socket_directories={self._directory}", "listen_addresses=127.0.0.1")]
        options += [f"-c{one}" for one in settings]
        with (self._directory / "server.log").open("ab") as log:
            data = str(self._directory / "data")
            self._process = self._run("postgres", "-D", data, "-p", str(self.port), *options, log=log)
        deadline = time.monotonic() + 60
        while True:
            try:
                self.execute("SELECT 1")
                return
            except sa.exc.OperationalError:
                assert self._process.poll() is None, self.log
                assert time.monotonic() < deadline, "PostgreSQL did not get to answer"
                time.sleep(0.05)

    def stop(self, number: int = signal.SIGINT) -> None:
        """End it: SIGINT rolls back what is going on; SIGQUIT is like a crash, and it recovers at its next start."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._process = None

    @property
    def log(self) -> str:
        """What the server said."""
        return (self._directory / "server.log").read_text()

    def url(self, **query: str) -> sa.URL:
        """Its one database by its socket, with more of libpq's settings."""
        query = {"host": str(self._directory), "port": str(self.port), **query}
        return sa.URL.create("postgresql+psycopg", "fury", database="postgres", query=query)

    def execute(self, statement: str) -> None:
        """Run a statement outside a transaction."""
        engine = sa.create_engine(self.url(), poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)

    def database(self) -> sa.URL:
        """A new, empty schema, which is a database to whoever uses this URL and costs less."""
        name = f"fury{next(self._numbers)}"
        self.execute(f"CREATE SCHEMA {name}")
        return self.url(options=f"-csearch_path={name}")


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A running server; afterwards nothing is left of it."""
    found = programs()
    assert found is not None
    directory = Path(tempfile.mkdtemp(prefix="fury-postgresql-"))
    server = None
    try:
        server = Server(directory, found)
        server.start()
        yield server
    finally:
        if server is not None:
            server.stop(signal.SIGQUIT)  # its files are of no use any more
        shutil.rmtree(directory)


def _unprivileged() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError("there is neither a user postgres nor a user nobody")
