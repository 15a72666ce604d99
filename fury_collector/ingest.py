"""What is left in agents' journals is stored as if it had come over the network: same checks, same path, each event once.

A journal is another program's SQLite file (docs/protocol.md). It is read from a copy, so that the original stays what was
fetched, and as far as it can be read: damage costs what it covers, not the rest.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

from fury_collector import wire
from fury_collector.db import Database
from fury_collector.errors import BadInput, Conflict, Precondition
from fury_collector.rows import AgentRows, Message, RunRows

VERSION = 1  # of a journal, its user_version

_LARGEST_BYTES = 64 * 2**30  # what a damaged header may claim
_COLUMNS = "epoch, seq, kind, body, refused"


@dataclass(frozen=True)
class Entry:
    """One event as a journal has it; `refused` is the sentence of a collector that would not take it."""

    epoch: str
    seq: int
    kind: str
    body: bytes
    refused: Optional[str]


class Journal:
    """A journal opened for reading; `problems` says what could not be read, complete once `entries` is through."""

    def __init__(self, path: Path) -> None:
        """Make a copy of the journal and its write-ahead log; Precondition if that is not possible."""
        self.path = path
        self.problems: list[str] = []
        try:
            self._home = tempfile.TemporaryDirectory(prefix="fury-journal-")
            self._copy = Path(self._home.name) / "journal.db"
            shutil.copyfile(path, self._copy)
            for suffix in ("-wal", "-journal"):
                if (beside := path.with_name(path.name + suffix)).exists():
                    shutil.copyfile(beside, f"{self._copy}{suffix}")
            self._mend()
        except OSError as error:
            raise Precondition(f"cannot copy the journal {path} to read it: {error.strerror or error}") from None

    def close(self) -> None:
        """Remove the copy."""
        self._home.cleanup()

    def _mend(self) -> None:
        """Give a copy that was cut off its full length again: SQLite refuses it whole otherwise, also what is there."""
        with self._copy.open("r+b") as file:
            head = file.read(100)
            size = file.seek(0, os.SEEK_END)
            page_bytes, pages = int.from_bytes(head[16:18], "big"), int.from_bytes(head[28:32], "big")
            whole = (65536 if page_bytes == 1 else page_bytes) * pages
            if 100 <= size < whole <= _LARGEST_BYTES:
                file.truncate(whole)
                self.problems.append(f"{whole - size} of its {whole} bytes are missing")

    def entries(self) -> Iterator[Entry]:
        """All events that can be read, of each epoch in their order but for those that lie beyond damage."""
        connection = sqlite3.connect(self._copy, isolation_level=None)
        # Names and sentences with a flipped bit are to be judged like any other value, not to end the reading.
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > VERSION:
                self.problems.append(f"it is of version {version}, and this collector reads version {VERSION}")
                return
            yield from self._rows(connection)
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok" and not self.problems:
                self.problems.append(" ".join(str(found).replace("*** in database main ***", "").split()))
        except sqlite3.Error as error:
            if not self.problems:
                self.problems.append(str(error))
        finally:
            connection.close()

    def _rows(self, connection: sqlite3.Connection) -> Iterator[Entry]:
        """Forwards until the end or damage, then backwards from the end until damage or what is known."""
        last = ("", -1)
        try:
            for row in connection.execute(f"SELECT {_COLUMNS} FROM events ORDER BY epoch, seq"):
                yield from self._entry(row)
                last = (row[0], row[1])
            return
        except sqlite3.Error as error:
            self.problems.append(str(error))
        for row in connection.execute(
            f"SELECT {_COLUMNS} FROM events WHERE (epoch, seq) > (?, ?) ORDER BY epoch DESC, seq DESC", last
        ):
            yield from self._entry(row)

    def _entry(self, row: Sequence[Any]) -> Iterator[Entry]:
        epoch, seq, kind, body, refused = row
        if isinstance(body, str):
            body = body.encode("utf-8", "replace")
        if type(seq) is int and isinstance(epoch, str) and isinstance(kind, str) and isinstance(body, bytes):
            yield Entry(epoch, seq, kind, body, None if refused is None else str(refused))
        elif not self.problems:
            self.problems.append("it holds a row that is no event")


@dataclass
class _Count:
    """What came of one journal: events new and known, and (epoch, seq, sentence) of those that were not taken."""

    rescued: int = 0
    known: int = 0
    refused: list[tuple[str, int, str]] = field(default_factory=list)


def ingest(
    database: Database,
    run_id: str,
    journals: Sequence[tuple[str, Path]],
    *,
    tell: Callable[[str], None],
    wall: Callable[[], float] = time.time,
) -> list[str]:
    """Store the journals' events in a started database; one sentence for each journal that could not be read whole.

    journals: (agent, file). Raises BadInput for an agent that is not the run's or a file that is not there, before
    anything is stored.
    """
    run = database.read_run(run_id)
    known = {agent.name: agent for agent in run.agents}
    for name, path in journals:
        if name not in known:
            raise BadInput(f"run {run.run_id} has no agent {wire.shown(name)[1:-1]}: {_some(known)} are its agents")
        if not path.is_file():
            raise BadInput(f"there is no journal {path} of {name}: name the file that was fetched from its host")
    problems, messages = [], []
    for name, path in journals:
        journal = Journal(path)
        try:
            count = _store(database, known[name], journal.entries())
        finally:
            journal.close()
        damage = journal.problems[0] if journal.problems else None
        database.record_journal(known[name].id, count.refused, damage)
        told = (
            f"{name}: {count.rescued} {_events(count.rescued)} rescued, "
            f"{count.known} {'was' if count.known == 1 else 'were'} stored already"
        )
        if count.refused:
            told += f", {len(count.refused)} refused ({count.refused[0][2]})"
        tell(told)
        messages.append(("warning" if count.refused or damage else "info", told))
        if damage is not None:
            problems.append(
                f"the journal {path} of {name} is damaged ({damage}): "
                f"the {count.rescued + count.known} events that could be read are stored"
            )
            messages.append(("error", problems[-1]))
    _conclude(database, run, messages, wall())
    return problems


def _store(database: Database, agent: AgentRows, entries: Iterable[Entry]) -> _Count:
    count = _Count()
    for group in _groups(entries, count):
        _push(database, agent, group, count)
    return count


def _groups(entries: Iterable[Entry], count: _Count) -> Iterator[list[Entry]]:
    """The entries as batches of one epoch each; those that were refused before are counted and left out."""
    group: list[Entry] = []
    for entry in entries:
        if entry.refused is not None:
            count.refused.append((entry.epoch, entry.seq, entry.refused))
            continue
        if group and (len(group) == wire.MAX_BATCH or entry.epoch != group[0].epoch):
            yield group
            group = []
        group.append(entry)
    if group:
        yield group


def _push(database: Database, agent: AgentRows, group: Sequence[Entry], count: _Count) -> None:
    """Store a batch whole, or, where it is refused, each of its events by itself."""
    try:
        words = [_word(entry) for entry in group]
        batch = wire.batch({"v": 1, "epoch": group[0].epoch, "events": words})
        stored = database.store(agent.id, batch, rescued=True).result()
    except (BadInput, Conflict) as error:
        if len(group) > 1:
            for entry in group:
                _push(database, agent, [entry], count)
        else:
            count.refused.append((group[0].epoch[:16], group[0].seq, error.message))
        return
    count.rescued += len(stored.fresh)
    count.known += stored.duplicates


def _word(entry: Entry) -> Any:
    word = wire.loads(entry.body)
    if not isinstance(word, dict) or word.get("seq") != entry.seq or word.get("kind") != entry.kind:
        raise BadInput(f"the journal's event {entry.seq} is not what its row says it is")
    return word


def _conclude(database: Database, run: RunRows, messages: Sequence[tuple[str, str]], now: float) -> None:
    """Put what happened into the run's messages, and end a run whose collector did not live to see it complete."""
    said = list(messages)
    records: list[Any] = []
    after = database.read_run(run.run_id)
    complete = all(agent.speaker is not None and agent.speaker.receipt for agent in after.agents)
    if complete and after.state.state not in ("finished", "aborted"):
        records.append(replace(after.state, state="finished", end_wall=now))
        said.append(("info", "the run has finished: every agent's events are stored, rescued ones included"))
    records += [Message(after.next_message + n, now, level, text) for n, (level, text) in enumerate(said)]
    database.record(run.id, records).result()


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:10]) if len(listed) <= 10 else f"{', '.join(listed[:10])} and {len(listed) - 10} more"


def _events(number: int) -> str:
    return "event" if number == 1 else "events"
