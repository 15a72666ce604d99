"""What has happened and is not yet acknowledged: numbered, in order, and never changed once it has a number."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Set

MAX_BATCH_EVENTS = 500
_MAX_BATCH_BYTES = 1_000_000
_MAX_PENDING_FOR_SAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class Event:
    """One event as it will travel: `body` is its JSON, the same bytes however often it is sent."""

    seq: int
    kind: str
    body: bytes


@dataclasses.dataclass(frozen=True)
class Counts:
    """Every event that was issued is exactly one of stored (acknowledged), pending or set aside (refused)."""

    issued: int
    stored: int
    pending: int
    set_aside: int
    samples_dropped: int
    heartbeats_coalesced: int


class Events:
    """The events of one epoch. Any thread may append; nobody ever waits for the network here.

    Bounded: a heartbeat is skipped while an older one is pending, samples are dropped once `sample_bound` events
    wait; both are counted and get no number. Rollovers, errors and finals are never dropped.
    """

    def __init__(
        self,
        *,
        keep: bool,
        sample_bound: int = _MAX_PENDING_FOR_SAMPLES,
        mono_ns: Callable[[], int] = time.monotonic_ns,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._keep = keep
        self._sample_bound = sample_bound
        self._mono_ns = mono_ns
        self._wall = wall
        self._lock = threading.Lock()
        self._pending: Dict[int, Event] = {}  # insertion order is the order of seq
        self._issued = 0
        self._stored = 0
        self._set_aside = 0
        self._samples_dropped = 0
        self._heartbeats_coalesced = 0
        self._pending_heartbeats: Set[int] = set()

    def append(self, kind: str, payload: Mapping[str, Any]) -> Optional[int]:
        """Numbers an event and keeps it until it is acknowledged; None when it was coalesced or dropped."""
        with self._lock:
            if kind == "heartbeat" and self._pending_heartbeats:
                self._heartbeats_coalesced += 1
                return None
            if kind == "sample" and len(self._pending) >= self._sample_bound:
                self._samples_dropped += 1
                return None
            seq = self._issued
            event = {"seq": seq, "kind": kind, "t_mono_ns": self._mono_ns(), "t_wall": self._wall(), **payload}
            if self._keep:
                body = json.dumps(event, separators=(",", ":"), allow_nan=False).encode()
                self._pending[seq] = Event(seq, kind, body)
                if kind == "heartbeat":
                    self._pending_heartbeats.add(seq)
            self._issued += 1
            return seq

    def peek(self, limit: int = MAX_BATCH_EVENTS) -> List[Event]:
        """The oldest pending events that make one batch; they stay pending."""
        batch: List[Event] = []
        size = 0
        with self._lock:
            for event in self._pending.values():
                size += len(event.body)
                if batch and (len(batch) >= limit or size > _MAX_BATCH_BYTES):
                    break
                batch.append(event)
        return batch

    def acknowledge(self, seqs: Iterable[int]) -> None:
        """Forgets events that the collector has stored."""
        with self._lock:
            self._stored += self._forget(seqs)

    def set_aside(self, seqs: Iterable[int]) -> None:
        """Takes events out of the way that the collector will never take; they are counted."""
        with self._lock:
            self._set_aside += self._forget(seqs)

    def counts(self) -> Counts:
        """How many events there are, by what became of them."""
        with self._lock:
            return Counts(
                issued=self._issued,
                stored=self._stored,
                pending=len(self._pending),
                set_aside=self._set_aside,
                samples_dropped=self._samples_dropped,
                heartbeats_coalesced=self._heartbeats_coalesced,
            )

    def _forget(self, seqs: Iterable[int]) -> int:
        forgotten = 0
        for seq in seqs:
            if self._pending.pop(seq, None) is not None:
                forgotten += 1
            self._pending_heartbeats.discard(seq)
        return forgotten
