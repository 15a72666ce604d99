"""The journal: what it holds outlives the process, and nothing that is wrong with it keeps an agent from its run."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fury_agent.events import Event, Events
from fury_agent.journal import Journal, Keeper, Left, forget_epochs, read_epochs, remember_epoch, set_aside

ROOT = Path(__file__).parents[2]
A, B, C = "00000000000000aa", "00000000000000bb", "00000000000000cc"
Trouble = List[Tuple[str, Optional[int]]]


def event(seq: int, epoch: str = A, kind: str = "rollover") -> Event:
    return Event(epoch, seq, kind, b'{"seq":%d,"kind":"%s"}' % (seq, kind.encode()))


def keys(path: Path) -> List[Tuple[str, int]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return [(epoch, seq) for epoch, seq in connection.execute("SELECT epoch, seq FROM events ORDER BY 1, 2")]


def keeper(path: Path, events: Events, trouble: Trouble, **more: Any) -> Keeper:
    return Keeper(
        str(path),
        events,
        make_event=Event,
        on_trouble=lambda sentence, number: trouble.append((sentence, number)),
        **{"commits_apart_s": 0.001, "retry_s": 0.05, **more},
    )


def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.005)


def filled(path: Path, *events: Event) -> None:
    """Leaves a journal as kill -9 does: its last commits in the log only."""
    journal = Journal(str(path) + ".living")
    journal.open()
    journal.apply(events, [], [])
    for side in ("", "-wal"):
        shutil.copy(f"{path}.living{side}", f"{path}{side}")
    journal.close()


def test_the_schema_is_the_contracts(tmp_path: Path) -> None:
    """Table, key and version as docs/protocol.md says."""
    protocol = (ROOT / "docs" / "protocol.md").read_text().split("## Journal")[1]
    wanted = re.search(r"    events\((.*)\) WITHOUT ROWID", protocol)
    assert wanted
    filled(tmp_path / "j", event(0))
    with sqlite3.connect(tmp_path / "j") as connection:
        (found,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'events'").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    assert found == f"CREATE TABLE events ({wanted.group(1)}) WITHOUT ROWID"
    assert (version, "`PRAGMA user_version` 1" in protocol) == (1, True)


def test_what_was_committed_is_there_after_a_kill(tmp_path: Path) -> None:
    """Added, deleted and refused in one commit each, all or nothing."""
    journal = Journal(str(tmp_path / "j"))
    journal.open()
    refusal = type("R", (), {"event": event(1), "sentence": "no (400)"})()
    journal.apply([event(0), event(1), event(2), event(0, B)], [(A, 0)], [refusal])
    journal.apply([event(2)], [], [])  # said twice, where nobody knew whether the first time had worked
    for side in ("", "-wal"):
        shutil.copy(f"{tmp_path}/j{side}", f"{tmp_path}/copy{side}")
    copy = Journal(str(tmp_path / "copy"))
    assert copy.open() == {A: Left(1, len(event(2).body), 1), B: Left(1, len(event(0).body), 0)}
    rows, wrong = copy.read(A, -1, 10)
    assert ([tuple(row) for row in rows], wrong) == ([tuple(event(2))], 0)
    assert copy.read(A, 2, 10) == ([], 0)


def test_an_empty_journal_is_removed_and_another_is_one_file(tmp_path: Path) -> None:
    """Whoever fetches it needs no log beside it."""
    journal = Journal(str(tmp_path / "j"))
    journal.open()
    journal.apply([event(0)], [], [])
    assert journal.finish() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["j"]
    assert (tmp_path / "j").read_bytes()[18:20] == b"\1\1", "a write-ahead log is asked for"
    journal.open()
    journal.apply([], [(A, 0)], [])
    assert journal.finish() == 0
    assert list(tmp_path.iterdir()) == []


def test_it_mirrors_what_is_pending(tmp_path: Path) -> None:
    """Every event, promptly; what is acknowledged goes away, what is refused stays with its sentence."""
    trouble: Trouble = []
    events = Events(keep=True, epoch=A)
    one = keeper(tmp_path / "j", events, trouble)
    assert one.start(5)
    for kind in ("start", "heartbeat", "rollover", "sample", "error"):
        events.append(kind, {})
    time.sleep(0.1)
    events.acknowledge([(A, 0), (A, 2)])
    events.set_aside([(A, 3)], "no such thing (400)")
    events.acknowledge([(A, 1)])
    assert one.finish(5)
    assert (one.left, keys(tmp_path / "j")) == (2, [(A, 3), (A, 4)])
    with sqlite3.connect(tmp_path / "j") as connection:
        assert connection.execute("SELECT seq, kind, refused FROM events").fetchall() == [
            (3, "sample", "no such thing (400)"),
            (4, "error", None),
        ]
    assert trouble == []


def test_a_waiting_heartbeat_leaves_no_gap_in_what_a_killed_process_kept(tmp_path: Path) -> None:
    """It is written before what was issued after it: kill -9 in between must not look like a lost event."""
    events = Events(keep=True, epoch=A)
    one = keeper(tmp_path / "j", events, [])
    assert one.open()
    for kind in ("start", "heartbeat", "rollover"):
        events.append(kind, {})
    one.step()
    shutil.copy(tmp_path / "j", tmp_path / "copy")
    shutil.copy(tmp_path / "j-wal", tmp_path / "copy-wal")
    assert keys(tmp_path / "copy") == [(A, 0), (A, 1), (A, 2)]
    one._journal.close()


def test_the_last_heartbeat_leaves_no_gap_in_what_is_fetched(tmp_path: Path) -> None:
    """One that still waits at the end is in it: the numbers of the journal have to be whole."""
    events = Events(keep=True, epoch=A)
    one = keeper(tmp_path / "j", events, [])
    assert one.start(5)
    for kind in ("start", "heartbeat", "heartbeat", "final"):
        events.append(kind, {})
    assert one.finish(5)
    assert keys(tmp_path / "j") == [(A, 0), (A, 1), (A, 2)]


def test_what_predecessors_left_goes_first_under_their_epochs(tmp_path: Path) -> None:
    """The oldest process first; a batch is of one epoch; heartbeats of the living go before all: they say it lives."""
    filled(tmp_path / "j", event(4, A), event(7, B), event(9, B))
    events = Events(keep=True, epoch=C)
    one = keeper(tmp_path / "j", events, [], order=[B, A])
    assert one.start(5)
    assert one.epochs == [B, A]
    events.append("rollover", {})
    until(lambda: len(events._window) == 4)
    sent: List[Tuple[str, int]] = []
    while events.more():
        batch = [(item.epoch, item.seq) for item in events.peek()]
        assert len({epoch for epoch, _ in batch}) <= 1
        events.acknowledge(batch)
        sent += batch
    assert sent == [(B, 7), (B, 9), (A, 4), (C, 0)]
    counts = events.counts()
    assert (counts.issued, counts.stored, counts.inherited, counts.pending) == (1, 1, 3, 0)
    assert {epoch: (p.left, p.stored, p.pending) for epoch, p in events.previous().items()} == {
        B: (2, 2, 0),
        A: (1, 1, 0),
    }
    events.append("rollover", {})
    events.append("heartbeat", {})
    assert [item.kind for item in events.peek()] == ["heartbeat", "rollover"]
    assert one.finish(5)


def damage_random(path: Path) -> None:
    path.write_bytes(random.Random(7).randbytes(20_000))


def damage_pages(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = random.Random(8).randbytes(len(data) - 4096)
    path.write_bytes(bytes(data))


def damage_truncated(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def damage_newer(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")


def damage_foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE customers (name TEXT)")


def damage_columns(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE events ADD COLUMN more TEXT")


def damage_emptied(path: Path) -> None:
    shutil.copy(path, f"{path}-wal")
    path.write_bytes(b"")


def damage_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def damage_epochs(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE events SET epoch = 'x' WHERE seq = 0")


def damage_order(path: Path) -> None:
    data = path.read_bytes()
    where = data.index(A.encode(), len(data) // 2)
    path.write_bytes(data[:where] + C.encode() + data[where + 16 :])


DAMAGES: Dict[str, Tuple[Callable[[Path], None], str]] = {
    "random bytes": (damage_random, "not a database"),
    "random pages": (damage_pages, ""),
    "truncated": (damage_truncated, ""),
    "newer": (damage_newer, "a newer Fury wrote it .version 99, this one knows 1"),
    "foreign": (damage_foreign, "a database of something else"),
    "other columns": (damage_columns, "a database of something else"),
    "emptied": (damage_emptied, "it is empty, but its log is not"),
    "out of order": (damage_order, ""),
    "of no epoch": (damage_epochs, "events of no epoch"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_journal_that_is_no_use_is_set_aside_and_said(tmp_path: Path, damage: str) -> None:
    """Renamed, reported once, and a new one takes what comes; its old content is not sent."""
    path = tmp_path / "journal.db"
    journal = Journal(str(path))
    journal.open()
    journal.apply([event(seq) for seq in range(1000)], [], [])
    journal.finish()
    change, reason = DAMAGES[damage]
    change(path)
    trouble: Trouble = []
    events = Events(keep=True, epoch=B)
    one = keeper(path, events, trouble)
    assert one.start(5)
    events.append("rollover", {})
    assert [item.epoch for item in events.peek()] == [B]
    assert one.finish(5)
    assert keys(path) == [(B, 0)]
    assert (tmp_path / "journal.db.damaged-1").exists()
    assert len(one.set_aside) == len(trouble) == 1
    assert re.search(reason, trouble[0][0])
    assert "set aside as" in trouble[0][0]


def test_a_journal_of_another_run_is_not_sent_in_this_one(tmp_path: Path) -> None:
    """Whoever gives two runs the same home finds the first one's events set aside."""
    filled(tmp_path / "j", event(0))
    trouble: Trouble = []
    events = Events(keep=True, epoch=B)
    one = keeper(tmp_path / "j", events, trouble, foreign="it is of run r1")
    assert one.start(5)
    assert not events.more()
    assert one.finish(5)
    assert "it is of run r1" in trouble[0][0]
    assert (tmp_path / "j.damaged-1-wal").exists()


def test_only_so_many_are_set_aside(tmp_path: Path) -> None:
    """A disk that damages one journal after another is not filled with them."""
    for number in range(9):
        (tmp_path / "j").write_text(str(number))
        set_aside(str(tmp_path / "j"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"j.damaged-{number}" for number in range(1, 6)]
    assert (tmp_path / "j.damaged-5").read_text() == "8"


def test_a_damaged_row_is_kept_aside_and_costs_only_itself(tmp_path: Path) -> None:
    """What the pages' checks cannot see, the event's own JSON shows; its neighbours are delivered."""
    filled(tmp_path / "j", event(0), event(1)._replace(body=b"\0\1garbage"), event(2))
    events = Events(keep=True, epoch=B)
    one = keeper(tmp_path / "j", events, [])
    assert one.start(5)
    until(lambda: len(events.peek()) == 2)
    events.acknowledge([(A, 0), (A, 2)])
    assert events.counts().set_aside == 1
    assert one.finish(5)
    assert keys(tmp_path / "j") == [(A, 1)]


def test_a_journal_in_use_is_left_alone(tmp_path: Path) -> None:
    """A second process of the same home goes on in memory and touches nothing."""
    first = Journal(str(tmp_path / "j"))
    first.open()
    trouble: Trouble = []
    events = Events(keep=True, epoch=B)
    one = keeper(tmp_path / "j", events, trouble)
    assert not one.start(5)
    events.append("rollover", {})
    assert [item.seq for item in events.peek()] == [0]
    assert "locked" in trouble[0][0]
    assert not list(tmp_path.glob("*damaged*"))
    assert (one.failures, one.finish(1)) == (1, False)
    first.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    target = tmp_path / "small"
    target.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(target)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs root to mount a file system")
    yield target
    subprocess.run(["umount", str(target)], check=True)


def test_a_full_disk_under_the_journal_costs_nothing_but_memory(small_disk: Path) -> None:
    """Said once; events are sent from memory meanwhile, and once there is room again the journal has them too."""
    trouble: Trouble = []
    events = Events(keep=True, epoch=A, window_events=100)
    one = keeper(small_disk / "j", events, trouble)
    assert one.start(5)
    (small_disk / "other").write_bytes(b"x" * 900_000)
    for _ in range(1000):
        events.append("rollover", {"filler": "x" * 150})
    until(lambda: one.failures > 2)
    assert [number for _, number in trouble] == [28]
    assert "takes nothing (database or disk is full); events are kept in memory" in trouble[0][0]
    assert [item.seq for item in events.peek(3)] == [0, 1, 2]
    (small_disk / "other").unlink()
    while events.counts().stored < 300:  # some of them may have to be read back
        events.acknowledge([(item.epoch, item.seq) for item in events.peek(20)])
    assert one.finish(5)
    assert keys(small_disk / "j") == [(A, seq) for seq in range(300, 1000)]
    assert len(trouble) == 1


def test_a_journal_that_breaks_meanwhile_is_done_without(tmp_path: Path) -> None:
    """What only it held is out of reach and stays counted as pending; the rest is delivered from memory."""
    trouble: Trouble = []
    events = Events(keep=True, epoch=A, window_events=10)
    one = keeper(tmp_path / "j", events, trouble)
    assert one.start(5)
    for _ in range(3000):
        events.append("rollover", {"filler": "x" * 100})
    until(lambda: events.counts().pending - len(events.peek()) == 2990 and not events._unsaved and not events._queue)
    with (tmp_path / "j").open("r+b") as file, (tmp_path / "j-wal").open("r+b") as log:
        file.write(b"\xff" * (tmp_path / "j").stat().st_size)
        log.write(b"\xff" * (tmp_path / "j-wal").stat().st_size)
    events.acknowledge([(item.epoch, item.seq) for item in events.peek()])
    until(lambda: one.failures > 0)
    events.append("rollover", {})
    while events.more():
        events.acknowledge([(item.epoch, item.seq) for item in events.peek()])
    counts = events.counts()
    assert one.failures
    assert counts.pending > 0
    assert counts.issued == counts.stored + counts.pending
    assert not one.finish(5)


def test_the_bound_on_all_events_stops_whoever_issues_them() -> None:
    """Samples are dropped first; at the bound it is said once, and what still comes is kept: nothing else is dropped."""
    said: List[str] = []
    events = Events(keep=True, epoch=A, cap_events=100, on_full=said.append)
    events.attach_journal({})
    for _ in range(95):
        events.append("rollover", {})
    assert events.append("sample", {}) is None
    assert not said
    for _ in range(10):
        events.append("rollover", {})
    events.append("final", {})
    assert said == ["stopped because 100 events (0 MB) wait for the collector and no more are kept"]
    assert (events.counts().pending, events.counts().samples_dropped) == (106, 1)


def test_without_a_journal_memory_is_the_bound() -> None:
    """The same in bytes of memory, as there is nowhere else to keep them."""
    said: List[str] = []
    events = Events(keep=True, epoch=A, memory_bytes=100_000, on_full=said.append)
    while not said:
        events.append("rollover", {"filler": "x" * 1000})
    assert "(0 MB) wait for the collector and no more are kept in memory" in said[0]


MEMORY = """
import sys, time
import fury_agent.agent
from fury_agent.events import Event, Events
from fury_agent.journal import Keeper
payload = {"chunk": 1, "bytes": 20000768, "seconds": 0.123456789, "fsync_seconds": 0.0123456789,
           "write_p50_s": 0.00123456789, "write_p99_s": 0.00123456789, "write_max_s": 0.0123456789}
events = Events(keep=True, epoch="00000000000000aa")
keeper = Keeper(sys.argv[1], events, make_event=Event, on_trouble=print)
assert keeper.start(5)
for number in range(200_000):
    events.append("rollover", payload)
    if number % 1000 == 0:
        time.sleep(0.005)
seen = 0
while events.more():
    batch = events.peek()
    assert [event.seq for event in batch] == list(range(seen, seen + len(batch))), "out of order"
    events.acknowledge([(event.epoch, event.seq) for event in batch])
    seen += len(batch)
    if not batch:
        time.sleep(0.001)
assert keeper.finish(10) and keeper.left == 0, keeper.left
(peak,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM:")]
print(seen, int(peak.split()[1]) / 1024)
"""


def test_memory_is_bounded_with_200000_pending_events(tmp_path: Path) -> None:
    """All of them come back in order from the journal; the whole agent's code stays below 48 MiB meanwhile."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "j")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    seen, peak_mib = done.stdout.split()
    assert int(seen) == 200_000
    assert float(peak_mib) < 48
    assert list(tmp_path.iterdir()) == []


def test_epochs_are_remembered_for_their_run(tmp_path: Path) -> None:
    """The processes of a run in their order; another run begins anew, damage means that nothing is known."""
    home = str(tmp_path)
    assert read_epochs(home) == (None, [])
    for run, epoch in (("r1", A), ("r1", B), ("r2", C)):
        assert remember_epoch(home, run_id=run, epoch=epoch) is None
        if epoch == B:
            assert read_epochs(home) == ("r1", [A, B])
    assert read_epochs(home) == ("r2", [C])
    (tmp_path / "epochs.json").write_text("[1, 2")
    assert read_epochs(home) == (None, [])
    forget_epochs(home)
    assert list(tmp_path.iterdir()) == []
    assert "could not be written" in str(remember_epoch(f"{home}/gone", run_id="r", epoch=A))


class Delivery(RuleBasedStateMachine):
    """Events and journal driven by a collector that refuses, loses acknowledgements and vanishes, and by kill -9.

    A kill copies the journal's files as they are and goes on with new objects over the copy.
    """

    @initialize()
    def begin(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="fury-journal-"))
        self.life = 0
        self.issued: Dict[Tuple[str, int], str] = {}
        self.durable: Set[Tuple[str, int]] = set()
        self.collected: Dict[Tuple[str, int], bytes] = {}
        self.refused: Set[Tuple[str, int]] = set()
        self.full = False
        self._live()

    def _live(self) -> None:
        self.epoch = f"{self.life:016x}"
        self.events = Events(keep=True, epoch=self.epoch, window_events=4, window_bytes=600)
        self.keeper = keeper(self.home / f"{self.life}", self.events, [], order=[f"{n:016x}" for n in range(self.life)])
        assert self.keeper.open()
        self.full = False

    @rule(kinds=st.lists(st.sampled_from(["rollover", "sample", "heartbeat", "error"]), min_size=1, max_size=12))
    def issue(self, kinds: List[str]) -> None:
        for kind in kinds:
            seq = self.events.append(kind, {"filler": "x" * 40})
            if seq is not None:
                assert (self.epoch, seq) not in self.issued
                self.issued[self.epoch, seq] = kind

    @rule()
    def mirror(self) -> None:
        try:
            self.keeper.step()
        except sqlite3.OperationalError:
            assert self.full
            self.events.not_saved()
        else:
            self.durable |= {key for key in self.issued if key[0] == self.epoch}

    @rule()
    def fill_the_disk(self) -> None:
        assert self.keeper._journal._connection is not None
        self.keeper._journal._connection.execute("PRAGMA query_only=1")  # any write fails, as ENOSPC does
        self.full = True

    @precondition(lambda self: self.full)
    @rule()
    def free_the_disk(self) -> None:
        assert self.keeper._journal._connection is not None
        self.keeper._journal._connection.execute("PRAGMA query_only=0")
        self.full = False

    @rule(limit=st.integers(1, 6), answer=st.sampled_from(["stored", "stored", "lost", "unreachable", "refused"]))
    def send(self, limit: int, answer: str) -> None:
        batch = self.events.peek(limit)
        found = [(item.epoch, item.seq) for item in batch]
        assert len({epoch for epoch, _ in found}) <= 1
        assert set(found) <= set(self.issued)
        if answer == "refused":
            self.refused |= set(found)
            self.events.set_aside(found, "no (400)")
        if answer in ("stored", "lost"):
            for item, key in zip(batch, found):
                assert self.collected.setdefault(key, item.body) == item.body
        if answer == "stored":
            self.events.acknowledge(found)

    @rule()
    def kill(self) -> None:
        before = self.home / f"{self.life}"
        self.life += 1
        for side in ("", "-wal"):
            shutil.copy(f"{before}{side}", f"{self.home / str(self.life)}{side}")
        self.keeper._journal.close()
        self._live()

    @invariant()
    def counts_add_up(self) -> None:
        counts = self.events.counts()
        own = [key for key in self.issued if key[0] == self.epoch]
        assert counts.issued == len(own)
        before = self.events.previous().values()
        stored, aside = sum(one.stored for one in before), counts.set_aside - sum(one.set_aside for one in before)
        left = sum(one.left for one in before) - stored
        assert counts.issued - counts.stored - aside + left >= counts.pending - aside
        assert counts.pending >= 0

    def teardown(self) -> None:
        if hasattr(self, "home"):
            try:
                self._judge()
            finally:
                self.keeper._journal.close()
                shutil.rmtree(self.home)

    def _judge(self) -> None:
        if self.full:
            self.free_the_disk()
        for _ in range(10_000):
            self.keeper.step()
            if not self.events.more():
                break
            self.send(500, "stored")
        assert not self.events.more()
        while self.keeper.step(last=True):
            pass
        left = self.keeper._journal.finish()
        kept = set(keys(self.home / f"{self.life}")) if left else set()
        assert len(kept) == left
        assert kept <= self.refused, "only refused events may be left"
        own = {key for key in self.issued if key[0] == self.epoch}
        for key in self.durable | own:
            assert key in self.collected or key in kept, key
        for epoch in {epoch for epoch, _ in self.issued}:
            there = {seq for one, seq in set(self.collected) | kept if one == epoch}
            top = max((seq for seq in there if self.issued[epoch, seq] != "heartbeat"), default=-1)
            # A heartbeat may have overtaken what kill -9 then took before it was written: that is truly lost.
            assert there >= set(range(top)), f"a process that was killed has a gap: {epoch} {sorted(there)}"
        assert set(self.collected) <= set(self.issued)
        counts = self.events.counts()
        assert counts.pending == 0


TestDelivery = Delivery.TestCase
TestDelivery.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
