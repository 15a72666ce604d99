"""What passes between the run, the database and the report: plain rows, no behaviour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

from fury_collector.slo import Objective
from fury_collector.wire import SLOW_PERCENT, Event, Ready

# How an agent begins its last word when it did what it was told.
_CALLED_OFF = ("stopped by the collector", "stopped by SIG", "the collector called the run off")


def start_skew_s(starts: Sequence[tuple[float, float]]) -> Optional[float]:
    """How far apart first writes were at most, seconds; None without any.

    starts: for each agent the instant on the collector's clock, as estimated, and the round trip of that estimate, which
    is wrong by half of it at most (Cristian 1989); the result includes that.
    """
    if len(starts) < 2:
        return 0.0 if starts else None
    latest = max(instant + round_trip / 2 for instant, round_trip in starts)
    return latest - min(instant - round_trip / 2 for instant, round_trip in starts)


def called_off(reason: Optional[str]) -> bool:
    """Whether an agent's last word says no more than that it ended when it was told to, by the collector or on its host."""
    return (reason or "").startswith(_CALLED_OFF)


@dataclass(frozen=True)
class Message:
    """One sentence of a run for people; `n` counts from 0 within the run, `level` is info, warning or error."""

    n: int
    t_wall: float
    level: str
    text: str


@dataclass(frozen=True)
class Transition:
    """An agent's health changed to green, late, suspect, lost or finished, or it has recovered, which is green again
    with one word; `silent_s` since it was last heard."""

    agent_id: int
    t_wall: float
    health: str
    silent_s: float


@dataclass(frozen=True)
class Armed:
    """An agent said that it is ready."""

    agent_id: int
    ready: Ready


@dataclass(frozen=True)
class RunState:
    """A run as it is to be taken up again after a restart; instants on the monotonic clock of the boot `boot_id`."""

    state: str
    reason: Optional[str] = None
    boot_id: Optional[str] = None
    start_mono_s: Optional[float] = None
    start_wall: Optional[float] = None
    stop_reason: Optional[str] = None
    end_wall: Optional[float] = None


Record = Union[Message, Transition, Armed, RunState]


@dataclass(frozen=True)
class Stored:
    """What became of one batch: `fresh` are the events that were not stored before."""

    fresh: tuple[Event, ...]
    duplicates: int
    receipt: bool


@dataclass(frozen=True)
class EpochRows:
    """One process of an agent: how much of it is stored, its first, last and newest words, its rollovers summed up.

    A rollover counts if not all of it was written in the ramp; `rollover_bytes` is without the ramp's.
    """

    epoch: str
    stored: int
    top_seq: int
    final_seq: Optional[int]
    last_t_mono_ns: int
    start: Optional[Event]
    heartbeat: Optional[Event]
    final: Optional[Event]
    rollovers: int
    rollover_bytes: int
    ramp_bytes: int = 0
    read_bytes: int = 0

    @property
    def wrote(self) -> bool:
        """Whether this process got to write."""
        return self.start is not None or self.rollovers > 0 or self.ramp_bytes > 0

    @property
    def issued(self) -> int:
        """How many events this process issued, as far as is known."""
        return (self.top_seq if self.final_seq is None else self.final_seq) + 1

    @property
    def receipt(self) -> bool:
        """Whether every event up to the final one is stored."""
        return self.final_seq is not None and self.stored == self.final_seq + 1


@dataclass(frozen=True)
class AgentRows:
    """One expected agent with everything that is stored of it; `epochs` in the order in which its processes ran."""

    id: int
    name: str
    host: str
    chunk_mb: int
    seconds: float
    directory: str
    ready: Optional[Ready]
    health: Optional[str]
    reachable: Optional[bool]
    cleanup: Optional[str]
    cleanup_detail: Optional[str]
    epochs: tuple[EpochRows, ...]
    drain_seconds: float = 60.0
    ramp_seconds: float = 0.0
    rescued_events: int = 0
    refused_events: int = 0
    refused_reason: Optional[str] = None
    journal_damage: Optional[str] = None
    liveness: tuple[Transition, ...] = ()

    @property
    def last_writer(self) -> Optional[EpochRows]:
        """The last process that wrote, None if none did."""
        return next((epoch for epoch in reversed(self.epochs) if epoch.wrote), None)

    @property
    def speaker(self) -> Optional[EpochRows]:
        """The process whose final word counts: the last that wrote, or one after it that gave up before writing."""
        last = self.last_writer
        if last is not None and last.final is not None:
            return last
        later = self.epochs if last is None else self.epochs[self.epochs.index(last) + 1 :]
        return next((epoch for epoch in reversed(later) if epoch.final is not None), None)


@dataclass(frozen=True)
class RunRows:
    """A whole run but for its rollovers and samples one by one."""

    id: int
    run_id: str
    created_at: str
    parameters: dict[str, Any]
    state: RunState
    agents: tuple[AgentRows, ...]
    messages: tuple[Message, ...]
    next_message: int
    slow_percent: int = SLOW_PERCENT
    slo: tuple[Objective, ...] = ()


@dataclass(frozen=True)
class RunLine:
    """One run of `fury_collector runs`."""

    run_id: str
    created_at: str
    state: str
    agents: int
    rollovers: int


@dataclass(frozen=True)
class RunAge:
    """How old a run is, seconds since 1970: `ended` as recorded, `planned_end` when it was to be over; None if unknown."""

    id: int
    run_id: str
    state: str
    ended: Optional[float]
    planned_end: Optional[float]
