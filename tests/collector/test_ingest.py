"""Exactly once, whatever the network does to the batches."""

from __future__ import annotations

import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings

from fury_collector import wire
from fury_collector.db import Database

from .conftest import RUN, event, plan

EPOCHS = ("00000000000000aa", "00000000000000bb")
ALL = {
    epoch: [event(0, "start")]
    + [event(n, ("rollover", "sample", "heartbeat", "error")[n % 4], t_wall=float(index)) for n in range(1, 14)]
    + [event(14, "final")]
    for index, epoch in enumerate(EPOCHS)
}

slices = st.tuples(st.sampled_from(EPOCHS), st.integers(0, 14), st.integers(1, 8))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    pushes=st.lists(slices, max_size=16),
    mixed=st.randoms(use_true_random=False),
    reopen=st.lists(st.integers(0, 16), max_size=1),
)
def test_duplicated_reordered_and_retried_batches_store_exactly_what_was_sent(
    pushes: list[tuple[str, int, int]], mixed: object, reopen: list[int]
) -> None:
    """After any sequence of overlapping batches, with restarts in between, the stored set is the set that was sent."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "fury.db"
        database = Database(path)
        run_ref = database.add_run(wire.plan(plan(("alecto",))))
        agent_id = database.read_run(RUN).agents[0].id
        database.start()
        sent: dict[str, set[int]] = {epoch: set() for epoch in EPOCHS}
        new = rescued = 0
        for number, (epoch, first, length) in enumerate(pushes):
            if number in reopen:
                database.close()
                database = Database(path)
                database.start()
            chosen = ALL[epoch][first : first + length]
            mixed.shuffle(chosen)  # type: ignore[attr-defined]
            if any(e["kind"] == "final" for e in chosen):
                # Within a batch the final one is last: the agent never numbers anything after it.
                chosen.sort(key=lambda e: e["kind"] == "final")
            batch = wire.batch({"v": 1, "epoch": epoch, "events": chosen})
            result = database.store(agent_id, batch, rescued=number % 2 == 1).result(20)
            fresh = {e["seq"] for e in chosen} - sent[epoch]
            assert {e.seq for e in result.fresh} == fresh
            assert result.duplicates == len(chosen) - len(fresh)
            sent[epoch] |= fresh
            assert result.receipt == (sent[epoch] == set(range(15)))
            new += len(fresh)
            rescued += len(fresh) if number % 2 == 1 else 0
        run = database.read_run(RUN)
        stored = {epoch.epoch: epoch for epoch in run.agents[0].epochs}
        for epoch in EPOCHS:
            rows = [row for row in database.rollovers(run_ref) if row["epoch"] == epoch]
            wanted = [n for n in sorted(sent[epoch]) if ALL[epoch][n]["kind"] == "rollover"]
            assert [row["seq"] for row in rows] == wanted
            assert (stored[epoch].stored if epoch in stored else 0) == len(sent[epoch])
        assert sum(epoch.stored for epoch in stored.values()) == new
        assert run.agents[0].rescued_events == rescued
        database.close()
