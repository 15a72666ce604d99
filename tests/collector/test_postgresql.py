"""PostgreSQL as the database: durable, gone and back again, locked, and never with a password where others see it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet  # type: ignore[import-untyped]
import pytest
import sqlalchemy as sa

from fury_collector import stores, wire
from fury_collector.__main__ import main
from fury_collector.db import Database
from fury_collector.errors import BadInput, Precondition, Unavailable
from fury_collector.rows import RunState
from fury_collector.stores import Where
from tests.postgresql import PASSWORD, Server

from .conftest import NAMES, ROOT, RUN, Process, database_options, engine_of, event, life, plan
from .test_server import Sender, assert_stored

OVER = RunState(state="finished", start_wall=1.0, end_wall=61.0)


@pytest.fixture
def server(postgresql_server: Server) -> Iterator[Server]:
    """A server that the test may stop; it runs again afterwards."""
    yield postgresql_server
    postgresql_server.stop()
    postgresql_server.start()


def fury(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    command = [sys.executable, "-m", "fury_collector", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False
    )


def record(where: Where) -> None:
    """A run that is over."""
    database = Database(where)
    run_ref = database.add_run(wire.plan(plan()))
    database.start()
    for agent in database.read_run(RUN).agents:
        words = life(30, seconds=60.0 + agent.id)
        words[5]["read_seconds"] = 0.1
        database.store(agent.id, wire.batch({"v": 1, "epoch": f"{agent.id:016x}", "events": words})).result(10)
    database.record(run_ref, [OVER]).result(10)
    database.close()


def test_both_stores_tell_the_same_of_the_same_run(postgresql_server: Server, tmp_path: Path) -> None:
    """Every file of an export, the statistics, the list, and no difference in a comparison."""
    told = []
    for where in (tmp_path / "fury.db", postgresql_server.database()):
        record(where)
        out = tmp_path / type(where).__name__
        export = fury("export", RUN, "--output", out, "--parquet", *database_options(where))
        assert export.returncode == 0, export.stderr
        files = {file.name: file.read_bytes() for file in out.iterdir() if file.suffix != ".parquet"}
        tables = [pyarrow.parquet.read_table(out / f"{name}.parquet").to_pylist() for name in ("rollovers", "samples")]
        said = [fury(*words, *database_options(where)).stdout for words in (("runs",), ("report", "latest"))]
        told.append((files, tables, said, export.stdout))
    assert told[0] == told[1]
    assert len(told[0][1][0]) == 90
    compared = fury("compare", tmp_path / "fury.db", RUN, "--json", *database_options(where))
    assert compared.returncode == 0, compared.stderr


def test_old_runs_leave_a_server_too(postgresql_server: Server) -> None:
    """Whole, by the same command; one that goes on stays."""
    where = postgresql_server.database()
    record(where)
    database = Database(where)
    number = database.add_run(wire.plan(plan(run_id="young")))
    database.start()
    database.record(number, [RunState(state="running", start_wall=time.time())]).result(10)
    database.close()
    done = fury("prune", "--keep-runs", 0, *database_options(where))
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, f"removed {RUN} (finished)"), done.stderr
    with engine_of(where).connect() as connection:
        for table in ("rollovers", "samples", "events", "epochs"):
            assert connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar() == 0
        assert connection.exec_driver_sql("SELECT run_id FROM runs").scalars().all() == ["young"]


def test_a_restart_of_the_server_in_mid_run_costs_nothing_but_time(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended in good order and at once without a checkpoint: 503 meanwhile, and then acknowledged ⊆ stored ⊆ sent."""
    where = server.database()
    collector = Process(tmp_path, plan(), "--stay", where=where)
    senders = [Sender(name, collector.port) for name in NAMES]
    try:
        for sender in senders:
            sender.start()
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGQUIT):
            _more(senders, "acknowledged")
            server.stop(number)
            _more(senders, "refused")
            server.start()
        _more(senders, "acknowledged")
        for sender in senders:
            sender.stopped.set()
            sender.join(30)
        assert_stored(where, senders)
        for sender in senders:
            final = event(sender.acknowledged, "final", rollovers=sender.acknowledged)
            assert collector.push(sender.agent, final)[1]["receipt"] is True
        assert collector.end() == 0
    finally:
        for sender in senders:
            sender.stopped.set()
        if collector.popen.poll() is None:
            collector.kill()
    said = collector.output.read_text()
    assert "pushes are refused for now: the database could not be written" in said
    assert "Traceback" not in said


def _more(senders: list[Sender], what: str) -> None:
    """Wait until each sender has more of it."""
    before = [getattr(sender, what) for sender in senders]
    deadline = time.monotonic() + 30
    while any(getattr(sender, what) == was for sender, was in zip(senders, before)):
        assert not any(sender.broken for sender in senders), [sender.broken for sender in senders]
        assert time.monotonic() < deadline, f"nobody has more {what}"
        time.sleep(0.005)


def test_after_a_restart_the_lock_is_taken_again(server: Server) -> None:
    """Or, if another collector has it by then, nothing is written beside that one."""
    where = server.database()
    first = Database(where, exclusive=True)
    first.add_run(wire.plan(plan()))
    first.start()
    push = wire.batch({"v": 1, "epoch": "0" * 16, "events": life()})
    server.stop()
    assert isinstance(first.store(1, push).exception(30), Unavailable)
    server.start()
    assert first.store(1, push).result(30).receipt
    with pytest.raises(Precondition, match="in use by another collector"):
        Database(where, exclusive=True)
    server.stop(signal.SIGQUIT)
    server.start()
    second = Database(where, exclusive=True)
    lost = first.store(2, push)  # its connection is gone, which it notices now
    assert isinstance(lost.exception(30), Unavailable)
    refused = first.store(2, push).exception(30)
    assert isinstance(refused, Unavailable)
    assert "in use by another collector" in refused.message
    second.close()
    assert first.store(2, push).result(30).receipt
    first.close()


def test_a_commit_is_durable_whatever_the_server_s_default_is(server: Server) -> None:
    """Asynchronous commits are turned on again, and a server without fsync is not taken."""
    where = server.database()
    server.stop()
    server.start("synchronous_commit=off")
    database = Database(where, exclusive=True)
    database.start()
    found: list[Any] = []
    database.change(lambda c: found.append(c.exec_driver_sql("SHOW synchronous_commit").scalar())).result(10)
    assert found == ["on"]
    database.close()
    server.stop()
    server.start("fsync=off")
    with pytest.raises(Precondition, match="runs with fsync off, and may lose what was acknowledged"):
        Database(where, exclusive=True)


def test_somebody_else_s_database_is_refused_and_an_empty_one_not_filled_by_a_reader(postgresql_server: Server) -> None:
    """As with a file."""
    where = postgresql_server.database()
    with pytest.raises(BadInput, match="it is empty, name the one that has the run with --database-url"):
        Database(where, read_only=True)
    with engine_of(where).begin() as connection:
        assert sa.inspect(connection).get_table_names() == []
        connection.exec_driver_sql("CREATE TABLE places (url TEXT)")
    with pytest.raises(
        Precondition, match=r"a database of something else \(it has a table places\): name another database"
    ):
        Database(where)


@pytest.fixture
def by_password(postgresql_server: Server) -> Callable[[str | None], str]:
    """The URL of a new database by loopback, where a password is asked for."""
    schema = postgresql_server.database().query["options"]

    def build(password: str | None) -> str:
        url = sa.URL.create("postgresql+psycopg", "fury", password, "127.0.0.1", postgresql_server.port, "postgres")
        return url.set(query={"options": schema}).render_as_string(hide_password=False)

    return build


def test_a_password_comes_from_a_file(by_password: Callable[[str | None], str], tmp_path: Path) -> None:
    """libpq's own, or one with the whole URL; then everything works, and nothing that is said has it."""
    record(stores.url(by_password(PASSWORD), "x", public=False))
    pgpass, url_file = tmp_path / "pgpass", tmp_path / "url"
    pgpass.write_text(f"127.0.0.1:*:*:fury:{PASSWORD}\n")
    url_file.write_text(by_password(PASSWORD) + "\n")
    for file in (pgpass, url_file):
        file.chmod(0o600)
    for arguments, environment in (
        (("--database-url", by_password(None)), {"PGPASSFILE": str(pgpass)}),
        (("--database-url-file", url_file), {}),
    ):
        listed = fury("runs", *arguments, **environment)
        assert (listed.returncode, RUN in listed.stdout) == (0, True), listed.stderr
        missed = fury("report", "nope", *arguments, **environment)
        assert missed.returncode == 2
        assert "has no run nope" in missed.stderr
        assert PASSWORD not in missed.stderr
        assert "correct-horse" not in missed.stderr


@pytest.mark.parametrize(
    ("url", "mode", "code", "said"),
    [
        ("{wrong}", 0o600, 3, "password authentication failed"),
        ("{good}", 0o640, 3, "can be read by others: chmod 600"),
        ("postgresql+psycopg://fury:s3cr3t@127.0.0.1:1/db", 0o600, 3, "cannot be used as a database (connection"),
        ("postgresql+psycopg://fury:s3cr3t@127.0.0.1:x/db", 0o600, 2, "is no URL: write it as"),
        ("postgresql+psycopg://fury@127.0.0.1:1/db?sslpassword=s3cr3t", 0o600, 3, "cannot be used as a database"),
        ("postgresql+psycopg://fury:s3cr3t@127.0.0.1/db?no_such=1", 0o600, 3, 'invalid connection option "no_such"'),
        ("mysql://fury:s3cr3t@127.0.0.1/db", 0o600, 2, "must begin with postgresql+psycopg://"),
        ("s3cr3t", 0o600, 2, "is no URL"),
    ],
)
def test_no_error_says_a_password(
    by_password: Callable[[str | None], str], tmp_path: Path, url: str, mode: int, code: int, said: str
) -> None:
    """One sentence, whatever is wrong."""
    file = tmp_path / "url"
    file.write_text(url.format(wrong=by_password("s3cr3t"), good=by_password(PASSWORD)))
    file.chmod(mode)
    ended = fury("runs", "--database-url-file", file)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (code, 1), ended.stderr
    assert said in ended.stderr
    assert "s3cr3t" not in ended.stderr
    assert "correct-horse" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--database-url", "postgresql+psycopg://fury:s3cr3t@db/fury"], "has a password, which everybody"),
        (["--database-url", "postgresql+psycopg://fury@db/fury?password=s3cr3t"], "has a password, which everybody"),
        (["--database-url", "s3cr3t"], "database-url is no URL"),
        (["--database-url", "sqlite:///s3cr3t"], "database-url must begin with postgresql+psycopg://"),
        (["--database-url-file", "nowhere"], "cannot read the database-url file nowhere: No such file"),
        (["--database", "a.db", "--database-url", "postgresql://x@y/z"], "name one database"),
    ],
)
def test_a_mistake_in_naming_it_ends_in_one_sentence(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A password in argv is refused, and not repeated."""
    monkeypatch.setattr(sys, "argv", ["fury_collector", "runs", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().err
    assert (ended.value.code, len(told.splitlines())) == (2, 1)
    assert said in told
    assert "s3cr3t" not in told


def test_without_psycopg_one_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no part of Fury."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(Precondition, match=r"needs psycopg: .* -r requirements/postgresql\.txt"):
        Database(stores.url("postgresql://fury@127.0.0.1/db", "x", public=True), read_only=True)


def test_what_the_controller_saw_is_recorded_on_a_server_too(postgresql_server: Server, tmp_path: Path) -> None:
    """`export --hosts` writes, and the summary has it."""
    where = postgresql_server.database()
    record(where)
    hosts = tmp_path / "hosts.json"
    seen = {"reachable": True, "cleanup": "confirmed", "detail": ""}
    hosts.write_text(json.dumps(dict.fromkeys(NAMES, seen)))
    done = fury("export", RUN, "--output", tmp_path / "o", "--hosts", hosts, *database_options(where))
    assert done.returncode == 0, done.stderr
    agents = json.loads((tmp_path / "o" / "summary.json").read_text())["agents"]
    assert [agent["cleanup"] for agent in agents] == ["confirmed"] * 3
