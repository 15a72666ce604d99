"""What has happened and is not yet acknowledged: numbered, in order, and never changed once it has a number.

An event waits in one of three places: the window (in memory, what the sender takes from), the queue (in memory, behind
the window) or the journal alone (spilled: too much to keep in memory, read back as the window drains).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import threading
import time
from typing import Any, Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional, Tuple

from fury_agent.verdict import FuryError, Verdict

MAX_BATCH_EVENTS = 500
MAX_BATCH_BYTES = 1_000_000
# A week's outage at a rollover a second is 600,000 events, an hour's at the 250/s of a fast disk with 1 MB chunks 900,000;
# 256 MB is half of the default free_floor_mb, so that a journal on the tested file system never meets its end.
_CAP_EVENTS = 1_000_000
_CAP_BYTES = 256_000_000
# Without a journal (or while its disk takes nothing) the memory of a host under test is what it costs.
_MEMORY_EVENTS = 100_000
_MEMORY_BYTES = 32_000_000
_MEMORY_SAMPLES = 10_000
# Enough for several batches between two readings of the journal; about 2 MB with what Python adds.
_WINDOW_EVENTS = 4_000
_WINDOW_BYTES = 1_500_000
_TAKEN_EVENTS = 5_000
_REFUSALS_HELD = 10_000

Key = Tuple[str, int]


class Event(NamedTuple):
    """One event as it will travel: `body` is its JSON, the same bytes however often it is sent."""

    epoch: str
    seq: int
    kind: str
    body: bytes


class Refusal(NamedTuple):
    """An event that the collector will never take, with its sentence."""

    event: Event
    sentence: str


class Left(NamedTuple):
    """What a predecessor left in the journal, besides what had been refused already."""

    events: int
    size: int
    refused: int


@dataclasses.dataclass(frozen=True)
class Work:
    """What the journal has to do next, in this order: add, delete, mark as refused."""

    add: List[Event]
    delete: List[Key]
    refuse: List[Refusal]

    def __bool__(self) -> bool:
        return bool(self.add or self.delete or self.refuse)


class Wanted(NamedTuple):
    """What to read back from the journal: this epoch's events after this number but of one kind, at most so many."""

    epoch: str
    after: int
    events: int
    but: str


@dataclasses.dataclass(frozen=True)
class Previous:
    """A predecessor's events: what it left, and what has become of that."""

    left: int
    stored: int
    pending: int
    set_aside: int


@dataclasses.dataclass(frozen=True)
class Counts:
    """What became of the events: `issued` and `stored` are this epoch's, the others include its predecessors'."""

    issued: int
    stored: int
    pending: int
    set_aside: int
    samples_dropped: int
    heartbeats_coalesced: int
    inherited: int = 0


class EventLog:
    """A file to which the key of every event is appended as it is issued: the oracle of the tests, beside the delivery."""

    def __init__(self, path: str) -> None:
        """Opens it at once. Raises FuryError (PRECONDITION)."""
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise FuryError(
                Verdict.PRECONDITION, f"event_log: {path} cannot be appended to ({error.strerror}); give another file"
            ) from error

    def write(self, epoch: str, seq: int, kind: str) -> None:
        """Appends one line, in one call: after kill -9 it is there whole or not at all. Raises OSError."""
        os.write(self._descriptor, f"{epoch} {seq} {kind}\n".encode())


@dataclasses.dataclass
class _Tally:
    left: int = 0
    stored: int = 0
    set_aside: int = 0


class Events:
    """The events of one epoch and what its predecessors left. Any thread may append; nobody ever waits for network or disk.

    Bounded: a heartbeat is skipped while an older one is pending; samples are dropped before the bound on all events
    is reached; both are counted and get no number. Nothing else is ever dropped: at the bound `on_full` is called,
    once, with a sentence, and whoever issues events has to stop.
    """

    def __init__(
        self,
        *,
        keep: bool,
        epoch: str = "",
        sample_bound: Optional[int] = None,
        cap_events: int = _CAP_EVENTS,
        cap_bytes: int = _CAP_BYTES,
        memory_events: int = _MEMORY_EVENTS,
        memory_bytes: int = _MEMORY_BYTES,
        window_events: int = _WINDOW_EVENTS,
        window_bytes: int = _WINDOW_BYTES,
        on_full: Optional[Callable[[str], None]] = None,
        log: Optional[Callable[[str, int, str], None]] = None,
        mono_ns: Callable[[], int] = time.monotonic_ns,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`log` is told of every number before its event can be sent; like `on_full` it is called under the lock."""
        self.epoch = epoch
        self._keep = keep
        self._sample_bound = sample_bound
        self._cap_events, self._cap_bytes = cap_events, cap_bytes
        self._memory_events, self._memory_bytes = memory_events, memory_bytes
        self._window_events, self._window_bytes = window_events, window_bytes
        self._on_full = on_full
        self._log = log
        self._mono_ns = mono_ns
        self._wall = wall
        self._lock = threading.Lock()
        self._work = threading.Event()
        self._journalled = False
        self._full = False
        self._window: Dict[Key, Event] = {}  # insertion order is the order of sending
        self._window_size = 0
        self._queue: Dict[Key, Event] = {}
        self._queue_size = 0
        self._beat: Optional[Event] = None
        self._spilled: Dict[str, int] = {}  # by epoch, predecessors first
        self._read_to: Dict[str, int] = {}
        self._spilled_total = 0
        self._stranded = 0
        self._pending_size = 0
        self._refused_size = 0
        self._unsaved: Dict[Key, Event] = {}
        self._saving: Dict[Key, Event] = {}
        self._deletions: List[Key] = []
        self._refusals: List[Refusal] = []
        self._taken: Optional[Work] = None
        self._issued = 0
        self._own = _Tally()
        self._previous: Dict[str, _Tally] = {}
        self._samples_dropped = 0
        self._heartbeats_coalesced = 0

    # --- whoever issues events -------------------------------------------------------------------------------------

    def append(self, kind: str, payload: Mapping[str, Any]) -> Optional[int]:
        """Numbers an event and keeps it until it is acknowledged; None when it was coalesced or dropped."""
        with self._lock:
            if kind == "heartbeat" and self._beat is not None:
                self._heartbeats_coalesced += 1
                return None
            if kind == "sample" and self._has_no_room_for_samples():
                self._samples_dropped += 1
                return None
            seq = self._issued
            values = {"seq": seq, "kind": kind, "t_mono_ns": self._mono_ns(), "t_wall": self._wall(), **payload}
            body = json.dumps(values, separators=(",", ":"), allow_nan=False).encode() if self._keep else b""
            if self._log is not None:
                self._log(self.epoch, seq, kind)
            self._issued += 1
            if self._keep:
                self._add(Event(self.epoch, seq, kind, body))
            return seq

    def _add(self, event: Event) -> None:
        key = (event.epoch, event.seq)
        if self._journalled:  # heartbeats too: whoever reads the journal after kill -9 must not find a number missing
            self._unsaved[key] = event
            self._work.set()
        if event.kind == "heartbeat":
            self._beat = event  # goes out with the next batch, whatever waits: it says that this agent lives
            return
        if self._spilled_total or self._queue or not self._window_has_room():
            self._queue[key] = event
            self._queue_size += len(event.body)
        else:
            self._into_window(key, event)
        self._pending_size += len(event.body)
        self._check_bounds()

    def _check_bounds(self) -> None:
        if self._full:
            return
        waiting, size = self._pending() + self._set_aside(), self._pending_size + self._refused_size
        in_memory, memory_size = len(self._window) + len(self._queue), self._window_size + self._queue_size
        if waiting >= self._cap_events or size >= self._cap_bytes:
            where = "are kept"
        elif in_memory >= self._memory_events or memory_size >= self._memory_bytes:
            where, waiting, size = "are kept in memory", in_memory, memory_size
        else:
            return
        self._full = True
        if self._on_full is not None:
            self._on_full(
                f"stopped because {waiting} events ({size / 1e6:.0f} MB) wait for the collector and no more {where}"
            )

    def _has_no_room_for_samples(self) -> bool:
        pending, size = self._pending(), self._pending_size
        if self._sample_bound is not None:
            return pending >= self._sample_bound
        if not self._journalled:
            return pending >= _MEMORY_SAMPLES
        return pending >= 0.9 * self._cap_events or size >= 0.9 * self._cap_bytes

    # --- the sender ------------------------------------------------------------------------------------------------

    def peek(self, limit: int = MAX_BATCH_EVENTS, max_bytes: int = MAX_BATCH_BYTES) -> List[Event]:
        """The oldest pending events of one epoch that make one batch, a heartbeat before them; they stay pending."""
        batch: List[Event] = []
        size = 0
        with self._lock:
            beat = self._beat
            if beat is not None:
                batch.append(beat)
                size = len(beat.body)
            for event in self._window.values():
                size += len(event.body)
                if batch and (len(batch) >= limit or size > max_bytes or event.epoch != batch[0].epoch):
                    break
                batch.append(event)
        return batch

    def more(self) -> bool:
        """Whether anything can still be sent, be it that the journal has to be read for it."""
        with self._lock:
            return self._pending() > self._stranded

    def acknowledge(self, keys: Iterable[Key]) -> None:
        """Forgets events that the collector has stored."""
        with self._lock:
            for key in keys:
                event = self._forget(key)
                if event is None:
                    continue
                self._tally(event.epoch).stored += 1
                if self._log is not None:
                    self._log(event.epoch, event.seq, "stored")
                if self._journalled and self._unsaved.pop(key, None) is None:
                    self._deletions.append(key)
            self._fill_window()
            self._work.set()

    def set_aside(self, keys: Iterable[Key], sentence: str = "") -> None:
        """Takes events out of the way that the collector will never take; they are counted, and kept in the journal."""
        with self._lock:
            for key in keys:
                event = self._forget(key)
                if event is None:
                    continue
                self._tally(event.epoch).set_aside += 1
                if not self._journalled:
                    continue
                self._unsaved.pop(key, None)
                self._refused_size += len(event.body)
                if len(self._refusals) < _REFUSALS_HELD:  # only while the journal's disk takes nothing
                    self._refusals.append(Refusal(event, sentence))
            self._fill_window()
            self._work.set()

    def _forget(self, key: Key) -> Optional[Event]:
        beat = self._beat
        if beat is not None and key == (beat.epoch, beat.seq):
            self._beat = None
            return beat
        event = self._window.pop(key, None)
        if event is not None:
            self._window_size -= len(event.body)
            self._pending_size -= len(event.body)
        return event

    # --- the journal -----------------------------------------------------------------------------------------------

    def attach_journal(self, left: Mapping[str, Left]) -> None:
        """From now on the journal keeps every event, and what predecessors `left` in it is pending, oldest first."""
        with self._lock:
            self._journalled = True
            for epoch, one in left.items():
                self._previous[epoch] = _Tally(left=one.events, set_aside=one.refused)
                if one.events:
                    self._spilled[epoch] = one.events
                    self._spilled_total += one.events
                    self._pending_size += one.size
            if self._beat is not None:
                self._unsaved[self._beat.epoch, self._beat.seq] = self._beat
            for events in (self._window, self._queue):
                self._unsaved.update(events)
            self._work.set()

    def detach_journal(self) -> None:
        """The journal can neither be written nor read any more: what only it holds is out of reach, the rest goes on."""
        with self._lock:
            self._journalled = False
            self._stranded += self._spilled_total
            self._spilled_total = 0
            self._spilled.clear()
            self._unsaved.clear()
            self._saving.clear()
            self._deletions.clear()
            self._refusals.clear()
            self._taken = None
            self._fill_window()

    def wait_for_work(self, timeout_s: Optional[float]) -> None:
        """Waits until the journal may have something to do."""
        self._work.wait(timeout_s)
        self._work.clear()

    def wake(self) -> None:
        """Ends `wait_for_work`."""
        self._work.set()

    def take(self) -> Work:
        """What the journal has to do next; it says `saved` or `not_saved` afterwards."""
        with self._lock:
            keys = list(itertools.islice(self._unsaved, _TAKEN_EVENTS))
            self._saving = {key: self._unsaved.pop(key) for key in keys}
            self._taken = Work(list(self._saving.values()), self._deletions, self._refusals)
            self._deletions, self._refusals = [], []
            return self._taken

    def saved(self) -> None:
        """The journal has what it `take`n: what the window has no room for needs no memory any more."""
        with self._lock:
            for key in self._saving:
                event = self._queue.pop(key, None)
                if event is not None:
                    self._queue_size -= len(event.body)
                    self._spilled[event.epoch] = self._spilled.get(event.epoch, 0) + 1
                    self._spilled_total += 1
            self._saving = {}
            self._taken = None
            self._fill_window()
            if self._unsaved:
                self._work.set()

    def not_saved(self) -> None:
        """The journal could not do what it had `take`n: it is to be done again."""
        with self._lock:
            taken = self._taken
            if taken is None:
                return
            gone = set(self._deletions) | {(r.event.epoch, r.event.seq) for r in self._refusals}
            again = {key: event for key, event in self._saving.items() if key not in gone}
            self._unsaved = {**again, **self._unsaved}
            self._deletions = taken.delete + self._deletions
            self._refusals = (taken.refuse + self._refusals)[:_REFUSALS_HELD]
            self._saving = {}
            self._taken = None

    def wanted(self) -> Optional[Wanted]:
        """What is to be read back from the journal next, if there is room for it."""
        with self._lock:
            if len(self._window) > self._window_events / 2 or self._window_size > self._window_bytes / 2:
                return None
            for epoch, count in self._spilled.items():
                if count:
                    # This epoch's waiting heartbeat is still in memory; a predecessor's is an event like any other.
                    but = "heartbeat" if epoch == self.epoch else ""
                    return Wanted(epoch, self._read_to.get(epoch, -1), min(count, MAX_BATCH_EVENTS), but)
            return None

    def refill(self, wanted: Wanted, events: List[Event], unreadable: int = 0) -> None:
        """Takes what was read back for `wanted`; `unreadable` of the events were not what they should be.

        Fewer than wanted means that the journal does not hold what it should: the rest is out of reach, and counted.
        """
        with self._lock:
            for event in events:
                self._into_window((event.epoch, event.seq), event)
            self._tally(wanted.epoch).set_aside += unreadable
            missing = max(0, wanted.events - len(events) - unreadable)
            self._stranded += missing
            count = min(self._spilled.get(wanted.epoch, 0), len(events) + unreadable + missing)
            self._spilled_total -= count
            self._spilled[wanted.epoch] -= count
            if not self._spilled[wanted.epoch]:
                del self._spilled[wanted.epoch]
            self._fill_window()
            self._work.set()

    # --- anybody ---------------------------------------------------------------------------------------------------

    def counts(self) -> Counts:
        """How many events there are, by what became of them."""
        with self._lock:
            return Counts(
                issued=self._issued,
                stored=self._own.stored,
                pending=self._pending(),
                set_aside=self._set_aside(),
                samples_dropped=self._samples_dropped,
                heartbeats_coalesced=self._heartbeats_coalesced,
                inherited=sum(tally.left for tally in self._previous.values()),
            )

    def previous(self) -> Dict[str, Previous]:
        """What became of each predecessor's events."""
        with self._lock:
            waiting = dict(self._spilled)
            for epoch, _ in self._window:
                waiting[epoch] = waiting.get(epoch, 0) + 1
            return {
                epoch: Previous(tally.left, tally.stored, waiting.get(epoch, 0), tally.set_aside)
                for epoch, tally in self._previous.items()
            }

    def _pending(self) -> int:
        beat = 0 if self._beat is None else 1
        return len(self._window) + len(self._queue) + self._spilled_total + self._stranded + beat

    def _set_aside(self) -> int:
        return self._own.set_aside + sum(tally.set_aside for tally in self._previous.values())

    def _tally(self, epoch: str) -> _Tally:
        return self._own if epoch == self.epoch else self._previous.setdefault(epoch, _Tally())

    def _window_has_room(self) -> bool:
        return len(self._window) < self._window_events and self._window_size < self._window_bytes

    def _into_window(self, key: Key, event: Event) -> None:
        self._window[key] = event
        self._window_size += len(event.body)
        self._read_to[event.epoch] = event.seq

    def _fill_window(self) -> None:
        while self._queue and not self._spilled_total and self._window_has_room():
            key = next(iter(self._queue))
            event = self._queue.pop(key)
            self._queue_size -= len(event.body)
            self._into_window(key, event)
