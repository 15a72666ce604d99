"""Events: numbered without a gap, never changed, bounded without losing what counts."""

from __future__ import annotations

import json
import threading
from typing import List

from fury_agent.events import MAX_BATCH_EVENTS, Events


def test_numbers_count_over_all_kinds_and_the_envelope_is_the_contracts() -> None:
    """seq runs from 0; the envelope has both clocks and the payload beside them."""
    events = Events(keep=True, mono_ns=lambda: 7, wall=lambda: 8.5)
    assert [events.append(kind, {"a": 1}) for kind in ("start", "rollover", "final")] == [0, 1, 2]
    assert json.loads(events.peek()[0].body) == {"seq": 0, "kind": "start", "t_mono_ns": 7, "t_wall": 8.5, "a": 1}


def test_an_event_stays_until_it_is_acknowledged_and_never_changes() -> None:
    """A repeated peek gives the same bytes, so that a repeated delivery is a duplicate and no conflict."""
    events = Events(keep=True)
    events.append("rollover", {"chunk": 0})
    events.append("rollover", {"chunk": 1})
    assert events.peek() == events.peek()
    events.acknowledge([("", 0), ("", 0), ("", 99)])
    assert [event.seq for event in events.peek()] == [1]
    counts = events.counts()
    assert (counts.issued, counts.stored, counts.pending) == (2, 1, 1)


def test_heartbeats_coalesce_while_one_waits() -> None:
    """An older unsent heartbeat makes a newer one superfluous; it takes no number and is counted."""
    events = Events(keep=True)
    assert events.append("heartbeat", {}) == 0
    assert events.append("heartbeat", {}) is None
    assert events.append("rollover", {}) == 1
    assert events.counts().heartbeats_coalesced == 1
    events.acknowledge([("", 0)])
    assert events.append("heartbeat", {}) == 2


def test_only_samples_are_dropped_when_the_bound_is_hit() -> None:
    """Rollovers, errors and finals are kept whatever waits; a dropped sample is counted and leaves no gap in seq."""
    events = Events(keep=True, sample_bound=3)
    kinds = ["rollover", "sample", "rollover", "sample", "error", "rollover", "final"]
    assert [events.append(kind, {}) for kind in kinds] == [0, 1, 2, None, 3, 4, 5]
    assert events.counts().samples_dropped == 1
    assert len(events.peek()) == 6


def test_a_batch_is_bounded_in_events_and_bytes() -> None:
    """At most 500 events, and about a megabyte; a single larger one still goes alone."""
    events = Events(keep=True)
    for chunk in range(MAX_BATCH_EVENTS + 10):
        events.append("rollover", {"chunk": chunk})
    assert [event.seq for event in events.peek()] == list(range(MAX_BATCH_EVENTS))
    large = Events(keep=True)
    for size in (2_000_000, 10, 600_000, 600_000):
        large.append("error", {"message": "x" * size})
    assert len(large.peek()) == 1
    large.acknowledge([("", 0)])
    assert len(large.peek()) == 2


def test_what_was_refused_is_out_of_the_way_and_counted() -> None:
    """A batch that the collector will never take does not block what comes after it."""
    events = Events(keep=True)
    events.append("rollover", {})
    events.append("final", {})
    events.set_aside([("", 0)], "no (400)")
    assert [event.kind for event in events.peek()] == ["final"]
    assert events.counts().set_aside == 1


def test_by_hand_nothing_is_kept() -> None:
    """Without a collector events are only counted: memory stays flat for a week."""
    events = Events(keep=False)
    for _ in range(3):
        events.append("rollover", {})
    counts = events.counts()
    assert (counts.issued, counts.pending, counts.stored) == (3, 0, 0)


def test_threads_never_get_the_same_number() -> None:
    """Writer, main loop and sender append and acknowledge at once; the order kept is that of seq."""
    events = Events(keep=True)

    def append() -> None:
        for _ in range(500):
            events.append("rollover", {})

    threads = [threading.Thread(target=append) for _ in range(4)]
    for thread in threads:
        thread.start()
    seen: List[int] = []
    while len(seen) < 2000:
        batch = events.peek()
        events.acknowledge([(event.epoch, event.seq) for event in batch])
        seen += [event.seq for event in batch]
    for thread in threads:
        thread.join()
    assert seen == list(range(2000))
