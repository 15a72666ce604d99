"""The agent's durable store of what is not yet acknowledged: SQLite, touched by one thread, waited for by nobody.

What a process wrote here outlives kill -9 of it: the write-ahead log is in the kernel's hands after each commit. A power
loss may take the last commits, as it takes everything else of a host under a storage test.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import threading
import time
from typing import TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple, Optional, Protocol, Sequence, Tuple

if TYPE_CHECKING:
    import sqlite3  # at run time only where it is used: it costs 3 MB of memory, which an agent by hand does not need

JOURNAL_NAME = "journal.db"
VERSION = 1
_SIDES = ("", "-wal", "-shm", "-journal")
_COLUMNS = [("epoch", "TEXT"), ("seq", "INTEGER"), ("kind", "TEXT"), ("body", "BLOB"), ("refused", "TEXT")]
_SCHEMA = (
    "CREATE TABLE events (epoch TEXT, seq INTEGER, kind TEXT, body BLOB, refused TEXT, PRIMARY KEY (epoch, seq)) "
    "WITHOUT ROWID"
)
_EPOCH = re.compile(r"[0-9a-f]{16}", re.ASCII)
_SET_ASIDE_KEPT = 5  # each as large as a journal may get; more of them is a disk to look at, not a collection to keep
_LOCK_S = 1.0
_CACHE_KIB = 512
# Long enough to put the events of one moment into one commit, short enough that kill -9 takes next to nothing.
_COMMITS_APART_S = 0.02
_MANY = 500  # moved in one step: then there is more to do at once
_RETRY_S = 5.0
_EPOCHS_NAME = "epochs.json"
_EPOCHS_KEPT = 1000


class Row(NamedTuple):
    """An event as the journal gives it back."""

    epoch: str
    seq: int
    kind: str
    body: bytes


class Left(NamedTuple):
    """What one epoch has in the journal: events to send with the bytes of their bodies, and refused ones."""

    events: int
    size: int
    refused: int


class Item(Protocol):
    """What the journal needs of an event."""

    @property
    def epoch(self) -> str:
        """The process that issued it."""

    @property
    def seq(self) -> int:
        """Its number."""

    @property
    def kind(self) -> str:
        """Its kind."""

    @property
    def body(self) -> bytes:
        """Its JSON."""


class RefusedItem(Protocol):
    """An event with the sentence of whoever refused it."""

    @property
    def event(self) -> Item:
        """The event."""

    @property
    def sentence(self) -> str:
        """The sentence."""


class Damaged(Exception):  # never ends the agent: the journal is set aside and another one begun
    """The journal is not what this agent wrote."""


class Journal:
    """The file and everything that is SQL. Not thread-safe; raises sqlite3.Error, and Damaged from `open`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._connection: Optional[sqlite3.Connection] = None

    def open(self) -> Dict[str, Left]:
        """Opens or makes the journal and says what lies in it, by epoch. Raises Damaged when that cannot be trusted."""
        import sqlite3

        existed = os.path.lexists(self.path)
        if not existed:
            for side in _SIDES[1:]:  # the log of a journal that is gone belongs to no other
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path + side)
        try:
            if existed and os.path.getsize(self.path) == 0 and _size(self.path + "-wal"):
                raise Damaged("it is empty, but its log is not")
            connection = sqlite3.connect(self.path, timeout=_LOCK_S, isolation_level=None, check_same_thread=False)
            self._connection = connection
            # One process, so no shared memory; a second one is kept out, and kill -9 of the first lets go of it.
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
            connection.execute("PRAGMA synchronous=NORMAL")
            self._check_schema(connection)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("BEGIN IMMEDIATE")  # takes the lock now rather than at the first event
            connection.execute("COMMIT")
            return self._contents(connection)
        except Damaged:
            self.close()
            raise
        except sqlite3.DatabaseError as error:
            self.close()
            if existed and _is_damage(error):
                raise Damaged(str(error)) from error
            raise

    def _check_schema(self, connection: sqlite3.Connection) -> None:
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        if version > VERSION:
            raise Damaged(f"a newer Fury wrote it (version {version}, this one knows {VERSION})")
        if version == 0 and not names:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(_SCHEMA)
            connection.execute(f"PRAGMA user_version={VERSION}")
            connection.execute("COMMIT")
            return
        columns = [(name, kind) for _, name, kind, *_ in connection.execute("PRAGMA table_info(events)")]
        if version != VERSION or columns != _COLUMNS:
            raise Damaged("it is a database of something else")
        (answer,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        if answer != "ok":
            raise Damaged(str(answer).replace("\n", " ")[:200])

    def _contents(self, connection: sqlite3.Connection) -> Dict[str, Left]:
        contents: Dict[str, Left] = {}
        for epoch, events, size, refused in connection.execute(
            "SELECT epoch, SUM(refused IS NULL), SUM(CASE WHEN refused IS NULL THEN LENGTH(body) ELSE 0 END), "
            "SUM(refused IS NOT NULL) FROM events GROUP BY epoch"
        ):
            if not isinstance(epoch, str) or not _EPOCH.fullmatch(epoch):
                raise Damaged("it holds events of no epoch")
            contents[epoch] = Left(int(events), int(size or 0), int(refused))
        return contents

    def apply(self, add: Sequence[Item], delete: Sequence[Tuple[str, int]], refuse: Sequence[RefusedItem]) -> None:
        """Adds events, deletes keys and marks events as refused, in this order and all or nothing; durable on return."""
        connection = self._open_connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            # OR IGNORE: after a failed commit nobody knows whether it has happened, and the bytes are the same ones.
            connection.executemany(
                "INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, NULL)",
                [(event.epoch, event.seq, event.kind, event.body) for event in add],
            )
            connection.executemany("DELETE FROM events WHERE epoch = ? AND seq = ?", delete)
            connection.executemany(
                "INSERT OR REPLACE INTO events VALUES (?, ?, ?, ?, ?)",
                [(one.event.epoch, one.event.seq, one.event.kind, one.event.body, one.sentence) for one in refuse],
            )
            connection.execute("COMMIT")
        except BaseException:
            self._roll_back(connection)
            raise

    def read(self, epoch: str, after: int, limit: int, *, but: str = "") -> Tuple[List[Row], int]:
        """The next events of an epoch to send, in order, and how many were met that are not what they should be.

        Those of the kind `but` are passed over. The wrong ones are marked as refused: they will not be met again, and
        whoever fetches the journal sees them.
        """
        connection = self._open_connection()
        rows: List[Row] = []
        wrong: List[int] = []
        for seq, kind, body in connection.execute(
            "SELECT seq, kind, body FROM events WHERE epoch = ? AND seq > ? AND refused IS NULL AND kind IS NOT ? "
            "ORDER BY seq LIMIT ?",
            (epoch, after, but, limit),
        ).fetchall():
            if _is_event(seq, kind, body):
                rows.append(Row(epoch, seq, kind, body))
            else:
                wrong.append(seq)
        if wrong:
            connection.executemany(
                "UPDATE events SET refused = 'damaged in the journal' WHERE epoch = ? AND seq = ?",
                [(epoch, seq) for seq in wrong],
            )
        return rows, len(wrong)

    def finish(self) -> int:
        """Closes the journal, as one file without a log, and removes it when it is empty. Returns what it still holds."""
        connection = self._open_connection()
        left = int(connection.execute("SELECT COUNT(*) FROM events").fetchone()[0])
        if left:
            connection.execute("PRAGMA journal_mode=DELETE")  # whoever fetches it needs this one file only
        self.close()
        if not left:
            for side in _SIDES:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path + side)
        return left

    def close(self) -> None:
        """Closes the file as it is."""
        connection, self._connection = self._connection, None
        if connection is not None:
            import sqlite3

            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _open_connection(self) -> sqlite3.Connection:
        if self._connection is None:
            raise RuntimeError("the journal is not open")
        return self._connection

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        import sqlite3

        with contextlib.suppress(sqlite3.Error):  # it may have been rolled back by the failure itself
            connection.execute("ROLLBACK")


def set_aside(path: str) -> str:
    """Renames a journal, with its log, to the first free of journal.db.damaged-1 to -5; returns what became of it.

    The last of these is overwritten when all are taken. Raises OSError.
    """
    for number in range(1, _SET_ASIDE_KEPT + 1):
        target = f"{path}.damaged-{number}"
        if not os.path.lexists(target):
            break
    for side in _SIDES:
        with contextlib.suppress(FileNotFoundError):
            os.replace(path + side, target + side)
    return target


class Source(Protocol):
    """What the keeper mirrors: an `Events`."""

    def wait_for_work(self, timeout_s: Optional[float]) -> None:
        """Waits until there may be something to do."""

    def wake(self) -> None:
        """Ends that."""

    def take(self) -> Any:
        """What to add, delete and refuse next."""

    def saved(self) -> None:
        """That is done."""

    def not_saved(self) -> None:
        """That could not be done."""

    def wanted(self) -> Any:
        """What to read back: epoch, after, events, but; None for nothing."""

    def refill(self, wanted: Any, events: List[Any], unreadable: int = 0) -> None:
        """What was read back."""

    def attach_journal(self, left: Any) -> None:
        """The journal is open."""

    def detach_journal(self) -> None:
        """The journal is of no use any more."""


class Keeper:
    """The thread that owns the journal: it mirrors a source into it and reads back what the source has room for."""

    def __init__(
        self,
        path: str,
        source: Source,
        *,
        make_event: Callable[[str, int, str, bytes], Any],
        on_trouble: Callable[[str, Optional[int]], None],
        order: Sequence[str] = (),
        foreign: Optional[str] = None,
        commits_apart_s: float = _COMMITS_APART_S,
        retry_s: float = _RETRY_S,
    ) -> None:
        """`order` are the epochs known to the caller, oldest first; `foreign` says why a journal found there is no use.

        `on_trouble` gets a sentence and an errno, in the thread of the keeper.
        """
        self.path = path
        self._source = source
        self._make_event = make_event
        self._on_trouble = on_trouble
        self._order = list(order)
        self._foreign = foreign
        self._commits_apart_s = commits_apart_s
        self._retry_s = retry_s
        self._journal = Journal(path)
        self._lock = threading.Lock()
        self._opened = threading.Event()
        self._abandoned = False
        self._finishing = False
        self._told: List[str] = []
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self.epochs: List[str] = []
        """Whose events were found, oldest first."""
        self.attached = False
        self.set_aside: List[str] = []
        """What became of journals that were no use."""
        self.failures = 0
        self.left: Optional[int] = None
        """What the journal held when it was closed; None while it is open or when it could not be."""

    def start(self, timeout_s: float) -> bool:
        """Opens the journal; False when it cannot be had, or not within `timeout_s`: then memory has to do."""
        self._thread.start()
        self._opened.wait(timeout_s)
        with self._lock:
            self._abandoned = not self.attached
        if self._abandoned and not self.failures:
            self.failures += 1
            what = f"the journal {self.path} did not open within {timeout_s:.0f} s"
            self._tell(what, "events are kept in memory")
        return self.attached

    def finish(self, timeout_s: float) -> bool:
        """Writes what is pending, closes the journal and removes it if it is empty. False when that did not come about."""
        self._finishing = True
        self._source.wake()
        self._thread.join(max(0.0, timeout_s))
        return not self._thread.is_alive() and self.left is not None

    def open(self) -> bool:
        """Opens the journal and attaches the source to it. Does not raise: what is wrong is told, and counted."""
        left = self._open()
        with self._lock:
            if left is not None and not self._abandoned:
                self._source.attach_journal(left)
                self.attached = True
        return self.attached

    def step(self, *, last: bool = False) -> int:
        """One commit and, where there is room, one reading. How much was moved; raises sqlite3.Error."""
        work = self._source.take()
        if work:
            self._journal.apply(work.add, work.delete, work.refuse)
        self._source.saved()
        wanted = None if last else self._source.wanted()
        if wanted is not None:
            rows, wrong = self._journal.read(wanted.epoch, wanted.after, wanted.events, but=wanted.but)
            self._source.refill(wanted, [self._make_event(*row) for row in rows], wrong)
        return len(work.add) + len(work.delete) + len(work.refuse) + (0 if wanted is None else wanted.events)

    def _run(self) -> None:
        try:
            if self.open():
                self._opened.set()
                self._mirror()
        except Exception as error:  # noqa: BLE001 - a thread's loop: the agent goes on in memory
            self._fail(error, f"the journal {self.path} failed")
            if self.attached:
                self._source.detach_journal()
        finally:
            self._opened.set()
            self._journal.close()

    def _open(self) -> Optional[Dict[str, Left]]:
        for _ in range(2):
            try:
                if self._foreign is not None and os.path.lexists(self.path):
                    raise Damaged(self._foreign)
                contents = self._journal.open()
            except Damaged as error:
                self._set_aside(str(error))
            except Exception as error:  # noqa: BLE001 - sqlite3's errors cannot be named without importing it
                self._fail(error, f"the journal {self.path} cannot be used")
                return None
            else:
                known = [epoch for epoch in self._order if epoch in contents]
                self.epochs = sorted(set(contents) - set(known)) + known
                return {epoch: contents[epoch] for epoch in self.epochs}
        self.failures += 1
        return None

    def _set_aside(self, reason: str) -> None:
        target = set_aside(self.path)
        self.set_aside.append(f"{target}: {reason}")
        self._foreign = None
        self._tell(
            f"the journal {self.path} was no use ({reason})", f"it was set aside as {target} and a new one begun"
        )

    def _mirror(self) -> None:
        retry_s: Optional[float] = None  # a disk that failed is not asked again before this instant
        while True:
            finishing = self._finishing  # read before the work is taken: all that was appended before is part of it
            if not finishing:
                self._source.wait_for_work(None if retry_s is None else max(0.0, retry_s - time.monotonic()))
                if self._finishing or (retry_s is not None and time.monotonic() < retry_s):
                    continue
            try:
                done = self.step(last=finishing)
                retry_s = None
                if finishing and not done:
                    self.left = self._journal.finish()
                    return
            except Exception as error:
                self._source.not_saved()
                self._fail(error, f"the journal {self.path} takes nothing")
                if finishing or _is_damage(error):
                    raise
                retry_s = time.monotonic() + self._retry_s
                done = 0
            if not self._finishing and done < _MANY:
                time.sleep(self._commits_apart_s)

    def _fail(self, error: BaseException, what: str) -> None:
        self.failures += 1
        number = error.errno if isinstance(error, OSError) else _errno_of(error)
        self._tell(f"{what} ({error})", "events are kept in memory", number)

    def _tell(self, what: str, then: str, number: Optional[int] = None) -> None:
        """Once per process is enough: a disk that is full says so each time."""
        if what not in self._told:
            self._told.append(what)
            self._on_trouble(f"{what}; {then}", number)


def remember_epoch(directory: str, *, run_id: str, epoch: str) -> Optional[str]:
    """Notes that a process of this run lives, before the collector is told. Returns what kept it from that, or None."""
    run, epochs = read_epochs(directory)
    epochs = [*epochs, epoch][-_EPOCHS_KEPT:] if run == run_id else [epoch]
    path = os.path.join(directory, _EPOCHS_NAME)
    try:
        with open(path + ".new", "w", encoding="utf-8") as file:
            json.dump({"run_id": run_id, "epochs": epochs}, file)
        os.replace(path + ".new", path)
    except OSError as error:
        return f"{path} could not be written ({error.strerror})"
    return None


def read_epochs(directory: str) -> Tuple[Optional[str], List[str]]:
    """The run whose processes lived here last, and their epochs, oldest first; (None, []) where nothing tells."""
    try:
        with open(os.path.join(directory, _EPOCHS_NAME), encoding="utf-8") as file:
            values = json.loads(file.read(100_000))
    except (OSError, ValueError):
        return None, []
    run = values.get("run_id") if isinstance(values, dict) else None
    epochs = values.get("epochs") if isinstance(values, dict) else None
    if not isinstance(run, str) or not isinstance(epochs, list):
        return None, []
    return run, [epoch for epoch in epochs if isinstance(epoch, str) and _EPOCH.fullmatch(epoch)]


def forget_epochs(directory: str) -> None:
    """Removes what `remember_epoch` noted: this run's last process has ended and has told everything."""
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(directory, _EPOCHS_NAME))


def _is_event(seq: Any, kind: Any, body: Any) -> bool:
    if not isinstance(seq, int) or not isinstance(kind, str) or not isinstance(body, bytes):
        return False
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(values, dict) and values.get("seq") == seq and values.get("kind") == kind


def _is_damage(error: BaseException) -> bool:
    """Whether the file is not what it should be, rather than the disk full, broken or not ours."""
    import sqlite3

    # The class of "malformed" and "not a database"; OperationalError, IntegrityError and others are its subclasses.
    return type(error) is sqlite3.DatabaseError


def _errno_of(error: BaseException) -> Optional[int]:
    text = str(error)
    for words, number in (("is full", errno.ENOSPC), ("I/O error", errno.EIO), ("readonly", errno.EROFS)):
        if words in text:
            return number
    return None


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0
