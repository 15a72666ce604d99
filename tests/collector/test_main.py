"""The command line: help everywhere, one sentence per mistake, files as the contract has them."""

from __future__ import annotations

import json
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
    assert sorted(path.name for path in out.iterdir()) == ["rollovers.csv", "samples.csv", "summary.json"]
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
        (["runs", "--database", "nothing.db"], 2, "nothing.db is an empty file"),
        (["runs", "--database", "."], 2, "is a directory"),
        (["report", "latest", "--database", "damaged.db"], 3, "damaged.db cannot be used as a database"),
        (["export", "latest", "--output", "x", "--database", "damaged.db"], 3, "damaged.db cannot be used"),
        (["serve", "--plan", "missing.json"], 2, "cannot read the plan file missing.json"),
        (["serve", "--plan", "notes.txt"], 2, "notes.txt: the body is not JSON"),
        (["serve", "--plan", "plan.json", "--port", "65536"], 2, "65536"),
        (["serve", "--plan", "plan.json", "--port", "0", "--host", "300.1.1.1"], 3, "cannot listen on 300.1.1.1"),
        (
            ["serve", "--plan", "plan.json", "--port", "0", "--database", "notes.txt/fury.db"],
            3,
            "cannot open the database notes.txt/fury.db",
        ),
        (["serve", "--plan", "plan.json", "--port", "0", "--state-file", "no/state"], 3, "cannot write the state file"),
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
