"""The database: what it refuses, what it leaves behind, what a rollover costs."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import fury_collector.db
from fury_collector import report, wire
from fury_collector.db import SCHEMAS, Database, metadata
from fury_collector.errors import BadInput, Precondition, Unavailable
from fury_collector.rows import Message, Stored
from fury_collector.stores import Where
from tests.postgresql import Server

from .conftest import CHUNK, RUN, engine_of, event, histogram, over_both_stores, plan


def opened(where: Where, names: tuple[str, ...] = ("alecto",)) -> Database:
    database = Database(where, exclusive=True)
    database.add_run(wire.plan(plan(names)))
    database.start()
    return database


def batch(*events: dict[str, Any], epoch: str = "0123456789abcdef") -> wire.Batch:
    return wire.batch({"v": 1, "epoch": epoch, "events": list(events)})


W = TypeVar("W", bound=Where)
MIGRATIONS = Path(fury_collector.db.__file__).parent / "migrations"


def of_schema_0001(where: W) -> W:
    """A database as the first Fury left it: alecto ended well, megaera crashed after two of its rollovers."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine_of(where).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        then = sa.MetaData()
        then.reflect(connection)

        def add(table: str, **row: Any) -> None:
            connection.execute(sa.insert(then.tables[table]).values(row))

        document = wire.dumps(plan(("alecto", "megaera")))
        add("runs", id=1, run_id=RUN, created_at="", plan=document, state="finished")
        for number, name in enumerate(("alecto", "megaera"), 1):
            final_seq = 4 if name == "alecto" else None
            agent = {"host": "host1", "chunk_mb": 20, "seconds": 60, "directory": "/var/tmp"}
            add("agents", id=number, run_ref=1, name=name, **agent)
            stored = {"stored": 5 if final_seq else 4, "top_seq": final_seq or 3, "start_seq": 0}
            last = {"final_seq": final_seq, "last_t_mono_ns": 5 * 10**9}
            add("epochs", id=number, agent_ref=number, epoch="0123456789abcdef", **stored, **last)
            key = {"epoch_id": number, "t_mono_ns": 1, "t_wall": 1.0}
            add("events", **{**key, "t_mono_ns": 10**9}, seq=0, kind="start", body=_old("start"))
            took = {
                "seconds": 0.25,
                "fsync_seconds": 0.01,
                "write_p50_s": 0.001,
                "write_p99_s": 0.002,
                "write_max_s": 0.003,
            }
            for seq in (1, 2):
                add("rollovers", **key, seq=seq, chunk=seq - 1, bytes=CHUNK, **took)
            seen = {
                "interval_s": 10.0,
                "written_bytes": 0,
                "agent_cpu_ratio": 0.1,
                "agent_rss_bytes": 3,
                "disk_free_bytes": 5,
            }
            writes, fsyncs = (wire.dumps(one) for one in (histogram(0.001, 0.002), histogram(0.01)))
            add("samples", **key, **seen, seq=3, write_histogram=writes, fsync_histogram=fsyncs)
        add("events", epoch_id=1, seq=4, kind="final", t_mono_ns=5 * 10**9, t_wall=5.0, body=_old("final"))
        if connection.dialect.name == "postgresql":  # as if it had counted them itself
            for table in ("runs", "agents", "epochs"):
                connection.exec_driver_sql(f"SELECT setval('{table}_id_seq', 2)")
    return where


def _old(kind: str) -> str:
    later = {"ramp_bytes", "read_bytes", "read_histogram", "honesty", "notes", "seq", "kind", "t_mono_ns", "t_wall"}
    whole = event(0, kind, **({"written_bytes": 2 * CHUNK + 5, "rollovers": 2} if kind == "final" else {}))
    return wire.dumps({key: value for key, value in whole.items() if key not in later})


def assert_is_the_first_run(database: Database) -> None:
    """What `of_schema_0001` has made is told as it was: nothing of it was read back, and all of it counts."""
    assert [(line.run_id, line.agents, line.rollovers) for line in database.list_runs()] == [(RUN, 2, 4)]
    rows = database.read_run(RUN)
    result = report.judge(rows, database.samples(rows.id))
    assert [agent.verdict for agent in result.agents] == ["PASS", "INCOMPLETE"]
    assert [agent.written_bytes for agent in result.agents] == [2 * CHUNK + 5, 2 * CHUNK]
    assert [agent.writes.count for agent in result.agents] == [3, 2]
    for agent in report.summary(result)["agents"]:
        assert (agent["rollovers"], agent["ramp_bytes"], agent["read_bytes"]) == (2, 0, 0)
        assert (agent["honesty"], agent["notes"], agent["read_latency_seconds"]["max"]) == ({}, [], None)
        assert agent["facts"] == {"kernel": "6.18", "cpus": 2}
    assert [row["read_seconds"] for row in database.rollovers(rows.id)] == [None] * 4


def schema_of(where: Where) -> str:
    with engine_of(where).connect() as connection:
        return str(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one())


@over_both_stores
def test_a_database_of_the_first_schema_is_reported_as_before(where: Where) -> None:
    """Whoever may write to it brings it up to date."""
    database = Database(of_schema_0001(where), create=False)
    assert_is_the_first_run(database)
    database.close()
    assert schema_of(where) == SCHEMAS[-1]


def test_a_reader_leaves_a_file_of_the_first_schema_to_the_fury_that_wrote_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads a copy, of which nothing is left."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    path = of_schema_0001(tmp_path / "fury.db")
    before = path.read_bytes()
    database = Database(path, read_only=True)
    assert_is_the_first_run(database)
    database.close()
    assert path.read_bytes() == before
    assert schema_of(path) == "0001"
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["fury.db", "temporary"]


def test_a_reader_refuses_a_server_s_database_of_the_first_schema(postgresql_server: Server) -> None:
    """It says what brings it up to date, and changes nothing."""
    where = of_schema_0001(postgresql_server.database())
    with pytest.raises(Precondition, match="has the older schema 0001, and readers do not change it: the next run"):
        Database(where, read_only=True)
    assert schema_of(where) == "0001"


@over_both_stores
def test_a_run_of_the_first_schema_goes_on_in_the_newest(where: Where) -> None:
    """What comes after the upgrade adds up with what was there, and what was there is still a duplicate."""
    database = Database(of_schema_0001(where), exclusive=True)
    database.start()
    known = event(1, "rollover", chunk=0, t_mono_ns=1, t_wall=1.0)
    later = event(4, "rollover", chunk=2, read_seconds=0.5)
    stored = database.store(2, batch(known, later)).result(10)
    assert (len(stored.fresh), stored.duplicates) == (1, 1)
    epoch = database.read_run(RUN).agents[1].epochs[0]
    assert (epoch.rollovers, epoch.rollover_bytes, epoch.read_bytes) == (3, 3 * CHUNK, CHUNK)
    database.close()


def test_a_reader_without_room_for_a_copy_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, and the older database is as it was."""
    path = of_schema_0001(tmp_path / "fury.db")
    before = path.read_bytes()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(Precondition, match=r"fury\.db cannot be copied to be read \(.*\): free the disk"):
        Database(path, create=False, read_only=True)
    assert path.read_bytes() == before


@over_both_stores
def test_rollovers_of_the_ramp_do_not_count(where: Where) -> None:
    """Neither in `runs` nor in an epoch's sums; of the one that both share the bytes after the ramp do."""
    database = opened(where)
    words = [
        event(0, "rollover", ramp_bytes=CHUNK, read_seconds=0.5),
        event(1, "rollover", ramp_bytes=CHUNK - 4096, read_seconds=0.5),
        event(2, "rollover"),
    ]
    database.store(1, batch(*words)).result(10)
    assert database.list_runs()[0].rollovers == 2
    epoch = database.read_run(RUN).agents[0].epochs[0]
    assert (epoch.rollovers, epoch.rollover_bytes, epoch.ramp_bytes) == (2, CHUNK + 4096, 2 * CHUNK - 4096)
    assert epoch.read_bytes == CHUNK  # of a chunk that outlasted the ramp all is read back after it
    database.store(1, batch(event(0, "rollover", ramp_bytes=CHUNK), epoch="f" * 16)).result(10)
    assert [one.wrote for one in database.read_run(RUN).agents[0].epochs] == [True, True]
    database.close()


@over_both_stores
def test_a_newer_schema_is_refused_naming_both_versions(where: Where) -> None:
    """An old collector never touches what a newer one wrote."""
    Database(where).close()
    with engine_of(where).begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0999'")
    with pytest.raises(Precondition, match=f"schema 0999, and this collector knows schemas up to {SCHEMAS[-1]}"):
        Database(where)
    assert schema_of(where) == "0999"


def test_what_is_not_a_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    """Neither text nor somebody else's database is taken for ours."""
    text = tmp_path / "notes.txt"
    text.write_text("dear diary " * 100)
    with pytest.raises(Precondition, match=r"notes.txt cannot be used as a database \(file is not a database\)"):
        Database(text)
    assert text.read_text() == "dear diary " * 100
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE places (url TEXT)")
    with pytest.raises(Precondition, match="a database of something else"):
        Database(other)
    with pytest.raises(Precondition, match="cannot"):
        Database(tmp_path)


def test_a_missing_database_is_named(tmp_path: Path) -> None:
    """A report never makes an empty database in passing."""
    with pytest.raises(BadInput, match="does not exist: name the database with --database"):
        Database(tmp_path / "fury.db", create=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(Precondition, match="cannot open the database"):
        Database(tmp_path / "no" / "fury.db", exclusive=True)


@over_both_stores
def test_a_second_collector_on_the_same_database_is_refused(where: Where) -> None:
    """One file has one writer; a reader is welcome."""
    database = opened(where)
    with pytest.raises(Precondition, match="in use by another collector"):
        Database(where, exclusive=True)
    reader = Database(where, create=False)
    assert [line.run_id for line in reader.list_runs()] == [RUN]
    reader.close()
    database.close()
    Database(where, exclusive=True).close()


def test_a_closed_database_is_one_file(tmp_path: Path) -> None:
    """The controller copies fury.db and has everything."""
    database = opened(tmp_path / "fury.db")
    assert database.store(1, batch(event(0, "start"))).result(10).fresh
    assert (tmp_path / "fury.db-wal").exists()
    database.close()
    assert [file.name for file in tmp_path.iterdir()] == ["fury.db"]
    with sqlite3.connect(tmp_path / "fury.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (1,)


def test_the_writer_is_durable_at_every_commit(tmp_path: Path) -> None:
    """WAL with synchronous=FULL: a commit is on disk when it is acknowledged."""
    database = opened(tmp_path / "fury.db")
    found: list[Any] = []
    database.change(lambda c: found.append(c.exec_driver_sql("PRAGMA synchronous").scalar())).result(10)
    database.change(lambda c: found.append(c.exec_driver_sql("PRAGMA journal_mode").scalar())).result(10)
    assert found == [2, "wal"]
    database.close()


@over_both_stores
def test_the_migrations_make_exactly_the_tables_of_the_code(where: Where) -> None:
    """A table is never changed without a migration, and the newest migration is the one the code names."""
    database = Database(where)
    with engine_of(where).connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
    database.close()
    script = ScriptDirectory(str(MIGRATIONS))
    assert tuple(r.revision for r in script.walk_revisions())[::-1] == SCHEMAS


def test_the_key_is_the_table_where_rows_are_many(tmp_path: Path) -> None:
    """SQLite keeps no second tree for it."""
    Database(tmp_path / "fury.db").close()
    with engine_of(tmp_path / "fury.db").connect() as connection:
        tables = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type = 'table'")
        without = {name for name, sql in tables if "WITHOUT ROWID" in sql}
    assert without == {"rollovers", "samples", "events", "messages", "refused"}


def test_postgresql_has_room_for_what_sqlite_has(postgresql_server: Server) -> None:
    """Bytes and numbers in 64 bits, seconds in double precision, and nothing narrower but numbers of rows."""
    where = postgresql_server.database()
    Database(where).close()
    with engine_of(where).connect() as connection:
        found = connection.exec_driver_sql(
            "SELECT table_name, column_name, data_type FROM information_schema.columns "
            "WHERE table_schema = current_schema() AND data_type IN ('integer', 'real', 'smallint')"
        )
        narrow = {(table, column) for table, column, _ in found}
    numbers = {(table, "epoch_id") for table in ("rollovers", "samples", "events")}
    numbers |= {(table, "id") for table in ("runs", "agents", "epochs", "transitions")}
    numbers |= {(table, "agent_ref") for table in ("epochs", "transitions", "refused")}
    assert narrow == numbers | {
        ("agents", "run_ref"),
        ("messages", "run_ref"),
        ("messages", "n"),
        ("agents", "chunk_mb"),
    }


@over_both_stores
def test_a_message_is_recorded_once_however_often_it_is_tried(where: Where) -> None:
    """A server may have committed what it could not acknowledge any more, and then the collector records it again."""
    database = opened(where)
    first = Message(0, 1.0, "info", "hello")
    database.record(1, [first]).result(10)
    database.record(1, [first, Message(1, 2.0, "info", "again")]).result(10)
    assert [message.text for message in database.read_run(RUN).messages] == ["hello", "again"]
    database.close()


@over_both_stores
def test_a_reader_sees_one_state(where: Where) -> None:
    """What is stored while it reads is not in what it has not come to yet."""
    database = opened(where, ("alecto", "megaera"))
    for agent in (1, 2):
        database.store(agent, batch(event(0, "rollover"))).result(10)
    numbers = []
    for _, _, rows in database.rollover_times(1):
        numbers.append(len(list(rows)))
        database.store(2, batch(event(1, "rollover"))).result(10)
    assert numbers == [1, 1]
    assert database.list_runs()[0].rollovers == 3
    database.close()


@over_both_stores
def test_the_greatest_values_come_back_as_they_were(where: Where) -> None:
    """And count as the same event when they come again."""
    database = opened(where)
    long = "\U0001f525" * 200
    words = [
        event(2**53, "rollover", bytes=2**63 - 1, chunk=2**63 - 1, t_mono_ns=2**63 - 1, t_wall=1e12, seconds=5e-324),
        event(8, "error", message=long, path="\x01\x7f", errno=-1),
        event(7, "sample", host_cpu_ratio=None, disk_free_bytes=2**63 - 1),
    ]
    assert len(database.store(1, batch(*words)).result(10).fresh) == 3
    assert database.store(1, batch(*words)).result(10).duplicates == 3
    database.close()
    reader = Database(where, read_only=True)
    (row,) = reader.rollovers(1)
    assert (row["bytes"], row["t_mono_ns"], row["t_wall"], row["seconds"]) == (2**63 - 1, 2**63 - 1, 1e12, 5e-324)
    assert reader.errors(1, most=5)[1][0]["message"] == long
    assert reader.read_run(RUN).agents[0].epochs[0].rollover_bytes == 2**63 - 1
    reader.close()


def test_a_rollover_costs_at_most_120_bytes(tmp_path: Path) -> None:
    """Forty agents, interleaved as they come, keys and page overhead included."""
    database = opened(tmp_path / "fury.db", tuple(f"web{n}" for n in range(40)))
    database.close()
    empty = (tmp_path / "fury.db").stat().st_size
    database = Database(tmp_path / "fury.db", exclusive=True)
    database.start()
    count = 0
    pending: list[Future[Stored]] = []
    for first in range(0, 1000, 20):
        for agent in range(1, 41):
            events = [
                event(
                    seq,
                    "rollover",
                    t_mono_ns=10**15 + seq * 123456789,
                    t_wall=1.79e9 + seq * 0.1234567,
                    seconds=0.123456789 + seq * 1e-7,
                    fsync_seconds=0.0123456789 + seq * 1e-8,
                    read_seconds=0.1123456789 + seq * 1e-8,
                    write_p50_s=0.00123456789 + seq * 1e-9,
                    write_p99_s=0.00223456789 + seq * 1e-9,
                    write_max_s=0.00323456789 + seq * 1e-9,
                )
                for seq in range(first, first + 20)
            ]
            pending.append(database.store(agent, batch(*events)))
            count += len(events)
    for future in pending:
        future.result(30)
    database.close()
    assert ((tmp_path / "fury.db").stat().st_size - empty) / count <= 120


@over_both_stores
def test_queued_batches_share_one_commit_and_one_refusal_spoils_no_other(where: Where) -> None:
    """A conflict in a group is its sender's alone."""
    database = opened(where)
    database.store(1, batch(event(0, "start"))).result(10)
    futures = [database.store(1, batch(event(n, "rollover"))) for n in range(1, 200)]
    bad = database.store(1, batch(event(0, "heartbeat"), event(999, "rollover")))
    futures += [database.store(1, batch(event(n, "rollover"))) for n in range(200, 300)]
    assert all(len(future.result(10).fresh) == 1 for future in futures)
    assert bad.exception(10) is not None
    assert database.read_run(RUN).agents[0].epochs[0].stored == 300
    database.close()


@over_both_stores
def test_a_failed_transaction_stores_nothing_and_the_next_one_works(where: Where) -> None:
    """Everyone in the group is told to try again, and the retry is stored once."""
    database = opened(where)

    def fail(connection: sa.Connection) -> None:
        raise OSError("disk on fire")

    first = database.store(1, batch(event(0, "start")))
    failed = database.change(fail)
    assert isinstance(failed.exception(10), Unavailable)
    if first.exception(10) is not None:
        assert isinstance(first.exception(), Unavailable)
    result = database.store(1, batch(event(0, "start"))).result(10)
    assert len(result.fresh) + result.duplicates == 1
    assert database.read_run(RUN).agents[0].epochs[0].stored == 1
    database.close()


def test_a_full_disk_is_told_and_passes(tmp_path: Path) -> None:
    """While the file cannot grow pushes are refused with 503's error; afterwards the same push is stored."""

    def pages(most: int) -> Callable[[sa.Connection], None]:
        def limit(connection: sa.Connection) -> None:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {most}")

        return limit

    database = opened(tmp_path / "fury.db")
    database.change(pages(1)).result(10)
    big = [event(n, "error", message="x" * 4000) for n in range(200)]
    refused = database.store(1, batch(*big)).exception(10)
    assert isinstance(refused, Unavailable)
    assert "full" in refused.message
    assert database.read_run(RUN).agents[0].epochs == ()
    database.change(pages(1_000_000)).result(10)
    assert len(database.store(1, batch(*big)).result(10).fresh) == 200
    database.close()


@over_both_stores
def test_a_run_may_be_registered_again_only_with_the_same_plan(where: Where) -> None:
    """A restart finds its run; another plan under its id is a mistake."""
    database = Database(where)
    first = database.add_run(wire.plan(plan()))
    assert database.add_run(wire.plan(plan())) == first
    with pytest.raises(BadInput, match="already with another plan"):
        database.add_run(wire.plan(plan(("alecto",))))
    database.close()


@over_both_stores
def test_nothing_is_taken_after_the_end(where: Where) -> None:
    """A push in the last instant hears that it was not stored."""
    database = opened(where)
    database.close()
    assert isinstance(database.store(1, batch(event(0, "start"))).exception(1), Unavailable)


def test_a_damaged_database_is_refused_by_whoever_would_write_to_it(tmp_path: Path) -> None:
    """In one sentence, before anything is served over it; a reader hears of it where it meets the damage."""
    path = tmp_path / "fury.db"
    database = opened(path)
    for first in range(0, 2000, 100):
        database.store(1, batch(*(event(n, "rollover") for n in range(first, first + 100)))).result(10)
    database.close()
    raw = bytearray(path.read_bytes())
    half = len(raw) // 2 // 4096 * 4096
    raw[half : half + 40960] = b"\xff" * 40960
    path.write_bytes(raw)
    with pytest.raises(Precondition, match=r"fury.db is damaged \(.*\): name another file") as told:
        Database(path, exclusive=True)
    assert "\n" not in told.value.message
    reader = Database(path, read_only=True)
    with pytest.raises(Precondition, match=r"fury\.db cannot be read"):
        list(reader.rollovers(reader.read_run(RUN).id))
    reader.close()
    assert path.read_bytes() == raw


def test_an_empty_file_is_not_made_a_database_by_a_reader(tmp_path: Path) -> None:
    """It is named and left as it is."""
    path = tmp_path / "fury.db"
    path.touch()
    with pytest.raises(BadInput, match="is not a Fury database: it is empty"):
        Database(path, create=False)
    assert path.stat().st_size == 0


def test_a_reader_rolls_back_what_a_crash_has_cut_off(tmp_path: Path) -> None:
    """Only then a file that is opened for reading is written to, since half a transaction is nothing to be read."""
    path, copy = tmp_path / "fury.db", tmp_path / "copy.db"
    opened(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("UPDATE runs SET state = 'half'")
        connection.execute("CREATE TABLE filler AS SELECT randomblob(400000) AS noise")  # pages leave for the file
        copy.write_bytes(path.read_bytes())
        Path(f"{copy}-journal").write_bytes(Path(f"{path}-journal").read_bytes())
        connection.rollback()
    connection.close()
    assert copy.stat().st_size > path.stat().st_size
    reader = Database(copy, read_only=True)
    assert [line.state for line in reader.list_runs()] == ["arming"]
    reader.close()


def test_a_damaged_schema_is_told_in_one_sentence(tmp_path: Path) -> None:
    """Even if SQLite's own words about it are not UTF-8."""
    path = tmp_path / "fury.db"
    opened(path).close()
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE epochs (", b"CREATE T\xb4BLE epochs ("))
    with pytest.raises(Precondition, match=r"cannot be used as a database \(.*\): name another file"):
        Database(path, read_only=True)
