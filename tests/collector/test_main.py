"""The command line: help everywhere, one sentence per mistake, files as the contract has them."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from fury_collector import wire
from fury_collector.__main__ import cli, main
from fury_collector.db import Database
from fury_collector.errors import BadInput
from fury_collector.rows import RunState

from .conftest import CHUNK, NAMES, ROOT, RUN, life, plan


def fury(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    command = [sys.executable, "-m", "fury_collector", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def commands(group: click.Group) -> Iterator[click.Command]:
    yield group
    yield from group.commands.values()


@pytest.mark.parametrize("command", list(commands(cli)), ids=lambda command: str(command.name))
def test_every_command_and_option_has_help(command: click.Command) -> None:
    """Nothing can be added to the command line without saying what it does."""
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{command.name} {parameter.name} has no help"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database with one run of which two of three agents finished."""
    path = tmp_path / "fury.db"
    store = Database(path)
    run_ref = store.add_run(wire.plan(plan()))
    store.start()
    for agent in store.read_run(RUN).agents[:2]:
        batch = wire.batch({"v": 1, "epoch": "0" * 16, "events": life()})
        store.store(agent.id, batch).result(10)
    assert run_ref == 1
    store.close()
    return path


def test_a_run_is_listed_reported_and_exported(database: Path, tmp_path: Path) -> None:
    """`runs`, `report latest` and `export` agree and end with 0 whatever the verdict."""
    listed = fury("runs", "--database", database)
    assert RUN in listed.stdout
    told = fury("report", "latest", "--database", database)
    assert told.returncode == 0
    assert told.stdout.splitlines()[-1] == "INCOMPLETE: 2 of 3 agents finished; never got ready: tisiphone"
    out = tmp_path / "deep" / "out"
    exported = fury("export", RUN, "--output", out, "--database", database)
    assert exported.returncode == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "junit.xml",
        "report.html",
        "rollovers.csv",
        "samples.csv",
        "summary.json",
    ]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["fleet"]["written_bytes"] == 2 * 3 * CHUNK
    assert len((out / "rollovers.csv").read_text().splitlines()) == 1 + 6
    assert len((out / "samples.csv").read_text().splitlines()) == 1 + 2
    assert [agent["name"] for agent in summary["agents"]] == list(NAMES)


def test_export_records_what_the_controller_saw_first(database: Path, tmp_path: Path) -> None:
    """The hosts file is in the summary and in the database afterwards."""
    hosts = tmp_path / "hosts.json"
    hosts.write_text(
        json.dumps(
            {
                "alecto": {"reachable": True, "cleanup": "confirmed", "detail": ""},
                "tisiphone": {"reachable": False, "cleanup": "unconfirmed", "detail": "no route to host"},
            }
        )
    )
    assert (
        fury("export", "latest", "--output", tmp_path / "o", "--database", database, "--hosts", hosts).returncode == 0
    )
    agents = json.loads((tmp_path / "o" / "summary.json").read_text())["agents"]
    assert [agent["cleanup"] for agent in agents] == ["confirmed", "pending", "unconfirmed"]
    assert agents[2]["reason"] == "its host could not be reached: no route to host"
    again = fury("report", "latest", "--database", database)
    assert "could not be reached: no route to host: tisiphone" in again.stdout


def bad_plans() -> list[tuple[Any, str]]:
    good = plan()
    one = good["agents"][0]
    return [
        ([], "plan must be an object"),
        ({**good, "run_id": "a/b"}, "plan.run_id"),
        ({**good, "agents": []}, "plan.agents"),
        ({**good, "agents": [one, one]}, "alecto twice"),
        ({**good, "agents": [{**one, "name": "-x"}]}, "plan.agents[0].name"),
        ({**good, "agents": [{**one, "chunk_mb": 0}]}, "plan.agents[0].chunk_mb"),
        ({**good, "agents": [{**one, "seconds": "60"}]}, "plan.agents[0].seconds"),
        ({**good, "agents": [{key: one[key] for key in one if key != "host"}]}, "plan.agents[0].host is missing"),
        ({key: good[key] for key in good if key != "created_at"}, "plan.created_at is missing"),
        *(
            ({**good, "created_at": bad}, "plan.created_at must be a time in UTC as in ISO 8601")
            for bad in ("", "yesterday", "2026-11-24", "2026-11-24T03:04:05", "2026-11-24T03:04:05+01:00", 1.79e9)
        ),
        ({**good, "created_at": "2026-13-24T03:04:05Z"}, "plan.created_at"),
        ({**good, "agents": [{**one, "ramp_seconds": -1}]}, "plan.agents[0].ramp_seconds"),
        *(
            ({**good, "slow_percent": bad}, "plan.slow_percent must be a whole number from 1 to 99")
            for bad in (0, 100, 20.5, "20", True, None)
        ),
    ]


@pytest.mark.parametrize(("document", "named"), bad_plans(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_bad_plan_is_refused_in_one_sentence(document: Any, named: str) -> None:
    """The sentence names the field."""
    with pytest.raises(BadInput) as caught:
        wire.plan(document)
    assert named in caught.value.message


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of databases and other files to be wrong about; nothing in it may change."""
    tmp_path = tmp_path_factory.mktemp("mistaken")
    (tmp_path / "plan.json").write_text(json.dumps(plan()))
    (tmp_path / "notes.txt").write_text("dear diary")
    for name, runs in (("empty.db", ()), ("one.db", ("first",)), ("two.db", ("second", "third"))):
        store = Database(tmp_path / name)
        for run_id in runs:
            store.add_run(wire.plan(plan(run_id=run_id)))
        store.close()
    (tmp_path / "damaged.db").write_bytes((tmp_path / "one.db").read_bytes()[:9000])
    (tmp_path / "nothing.db").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["report", "latest"], 2, "fury.db does not exist"),
        (["runs", "--database", "plan.json"], 3, "cannot be used as a database"),
        (["report", "nope", "--database", "empty.db"], 2, "has no run nope"),
        (["report", "latest", "--database", "empty.db"], 2, "has no run latest: there is no run in it yet"),
        (["export", "latest", "--output", "x", "--database", "empty.db"], 2, "has no run latest"),
        (["export", "nope", "--output", "x", "--database", "two.db"], 2, "two.db has no run nope"),
        (["report", "first", "--database", "one.db", "--database", "two.db"], 2, "two.db has no run first"),
        (["export", "first", "--output", "plan.json/x", "--database", "one.db"], 3, "cannot write to plan.json/x"),
        (["runs", "--database", "missing.db"], 2, "missing.db does not exist"),
        (["runs", "--database", "nothing.db"], 2, "nothing.db is not a Fury database: it is empty"),
        (["runs", "--database", "."], 2, "is a directory"),
        (["report", "latest", "--database", "damaged.db"], 3, "damaged.db cannot be used as a database"),
        (["export", "latest", "--output", "x", "--database", "damaged.db"], 3, "damaged.db cannot be used"),
        (["serve", "--plain-http", "--plan", "missing.json"], 2, "cannot read the plan file missing.json"),
        (["serve", "--plain-http", "--plan", "notes.txt"], 2, "the plan file notes.txt is not JSON"),
        (["serve", "--plain-http", "--plan", "plan.json", "--port", "65536"], 2, "65536"),
        (
            ["serve", "--plain-http", "--plan", "plan.json", "--port", "0", "--host", "300.1.1.1"],
            2,
            "host: 300.1.1.1 is not allowed with --plain-http",
        ),
        (
            ["serve", "--plain-http", "--plan", "plan.json", "--port", "0", "--database", "notes.txt/fury.db"],
            3,
            "cannot open the database notes.txt/fury.db",
        ),
        (
            ["serve", "--plain-http", "--plan", "plan.json", "--port", "0", "--state-file", "no/state"],
            3,
            "cannot write the state file",
        ),
        (["srve"], 2, "srve"),
        (["serve"], 2, "--plan"),
    ],
)
def test_a_mistake_ends_in_one_sentence_and_its_exit_code(
    mistaken: Path,
    arguments: list[str],
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No traceback, exit code 2 for bad input, 3 for what this machine does not allow."""
    monkeypatch.chdir(mistaken)
    monkeypatch.setattr(sys, "argv", ["fury_collector", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().err
    assert ended.value.code == code
    assert said in told
    assert len(told.strip().splitlines()) == 1


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("arguments", [("runs",), ("report", "latest"), ("export", "latest", "--output", "o")])
def test_no_damage_of_a_database_ends_in_a_traceback(
    seed: int,
    arguments: tuple[str, ...],
    database: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever is damaged: it works none the less, or ends with 3 (2 if no run is to be seen) and one sentence."""
    raw = bytearray(database.read_bytes())
    chance = random.Random(seed)
    pages = range(len(raw) // 4096)
    if seed % 2:
        for page in chance.sample(pages, len(pages) // 3):
            raw[max(100, page * 4096) : page * 4096 + 4096] = chance.randbytes(4096 if page else 3996)
    else:
        for _ in range(300):
            raw[chance.randrange(100, len(raw))] ^= 1 << chance.randrange(8)
    database.write_bytes(raw)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fury_collector", *arguments])
    try:
        main()
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    told = capsys.readouterr().err
    assert code in (0, 2, 3)
    assert len(told.splitlines()) == (code != 0)
    assert "sqlalche.me" not in told
    assert database.read_bytes() == raw


def test_the_pages_of_all_samples_damaged_end_a_report_and_an_export_with_3(database: Path, tmp_path: Path) -> None:
    """As a user meets it: one sentence on standard error, none of SQLAlchemy's words."""
    raw = bytearray(database.read_bytes())
    with sqlite3.connect(database) as connection:
        roots = connection.execute("SELECT rootpage FROM sqlite_master WHERE name IN ('samples', 'events', 'runs')")
        for (root,) in roots.fetchall():
            raw[(root - 1) * 4096 : root * 4096] = b"\xff" * 4096
    connection.close()
    database.write_bytes(raw)
    for arguments in (["runs"], ["report", RUN], ["export", RUN, "--output", tmp_path / "o"]):
        ended = fury(*arguments, "--database", database)
        assert ended.returncode == 3
        assert ended.stderr.startswith(f"fury_collector: {database} cannot be read (database disk image is malformed)")
        assert len(ended.stderr.splitlines()) == 1


def test_help_for_a_full_disk_is_told_in_one_sentence() -> None:
    """Also what is printed by no command of ours."""
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "fury_collector", "--help"]
        ended = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (3, "fury_collector: No space left on device\n")


@pytest.mark.parametrize("arguments", [("runs",), ("report", "latest")])
def test_an_output_that_takes_nothing_is_told_in_one_sentence_or_not_at_all(
    arguments: tuple[str, ...], database: Path
) -> None:
    """A full disk is an error, a reader that has seen enough is none of ours."""
    command = [sys.executable, "-m", "fury_collector", *arguments, "--database", str(database)]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (3, "fury_collector: cannot write the output: No space left on device\n")
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        ended = subprocess.run(command, cwd=ROOT, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_reading_changes_nothing_not_even_a_file_that_may_not_be_written(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`runs`, `report` and `export` open the database for reading only: not a byte of it changes, nothing lies beside it."""
    before = database.read_bytes()
    opened: list[str] = []
    sys.addaudithook(lambda name, details: opened.append(str(details[0])) if name == "sqlite3.connect" else None)
    for arguments in (["runs"], ["report", RUN], ["export", RUN, "--output", str(tmp_path / "o")]):
        monkeypatch.setattr(sys, "argv", ["fury_collector", *arguments, "--database", str(database)])
        main()
    assert set(opened) == {f"{database.as_uri()}?mode=ro"}
    assert database.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fury.db", "o"]


@pytest.mark.parametrize("arguments", [("runs",), ("report", "latest"), ("export", "latest", "--output", "o")])
def test_an_empty_file_is_no_database_and_stays_empty(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one with the name of a database that has a question mark or a per cent sign in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("fury.db", "a?b%41#.db"):
        (tmp_path / name).touch()
        monkeypatch.setattr(sys, "argv", ["fury_collector", *arguments, "--database", name])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert capsys.readouterr().err.startswith(f"fury_collector: {name} is not a Fury database: it is empty")
        assert (tmp_path / name).stat().st_size == 0
    assert len(list(tmp_path.iterdir())) == 2


def test_a_database_whose_collector_was_killed_is_read_with_what_is_in_its_log(database: Path) -> None:
    """Read-only does not mean without the write-ahead log."""
    store = Database(database)
    store.start()
    store.record(1, [RunState(state="draining")]).result(10)
    reader = Database(database, read_only=True)
    assert [line.state for line in reader.list_runs()] == ["draining"]
    reader.close()
    store.close()


def test_bad_json_is_said_of_the_file_that_has_it(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody who runs a command has sent a body."""
    hosts = tmp_path / "hosts.json"
    hosts.write_text("{,}")
    export = ["export", "latest", "--output", str(tmp_path / "o"), "--database", str(database), "--hosts", str(hosts)]
    for arguments, what in ((export, "hosts"), (["serve", "--plain-http", "--plan", str(hosts)], "plan")):
        monkeypatch.setattr(sys, "argv", ["fury_collector", *arguments])
        with pytest.raises(SystemExit):
            main()
        assert capsys.readouterr().err.startswith(f"fury_collector: the {what} file {hosts} is not JSON: ")


@pytest.mark.parametrize("good", ["2026-11-24T03:04:05Z", "2026-11-24T03:04:05.123456Z", "2026-11-24T03:04:05+00:00"])
def test_a_plan_was_made_at_an_instant_in_utc(good: str) -> None:
    """Each of the ways to write that."""
    assert wire.plan({**plan(), "created_at": good}).created_at == good


@pytest.mark.parametrize(("given", "named"), [({}, "slow: tisiphone"), ({"slow_percent": 70}, "MB/s")])
def test_the_plan_says_how_far_below_the_median_is_slow(given: dict[str, Any], named: str, tmp_path: Path) -> None:
    """Twenty per cent if it does not."""
    store = Database(tmp_path / "fury.db")
    store.add_run(wire.plan({**plan(), **given}))
    store.start()
    for agent, seconds in zip(store.read_run(RUN).agents, (10.0, 10.0, 25.0)):
        store.store(agent.id, wire.batch({"v": 1, "epoch": "0" * 16, "events": life(seconds=seconds)})).result(10)
    store.close()
    assert fury("report", RUN, "--database", tmp_path / "fury.db").stdout.rstrip().endswith(named)
