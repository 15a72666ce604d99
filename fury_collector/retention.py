"""Which runs a database may let go of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from fury_collector.rows import RunAge

DAY_S = 86_400.0
PATIENCE_S = 2 * DAY_S  # for the barrier, for a collector to be started again, and for journals to be fetched


def goes_on(run: RunAge, now: float) -> bool:
    """Whether a run is not over: not recorded as such, and its planned end not two days past."""
    if run.state in ("finished", "aborted"):
        return False
    return run.planned_end is None or now < run.planned_end + PATIENCE_S


def removable(
    ages: Sequence[RunAge], *, keep_days: Optional[float], keep_runs: Optional[int], now: float
) -> list[RunAge]:
    """Those of the runs (newest first) that neither limit keeps and that are over; the oldest first."""
    removed = []
    for place, run in enumerate(ages):
        end = run.ended if run.ended is not None else run.planned_end
        young = keep_days is not None and (end is None or now - end < keep_days * DAY_S)
        if not young and (keep_runs is None or place >= keep_runs) and not goes_on(run, now):
            removed.append(run)
    return removed[::-1]
