"""`ingest`: what agents' journals hold is stored once, by the same checks, and the verdict is about completeness."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fury_collector.__main__ import main
from fury_collector.db import Database
from fury_collector.report import judge, summary
from fury_collector.stores import Where

from .conftest import (
    CHUNK,
    EPOCH,
    NAMES,
    RUN,
    Collector,
    Open,
    database_options,
    event,
    journal,
    life,
    over_both_stores,
    plan,
)

OTHER = "00000000000000bb"
LATER = [{**word, "t_mono_ns": word["t_mono_ns"] + 10**11} for word in life()]

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fury(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: Where) -> Command:
    """Runs a command of the collector on the test's database: exit code, what it said, what it complained of."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        words = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["fury_collector", *words, *database_options(where)])
        code: Any = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        told = capsys.readouterr()
        return int(code), told.out, told.err

    return run


def result(where: Where) -> dict[str, Any]:
    """The run's summary as export would write it."""
    database = Database(where, create=False)
    run = database.read_run(RUN)
    found = summary(judge(run, database.samples(run.id)))
    database.close()
    return found


@pytest.fixture
def gone(collector_at: Open) -> Collector:
    """A collector that started its three agents, heard nothing more of them, and is gone."""
    collector = collector_at()
    collector.arm_and_start()
    flushed = collector.app.extensions["fury_recorder"].flush()
    if flushed is not None:
        flushed.result(10)
    collector.database.close()
    return collector


@over_both_stores
def test_a_run_whose_collector_was_dead_from_the_start_on_passes_with_rescued_events(
    gone: Collector, fury: Command, tmp_path: Path, where: Where
) -> None:
    """Complete is complete however it came, and it is said; repeating it changes nothing."""
    given = [f"{name}={journal(tmp_path / f'{name}.db', life())}" for name in NAMES]
    code, told, complaint = fury("ingest", RUN, *given)
    assert (code, complaint) == (0, "")
    assert told.splitlines() == [f"{name}: 7 events rescued, 0 were stored already" for name in NAMES]
    found = result(where)
    assert found["verdict"] == "PASS"
    assert found["reason"] == (
        "3 of 3 agents finished, 0.2 GB at 3.0 MB/s; 21 events of alecto, megaera, tisiphone rescued from their hosts, "
        "the collector was not reachable"
    )
    assert found["fleet"]["written_bytes"] == 9 * CHUNK
    assert [agent["rescued_events"] for agent in found["agents"]] == [7, 7, 7]
    code, told, _ = fury("ingest", "latest", *given)
    assert (code, told.splitlines()[0]) == (0, "alecto: 0 events rescued, 7 were stored already")
    assert result(where) == found
    assert "finished" in fury("runs")[1]
    assert "alecto: 7 events rescued from its host" in fury("report", RUN)[1]


@over_both_stores
def test_what_had_got_through_is_not_stored_again(
    collector: Collector, fury: Command, tmp_path: Path, where: Where
) -> None:
    """The journal's events beside the network's: the union, each once, and the receipt is that of all."""
    collector.arm_and_start()
    collector.push("alecto", *life()[:3], life()[5])
    collector.database.close()
    left = [word for word in life() if word["kind"] != "heartbeat"]
    code, told, _ = fury("ingest", RUN, f"alecto={journal(tmp_path / 'journal.db', left)}")
    assert (code, told) == (0, "alecto: 3 events rescued, 3 were stored already\n")
    alecto = result(where)["agents"][0]
    assert (alecto["verdict"], alecto["events_stored"], alecto["rescued_events"]) == ("PASS", 7, 3)
    messages = collector_messages(where)
    assert "alecto: 3 events rescued, 3 were stored already" in messages


def collector_messages(where: Where) -> list[str]:
    database = Database(where, create=False)
    told = [message.text for message in database.read_run(RUN).messages]
    database.close()
    return told


@over_both_stores
def test_crashed_and_restarted_processes_are_rescued_in_any_order(
    gone: Collector, fury: Command, tmp_path: Path, where: Where
) -> None:
    """The last process is told by its host's clock: a run with a restart that wrote to the end passes and says so."""
    path = tmp_path / "journal.db"
    journal(path, LATER, epoch="0" * 16)  # sorts before the crashed one
    journal(path, life()[:3], epoch=EPOCH)
    others = [f"{name}={journal(tmp_path / f'{name}.db', life())}" for name in NAMES[1:]]
    code, told, _ = fury("ingest", RUN, f"alecto={path}", *others)
    assert (code, told.splitlines()[0]) == (0, "alecto: 10 events rescued, 0 were stored already")
    found = result(where)
    assert found["verdict"] == "PASS"
    assert "; alecto restarted 1x; 24 events of" in found["reason"]
    assert found["agents"][0]["epochs"] == 2
    assert found["agents"][0]["written_bytes"] == 5 * CHUNK


@over_both_stores
def test_refused_events_are_counted_and_make_the_run_incomplete(
    gone: Collector, fury: Command, tmp_path: Path, where: Where
) -> None:
    """Those a collector refused before and those that this one refuses; the first sentence is the reason."""
    words = life()
    words[2] = {**words[2], "bytes": -1}
    given = f"alecto={journal(tmp_path / 'journal.db', words, refused={1: 'bytes must be kind'})}"
    for _ in range(2):
        code, told, _ = fury("ingest", RUN, given)
        assert code == 0
        assert "stored already, 2 refused (bytes must be kind)" in told
    alecto = result(where)["agents"][0]
    assert (alecto["rescued_events"], alecto["refused_events"], alecto["events_stored"]) == (5, 2, 5)
    assert alecto["verdict"] == "INCOMPLETE"
    assert alecto["reason"] == "2 events refused: bytes must be kind; 2 of 7 events are missing"


@over_both_stores
def test_an_event_that_contradicts_what_is_stored_is_refused_alone(
    collector: Collector, fury: Command, tmp_path: Path
) -> None:
    """All others of its batch are stored."""
    collector.arm_and_start()
    collector.push("alecto", event(1, "rollover", bytes=5))
    collector.database.close()
    code, told, _ = fury("ingest", RUN, f"alecto={journal(tmp_path / 'journal.db', life())}")
    assert code == 0
    assert told.startswith("alecto: 6 events rescued, 0 were stored already, 1 refused (event 1 of epoch")


def test_a_row_that_is_not_its_event_is_refused(gone: Collector, fury: Command, tmp_path: Path) -> None:
    """The key of a row and the body must say the same, and a body must be JSON."""
    path = journal(tmp_path / "journal.db", life()[:-1])
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE events SET body = ? WHERE seq = 1", (json.dumps(event(9, "rollover")).encode(),))
        connection.execute("UPDATE events SET body = x'ff00' WHERE seq = 2")
        connection.execute("UPDATE events SET body = '[]' WHERE seq = 3")
    assert fury("ingest", RUN, f"alecto={path}")[1].startswith("alecto: 3 events rescued, 0 were stored already, 3 ref")


def big(tmp_path: Path) -> tuple[Path, list[dict[str, Any]]]:
    words = life(400)
    return journal(tmp_path / "journal.db", words), words


def test_of_a_truncated_journal_what_is_there_is_stored(
    gone: Collector, fury: Command, tmp_path: Path, where: Where
) -> None:
    """One sentence, exit code 6, and the agents beside it are not touched by it."""
    path, words = big(tmp_path)
    other = journal(tmp_path / "other.db", life())
    raw = path.read_bytes()
    cut = len(raw) * 9 // 10
    path.write_bytes(raw[:cut])
    code, told, complaint = fury("ingest", RUN, f"alecto={path}", f"megaera={other}")
    assert code == 6
    assert complaint.startswith(f"fury_collector: the journal {path} of alecto is damaged (")
    assert len(complaint.splitlines()) == 1
    assert "megaera: 7 events rescued" in told
    stored = result(where)["agents"][0]["events_stored"]
    assert 20 < stored < len(words)
    assert result(where)["agents"][0]["verdict"] == "INCOMPLETE"
    assert path.read_bytes() == raw[:cut]


def test_damage_in_the_middle_costs_what_it_covers(
    gone: Collector, fury: Command, tmp_path: Path, where: Where
) -> None:
    """What lies before and behind it is stored."""
    path, words = big(tmp_path)
    raw = bytearray(path.read_bytes())
    leaves = [at for at in range(4096, len(raw), 4096) if raw[at] == 0x0A]  # pages that other pages hang on cover more
    for at in leaves[len(leaves) // 2 :][:2]:
        raw[at : at + 4096] = bytes(4096)
    path.write_bytes(raw)
    code, _, _ = fury("ingest", RUN, f"alecto={path}")
    assert code == 6
    alecto = result(where)["agents"][0]
    assert len(words) * 0.8 < alecto["events_stored"] < len(words)
    assert alecto["events_issued"] == len(words)
    assert "events are missing; its journal is damaged: " in alecto["reason"]


@pytest.mark.parametrize("seed", range(8))
def test_no_damage_ends_in_a_traceback(
    seed: int, collector_at: Open, fury: Command, tmp_path: Path, where: Where
) -> None:
    """Random bytes over a journal: the exit code is 0 or 6, and not more is stored than was in it."""
    shutil.copy(_once(tmp_path, collector_at), tmp_path / "fury.db")
    path, words = big(tmp_path)
    chance = random.Random(seed)
    raw = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 5, 50))):
        at = chance.choice((chance.randrange(len(raw)), chance.randrange(200)))
        raw[at : at + 8] = chance.randbytes(8)
    path.write_bytes(raw[: chance.choice((len(raw), chance.randrange(len(raw))))])
    code, _, complaint = fury("ingest", RUN, f"alecto={path}")
    assert code in (0, 6), complaint
    assert len(complaint.splitlines()) <= 1
    assert result(where)["agents"][0]["events_stored"] <= len(words)


def _once(tmp_path: Path, collector_at: Open) -> Path:
    kept = tmp_path.parent / "prepared.db"
    if not kept.exists():
        collector_at().database.close()
        shutil.copy(tmp_path / "fury.db", kept)
    return kept


def test_a_damaged_journal_of_a_crashed_process_is_no_pass(
    gone: Collector, fury: Command, tmp_path: Path, where: Where
) -> None:
    """Where a crashed process said no last number its journal is all there is, and so has to be whole."""
    crashed = journal(tmp_path / "one.db", life()[:3])
    second = journal(tmp_path / "two.db", LATER, epoch=OTHER)
    fury("ingest", RUN, f"alecto={crashed}", f"alecto={second}")
    assert result(where)["agents"][0]["verdict"] == "PASS"
    broken = tmp_path / "broken.db"
    broken.write_bytes(crashed.read_bytes()[:5000])
    assert fury("ingest", RUN, f"alecto={broken}")[0] == 6
    alecto = result(where)["agents"][0]
    assert alecto["verdict"] == "INCOMPLETE"
    assert alecto["reason"].startswith("its journal is damaged: ")


@pytest.mark.parametrize(
    ("argument", "code", "said"),
    [
        ("alecto", 2, "NAME=JOURNAL"),
        ("alecto=missing.db", 2, "there is no journal missing.db of alecto"),
        ("alecto=.", 2, "there is no journal . of alecto"),
        ("nobody={good}", 2, f"run {RUN} has no agent nobody: alecto, megaera, tisiphone are its agents"),
        ("alecto={empty}", 6, "no such table"),
        ("alecto={text}", 6, "not a database"),
        ("alecto={newer}", 6, "version 2, and this collector reads version 1"),
        ("alecto={other}", 6, "no such table"),
    ],
)
def test_a_mistake_ends_in_one_sentence(
    gone: Collector, fury: Command, tmp_path: Path, argument: str, code: int, said: str, where: Where
) -> None:
    """Nothing is stored of what is not a journal, and nothing at all where a name is wrong."""
    files = {name: tmp_path / f"{name}.db" for name in ("good", "empty", "text", "newer", "other")}
    journal(files["good"], life())
    files["empty"].touch()
    files["text"].write_text("dear diary " * 100)
    with sqlite3.connect(journal(files["newer"], life())) as connection:
        connection.execute("PRAGMA user_version = 2")
    with sqlite3.connect(files["other"]) as connection:
        connection.execute("CREATE TABLE places (url TEXT)")
    found, told, complaint = fury("ingest", RUN, argument.format(**files))
    assert found == code
    assert said in complaint
    assert len(complaint.splitlines()) == 1
    assert "Traceback" not in told
    assert result(where)["agents"][0]["events_stored"] == 0


def test_a_run_or_database_that_is_not_there_is_named(fury: Command, tmp_path: Path) -> None:
    """Also of a journal that is."""
    path = journal(tmp_path / "journal.db", life())
    code, _, complaint = fury("ingest", RUN, f"alecto={path}")
    assert (code, "fury.db does not exist" in complaint) == (2, True)
    Database(tmp_path / "fury.db").close()
    code, _, complaint = fury("ingest", RUN, f"alecto={path}")
    assert (code, f"has no run {RUN}" in complaint) == (2, True)


@over_both_stores
def test_while_the_collector_lives_it_is_the_only_one_that_writes(
    collector: Collector, fury: Command, tmp_path: Path
) -> None:
    """What is to be rescued beside a living collector is sent to it."""
    code, _, complaint = fury("ingest", RUN, f"alecto={journal(tmp_path / 'journal.db', life())}")
    assert code == 3
    assert "in use by another collector" in complaint


def test_a_plan_of_one_agent_may_be_rescued_after_kill_9(
    collector_at: Open, fury: Command, tmp_path: Path, where: Where
) -> None:
    """The write-ahead logs of database and journal are read where they were left."""
    collector = collector_at(plan(("alecto",)))
    collector.push("alecto", event(0, "start"))
    path = tmp_path / "journal.db"
    journal(path, [])
    kept = sqlite3.connect(path)  # held open, so that its log stays beside it
    kept.execute("SELECT count(*) FROM events").fetchone()
    journal(path, life())
    assert path.with_name("journal.db-wal").stat().st_size > 0
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    for name in ("fury.db", "fury.db-wal", "journal.db", "journal.db-wal"):
        shutil.copy(tmp_path / name, crashed / name)
    kept.close()
    collector.database.close()
    for name in ("fury.db", "fury.db-wal"):
        shutil.copy(crashed / name, tmp_path / name)
    code, told, _ = fury("ingest", RUN, f"alecto={crashed / 'journal.db'}")
    assert (code, told) == (0, "alecto: 6 events rescued, 1 was stored already\n")
    assert result(where)["verdict"] == "PASS"
