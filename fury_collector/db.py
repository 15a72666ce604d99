"""The database: the only SQL of the collector. What it acknowledged is on disk, each event once.

One thread writes, and commits together whatever is waiting (group commit); readers have connections of their own.
Exactly once rests on the key (epoch_id, seq): a batch below an epoch's highest stored number is compared with what is
stored, everything else is new. Nothing here knows of HTTP or of liveness.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Optional, Union

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from fury_collector import slo, stores
from fury_collector.errors import BadInput, CollectorError, Conflict, Precondition, Unavailable, Unknown
from fury_collector.rows import (
    AgentRows,
    Armed,
    EpochRows,
    Message,
    Record,
    RunAge,
    RunLine,
    RunRows,
    RunState,
    Stored,
    Transition,
)
from fury_collector.stores import cause
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
        self, where: Union[str, stores.Where], *, create: bool = True, exclusive: bool = False, read_only: bool = False
    ) -> None:
        """Open (and with `create` make) the database, bring its schema up to date, refuse what is not one of ours.

        where: a file (SQLite), or the URL of a PostgreSQL database. With `exclusive` a second collector on it is refused,
        and so is a damaged file. With `read_only` it is neither made nor changed; a file of an older schema is read from
        a copy. Raises BadInput or Precondition.
        """
        create = create and not read_only
        self._queue: queue.SimpleQueue[Union[_Push, _Change, None]] = queue.SimpleQueue()
        self._thread: Optional[threading.Thread] = None
        self._writer: Optional[sa.Connection] = None  # the writer thread's; None until it is connected again
        self._epochs: dict[tuple[int, str], _Epoch] = {}
        self._closed = False
        self._store = stores.store(Path(where) if isinstance(where, str) else where, read_only=read_only)
        self.name = self._store.name
        self._store.open(create=create, exclusive=exclusive)
        try:
            self._migrate(create=create, read_only=read_only)
            if exclusive:
                self.check()
        except BaseException:
            self._store.close()
            raise

    # Opening and closing

    def _migrate(self, *, create: bool, read_only: bool) -> None:
        try:
            with self._store.reading.connect() as connection:
                names = set(sa.inspect(connection).get_table_names())
                version = None
                if "alembic_version" in names:
                    version = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        except (DBAPIError, UnicodeDecodeError) as error:
            raise Precondition(
                f"{self.name} cannot be used as a database ({cause(error)}): {self._store.another}"
            ) from None
        if version is None and names - {"alembic_version"}:
            raise Precondition(
                f"{self.name} is a database of something else (it has a table {sorted(names)[0]}): {self._store.another}"
            )
        if version is None and not create:
            raise BadInput(
                f"{self.name} is not a Fury database: it is empty, name the one that has the run with {self._store.option}"
            )
        if version is not None and version not in SCHEMAS:
            raise Precondition(
                f"{self.name} has schema {version}, and this collector knows schemas up to {SCHEMAS[-1]}: "
                f"use the newer Fury that wrote it, or {self._store.another}"
            )
        if version == SCHEMAS[-1]:
            return
        if read_only and version is not None:
            self._store.old(version)
        # Imported here: it costs a third of a second, and only a new or an old database needs it.
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        try:
            with self._store.changing.begin() as connection:
                self._store.alone(connection)
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except DBAPIError as error:
            raise Precondition(f"{self.name} cannot be written ({cause(error)}): {self._store.another}") from None

    def check(self) -> None:
        """Look through all of a file: damage is better refused now than when an agent's event meets it."""
        try:
            self._store.check()
        except (DBAPIError, UnicodeDecodeError) as error:
            raise self._unreadable(error) from None

    def start(self) -> None:
        """Start the writer thread; from here on a file has a write-ahead log beside it."""
        self._writer = self._store.writer()
        self._thread = threading.Thread(target=self._write, name="fury-database", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what is queued, fold the write-ahead log into the file, and let go of it."""
        if self._closed:
            return
        self._closed = True
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
        self._store.close()

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

    def _write(self) -> None:
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
                self._commit(group)
        if self._writer is not None:
            self._store.end(self._writer)

    def _commit(self, group: Sequence[Union[_Push, _Change]]) -> None:
        outcomes: list[Union[Stored, CollectorError, None]] = []
        try:
            connection = self._writer = self._writer or self._store.writer()
            with connection.begin():
                writing = _Writing(connection, self._store, self._epochs)
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
            if self._writer is not None and (self._writer.invalidated or self._writer.closed):
                self._writer.close()  # the server has gone: the next group connects again
                self._writer = None
            refusal = Unavailable(f"the database could not be written ({cause(error)}): nothing was stored, try again")
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
                        f"run {plan.run_id} is in {self.name} already with another plan: give this run an id of its own"
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
                    _adding(connection, refused),
                    [{"agent_ref": agent_id, "epoch": e, "seq": n, "sentence": said} for e, n, said in refusals],
                )
            if damage is not None:
                connection.execute(sa.update(agents).where(agents.c.id == agent_id).values(journal_damage=damage))

    def forget(self, run_ref: int) -> None:
        """Remove a run and everything of it in one transaction; `give_back` then gives its room to the disk."""
        mine = sa.select(agents.c.id).where(agents.c.run_ref == run_ref)
        processes = sa.select(epochs.c.id).where(epochs.c.agent_ref.in_(mine))
        with self._changing() as connection:
            for table in (rollovers, samples, events):
                connection.execute(sa.delete(table).where(table.c.epoch_id.in_(processes)))
            for table in (epochs, transitions, refused):
                connection.execute(sa.delete(table).where(table.c.agent_ref.in_(mine)))
            for table in (agents, messages):
                connection.execute(sa.delete(table).where(table.c.run_ref == run_ref))
            connection.execute(sa.delete(runs).where(runs.c.id == run_ref))

    def give_back(self) -> int:
        """Give the room of what was removed back to the disk, for which SQLite writes the file anew; how many bytes."""
        return self._store.give_back()

    @contextlib.contextmanager
    def _changing(self) -> Iterator[sa.Connection]:
        try:
            with self._store.changing.begin() as connection:
                yield connection
        except DBAPIError as error:
            raise Precondition(f"{self.name} cannot be written ({cause(error)}): {self._store.write_remedy}") from None

    # Reading

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        try:
            with self._store.reading.begin() as connection:
                yield connection
        except (DBAPIError, UnicodeDecodeError) as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> Precondition:
        return Precondition(f"{self.name} cannot be read ({cause(error)}): {self._store.read_remedy}")

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

    def ages(self) -> list[RunAge]:
        """All runs, newest first, with when they ended."""
        longest = (
            sa.select(sa.func.max(agents.c.seconds + agents.c.drain_seconds))
            .where(agents.c.run_ref == runs.c.id)
            .scalar_subquery()
        )
        columns = (runs.c.id, runs.c.run_id, runs.c.state, runs.c.created_at, runs.c.start_wall, runs.c.end_wall)
        query = sa.select(*columns, longest.label("longest")).order_by(runs.c.id.desc())
        with self._reading() as connection:
            return [
                RunAge(
                    row["id"],
                    row["run_id"],
                    row["state"],
                    ended=row["end_wall"],
                    planned_end=_planned_end(row["start_wall"], row["created_at"], row["longest"]),
                )
                for row in connection.execute(query).mappings()
            ]

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
                raise Unknown(f"{self.name} has no run {run_id}: {known}")
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

    def __init__(self, connection: sa.Connection, store: stores.Store, known: dict[tuple[int, str], _Epoch]) -> None:
        self._connection = connection
        self._insert = store.insert
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
            self._insert(self._connection, metadata.tables[table], rows)
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


def _adding(connection: sa.Connection, table: sa.Table) -> Union[sqlite.Insert, postgresql.Insert]:
    """An insert that leaves what has the same key as it is."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    return insert(table).on_conflict_do_nothing()


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
        connection.execute(_adding(connection, messages), told)  # also what is there though nobody heard of it
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


def _planned_end(start_wall: Optional[float], created_at: str, longest: float) -> Optional[float]:
    """When a run was to be over at the latest; None if an early Fury left no time that can be read."""
    if start_wall is None:
        with contextlib.suppress(ValueError):
            start_wall = datetime.fromisoformat(created_at).timestamp()
    return None if start_wall is None else start_wall + longest


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
