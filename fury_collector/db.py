"""The database: the only SQL of the collector. What it acknowledged is on disk, each event once.

One thread writes, and commits together whatever is waiting (group commit); readers have connections of their own.
Exactly once rests on the key (epoch_id, seq): a batch below an epoch's highest stored number is compared with what is
stored, everything else is new. Nothing here knows of HTTP or of liveness.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import queue
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Optional, Union

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from fury_collector import slo
from fury_collector.errors import BadInput, CollectorError, Conflict, Precondition, Unavailable, Unknown
from fury_collector.rows import (
    AgentRows,
    Armed,
    EpochRows,
    Message,
    Record,
    RunLine,
    RunRows,
    RunState,
    Stored,
    Transition,
)
from fury_collector.wire import SLOW_PERCENT, Batch, Event, Plan, Ready

SCHEMAS = ("0001", "0002")  # every revision under migrations/versions, oldest first

metadata = sa.MetaData()

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run_id", sa.String(64), nullable=False, unique=True),
    sa.Column("created_at", sa.String(64), nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("boot_id", sa.String(64)),
    sa.Column("start_mono_s", sa.Float),
    sa.Column("start_wall", sa.Float),
    sa.Column("stop_reason", sa.Text),
    sa.Column("end_wall", sa.Float),
)
agents = sa.Table(
    "agents",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run_ref", sa.Integer, sa.ForeignKey("runs.id"), nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("chunk_mb", sa.Integer, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("directory", sa.Text, nullable=False),
    sa.Column("ready", sa.Text),
    sa.Column("health", sa.String(16)),
    sa.Column("reachable", sa.Boolean),
    sa.Column("cleanup", sa.String(16)),
    sa.Column("cleanup_detail", sa.Text),
    sa.Column("drain_seconds", sa.Float, nullable=False, server_default="60"),
    sa.Column("rescued_events", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("journal_damage", sa.Text),
    sa.Column("ramp_seconds", sa.Float, nullable=False, server_default="0"),
    sa.UniqueConstraint("run_ref", "name"),
)
epochs = sa.Table(
    "epochs",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("agent_ref", sa.Integer, sa.ForeignKey("agents.id"), nullable=False),
    sa.Column("epoch", sa.String(16), nullable=False),
    sa.Column("stored", sa.BigInteger, nullable=False),
    sa.Column("top_seq", sa.BigInteger, nullable=False),
    sa.Column("start_seq", sa.BigInteger),
    sa.Column("heartbeat_seq", sa.BigInteger),
    sa.Column("final_seq", sa.BigInteger),
    sa.Column("last_t_mono_ns", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("agent_ref", "epoch"),
)
# No rowid and no second index: the key is the table, which keeps a rollover under 120 bytes.
rollovers = sa.Table(
    "rollovers",
    metadata,
    sa.Column("epoch_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("t_mono_ns", sa.BigInteger, nullable=False),
    sa.Column("t_wall", sa.Float, nullable=False),
    sa.Column("chunk", sa.BigInteger, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("fsync_seconds", sa.Float, nullable=False),
    sa.Column("write_p50_s", sa.Float, nullable=False),
    sa.Column("write_p99_s", sa.Float, nullable=False),
    sa.Column("write_max_s", sa.Float, nullable=False),
    sa.Column("ramp_bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("read_seconds", sa.Float),
    sqlite_with_rowid=False,
)
samples = sa.Table(
    "samples",
    metadata,
    sa.Column("epoch_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("t_mono_ns", sa.BigInteger, nullable=False),
    sa.Column("t_wall", sa.Float, nullable=False),
    sa.Column("interval_s", sa.Float, nullable=False),
    sa.Column("written_bytes", sa.BigInteger, nullable=False),
    sa.Column("agent_cpu_ratio", sa.Float, nullable=False),
    sa.Column("agent_rss_bytes", sa.BigInteger, nullable=False),
    sa.Column("host_cpu_ratio", sa.Float),
    sa.Column("host_memory_used_bytes", sa.BigInteger),
    sa.Column("host_memory_total_bytes", sa.BigInteger),
    sa.Column("disk_free_bytes", sa.BigInteger, nullable=False),
    sa.Column("write_histogram", sa.Text, nullable=False),
    sa.Column("fsync_histogram", sa.Text, nullable=False),
    sa.Column("read_bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("read_histogram", sa.Text),  # null: stored before schema 0002
    sqlite_with_rowid=False,
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("epoch_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("t_mono_ns", sa.BigInteger, nullable=False),
    sa.Column("t_wall", sa.Float, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)
messages = sa.Table(
    "messages",
    metadata,
    sa.Column("run_ref", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("n", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("t_wall", sa.Float, nullable=False),
    sa.Column("level", sa.String(16), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)
transitions = sa.Table(
    "transitions",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("agent_ref", sa.Integer, sa.ForeignKey("agents.id"), nullable=False),
    sa.Column("t_wall", sa.Float, nullable=False),
    sa.Column("health", sa.String(16), nullable=False),
    sa.Column("silent_s", sa.Float, nullable=False),
)
# What a journal holds and this collector or an earlier one would not take, each with its sentence.
refused = sa.Table(
    "refused",
    metadata,
    sa.Column("agent_ref", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("epoch", sa.String(16), primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("sentence", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)

_GROUP_EVENTS = 20_000  # bounds how long one commit keeps others waiting
_HISTOGRAMS = ("write_histogram", "fsync_histogram", "read_histogram")
_COUNTED = rollovers.c.ramp_bytes < rollovers.c.bytes  # not all of it was written in the ramp
_COUNTED_BYTES = rollovers.c.bytes - rollovers.c.ramp_bytes
_READ_BACK = sa.and_(_COUNTED, rollovers.c.read_seconds.is_not(None))  # it is read back whole, after the ramp

Row = dict[str, Any]


@dataclass
class _Epoch:
    """What the writer has to know of an epoch to tell new events from known ones."""

    id: int
    stored: int = 0
    top_seq: int = -1
    start_seq: Optional[int] = None
    heartbeat_seq: Optional[int] = None
    final_seq: Optional[int] = None
    last_t_mono_ns: int = 0


@dataclass
class _Push:
    """A batch on its way to the disk."""

    agent_id: int
    batch: Batch
    rescued: bool = False
    done: Future[Stored] = field(default_factory=Future)


@dataclass
class _Change:
    """Anything else that is to be written."""

    work: Callable[[sa.Connection], None]
    done: Future[None] = field(default_factory=Future)


class Database:
    """An open database of runs; `close()` leaves one plain file without a write-ahead log."""

    def __init__(
        self, path: Union[str, Path], *, create: bool = True, exclusive: bool = False, read_only: bool = False
    ) -> None:
        """Open (and with `create` make) the database, bring its schema up to date, refuse what is not one of ours.

        With `exclusive` a second collector on the same file is refused, and so is a damaged file. With `read_only` the
        file is neither made nor changed; one of an older schema is read from a copy. Raises BadInput or Precondition.
        """
        self.path = Path(path)
        create = create and not read_only
        # A transaction that a crash has cut off has to be rolled back by whoever reads next.
        cut_off = self.path.with_name(f"{self.path.name}-journal").exists()
        self._mode = "ro" if read_only and not cut_off else "rwc" if create else "rw"
        self._file = self.path
        self._home: Optional[tempfile.TemporaryDirectory[str]] = None  # of the copy, where one is read
        self._lock: Optional[int] = None
        self._queue: queue.SimpleQueue[Union[_Push, _Change, None]] = queue.SimpleQueue()
        self._thread: Optional[threading.Thread] = None
        self._epochs: dict[tuple[int, str], _Epoch] = {}
        self._closed = False
        self._prepare_file(create=create, exclusive=exclusive)
        self._read_engine = self._engine("BEGIN")
        self._write_engine = self._engine("BEGIN IMMEDIATE")
        try:
            self._migrate(create=create, read_only=read_only)
            if exclusive:
                self.check()
        except BaseException:
            self._dispose()
            raise

    # Opening and closing

    def _prepare_file(self, *, create: bool, exclusive: bool) -> None:
        if not create and not self.path.exists():
            raise BadInput(f"{self.path} does not exist: name the database with --database FILE")
        if not exclusive:
            return
        try:
            self._lock = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise Precondition(
                f"cannot open the database {self.path}: {error.strerror}; "
                "name a file in a directory that exists and can be written"
            ) from None
        try:
            # flock, not fcntl: it does not mix with the locks that SQLite takes on the same file.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            self._lock = None
            raise Precondition(
                f"{self.path} is in use by another collector: stop that one or name another database"
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

    def _migrate(self, *, create: bool, read_only: bool) -> None:
        try:
            with self._read_engine.connect() as connection:
                names = set(sa.inspect(connection).get_table_names())
                version = None
                if "alembic_version" in names:
                    version = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        except (DBAPIError, UnicodeDecodeError) as error:
            raise Precondition(
                f"{self.path} cannot be used as a database ({_cause(error)}): name another file"
            ) from None
        if version is None and names - {"alembic_version"}:
            raise Precondition(
                f"{self.path} is a database of something else (it has a table {sorted(names)[0]}): name another file"
            )
        if version is None and not create:
            raise BadInput(
                f"{self.path} is not a Fury database: it is empty, name the one that has the run with --database"
            )
        if version is not None and version not in SCHEMAS:
            raise Precondition(
                f"{self.path} has schema {version}, and this collector knows schemas up to {SCHEMAS[-1]}: "
                "use the newer Fury that wrote it, or name another file"
            )
        if version == SCHEMAS[-1]:
            return
        if read_only:
            self._copy()
        # Imported here: it costs a third of a second, and only a new or an old database needs it.
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        try:
            with self._write_engine.begin() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except DBAPIError as error:
            raise Precondition(f"{self.path} cannot be written ({_cause(error)}): name another file") from None

    def _copy(self) -> None:
        """Go on with a copy, which may be upgraded: the older Fury that wrote the file may want to read it again."""
        try:
            self._home = tempfile.TemporaryDirectory(prefix="fury-database-")
            copy = Path(self._home.name) / "fury.db"
            with self._reading() as connection, contextlib.closing(sqlite3.connect(copy)) as target:
                _driver(connection).backup(target)
        except (OSError, sqlite3.Error) as error:
            raise Precondition(
                f"{self.path} cannot be copied to be read ({_cause(error)}): free the disk of temporary files, "
                "or restore a copy"
            ) from None
        self._file, self._mode = copy, "rw"

    def check(self) -> None:
        """Look through all pages: a damaged file is better refused now than when an agent's event meets the damage."""
        with self._reading() as connection:
            found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
        if found != "ok":
            cause = " ".join(str(found).replace("*** in database main ***", "").split())
            raise Precondition(f"{self.path} is damaged ({cause}): name another file, or restore a copy of this one")

    def start(self) -> None:
        """Start the writer thread; from here on the file has a write-ahead log beside it."""
        connection = self._write_engine.connect()
        try:
            _outside(connection, "PRAGMA journal_mode=WAL")
        except sqlite3.Error as error:
            connection.close()
            raise Precondition(f"{self.path} cannot be written ({_cause(error)}): name another file") from None
        self._thread = threading.Thread(target=self._write, args=(connection,), name="fury-database", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what is queued, fold the write-ahead log into the file, and let go of it."""
        if self._closed:
            return
        self._closed = True
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
        self._dispose()

    def _dispose(self) -> None:
        self._read_engine.dispose()
        self._write_engine.dispose()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if self._home is not None:
            self._home.cleanup()

    # Writing

    def store(self, agent_id: int, batch: Batch, *, rescued: bool = False) -> Future[Stored]:
        """Queue a batch; the future is done once it is on disk, or fails with Conflict or Unavailable.

        With `rescued` the new ones of its events count as fetched from the agent's host.
        """
        push = _Push(agent_id, batch, rescued)
        self._put(push)
        return push.done

    def record(self, run_ref: int, records: Sequence[Record]) -> Future[None]:
        """Queue what happened to a run; done once it is on disk."""
        return self.change(lambda connection: _write_records(connection, run_ref, records))

    def change(self, work: Callable[[sa.Connection], None]) -> Future[None]:
        """Queue a change of the writer's own making; done once it is on disk."""
        item = _Change(work)
        self._put(item)
        return item.done

    def _put(self, item: Union[_Push, _Change]) -> None:
        if self._thread is None or self._closed:
            item.done.set_exception(Unavailable("the collector is ending: try again, or fetch the events over ssh"))
        else:
            self._queue.put(item)

    def _write(self, connection: sa.Connection) -> None:
        """The writer thread's life: wait, take what is there, commit it together, tell everyone."""
        going = True
        while going:
            group: list[Union[_Push, _Change]] = []
            weight = 0
            item = self._queue.get()
            while True:
                if item is None:
                    going = False
                    break
                group.append(item)
                weight += len(item.batch.events) if isinstance(item, _Push) else 1
                if weight >= _GROUP_EVENTS:
                    break
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            if group:
                self._commit(connection, group)
        with contextlib.suppress(sqlite3.Error):  # somebody still reads: the log stays and is as good
            _outside(connection, "PRAGMA wal_checkpoint(TRUNCATE)")
            _outside(connection, "PRAGMA journal_mode=DELETE")
        connection.close()

    def _commit(self, connection: sa.Connection, group: Sequence[Union[_Push, _Change]]) -> None:
        outcomes: list[Union[Stored, CollectorError, None]] = []
        try:
            with connection.begin():
                writing = _Writing(connection, self._epochs)
                for item in group:
                    if isinstance(item, _Push):
                        outcomes.append(writing.push(item))
                    else:
                        writing.flush()
                        item.work(connection)
                        outcomes.append(None)
                writing.flush()
        except Exception as error:  # noqa: BLE001 - whatever it was, nothing of the group is stored and everyone must hear it
            self._epochs.clear()
            refusal = Unavailable(f"the database could not be written ({_cause(error)}): nothing was stored, try again")
            for item in group:
                item.done.set_exception(refusal)
            return
        for item, outcome in zip(group, outcomes):
            if isinstance(outcome, CollectorError):
                item.done.set_exception(outcome)
            elif isinstance(item, _Push) and isinstance(outcome, Stored):
                item.done.set_result(outcome)
            elif isinstance(item, _Change):
                item.done.set_result(None)

    def add_run(self, plan: Plan) -> int:
        """Register a run and its agents, or find it again; another plan under the same id is refused. Its number."""
        document = _json(plan.document)
        with self._changing() as connection:
            known = connection.execute(
                sa.select(runs.c.id, runs.c.plan).where(runs.c.run_id == plan.run_id)
            ).one_or_none()
            if known is not None:
                if known.plan != document:
                    raise BadInput(
                        f"run {plan.run_id} is in {self.path} already with another plan: give this run an id of its own"
                    )
                return int(known.id)
            run_ref = connection.execute(
                sa.insert(runs).values(run_id=plan.run_id, created_at=plan.created_at, plan=document, state="arming")
            ).inserted_primary_key
            assert run_ref is not None
            number = int(run_ref[0])
            connection.execute(sa.insert(agents), [{"run_ref": number, **asdict(agent)} for agent in plan.agents])
            return number

    def record_hosts(self, run_ref: int, seen: dict[str, Row]) -> None:
        """Record what the controller saw of the hosts; an agent that is not the run's is BadInput."""
        with self._changing() as connection:
            names = dict(
                connection.execute(sa.select(agents.c.name, agents.c.id).where(agents.c.run_ref == run_ref)).all()
            )
            for name, entry in seen.items():
                if name not in names:
                    raise BadInput(f"the hosts name {name}, which is no agent of this run: {', '.join(names)} are")
                connection.execute(
                    sa.update(agents)
                    .where(agents.c.id == names[name])
                    .values(reachable=entry["reachable"], cleanup=entry["cleanup"], cleanup_detail=entry["detail"])
                )

    def record_journal(self, agent_id: int, refusals: Sequence[tuple[str, int, str]], damage: Optional[str]) -> None:
        """Record what a journal held that could not be stored: (epoch, seq, sentence) each, and what is wrong with it.

        Recording it again changes nothing.
        """
        with self._changing() as connection:
            if refusals:
                connection.execute(
                    sa.insert(refused).prefix_with("OR IGNORE"),
                    [{"agent_ref": agent_id, "epoch": e, "seq": n, "sentence": said} for e, n, said in refusals],
                )
            if damage is not None:
                connection.execute(sa.update(agents).where(agents.c.id == agent_id).values(journal_damage=damage))

    @contextlib.contextmanager
    def _changing(self) -> Iterator[sa.Connection]:
        try:
            with self._write_engine.begin() as connection:
                yield connection
        except DBAPIError as error:
            raise Precondition(
                f"{self.path} cannot be written ({_cause(error)}): free its disk, or restore a copy"
            ) from None

    # Reading

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        try:
            with self._read_engine.begin() as connection:
                yield connection
        except (DBAPIError, UnicodeDecodeError) as error:
            raise Precondition(
                f"{self.path} cannot be read ({_cause(error)}): restore a copy, or name another"
            ) from None

    def list_runs(self) -> list[RunLine]:
        """All runs, newest first."""
        count = sa.select(sa.func.count()).where(agents.c.run_ref == runs.c.id).scalar_subquery()
        rolled = (
            sa.select(sa.func.count())
            .select_from(rollovers.join(epochs, epochs.c.id == rollovers.c.epoch_id).join(agents))
            .where(agents.c.run_ref == runs.c.id, _COUNTED)
            .scalar_subquery()
        )
        query = sa.select(runs.c.run_id, runs.c.created_at, runs.c.state, count, rolled).order_by(runs.c.id.desc())
        with self._reading() as connection:
            return [RunLine(*row) for row in connection.execute(query)]

    def read_run(self, run_id: str, *, newest_messages: int = 200) -> RunRows:
        """A run (`latest` is the newest) without its rollovers and samples one by one; Unknown if there is none."""
        query = sa.select(runs)
        query = (
            query.order_by(runs.c.id.desc()).limit(1) if run_id == "latest" else query.where(runs.c.run_id == run_id)
        )
        with self._reading() as connection:
            run = connection.execute(query).mappings().one_or_none()
            if run is None:
                known = (
                    "there is no run in it yet" if run_id == "latest" else "`fury_collector runs` lists those it has"
                )
                raise Unknown(f"{self.path} has no run {run_id}: {known}")
            newest = connection.execute(
                sa.select(messages)
                .where(messages.c.run_ref == run["id"])
                .order_by(messages.c.n.desc())
                .limit(newest_messages)
            ).mappings()
            planned = json.loads(run["plan"])
            told = tuple(Message(row["n"], row["t_wall"], row["level"], row["text"]) for row in newest)[::-1]
            return RunRows(
                id=run["id"],
                run_id=run["run_id"],
                created_at=run["created_at"],
                parameters=planned.get("parameters", {}),
                slow_percent=planned.get("slow_percent", SLOW_PERCENT),
                slo=slo.parse(planned["slo"]) if planned.get("slo") else (),
                state=RunState(**{key: run[key] for key in RunState.__dataclass_fields__}),
                agents=tuple(_read_agents(connection, run["id"])),
                messages=told,
                next_message=told[-1].n + 1 if told else 0,
            )

    def rollovers(self, run_ref: int) -> Iterator[Row]:
        """The rollovers of a run with agent, host and epoch, agent by agent in their order."""
        return self._rows(rollovers, run_ref)

    def samples(self, run_ref: int) -> Iterator[Row]:
        """The samples of a run with agent, host and epoch, the histograms as objects again."""
        for row in self._rows(samples, run_ref):
            if row["read_histogram"] is None:
                row["read_histogram"] = '{"count": 0}'
            for name in _HISTOGRAMS:
                row[name] = json.loads(row[name])
            yield row

    def rollover_times(self, run_ref: int) -> Iterator[tuple[str, str, Iterator[tuple[Any, ...]]]]:
        """Agent, epoch and the rollovers of each process: t_mono_ns, bytes, ramp_bytes, seconds, read_seconds in their order.

        The rows are to be read before the next process is asked for: ten million of them are never held.
        """
        columns = (rollovers.c[name] for name in ("t_mono_ns", "bytes", "ramp_bytes", "seconds", "read_seconds"))
        query = sa.select(*columns).where(rollovers.c.epoch_id == sa.bindparam("epoch")).order_by(rollovers.c.seq)
        mine = (
            sa.select(agents.c.name, epochs.c.epoch, epochs.c.id)
            .join(epochs, epochs.c.agent_ref == agents.c.id)
            .where(agents.c.run_ref == run_ref, epochs.c.stored > 0)
            .order_by(agents.c.id, epochs.c.id)
        )
        with self._reading() as connection:
            for name, epoch, number in connection.execute(mine).all():
                streamed = connection.execution_options(yield_per=5000).execute(query, {"epoch": number})
                yield name, epoch, (tuple(row) for row in streamed)

    def errors(self, run_ref: int, *, most: int) -> tuple[int, list[Row]]:
        """How many errors the agents of a run reported, and the first of them, each with agent, epoch and time."""
        mine = (
            sa.select(agents.c.name.label("agent"), epochs.c.epoch, events.c.t_mono_ns, events.c.t_wall, events.c.body)
            .select_from(
                agents.join(epochs, epochs.c.agent_ref == agents.c.id).join(events, events.c.epoch_id == epochs.c.id)
            )
            .where(agents.c.run_ref == run_ref, events.c.kind == "error")
        )
        with self._reading() as connection:
            number = connection.execute(sa.select(sa.func.count()).select_from(mine.subquery())).scalar_one()
            found = connection.execute(mine.order_by(events.c.t_wall).limit(most)).mappings()
            return number, [
                {key: value for key, value in row.items() if key != "body"} | json.loads(row["body"]) for row in found
            ]

    def warnings(self, run_ref: int, *, most: int) -> tuple[int, list[Message]]:
        """How many of a run's messages are warnings or errors, and the first of them."""
        where = sa.and_(messages.c.run_ref == run_ref, messages.c.level != "info")
        with self._reading() as connection:
            number = connection.execute(sa.select(sa.func.count()).select_from(messages).where(where)).scalar_one()
            found = connection.execute(
                sa.select(messages.c.n, messages.c.t_wall, messages.c.level, messages.c.text)
                .where(where)
                .order_by(messages.c.n)
                .limit(most)
            )
            return number, [Message(*row) for row in found]

    def _rows(self, table: sa.Table, run_ref: int) -> Iterator[Row]:
        query = (
            sa.select(agents.c.name.label("agent"), agents.c.host, epochs.c.epoch, table)
            .select_from(
                agents.join(epochs, epochs.c.agent_ref == agents.c.id).join(table, table.c.epoch_id == epochs.c.id)
            )
            .where(agents.c.run_ref == run_ref)
            .order_by(agents.c.id, epochs.c.id, table.c.seq)
        )
        with self._reading() as connection:
            for row in connection.execution_options(yield_per=1000).execute(query).mappings():
                yield {key: value for key, value in row.items() if key != "epoch_id"}


class _Writing:
    """One transaction of the writer: judges each push against what is stored, and writes the new rows together."""

    def __init__(self, connection: sa.Connection, known: dict[tuple[int, str], _Epoch]) -> None:
        self._connection = connection
        self._known = known
        self._rows: dict[str, list[Row]] = {}
        self._touched: dict[int, _Epoch] = {}
        self._rescued: dict[int, int] = {}

    def push(self, push: _Push) -> Union[Stored, Conflict]:
        """Take a batch whole, or refuse it whole: what becomes of it once the transaction is committed."""
        batch = push.batch
        epoch = self._epoch(push.agent_id, batch.epoch)
        stored = self._stored_bodies(epoch, batch)
        fresh: list[Event] = []
        duplicates = 0
        final_seq = epoch.final_seq
        top_seq = epoch.top_seq
        taken: list[tuple[str, Row]] = []
        for index, event in enumerate(batch.events):
            table, row = _row(epoch.id, event)
            known = stored.get(event.seq)
            if known is not None:
                if known != (table, row):
                    return Conflict(
                        f"event {event.seq} of epoch {batch.epoch} is stored already with another body: "
                        "two agents share a name, or one reuses its numbers",
                        field=f"events[{index}].seq",
                    )
                duplicates += 1
                continue
            if final_seq is not None and event.seq > final_seq:
                return Conflict(
                    f"event {event.seq} of epoch {batch.epoch} comes after its final event {final_seq}",
                    field=f"events[{index}].seq",
                )
            if event.kind == "final":
                if final_seq is not None or event.seq < top_seq:
                    return Conflict(
                        f"the final event {event.seq} of epoch {batch.epoch} is not its last one: "
                        f"event {max(top_seq, final_seq or 0)} is stored",
                        field=f"events[{index}].seq",
                    )
                final_seq = event.seq
            top_seq = max(top_seq, event.seq)
            stored[event.seq] = (table, row)
            taken.append((table, row))
            fresh.append(event)
        for table, row in taken:
            self._rows.setdefault(table, []).append(row)
        for event in fresh:
            if event.kind == "start" and epoch.start_seq is None:
                epoch.start_seq = event.seq
            elif event.kind == "heartbeat" and (epoch.heartbeat_seq is None or event.seq > epoch.heartbeat_seq):
                epoch.heartbeat_seq = event.seq
            epoch.last_t_mono_ns = max(epoch.last_t_mono_ns, event.t_mono_ns)
        if fresh:
            epoch.stored += len(fresh)
            epoch.top_seq = top_seq
            epoch.final_seq = final_seq
            self._touched[epoch.id] = epoch
            if push.rescued:
                self._rescued[push.agent_id] = self._rescued.get(push.agent_id, 0) + len(fresh)
        receipt = epoch.final_seq is not None and epoch.stored == epoch.final_seq + 1
        return Stored(tuple(fresh), duplicates, receipt)

    def flush(self) -> None:
        """Send the collected rows to the database, still inside the transaction."""
        for table, rows in self._rows.items():
            self._connection.execute(sa.insert(metadata.tables[table]), rows)
        self._rows = {}
        if self._touched:
            self._connection.execute(
                _UPDATE_EPOCH, [{"b_id": one.id, **_progress(one)} for one in self._touched.values()]
            )
            self._touched = {}
        for agent_id, number in self._rescued.items():
            self._connection.execute(
                sa.update(agents).where(agents.c.id == agent_id).values(rescued_events=agents.c.rescued_events + number)
            )
        self._rescued = {}

    def _epoch(self, agent_id: int, name: str) -> _Epoch:
        key = (agent_id, name)
        epoch = self._known.get(key)
        if epoch is None:
            found = (
                self._connection.execute(
                    sa.select(epochs).where(epochs.c.agent_ref == agent_id, epochs.c.epoch == name)
                )
                .mappings()
                .one_or_none()
            )
            if found is None:
                made = self._connection.execute(
                    sa.insert(epochs).values(agent_ref=agent_id, epoch=name, **_progress(_Epoch(0)))
                ).inserted_primary_key
                assert made is not None
                epoch = _Epoch(int(made[0]))
            else:
                epoch = _Epoch(found["id"], **{column: found[column] for column in _PROGRESS})
            self._known[key] = epoch
        return epoch

    def _stored_bodies(self, epoch: _Epoch, batch: Batch) -> dict[int, tuple[str, Row]]:
        """What is stored under the batch's numbers; nothing is read where all are above the highest stored one."""
        numbers = [event.seq for event in batch.events]
        low, high = min(numbers), max(numbers)
        if low > epoch.top_seq:
            return {}
        self.flush()
        wanted = set(numbers)
        stored: dict[int, tuple[str, Row]] = {}
        for table in (rollovers, samples, events):
            query = sa.select(table).where(table.c.epoch_id == epoch.id, table.c.seq.between(low, high))
            for row in self._connection.execute(query).mappings():
                if row["seq"] in wanted:
                    stored[row["seq"]] = (table.name, dict(row))
        return stored


_PROGRESS = ("stored", "top_seq", "start_seq", "heartbeat_seq", "final_seq", "last_t_mono_ns")
_UPDATE_EPOCH = sa.update(epochs).where(epochs.c.id == sa.bindparam("b_id"))


def _progress(epoch: _Epoch) -> Row:
    return {column: getattr(epoch, column) for column in _PROGRESS}


def _row(epoch_id: int, event: Event) -> tuple[str, Row]:
    """The table and the row of an event: exactly what is compared when its key comes again."""
    key: Row = {"epoch_id": epoch_id, "seq": event.seq, "t_mono_ns": event.t_mono_ns, "t_wall": event.t_wall}
    if event.kind == "rollover":
        return "rollovers", {**key, **event.payload}
    if event.kind == "sample":
        row = {**key, **event.payload}
        for name in _HISTOGRAMS:
            row[name] = _json(row[name])
        return "samples", row
    return "events", {**key, "kind": event.kind, "body": _json(event.payload)}


def _write_records(connection: sa.Connection, run_ref: int, records: Sequence[Record]) -> None:
    told: list[Row] = []
    changed: list[Row] = []
    for record in records:
        if isinstance(record, Message):
            told.append({"run_ref": run_ref, **asdict(record)})
        elif isinstance(record, Transition):
            changed.append(
                {
                    "agent_ref": record.agent_id,
                    "t_wall": record.t_wall,
                    "health": record.health,
                    "silent_s": record.silent_s,
                }
            )
        elif isinstance(record, Armed):
            connection.execute(
                sa.update(agents).where(agents.c.id == record.agent_id).values(ready=_json(asdict(record.ready)))
            )
        else:
            connection.execute(sa.update(runs).where(runs.c.id == run_ref).values(**asdict(record)))
    if told:
        connection.execute(sa.insert(messages), told)
    if changed:
        connection.execute(sa.insert(transitions), changed)
        connection.execute(
            sa.update(agents).where(agents.c.id == sa.bindparam("b_agent")).values(health=sa.bindparam("b_health")),
            [
                {"b_agent": row["agent_ref"], "b_health": "green" if row["health"] == "recovered" else row["health"]}
                for row in changed
            ],
        )


def _read_agents(connection: sa.Connection, run_ref: int) -> Iterator[AgentRows]:
    mine = sa.select(epochs.c.id).join(agents, agents.c.id == epochs.c.agent_ref).where(agents.c.run_ref == run_ref)
    summed = (
        sa.select(
            rollovers.c.epoch_id,
            sa.func.count().filter(_COUNTED).label("rollovers"),
            sa.func.sum(_COUNTED_BYTES).label("rollover_bytes"),
            sa.func.sum(rollovers.c.ramp_bytes).label("ramp_bytes"),
            sa.func.sum(sa.case((_READ_BACK, rollovers.c.bytes), else_=0)).label("read_bytes"),
        )
        .where(rollovers.c.epoch_id.in_(mine))
        .group_by(rollovers.c.epoch_id)
    )
    rolled = {row["epoch_id"]: row for row in connection.execute(summed).mappings()}
    words: dict[tuple[int, int], Event] = {}
    for column in (epochs.c.start_seq, epochs.c.heartbeat_seq, epochs.c.final_seq):
        query = (
            sa.select(events)
            .select_from(epochs.join(events, sa.and_(events.c.epoch_id == epochs.c.id, events.c.seq == column)))
            .where(epochs.c.id.in_(mine))
        )
        for row in connection.execute(query).mappings():
            words[row["epoch_id"], row["seq"]] = Event(
                row["seq"], row["kind"], row["t_mono_ns"], row["t_wall"], json.loads(row["body"])
            )
    liveness: dict[int, list[Transition]] = {}
    changes = (
        sa.select(transitions)
        .join(agents, agents.c.id == transitions.c.agent_ref)
        .where(agents.c.run_ref == run_ref)
        .order_by(transitions.c.id)
    )
    for row in connection.execute(changes).mappings():
        liveness.setdefault(row["agent_ref"], []).append(
            Transition(row["agent_ref"], row["t_wall"], row["health"], row["silent_s"])
        )
    refusals: dict[int, list[str]] = {}
    turned = (
        sa.select(refused.c.agent_ref, refused.c.sentence)
        .join(agents, agents.c.id == refused.c.agent_ref)
        .where(agents.c.run_ref == run_ref)
        .order_by(refused.c.agent_ref, refused.c.epoch, refused.c.seq)
    )
    for agent_ref, sentence in connection.execute(turned):
        refusals.setdefault(agent_ref, []).append(sentence)
    by_agent: dict[int, list[EpochRows]] = {}
    # An epoch whose only batch was refused has a row but no event: it never counted. Their order is that of the
    # processes whatever order their events came in, as they ran one after the other on one host's monotonic clock.
    stored = (
        sa.select(epochs)
        .where(epochs.c.id.in_(mine), epochs.c.stored > 0)
        .order_by(epochs.c.last_t_mono_ns, epochs.c.id)
    )
    for row in connection.execute(stored).mappings():
        sums: Mapping[Any, Any] = rolled.get(row["id"], {})
        by_agent.setdefault(row["agent_ref"], []).append(
            EpochRows(
                epoch=row["epoch"],
                stored=row["stored"],
                top_seq=row["top_seq"],
                final_seq=row["final_seq"],
                last_t_mono_ns=row["last_t_mono_ns"],
                start=words.get((row["id"], row["start_seq"])),
                heartbeat=words.get((row["id"], row["heartbeat_seq"])),
                final=words.get((row["id"], row["final_seq"])),
                **{key: int(sums.get(key, 0)) for key in ("rollovers", "rollover_bytes", "ramp_bytes", "read_bytes")},
            )
        )
    for row in connection.execute(
        sa.select(agents).where(agents.c.run_ref == run_ref).order_by(agents.c.id)
    ).mappings():
        yield AgentRows(
            **{key: row[key] for key in AgentRows.__dataclass_fields__ if key in agents.c and key != "ready"},
            ready=None if row["ready"] is None else Ready(**json.loads(row["ready"])),
            epochs=tuple(by_agent.get(row["id"], ())),
            liveness=tuple(liveness.get(row["id"], ())),
            refused_events=len(refusals.get(row["id"], ())),
            refused_reason=next(iter(refusals.get(row["id"], ())), None),
        )


def _outside(connection: sa.Connection, pragma: str) -> None:
    """Run a pragma that SQLite takes outside a transaction only."""
    _driver(connection).execute(pragma).fetchall()


def _driver(connection: sa.Connection) -> sqlite3.Connection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _cause(error: BaseException) -> str:
    """The database's own words, without SQLAlchemy's additions and on one line."""
    if isinstance(error, UnicodeDecodeError):  # SQLite's words quote what is damaged
        return " ".join(error.object.decode("utf-8", "replace").split())
    original = getattr(error, "orig", None) or error
    return " ".join(str(original).split()) or type(original).__name__
