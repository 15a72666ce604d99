"""The agent's whole life when it is killed, cut off or handed a bad journal: an oracle beside the delivery judges it."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Set, Tuple

import pytest

from tests.agent.conftest import AgentProcess
from tests.agent.peer import Answer, Peer

Run = Callable[..., AgentProcess]
Key = Tuple[str, int]


class Home:
    """An agent's directories, its configuration and what it logged."""

    def __init__(self, path: Path, peer: Peer) -> None:
        self.data, self.state, self.log = path / "data", path / "state", path / "events.log"
        self.data.mkdir()
        self.state.mkdir()
        self.url = peer.url

    def arguments(self, *more: str, seconds: int = 1) -> List[str]:
        return [
            *("alecto", "--chunk-mb", "1", "--seconds", str(seconds), "--directory", str(self.data), "--json"),
            *(
                "--run-id",
                "r1",
                "--collector-url",
                self.url,
                "--plain-http",
                "--heartbeat-seconds",
                "1",
                "--sample-seconds",
                "1",
            ),
            *("--state-directory", str(self.state), "--event-log", str(self.log), *more),
        ]

    @property
    def journal(self) -> Path:
        return self.state / "journal.db"

    def issued(self) -> Dict[Key, str]:
        """Every number that was given out, by the log outside the delivery."""
        lines = [line.split() for line in self.log.read_text().splitlines() if not line.endswith(" stored")]
        issued = {(epoch, int(seq)): kind for epoch, seq, kind in lines}
        assert len(issued) == len(lines), "a number was given out twice"
        return issued

    def journalled(self, copy: Path) -> Set[Key]:
        """What the journal of a killed process holds, read from a copy with its log."""
        copy.mkdir()
        for path in self.state.glob("journal.db*"):
            shutil.copy(path, copy)
        with contextlib.closing(sqlite3.connect(copy / "journal.db")) as connection:
            return set(connection.execute("SELECT epoch, seq FROM events WHERE refused IS NULL"))


@pytest.fixture
def home(tmp_path: Path, peer: Peer) -> Home:
    """Where one agent lives, its collector being the peer."""
    return Home(tmp_path, peer)


def test_ten_kills_lose_nothing_that_was_journalled_and_double_nothing(
    start_agent: Run, home: Home, peer: Peer, tmp_path: Path
) -> None:
    """Killed at random moments, under lost acknowledgements and 503s: the last process delivers what all have left."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)

    def events(batch: Dict[str, Any]) -> Answer:
        fate = dice.random()
        if fate < 0.3:
            return 503, {"error": "busy"}
        answer = peer.store(batch)
        return "drop" if fate < 0.5 else answer

    peer.events = events
    journalled: Set[Key] = set()
    for number in range(10):
        agent = start_agent(*home.arguments(seconds=600))
        agent.wait_for("is writing 1 MB")
        time.sleep(dice.uniform(0, 0.8))
        agent.process.kill()
        agent.finish()
        if home.journal.exists():
            journalled |= home.journalled(tmp_path / f"copy-{number}")
    assert journalled
    agent = start_agent(*home.arguments(seconds=600))
    agent.wait_for("is writing 1 MB")
    time.sleep(0.5)
    agent.process.send_signal(signal.SIGTERM)
    agent.finish()
    issued, stored = home.issued(), set(peer.all)
    epochs = [ask["epoch"] for ask in peer.asks]
    last = epochs[-1]
    assert stored <= set(issued)
    assert {key: event["kind"] for key, event in peer.all.items()} == {key: issued[key] for key in stored}
    assert journalled <= stored, "what was in a journal did not arrive"
    assert {key for key in issued if key[0] == last} <= stored, "the last process did not deliver all"
    for epoch in set(epochs) - {last}:  # a kill may take what was not yet committed: the newest, and little of it
        lost = {seq for one, seq in set(issued) - stored if one == epoch and issued[one, seq] != "heartbeat"}
        safe = {seq for one, seq in journalled if one == epoch}
        assert not lost or not safe or min(lost) > max(safe)
        assert len(lost) < 200, f"{len(lost)} events of {epoch}"
    assert not home.journal.exists()
    assert list(home.data.iterdir()) == []
    result = json.loads((home.state / "result.json").read_text())
    assert result["epochs"] == 11
    assert all(one["stored"] == one["left"] for one in result["previous_epochs"].values())
    for before, ask in zip(dict.fromkeys(epochs), list(dict.fromkeys(epochs))[1:]):
        assert {one["after"] for one in peer.asks if one["epoch"] == ask} == {before}


def test_a_collector_that_is_dead_from_the_first_second_leaves_all_in_the_journal(
    run_agent: Run, home: Home, peer: Peer
) -> None:
    """One file with every number from 0 to the final, and a verdict that says how many."""
    peer.events = lambda batch: "drop"
    agent = run_agent(*home.arguments("--drain-seconds", "1", seconds=2))
    assert agent.code == 6
    issued = home.issued()
    assert f"did not get {len(issued)} events of {len(issued)}: no answer" in agent.lines[-2]
    assert "they are in the journal" in agent.lines[-2]
    assert [path.name for path in home.state.glob("journal.db*")] == ["journal.db"]
    with contextlib.closing(sqlite3.connect(home.journal)) as connection:
        rows = connection.execute("SELECT epoch, seq, kind, body, refused FROM events ORDER BY seq").fetchall()
    assert {(epoch, seq): kind for epoch, seq, kind, _, _ in rows} == issued
    assert [seq for _, seq, _, _, _ in rows] == list(range(len(rows)))
    assert rows[-1][2] == "final"
    assert all(json.loads(body)["seq"] == seq and refused is None for _, seq, _, body, refused in rows)
    assert agent.summary["events_pending"] == agent.summary["journal"]["events_left"] == len(rows)


def test_refused_events_are_kept_with_the_sentence(run_agent: Run, home: Home, peer: Peer) -> None:
    """They are not sent again, also not by another process of this run, and cost its PASS too."""
    peer.events = lambda batch: (400, {"error": "seq is missing"})
    agent = run_agent(*home.arguments())
    assert agent.code == 6
    assert "seq is missing (400)" in agent.lines[-2]
    with contextlib.closing(sqlite3.connect(home.journal)) as connection:
        refusals = connection.execute("SELECT refused, COUNT(*) FROM events GROUP BY 1").fetchall()
    assert refusals == [("seq is missing (400)", agent.summary["events_refused"])]
    peer.batches.clear()
    peer.events = peer.store
    again = run_agent(*home.arguments())
    assert again.code == 6
    assert "an earlier process of this agent noted that" in again.lines[-2]
    assert {batch["epoch"] for batch in peer.batches} == {peer.asks[-1]["epoch"]}


DAMAGES: Dict[str, Callable[[Path], object]] = {
    "random bytes": lambda path: path.write_bytes(random.randbytes(30_000)),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "newer": lambda path: contextlib.closing(sqlite3.connect(path)).__enter__().execute("PRAGMA user_version = 99"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_journal_keeps_nobody_from_the_run(run_agent: Run, home: Home, peer: Peer, damage: str) -> None:
    """Set aside, an error event, a line in the result; and the run passes."""
    with contextlib.closing(sqlite3.connect(home.journal)) as connection:
        connection.execute(
            "CREATE TABLE events (epoch TEXT, seq INTEGER, kind TEXT, body BLOB, refused TEXT, "
            "PRIMARY KEY (epoch, seq)) WITHOUT ROWID"
        )
        rows = [("00000000000000aa", seq, "rollover", b"x" * 100) for seq in range(500)]
        connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?, NULL)", rows)
        connection.execute("PRAGMA user_version = 1")
        connection.commit()
    DAMAGES[damage](home.journal)
    agent = run_agent(*home.arguments())
    assert agent.code == 0, agent.out
    (error,) = [event for event in peer.stored.values() if event["kind"] == "error"]
    assert (error["operation"], error["path"]) == ("journal", str(home.journal))
    assert "was no use" in error["message"]
    assert len(agent.summary["journal"]["set_aside"]) == 1
    assert (home.state / "journal.db.damaged-1").exists()
    assert not home.journal.exists()


def test_another_live_process_is_waited_for_also_without_a_journal(run_agent: Run, home: Home, peer: Peer) -> None:
    """Its home may be lost: then the collector's sentence has to do. Where the journal lies is said, and in the facts."""
    peer.ready = lambda ask: (
        (409, {"error": "another live process of alecto (epoch 1) has already started"})
        if len(peer.asks) < 3
        else (200, peer.start(0.3))
    )
    agent = run_agent(*home.arguments())
    assert agent.code == 0, agent.out
    assert {ask["after"] for ask in peer.asks} == {None}
    assert f"journal: {home.journal}, on the file system under test" in agent.lines
    assert peer.stored[0]["facts"]["journal"] == "on the file system under test"
    assert agent.summary["journal"]["place"] == "on the file system under test"


def test_a_predecessor_that_counts_as_alive_is_waited_for(run_agent: Run, home: Home, peer: Peer) -> None:
    """409 while the collector still believes in the crashed process passes; after names each earlier one in turn."""
    (home.state / "epochs.json").write_text('{"run_id": "r1", "epochs": ["00000000000000aa", "00000000000000bb"]}')
    peer.ready = lambda ask: (
        (409, {"error": "no"}) if ask["after"] != "00000000000000aa" or len(peer.asks) < 3 else (200, peer.start(0.3))
    )
    agent = run_agent(*home.arguments())
    assert agent.code == 0, agent.out
    assert [ask["after"][-2:] for ask in peer.asks[:4]] == ["bb", "aa", "bb", "aa"]
    assert agent.summary["epochs"] == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_does_not_wait_for_a_collector_that_hangs(
    start_agent: Run, home: Home, peer: Peer, number: signal.Signals
) -> None:
    """At the barrier: gone and clean within 2 s, while the question is still unanswered."""
    peer.ready = lambda ask: "hang"
    peer.events = lambda batch: "hang"
    agent = start_agent(*home.arguments())
    agent.wait_for("waits for the start")
    time.sleep(0.3)
    began = time.monotonic()
    agent.process.send_signal(number)
    agent.finish()
    assert time.monotonic() - began < 2
    assert agent.code == 6
    assert f"stopped by {number.name} before the start" in agent.lines[-2]
    assert list(home.data.iterdir()) == []
    assert list(home.issued().values()) == ["final"]
    assert home.journal.exists()


def test_a_stop_while_it_writes_does_not_wait_the_whole_drain(start_agent: Run, home: Home, peer: Peer) -> None:
    """Whoever stops it gets it within the grace of systemd and the supervisor: what is left is in the journal."""
    peer.events = lambda batch: (500, {})
    agent = start_agent(*home.arguments("--drain-seconds", "600", seconds=600))
    agent.wait_for("rollover 1:")
    agent.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    agent.finish()
    assert 4 < time.monotonic() - began < 8
    assert agent.code == 6
    with contextlib.closing(sqlite3.connect(home.journal)) as connection:
        (rows,) = connection.execute("SELECT COUNT(*) FROM events").fetchone()
    assert rows == len(home.issued())


def test_an_event_log_that_cannot_be_written_is_a_precondition(run_agent: Run, home: Home) -> None:
    """The oracle is asked for or not, but never half."""
    agent = run_agent(*home.arguments("--event-log", str(home.data)))
    assert agent.code == 3
    assert "event_log:" in agent.err
