"""What SQLite and PostgreSQL do differently: opening, locking, one writer at a time, durability, and what is told of them.

Everything else is one code path in db.py. psycopg is no part of Fury: whoever names a PostgreSQL database installs
requirements/postgresql.txt.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Protocol, Union

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError

from fury_collector.errors import BadInput, Precondition

Where = Union[Path, sa.URL]  # of a database: a file is SQLite's

_LOCK = int.from_bytes(b"Fury", "big")  # the first half of every advisory lock
_LOCK_S = 5.0  # a collector that was killed has its lock until the server has noticed
# A connection over a dead network is given up after about 25 s, on both of its ends.
_CONNECT = {
    "application_name": "fury_collector",
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
_SERVER_SIDE = "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"


class Store(Protocol):
    """One kind of database. Engines and connections are SQLAlchemy's; a `Precondition` says what to do."""

    name: str  # for sentences, without any password
    option: str  # how another one is named on the command line
    another: str  # what to name instead
    write_remedy: str
    read_remedy: str
    reading: sa.Engine  # its transactions see one state, and change nothing
    changing: sa.Engine

    def open(self, *, create: bool, exclusive: bool) -> None:
        """Get hold of the database; with `exclusive` a second one that does is refused."""

    def old(self, version: str) -> None:
        """Make a database of the schema `version` one that may be upgraded, although it is opened for reading."""

    def alone(self, connection: sa.Connection) -> None:
        """Keep others from changing the schema until the transaction of the connection ends."""

    def writer(self) -> sa.Connection:
        """A connection of the writer: what it commits is durable."""

    def insert(self, connection: sa.Connection, table: sa.Table, rows: Sequence[dict[str, Any]]) -> None:
        """Insert many rows with the same columns."""

    def end(self, connection: sa.Connection) -> None:
        """Close the writer's connection for good."""

    def check(self) -> None:
        """Look for damage."""

    def give_back(self) -> int:
        """Give the room of removed rows back to the disk; how many bytes."""

    def close(self) -> None:
        """Let go of the database."""


def store(where: Where, *, read_only: bool) -> Store:
    """The store of a database."""
    if isinstance(where, sa.URL):
        return Postgresql(where)
    return Sqlite(where, read_only=read_only)


class Sqlite:
    """A file. A second collector is kept out by a lock on it; a reader never changes it."""

    option = "--database"
    another = "name another file"
    write_remedy = "free its disk, or restore a copy"
    read_remedy = "restore a copy, or name another"

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self.name = str(path)
        self._path = self._file = path
        self._read_only = read_only
        self._home: Optional[tempfile.TemporaryDirectory[str]] = None  # of the copy, where one is read
        self._lock: Optional[int] = None

    def open(self, *, create: bool, exclusive: bool) -> None:
        """Make the engines; the file is made by the first transaction."""
        # A transaction that a crash has cut off has to be rolled back by whoever reads next.
        cut_off = self._path.with_name(f"{self._path.name}-journal").exists()
        self._mode = "ro" if self._read_only and not cut_off else "rwc" if create else "rw"
        if not create and not self._path.exists():
            raise BadInput(f"{self.name} does not exist: name the database with --database FILE")
        if exclusive:
            self._take()
        self.reading = self._engine("BEGIN")
        self.changing = self._engine("BEGIN IMMEDIATE")

    def _take(self) -> None:
        try:
            self._lock = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise Precondition(
                f"cannot open the database {self.name}: {error.strerror}; "
                "name a file in a directory that exists and can be written"
            ) from None
        try:
            # flock, not fcntl: it does not mix with the locks that SQLite takes on the same file.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise Precondition(
                f"{self.name} is in use by another collector: stop that one or name another database"
            ) from None

    def _engine(self, begin: str) -> sa.Engine:
        def connect() -> sqlite3.Connection:
            connection = sqlite3.connect(
                f"{self._file.absolute().as_uri()}?mode={self._mode}",
                timeout=30,
                isolation_level=None,
                check_same_thread=False,
                uri=True,
            )
            connection.execute("PRAGMA synchronous=FULL")
            return connection

        engine = sa.create_engine("sqlite://", creator=connect, poolclass=sa.NullPool)
        sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
        return engine

    def old(self, version: str) -> None:
        """Go on with a copy, which may be upgraded: the older Fury that wrote the file may want to read it again."""
        try:
            self._home = tempfile.TemporaryDirectory(prefix="fury-database-")
            copy = Path(self._home.name) / "fury.db"
            with self.reading.begin() as connection, contextlib.closing(sqlite3.connect(copy)) as target:
                _driver(connection).backup(target)
        except (OSError, sqlite3.Error, DBAPIError) as error:
            raise Precondition(
                f"{self.name} cannot be copied to be read ({cause(error)}): free the disk of temporary files, "
                "or restore a copy"
            ) from None
        self._file, self._mode = copy, "rw"

    def alone(self, connection: sa.Connection) -> None:
        """BEGIN IMMEDIATE has done that."""

    def writer(self) -> sa.Connection:
        """Start a write-ahead log beside the file."""
        connection = self.changing.connect()
        try:
            _outside(connection, "PRAGMA journal_mode=WAL")
        except sqlite3.Error as error:
            connection.close()
            raise Precondition(f"{self.name} cannot be written ({cause(error)}): name another file") from None
        return connection

    def insert(self, connection: sa.Connection, table: sa.Table, rows: Sequence[dict[str, Any]]) -> None:
        """One prepared statement for all."""
        connection.execute(sa.insert(table), rows)

    def end(self, connection: sa.Connection) -> None:
        """Fold the write-ahead log into the file."""
        with contextlib.suppress(sqlite3.Error):  # somebody still reads: the log stays and is as good
            _outside(connection, "PRAGMA wal_checkpoint(TRUNCATE)")
            _outside(connection, "PRAGMA journal_mode=DELETE")
        connection.close()

    def check(self) -> None:
        """Look through all pages."""
        with self.reading.begin() as connection:
            found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
        if found != "ok":
            what = " ".join(str(found).replace("*** in database main ***", "").split())
            raise Precondition(f"{self.name} is damaged ({what}): name another file, or restore a copy of this one")

    def give_back(self) -> int:
        """Write the file anew where it has free pages."""
        before = self._path.stat().st_size
        try:
            with self.changing.connect() as connection:
                if _driver(connection).execute("PRAGMA freelist_count").fetchone() != (0,):
                    _outside(connection, "VACUUM")
        except sqlite3.Error as error:
            raise Precondition(
                f"{self.name} keeps its size ({cause(error)}): what was removed is, and later runs use its room; "
                "to make the file smaller, free as much room as its runs need and prune again"
            ) from None
        return before - self._path.stat().st_size

    def close(self) -> None:
        """Give up the lock, remove the copy."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if self._home is not None:
            self._home.cleanup()


class Postgresql:
    """A schema of a PostgreSQL database. A second collector is kept out by an advisory lock of the writer's connection.

    The lock goes with its connection; the writer's next one takes it again, or is refused.
    """

    option = "--database-url"
    another = "name another database"
    write_remedy = read_remedy = "try again, or see what the server's log says"

    def __init__(self, url: sa.URL) -> None:
        shown = {key: value for key, value in url.query.items() if not _is_secret(key)}
        self.name = url.set(query=shown).render_as_string(hide_password=True)
        self._url = url
        self._exclusive = False
        self._held: Optional[sa.Connection] = None

    def open(self, *, create: bool, exclusive: bool) -> None:
        """Load the driver, and with `exclusive` connect."""
        defaults = {key: value for key, value in _CONNECT.items() if key not in self._url.query}
        try:
            engine = sa.create_engine(self._url, poolclass=sa.NullPool, connect_args=defaults)
        except ImportError:
            raise Precondition(
                "a PostgreSQL database needs psycopg: "
                "python -m pip install --require-hashes -r requirements/postgresql.txt"
            ) from None
        self.reading: sa.Engine = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self.changing: sa.Engine = engine.execution_options(isolation_level="READ COMMITTED")
        self._exclusive = exclusive
        if exclusive:
            self._held = self._connect(patience_s=_LOCK_S)

    def old(self, version: str) -> None:
        """Refuse it: readers change nothing, and a database on a server is not copied in passing."""
        raise Precondition(
            f"{self.name} has the older schema {version}, and readers do not change it: "
            "the next run that is served over it, `ingest` or `prune` brings it up to date"
        )

    def alone(self, connection: sa.Connection) -> None:
        """Wait for another one that is at it."""
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK, sa.func.hashtext("schema"))))

    def writer(self) -> sa.Connection:
        """The connection that has the lock, or a new one that takes it."""
        connection, self._held = self._held or self._connect(), None
        return connection

    def _connect(self, *, patience_s: float = 0.0) -> sa.Connection:
        try:
            connection = self.changing.connect()
            try:
                self._prepare(connection, patience_s)
                connection.commit()
            except BaseException:
                connection.close()
                raise
        except DBAPIError as error:
            raise Precondition(f"{self.name} cannot be written ({cause(error)}): {self.write_remedy}") from None
        return connection

    def _prepare(self, connection: sa.Connection, patience_s: float) -> None:
        connection.exec_driver_sql(_SERVER_SIDE)
        if connection.exec_driver_sql("SHOW fsync").scalar() != "on":
            raise Precondition(
                f"the server of {self.name} runs with fsync off, and may lose what was acknowledged: set fsync = on"
            )
        if connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "off":
            connection.exec_driver_sql("SET synchronous_commit = on")
        if not self._exclusive:
            return
        take = sa.select(sa.func.pg_try_advisory_lock(_LOCK, sa.func.hashtext(sa.func.current_schema())))
        until = time.monotonic() + patience_s
        while not connection.execute(take).scalar():
            if time.monotonic() >= until:
                raise Precondition(
                    f"{self.name} is in use by another collector: stop that one or name another database"
                )
            time.sleep(0.1)

    def insert(self, connection: sa.Connection, table: sa.Table, rows: Sequence[dict[str, Any]]) -> None:
        """COPY, which is some times as fast as INSERT."""
        columns = list(rows[0])
        driver: Any = connection.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy(f"COPY {table.name} ({', '.join(columns)}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row([row[column] for column in columns])

    def end(self, connection: sa.Connection) -> None:
        """The server notices the end of the connection, and with it of the lock."""
        connection.close()

    def check(self) -> None:
        """The server looks after its pages itself."""

    def give_back(self) -> int:
        """Have the server mark the room as free, for its next rows or, at the end of a table, for the disk."""
        size = (
            "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relnamespace = current_schema()::regnamespace"
        )
        try:
            with self.changing.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                before = int(connection.exec_driver_sql(size).scalar_one())
                connection.exec_driver_sql("VACUUM (ANALYZE)")
                return before - int(connection.exec_driver_sql(size).scalar_one())
        except DBAPIError as error:
            raise Precondition(f"{self.name} keeps its size ({cause(error)}): {self.write_remedy}") from None

    def close(self) -> None:
        """End the connection that has the lock."""
        if self._held is not None:
            self._held.close()
            self._held = None


def url(text: str, what: str, *, public: bool) -> sa.URL:
    """A PostgreSQL URL; BadInput that names `what` and never says a password. A `public` one may have none."""
    try:
        parsed = sa.make_url(text)
    except (ArgumentError, ValueError):
        raise BadInput(f"{what} is no URL: write it as postgresql+psycopg://user@host/database") from None
    if parsed.drivername not in ("postgresql", "postgresql+psycopg"):
        raise BadInput(f"{what} must begin with postgresql+psycopg://, other databases are not supported")
    if public and (parsed.password is not None or any(map(_is_secret, parsed.query))):
        raise BadInput(
            f"{what} has a password, which everybody on this machine can read there: leave it to PGPASSFILE "
            "(~/.pgpass), or put the URL into a file of mode 0600 and name that with --database-url-file"
        )
    return parsed.set(drivername="postgresql+psycopg")


def read_url(path: Path) -> sa.URL:
    """The PostgreSQL URL in a file that nobody else may read."""
    try:
        with path.open(encoding="utf-8") as file:
            private = not os.fstat(file.fileno()).st_mode & 0o077
            text = file.read(10_000)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read the database-url file {path}: {getattr(error, 'strerror', 'not UTF-8')}") from None
    if not private:
        raise Precondition(f"the database-url file {path} can be read by others: chmod 600 {path}")
    return url(text.strip(), f"what the database-url file {path} holds", public=False)


def cause(error: BaseException) -> str:
    """The database's own words, without SQLAlchemy's additions and on one line."""
    if isinstance(error, UnicodeDecodeError):  # SQLite's words quote what is damaged
        return " ".join(error.object.decode("utf-8", "replace").split())
    original = getattr(error, "orig", None) or error
    return " ".join(str(original).split()) or type(original).__name__


def _is_secret(key: Any) -> bool:
    return "password" in str(key)


def _outside(connection: sa.Connection, pragma: str) -> None:
    """Run a pragma that SQLite takes outside a transaction only."""
    _driver(connection).execute(pragma).fetchall()


def _driver(connection: sa.Connection) -> sqlite3.Connection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver
