"""One run as it lives: who is ready, when all start, who is still heard, when it is over, and what people are told.

No clock, no thread, no database and no HTTP of its own: it is given a clock and what arrives, and leaves what is to be
recorded in an outbox. All of it belongs to one thread.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Optional

from fury_collector.errors import Conflict, Unavailable, Unknown
from fury_collector.histogram import Histogram
from fury_collector.rows import (
    AgentRows,
    Armed,
    EpochRows,
    Message,
    Record,
    RunRows,
    RunState,
    Stored,
    Transition,
    called_off,
    start_skew_s,
)
from fury_collector.wire import HEALTHS, Event, Payload, Ready

LATE_S, SUSPECT_S, LOST_S = 10.0, 20.0, 40.0
# Agents ask twice a second, and three times for a good clock offset; a large fleet takes its time to be answered.
START_AHEAD_S = 0.8
START_AHEAD_AGENT_S = 0.01
START_AHEAD_MOST_S = 3.0
# The armed ask so often, and larger fleets less often: all together no more than ASKS_PER_S, and each within LATE_S.
ASK_IN_S, ASK_IN_MOST_S = 0.5, 5.0
ASKS_PER_S = 2000
ASK_MARGIN_S = 2.0
PROGRESS_EVERY_S = 0.25  # to see how a large fleet is getting on costs something: not with each push
LARGE_FLEET = 200
LINGER_S = 3.0
ABORT_LINGER_S = 15.0
STANDSTILL_S = 5.0
ALARM_EVERY_S = 10.0
SHOWN_MESSAGES = 200
SHOWN_ERRORS = 20
CURVE_STEP_S = 2.0
CURVE_POINTS = 600
SILENT = ("late", "suspect", "lost")
STATES = ("arming", "starting", "running", "draining", "finished", "aborted")

Clock = Callable[[], float]


@dataclass(frozen=True)
class Figures:
    """One agent's newest figures for people; None is what is not known (yet)."""

    name: str
    host: str
    health: str
    phase: Optional[str]
    verdict: Optional[str]
    bytes_per_second: Optional[float]
    mean_bytes_per_second: Optional[float]
    rollovers: int
    write_p99_s: Optional[float]
    agent_cpu_ratio: Optional[float]
    host_cpu_ratio: Optional[float]
    agent_rss_bytes: Optional[int]
    host_memory_ratio: Optional[float]
    disk_free_bytes: Optional[int]
    silent_s: Optional[float]


class _Curve:
    """The fleet's rate over the run in at most CURVE_POINTS steps, which double when they no longer fit."""

    def __init__(self) -> None:
        self.step_s = CURVE_STEP_S
        self._bins: list[tuple[float, int]] = []  # sum and number of what was seen in each step
        self._seen = -1

    def wants(self, elapsed: float) -> bool:
        """Whether a value is due: one in CURVE_STEP_S, however long the steps are by now."""
        return int(elapsed // CURVE_STEP_S) > self._seen

    def add(self, elapsed: float, value: float) -> None:
        self._seen = int(elapsed // CURVE_STEP_S)
        while elapsed // self.step_s >= CURVE_POINTS:
            odd = [*self._bins[1::2], (0.0, 0)]
            self._bins = [(a + c, b + d) for (a, b), (c, d) in zip(self._bins[::2], odd)]
            self.step_s *= 2
        index = int(elapsed // self.step_s)
        self._bins += [(0.0, 0)] * (index + 1 - len(self._bins))
        total, number = self._bins[index]
        self._bins[index] = (total + value, number + 1)

    @property
    def values(self) -> list[Optional[float]]:
        """The mean of each step, None where nobody looked: before this collector took the run up, or at a standstill."""
        return [total / number if number else None for total, number in self._bins]


class _Sample:
    """An agent's newest sample; its percentile is only looked for when somebody looks at it."""

    def __init__(self, t_mono_ns: int, payload: Payload) -> None:
        self.t_mono_ns, self.payload = t_mono_ns, payload

    @cached_property
    def write_p99_s(self) -> Optional[float]:
        histogram = Histogram()
        histogram.add(self.payload["write_histogram"])
        return histogram.quantile(0.99)

    @property
    def host_memory_ratio(self) -> Optional[float]:
        used, total = self.payload["host_memory_used_bytes"], self.payload["host_memory_total_bytes"]
        return used / total if used is not None and total else None


@dataclass
class _Epoch:
    """One process of an agent, as far as the state of the run needs it; bytes and counts cumulative."""

    started: bool = False
    heard: Optional[float] = None
    last_mono_ns: int = 0
    final: Optional[dict[str, Any]] = None
    receipt: bool = False
    replaced: bool = (
        False  # another process has taken its place: of what it wrote only rollovers are known to be durable
    )
    heartbeat_bytes: int = 0
    durable_bytes: int = 0  # without the ramp's
    ramp_bytes: int = 0
    rollovers: int = 0

    @property
    def written(self) -> int:
        if self.final is not None:
            return int(self.final["written_bytes"])
        return self.durable_bytes if self.replaced else max(self.heartbeat_bytes, self.durable_bytes)


@dataclass
class _Agent:
    """One expected agent; `heard` is the monotonic instant of its last word, None before the first one."""

    id: int
    name: str
    host: str
    chunk_mb: int
    seconds: float
    drain_s: float
    health: str = "waiting"
    silent_since_wall: Optional[float] = None  # silent when an earlier collector ended, and not heard since
    phase: Optional[str] = None
    heard: Optional[float] = None
    polled: bool = False  # asked at the barrier since this collector started
    ready: Optional[Ready] = None
    epoch: Optional[str] = None
    epochs: dict[str, _Epoch] = field(default_factory=dict)
    start: Optional[tuple[float, float]] = None  # instant on this clock and round trip of the estimate
    rolled: Optional[tuple[int, int]] = None  # the newest rollover and the durable bytes then
    rolled_p99_s: Optional[float] = None
    began_ns: Optional[int] = None  # the first write of the current process, by its own clock
    sample: Optional[_Sample] = None
    pending: int = 0  # events that it had not delivered when it sent its newest heartbeat
    points: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=4))
    errors_shown: int = 0
    alarmed: float = float("-inf")

    @property
    def current(self) -> _Epoch:
        return self.epochs.setdefault(self.epoch, _Epoch()) if self.epoch is not None else _Epoch()

    @property
    def started(self) -> bool:
        return any(epoch.started for epoch in self.epochs.values())

    @property
    def word(self) -> _Epoch:
        """The process whose final word counts: one that ended before the current one got to write, else the current."""
        if not self.current.started:
            for epoch in reversed(self.epochs.values()):
                if epoch.started and epoch.final is not None:
                    return epoch
        return self.current

    @property
    def final(self) -> Optional[dict[str, Any]]:
        return self.word.final

    @property
    def receipt(self) -> bool:
        return self.word.receipt

    @property
    def restarts(self) -> int:
        return sum(epoch.replaced for epoch in self.epochs.values())

    @property
    def rollovers(self) -> int:
        return sum(epoch.rollovers for epoch in self.epochs.values())

    @property
    def written(self) -> int:
        return sum(epoch.written for epoch in self.epochs.values())

    @property
    def rate(self) -> float:
        """Bytes per second over the last heartbeats; 0 as soon as it does not write or is not heard."""
        if self.phase != "writing" or self.health not in ("green", "late") or not self.points:
            return 0.0
        (t_first, first), (t_last, last) = self.points[0], self.points[-1]
        if len(self.points) == 1 and self.rolled is not None:  # before the first heartbeat
            t_last, last = self.rolled
        return max(0.0, (last - first) / ((t_last - t_first) / 1e9)) if t_last > t_first else 0.0

    @property
    def mean_rate(self) -> Optional[float]:
        """Bytes per second since the current process' first write, of a finished agent by its last word."""
        if self.final is not None:
            seconds = self.final["seconds"]
            return self.final["written_bytes"] / seconds if seconds else None
        known = [*self.points, *([self.rolled] if self.rolled is not None else [])]
        if self.began_ns is None or not known:
            return None
        at, written = max(known)
        return written / ((at - self.began_ns) / 1e9) if at > self.began_ns else None

    def figures(self, now: float) -> Figures:
        """What is known of it, for people."""
        sample = self.sample.payload if self.sample is not None else dict[str, Any]()
        p99 = self.sample.write_p99_s if self.sample is not None else None
        return Figures(
            name=self.name,
            host=self.host,
            health=self.health,
            phase=self.phase,
            verdict=self.final["verdict"] if self.final is not None else None,
            bytes_per_second=self.rate if self.started else None,
            mean_bytes_per_second=self.mean_rate,
            rollovers=self.rollovers,
            write_p99_s=self.rolled_p99_s if p99 is None else p99,
            agent_cpu_ratio=sample.get("agent_cpu_ratio"),
            host_cpu_ratio=sample.get("host_cpu_ratio"),
            agent_rss_bytes=sample.get("agent_rss_bytes"),
            host_memory_ratio=self.sample.host_memory_ratio if self.sample is not None else None,
            disk_free_bytes=sample.get("disk_free_bytes"),
            silent_s=None if self.heard is None else max(0.0, now - self.heard),
        )


class Run:
    """The state machine of one run; see docs/protocol.md for the words it answers with."""

    def __init__(
        self,
        rows: RunRows,
        *,
        clock: Clock,
        wall: Clock,
        boot_id: str,
        barrier_seconds: float = 300.0,
        tell: Callable[[str], None] = lambda line: None,
        secure: bool = False,
    ) -> None:
        """Take up the run where the database has it: a fresh one is armed, everybody gets a full window of silence."""
        now = clock()
        self.run_id = rows.run_id
        self.state = rows.state.state
        self.reason = rows.state.reason
        self.stop_reason = rows.state.stop_reason
        self.start_mono_s = rows.state.start_mono_s
        self.outbox: list[Record] = []
        self._clock, self._wall, self._tell = clock, wall, tell
        self._secure = secure  # agents serve their metrics as the collector serves itself
        self._boot_id = boot_id
        self._barrier_seconds = barrier_seconds
        self._opened = now
        self._ticked = now
        self._start_wall = rows.state.start_wall
        self._end_wall = rows.state.end_wall
        if self._start_wall is not None and rows.state.boot_id != boot_id:
            # Another boot has another monotonic clock: the wall clock is all that connects them.
            self.start_mono_s = now - (wall() - self._start_wall)
        self._lasted: Optional[float] = None  # how long a run took that had ended before this process began
        if self._start_wall is not None and self._end_wall is not None:
            self._lasted = max(0.0, self._end_wall - self._start_wall)
        self._ended: Optional[float] = now if self.state in ("finished", "aborted") else None
        # When a stop was asked for before a restart is not known: whoever is to hear of it gets its whole time again.
        self._stopped: Optional[float] = now if self.stop_reason is not None else None
        self._held: list[str] = []
        self._closed = False
        self._all_silent = False
        self._troubled = float("-inf")
        self._messages: deque[Message] = deque(rows.messages, maxlen=SHOWN_MESSAGES)
        self._next_message = rows.next_message
        self._rolled: dict[str, int] = {}
        self._roll_sample = ""
        self._roll_told = now
        self._agents = {agent.name: _restored(agent, now) for agent in rows.agents}
        self._missing = dict.fromkeys(self._agents)  # who is not ready, as far as it is known without asking everybody
        self._ask_in_s = min(ASK_IN_MOST_S, max(ASK_IN_S, len(self._agents) / ASKS_PER_S))
        self._progressed = float("-inf")
        self._curve = _Curve()
        self._skew_told = self.start_skew_s is not None
        if rows.next_message == 0:
            self._say(f"run {self.run_id} expects {_agents(len(self._agents))}: {_names(self._agents)}")
        else:
            self._say(f"the collector took up run {self.run_id} again ({self.state}): every agent gets a full window")

    # What arrives

    def agent_id(self, name: str) -> int:
        """The agent's number in the database; Unknown if it is not one of this run."""
        return self._agent(name).id

    def ready(self, name: str, ready: Ready) -> dict[str, Any]:
        """The answer to an armed agent that asks for the start: waiting, start or abort."""
        agent = self._agent(name)
        if agent.epoch != ready.epoch:
            self._admit(agent, ready)
        if agent.epoch == ready.epoch and agent.ready != ready:
            if agent.ready is None or agent.ready.epoch != ready.epoch:
                rate = ready.calibrated_bytes_per_second
                speed = f" (its disk writes about {rate / 1e6:.0f} MB/s)" if rate else ""
                self._say(f"{name} is ready on {ready.host}{speed}")
            agent.ready = ready
            self.outbox.append(Armed(agent.id, ready))
        agent.polled = True
        agent.phase = agent.phase or "armed"
        self._heard(agent, ready.epoch)
        if self._is_ready(agent):
            self._missing.pop(name, None)
        self._open_barrier()
        now = self._clock()
        answer: dict[str, Any] = {"collector_mono_s": now}
        if self.state == "aborted":
            return {"state": "abort", "reason": self.reason, **answer}
        if self.stop_reason is not None:
            return {"state": "abort", "reason": f"the run was stopped: {self.stop_reason}", **answer}
        if self.state == "finished" or agent.final is not None:
            return {"state": "abort", "reason": "the run is over for this agent", **answer}
        if self.start_mono_s is not None:
            return {"state": "start", "start_in_s": self.start_mono_s - now, **answer}
        return {
            "state": "waiting",
            "missing": list(itertools.islice(self._missing, 50)),
            "missing_count": len(self._missing),
            "ask_in_s": self._ask_in_s,
            **answer,
        }

    def heard(self, name: str, epoch: str) -> None:
        """An agent's well-formed push has arrived, whatever becomes of it."""
        self._heard(self._agent(name), epoch)

    def stored(self, name: str, epoch: str, result: Stored) -> Optional[str]:
        """Take in what was stored of an agent's push; the command for it: None or stop."""
        agent = self._agent(name)
        if agent.epoch is None:
            agent.epoch = epoch
        one = agent.epochs.setdefault(epoch, _Epoch())
        one.heard = self._clock()
        before = agent.phase
        for event in result.fresh:
            self._event(agent, epoch, one, event)
            one.last_mono_ns = max(one.last_mono_ns, event.t_mono_ns)
        one.receipt = one.receipt or result.receipt
        if agent.receipt:
            self._change(agent, "finished", 0.0)
        if (agent.phase != before or agent.health == "finished") and (
            len(self._agents) < LARGE_FLEET or self._clock() - self._progressed >= PROGRESS_EVERY_S
        ):
            self._progress()
        return "stop" if self.stop_reason is not None or self.state == "aborted" else None

    def conflict(self, name: str, error: Conflict) -> None:
        """Raise the alarm that an agent's push contradicts what is stored; at most one in 10 s for each agent."""
        agent = self._agent(name)
        if self._clock() - agent.alarmed >= ALARM_EVERY_S:
            agent.alarmed = self._clock()
            self._say(f"ALARM: a push of {name} was refused: {error.message}", "error")

    def stop(self, reason: str) -> None:
        """Tell every agent to stop with its next answer; before the start the run is aborted."""
        if self.stop_reason is not None or self.state in ("finished", "aborted"):
            return
        self.stop_reason = reason
        self._stopped = self._clock()
        if self.state == "arming":
            self._abort(f"the run was stopped before it started: {reason}")
        else:
            self._say(f"the run is being stopped: {reason}", "warning")
            self._record_state()

    def close(self) -> None:
        """The controller has what it needs: the collector may exit."""
        self._closed = True

    def trouble(self, error: Unavailable) -> None:
        """Tell people, at most once in 10 s, that the database refuses to be written."""
        if self._clock() - self._troubled >= ALARM_EVERY_S:
            self._troubled = self._clock()
            self._say(f"pushes are refused for now: {error.message}", "error")

    # What time does

    def tick(self) -> None:
        """Look at the clock: the barrier, the start, everybody's silence, the end; call it about twice a second."""
        now = self._clock()
        gap = now - self._ticked
        self._ticked = now
        if gap > STANDSTILL_S:
            # Silence while this process itself did not run is nobody's fault.
            for agent in self._agents.values():
                if agent.heard is not None:
                    agent.heard = min(now, agent.heard + gap)
                for epoch in agent.epochs.values():
                    epoch.heard = None if epoch.heard is None else min(now, epoch.heard + gap)
            self._opened += gap
            self._say(f"the collector itself stood still for {gap:.1f} s: every agent gets that time back", "warning")
        if self.state == "arming":
            self._missing = dict.fromkeys(self.missing())
        self._open_barrier()
        if self.state == "arming" and now - self._opened > self._barrier_seconds:
            self._abort(self._barrier_reason())
        self._judge(now)
        self._progress()
        self._tell_rollovers(now)
        elapsed = self._elapsed()
        if self.state in ("running", "draining") and self._curve.wants(elapsed):
            rate = sum(agent.rate for agent in self._agents.values())
            if rate or self._curve.values:  # until the first word of anybody 0 would be a guess
                self._curve.add(elapsed, rate)

    @property
    def revoked(self) -> bool:
        """Whether the agents' tokens are void: the drain is over, and its last answers have had their time."""
        since = 0.0 if self._end_wall is None else self._wall() - self._end_wall  # also of an earlier process
        return self._closed or since > (ABORT_LINGER_S if self.state == "aborted" else LINGER_S)

    @property
    def over(self) -> bool:
        """Whether the collector may exit: closed, or finished or aborted long enough for the last answers."""
        if self._closed:
            return True
        if self._ended is None:
            return False
        since = self._clock() - self._ended
        if self.state == "aborted" and since < ABORT_LINGER_S:
            silent = [a for a in self._agents.values() if a.heard is not None and a.health == "green" and not a.receipt]
            return since > LINGER_S and not silent
        return since > LINGER_S

    # What is shown

    @property
    def messages(self) -> Sequence[Message]:
        """The newest messages."""
        return tuple(self._messages)

    @property
    def start_skew_s(self) -> Optional[float]:
        """How far apart first writes were at most, seconds; None until all have told or 5 s have passed."""
        starts = [agent.start for agent in self._agents.values() if agent.start is not None]
        if not starts or self.start_mono_s is None:
            return None
        if len(starts) < len(self._agents) and self._clock() < self.start_mono_s + 5:
            return None
        return start_skew_s(starts)

    def missing(self) -> list[str]:
        """The agents the barrier waits for, by name."""
        if self.state not in ("arming", "aborted") or self.start_mono_s is not None:
            return []
        return [agent.name for agent in self._agents.values() if not self._is_ready(agent)]

    def failed(self) -> int:
        """How many agents have said a last word that is another verdict than PASS."""
        return sum(agent.final is not None and agent.final["verdict"] != "PASS" for agent in self._agents.values())

    def pending(self) -> int:
        """How many events the agents had not delivered when they sent their newest heartbeats; none once they are through."""
        return sum(agent.pending for agent in self._agents.values() if not agent.receipt)

    def silence(self) -> float:
        """For how many seconds the least recently heard agent has been silent, of those that still have something to say."""
        now = self._clock()
        return max(
            (now - one.heard for one in self._agents.values() if one.heard is not None and one.health != "finished"),
            default=0.0,
        )

    def health(self) -> dict[str, int]:
        """How many agents are in each state of health."""
        counts = dict.fromkeys(HEALTHS, 0)
        for agent in self._agents.values():
            counts[agent.health] += 1
        return counts

    def targets(self) -> list[dict[str, Any]]:
        """Prometheus' http_sd answer: agents from ready until finished."""
        if self.state in ("finished", "aborted"):
            return []
        return [
            {
                "targets": [_address(agent.ready.metrics_address, agent.ready.metrics_port)],
                "labels": {"agent": agent.name, "host": agent.host} | ({"__scheme__": "https"} if self._secure else {}),
            }
            for agent in self._agents.values()
            if agent.ready is not None and agent.ready.metrics_port and agent.health != "finished"
        ]

    def figures(self) -> list[Figures]:
        """The newest figures of every agent, in the plan's order."""
        now = self._clock()
        return [agent.figures(now) for agent in self._agents.values()]

    @property
    def curve(self) -> tuple[float, list[Optional[float]]]:
        """The fleet's rate from the common start on: seconds of a step, and the bytes per second of each (None: unknown).

        It is kept in memory: a collector that took the run up again knows only what came after that.
        """
        return self._curve.step_s, self._curve.values

    def overview(self) -> dict[str, Any]:
        """The run's state without agents and messages, and so of the same size for every fleet but for `missing`."""
        agents = list(self._agents.values())
        return {
            "run_id": self.run_id,
            "state": self.state,
            "reason": self.reason if self.reason is not None else self.stop_reason,
            "elapsed_s": self._elapsed(),
            "total_s": max(agent.seconds for agent in agents),
            "start_skew_s": self.start_skew_s,
            "collector_mono_s": self._clock(),
            "fleet": {
                "agents_expected": len(agents),
                "written_bytes": sum(agent.written for agent in agents),
                "bytes_per_second": sum(agent.rate for agent in agents),
                "rollovers": sum(agent.rollovers for agent in agents),
            },
            "health": self.health(),
            "writing": sum(agent.phase == "writing" and agent.health != "finished" for agent in agents),
            "missing": self.missing(),
        }

    def snapshot(self) -> dict[str, Any]:
        """The run's state as GET /api/v1/runs/{run_id} gives it."""
        return {
            **self.overview(),
            "agents": [
                {
                    "name": agent.name,
                    "host": agent.host,
                    "health": agent.health,
                    "phase": agent.phase,
                    "written_bytes": agent.written,
                    "bytes_per_second": agent.rate,
                    "rollovers": agent.rollovers,
                    "verdict": agent.final["verdict"] if agent.final else None,
                    "reason": agent.final["reason"] if agent.final else None,
                    "receipt": agent.receipt,
                }
                for agent in self._agents.values()
            ],
            "messages": [vars(message) for message in self._messages],
        }

    def now(self) -> float:
        """The collector's monotonic clock, seconds."""
        return self._clock()

    def take_outbox(self) -> list[Record]:
        """What is to be recorded since the last call, in order."""
        taken, self.outbox = self.outbox, []
        return taken

    # Inside

    def _agent(self, name: str) -> _Agent:
        agent = self._agents.get(name)
        if agent is None:
            raise Unknown(f"run {self.run_id} has no agent of that name: its plan names {_names(self._agents)}")
        return agent

    def _admit(self, agent: _Agent, ready: Ready) -> None:
        """Make a newcomer the agent's current process, or refuse it beside another one that lives."""
        known = agent.epochs.get(ready.epoch)
        if known is not None and known.replaced:
            raise Conflict(f"{agent.name} has been replaced by a newer process of the same name (epoch {agent.epoch})")
        if agent.final is not None:
            return  # it has ended already: the newcomer is told to abort
        if agent.epoch is not None and ready.after != agent.epoch:
            heard = agent.current.heard
            if agent.current.started and heard is not None and self._clock() - heard < LATE_S:
                raise Conflict(f"another live process of {agent.name} (epoch {agent.epoch}) has already started")
        self._succeed(agent, ready.epoch)
        if agent.restarts:
            self._say(f"{agent.name} restarted ({agent.restarts}x)", "warning")
        agent.phase = "armed"

    def _succeed(self, agent: _Agent, epoch: str) -> None:
        """Give the agent's place to another of its processes."""
        if agent.epoch is not None:
            agent.current.replaced = True
        agent.epoch = epoch
        agent.epochs.setdefault(epoch, _Epoch())
        agent.points.clear()
        agent.rolled = agent.rolled_p99_s = agent.began_ns = agent.sample = None

    def _heard(self, agent: _Agent, epoch: str) -> None:
        now = self._clock()
        silent = 0.0 if agent.heard is None else now - agent.heard
        agent.heard = now
        if epoch in agent.epochs:
            agent.epochs[epoch].heard = now
        if agent.health == "finished":
            return
        if agent.health in SILENT or agent.silent_since_wall is not None:
            if agent.silent_since_wall is not None:
                silent = max(silent, self._wall() - agent.silent_since_wall)
            self._all_silent = False
            self._say(f"{agent.name} is back after {silent:.1f} s of silence")
            agent.silent_since_wall = None
            agent.health = "green"
            self.outbox.append(Transition(agent.id, self._wall(), "recovered", silent))
        self._change(agent, "green", silent)

    def _change(self, agent: _Agent, health: str, silent: float) -> None:
        if agent.health != health:
            agent.health = health
            self.outbox.append(Transition(agent.id, self._wall(), health, silent))

    def _event(self, agent: _Agent, epoch: str, one: _Epoch, event: Event) -> None:
        payload = event.payload
        current = agent.epoch == epoch
        if event.kind == "rollover":
            one.rollovers += payload["ramp_bytes"] < payload["bytes"]
            one.durable_bytes += payload["bytes"] - payload["ramp_bytes"]
            one.ramp_bytes += payload["ramp_bytes"]
            if current:
                agent.rolled = (event.t_mono_ns, one.durable_bytes + one.ramp_bytes)
                agent.rolled_p99_s = payload["write_p99_s"]
            self._rolled[agent.name] = self._rolled.get(agent.name, 0) + 1
            if len(self._rolled) == 1 and self._rolled[agent.name] == 1:
                size, seconds = payload["bytes"], payload["seconds"]
                speed = f", {size / seconds / 1e6:.1f} MB/s" if seconds else ""
                self._roll_sample = (
                    f"{agent.name} rolled over chunk {payload['chunk']}: {size / 1e6:.0f} MB in {seconds:.2f} s{speed}"
                )
            if current and one.final is None and agent.phase != "draining":
                agent.phase = "writing"
        elif event.kind == "heartbeat":
            one.heartbeat_bytes = max(one.heartbeat_bytes, payload["written_bytes"])
            if current and (not agent.points or event.t_mono_ns > agent.points[-1][0]):
                if one.final is None:
                    agent.phase = payload["phase"]
                    agent.pending = payload["pending_events"]
                agent.points.append((event.t_mono_ns, payload["written_bytes"]))
        elif event.kind == "start":
            if not current and agent.current.started and event.t_mono_ns > agent.current.last_mono_ns:
                # It wrote on without asking here, since nobody answered; the clock of its host says who came later.
                current = agent.final is None
                if current:
                    self._succeed(agent, epoch)
                    self._say(f"{agent.name} restarted ({agent.restarts}x)", "warning")
            one.started = True
            one.replaced = one.replaced or not current
            if current and one.final is None and agent.phase != "draining":
                agent.phase = "writing"
            if current:
                agent.began_ns = event.t_mono_ns
            if current and not any(written for _, written in agent.points):
                agent.points.clear()  # the time at the barrier is no time of writing
                agent.points.append((event.t_mono_ns, 0))
            if agent.start is None:
                agent.start = _start(payload)
            size = payload["chunk_bytes"] / 1e6
            again = "again " if current and agent.restarts else ""
            self._say(f"{agent.name} started {again}writing {size:.0f} MB chunks on {agent.host}")
            self._tell_skew()
        elif event.kind == "sample":
            if current and (agent.sample is None or event.t_mono_ns > agent.sample.t_mono_ns):
                agent.sample = _Sample(event.t_mono_ns, payload)
        elif event.kind == "error":
            agent.errors_shown += 1
            if agent.errors_shown <= SHOWN_ERRORS:
                self._say(f"{agent.name} reports: {payload['message']}", "error")
            if agent.errors_shown == SHOWN_ERRORS:
                self._say(f"further errors of {agent.name} are stored but not shown", "error")
        elif event.kind == "final":
            self._final(agent, one, payload, current=current)

    def _final(self, agent: _Agent, one: _Epoch, payload: dict[str, Any], *, current: bool) -> None:
        one.final = payload
        if agent.word is one:
            agent.phase = "finished"
        verdict, why = payload["verdict"], payload["reason"]
        obeyed = (
            verdict == "INCOMPLETE" and called_off(why) and (self.stop_reason is not None or self.state == "aborted")
        )
        level = "info" if verdict == "PASS" or obeyed else "error"
        if current and not one.started and self.state in ("arming", "starting"):
            told = f"{agent.name} ended before the start: {verdict}{': ' + why if why else ''}"
            self._say(told, level)
            self._abort(f"the run was stopped before it started: {self.stop_reason}" if obeyed else told, tell=False)
            return
        self._say(
            f"{agent.name} stopped after {payload['seconds']:.1f} s: {payload['written_bytes'] / 1e9:.2f} GB, "
            f"{payload['rollovers']} rollovers, {verdict}{': ' + why if why and verdict != 'PASS' else ''}",
            level,
        )

    def _is_ready(self, agent: _Agent) -> bool:
        return (
            agent.ready is not None
            and agent.polled
            and agent.heard is not None
            and self._clock() - agent.heard <= LATE_S
            and agent.final is None
        )

    def _open_barrier(self) -> None:
        if self.state != "arming" or self._missing:
            return
        self._missing = dict.fromkeys(self.missing())  # who was ready may have fallen silent
        if self._missing:
            return
        number = len(self._agents)
        ahead_s = min(START_AHEAD_MOST_S, START_AHEAD_S + number * START_AHEAD_AGENT_S)
        if self._ask_in_s > ASK_IN_S:
            ahead_s = max(ahead_s, self._ask_in_s + ASK_MARGIN_S)
        self.start_mono_s = self._clock() + ahead_s
        self._start_wall = self._wall() + ahead_s
        self.state = "starting"
        self._record_state()
        self._say(f"{number} of {_agents(number)} ready: common start in {ahead_s:.1f} s")

    def _barrier_reason(self) -> str:
        now = self._clock()
        never, silent = [], []
        for agent in self._agents.values():
            if agent.heard is None:
                never.append(agent.name)
            elif not self._is_ready(agent):
                silent.append(f"{agent.name} (silent for {now - agent.heard:.1f} s)")
        told = ""
        if never:
            told += f"; never ready: {_names(never)}"
        if silent:
            told += f"; ready once, but no more: {_names(silent)}"
        return f"not all agents were ready within {self._barrier_seconds:g} s{told}"

    def _abort(self, reason: str, *, tell: bool = True) -> None:
        if self.state in ("finished", "aborted"):
            return
        self.state = "aborted"
        self.reason = reason
        if tell:
            self._say(f"the run is aborted: {reason}", "error")
        self._end()

    def _end(self) -> None:
        self._ended = self._clock()
        self._end_wall = self._wall()
        self._record_state()

    def _judge(self, now: float) -> None:
        """Compare everybody's silence with the limits, and tell what changed."""
        changes: dict[str, list[tuple[_Agent, float]]] = {}
        judged = [a for a in self._agents.values() if a.heard is not None and a.health != "finished"]
        for agent in judged:
            silent = now - (agent.heard or now)
            health = "green"
            for name, limit in (("late", LATE_S), ("suspect", SUSPECT_S), ("lost", LOST_S)):
                if silent > limit:
                    health = name
            if health != agent.health:
                self._change(agent, health, silent)
                changes.setdefault(health, []).append((agent, silent))
        for health, changed in changes.items():
            if health == "green" or (self._all_silent and health != "lost"):
                continue
            level = "error" if health == "lost" else "warning"
            if len(changed) <= 3:
                for agent, silent in changed:
                    self._say(f"{agent.name} is {health}: nothing heard for {silent:.1f} s", level)
            else:
                names = _names(agent.name for agent, _ in changed)
                silent = min(silent for _, silent in changed)
                self._say(f"{len(changed)} agents are {health}: nothing heard for {silent:.1f} s: {names}", level)
        if len(judged) > 1 and not self._all_silent and all(a.health not in ("green", "waiting") for a in judged):
            self._all_silent = True
            silent = min(now - (agent.heard or now) for agent in judged)
            self._say(
                f"nothing heard from any of {len(judged)} agents for {silent:.1f} s: collector or network", "error"
            )

    def _progress(self) -> None:
        """Move the run on: running, draining, finished."""
        now = self._progressed = self._clock()
        if self.state not in ("starting", "running", "draining") or self.start_mono_s is None:
            return
        agents = list(self._agents.values())
        if self.state == "starting" and now < self.start_mono_s and not all(agent.receipt for agent in agents):
            return
        if not any(agent.health != "finished" and now < self._patience(agent, now) for agent in agents):
            self.state = "finished"
            self._end()
            self._tell_rollovers(now)
            lost = [agent.name for agent in agents if agent.health == "lost"]
            if lost:
                told = f"{len(agents) - len(lost)} of {_agents(len(agents))} delivered everything; lost: {_names(lost)}"
            else:
                told = f"{_agents(len(agents))} delivered everything"
            self._say(f"the run has finished: {told}", "warning" if lost else "info")
            return
        self._tell_held(now)
        writing = any(
            agent.health != "finished"
            and agent.phase in ("armed", "writing")
            and (agent.health != "lost" or now < self.start_mono_s + agent.seconds)
            for agent in agents
        )
        state = "running" if writing else "draining"
        if state != self.state:
            if self.state == "starting":
                self._roll_told = self.start_mono_s
            self.state = state
            self._record_state()
            if state == "draining":
                self._say("no agent writes any more: waiting for their last events")

    def _patience(self, agent: _Agent, now: float) -> float:
        """Until when the run is held open for an agent: for ever while it is heard, lost as long as it may come back."""
        if agent.health != "lost" or self.start_mono_s is None:
            return float("inf")
        until = self.start_mono_s + agent.seconds + agent.drain_s
        return until if self._stopped is None else min(until, self._stopped + agent.drain_s)

    def _tell_held(self, now: float) -> None:
        """Say, when only lost agents are left, for how long the run is held open for them."""
        left = [agent for agent in self._agents.values() if agent.health != "finished"]
        held = [agent.name for agent in left] if all(agent.health == "lost" for agent in left) else []
        if held and held != self._held:
            longest = max(self._patience(agent, now) for agent in left) - now
            self._say(
                f"lost, but possibly still writing: {_names(held)}; the run is held open for {longest:.0f} s at most",
                "warning",
            )
        self._held = held

    def _record_state(self) -> None:
        self.outbox.append(
            RunState(
                state=self.state,
                reason=self.reason,
                boot_id=self._boot_id if self.start_mono_s is not None else None,
                start_mono_s=self.start_mono_s,
                start_wall=self._start_wall,
                stop_reason=self.stop_reason,
                end_wall=self._end_wall,
            )
        )

    def _elapsed(self) -> float:
        if self.start_mono_s is None:
            return 0.0
        if self._lasted is not None:
            return self._lasted
        until = self._ended if self._ended is not None else self._clock()
        return max(0.0, until - self.start_mono_s)

    def _tell_skew(self) -> None:
        skew = self.start_skew_s
        if skew is not None and not self._skew_told:
            self._skew_told = True
            started = sum(agent.start is not None for agent in self._agents.values())
            self._say(f"{started} of {_agents(len(self._agents))} started within {skew * 1000:.1f} ms")

    def _tell_rollovers(self, now: float) -> None:
        """Print rollovers: at most one line a second at first, ever fewer in a long run; they are no messages."""
        since = now - self._roll_told
        if not self._rolled or (since < max(1.0, self._elapsed() / 60) and not self._ended):
            return
        count = sum(self._rolled.values())
        if count == 1:
            self._tell(self._roll_sample)
        else:
            who = sorted(self._rolled.items(), key=lambda item: (-item[1], item[0]))
            listed = ", ".join(f"{name} {number}" for name, number in who[:5])
            more = f" and {len(who) - 5} more agents" if len(who) > 5 else ""
            last = f"{since:.0f} s" if since >= 1.5 else "second"
            self._tell(f"{count} rollovers in the last {last} ({listed}{more})")
        self._rolled = {}
        self._roll_told = now

    def _say(self, text: str, level: str = "info") -> None:
        message = Message(self._next_message, self._wall(), level, text)
        self._next_message += 1
        self._messages.append(message)
        self.outbox.append(message)
        self._tell(text)


def _start(payload: dict[str, Any]) -> Optional[tuple[float, float]]:
    instant = payload["start_collector_mono_s"]
    return None if instant is None else (instant, payload["rtt_s"] or 0.0)


def _restored(rows: AgentRows, now: float) -> _Agent:
    """An agent as the database has it; whoever was heard before gets a full window from now."""
    agent = _Agent(
        id=rows.id,
        name=rows.name,
        host=rows.host,
        chunk_mb=rows.chunk_mb,
        seconds=rows.seconds,
        drain_s=rows.drain_seconds,
        ready=rows.ready,
    )
    for epoch in rows.epochs:
        agent.epochs[epoch.epoch] = _restored_epoch(epoch)
        if epoch.start is not None and agent.start is None:
            agent.start = _start(epoch.start.payload)
    agent.epoch = _current(rows)
    if agent.epoch is None:
        return agent
    agent.epochs.setdefault(agent.epoch, _Epoch())
    agent.current.heard = agent.heard = now
    agent.health = "finished" if agent.receipt else "green"
    last = rows.liveness[-1] if rows.liveness else None
    if last is not None and last.health in SILENT:
        agent.silent_since_wall = last.t_wall - last.silent_s
    for name, one in agent.epochs.items():
        one.replaced = name != agent.epoch and one.started
    agent.phase = "armed"
    stored = next((epoch for epoch in rows.epochs if epoch.epoch == agent.epoch), None)
    if stored is not None:
        if stored.start is not None:
            agent.phase = "writing"
            agent.began_ns = stored.start.t_mono_ns
        if stored.heartbeat is not None:
            agent.phase = stored.heartbeat.payload["phase"]
            agent.points.append((stored.heartbeat.t_mono_ns, stored.heartbeat.payload["written_bytes"]))
    if agent.final is not None:
        agent.phase = "finished"
    return agent


def _current(rows: AgentRows) -> Optional[str]:
    """The process that holds the agent's place: the last one admitted, or one that wrote on after it without asking."""
    writer = rows.last_writer
    if rows.ready is None:
        last = writer if writer is not None else next(iter(reversed(rows.epochs)), None)
        return last.epoch if last is not None else None
    order = [epoch.epoch for epoch in rows.epochs]
    if writer is not None and rows.ready.epoch in order and order.index(rows.ready.epoch) < order.index(writer.epoch):
        return writer.epoch
    return rows.ready.epoch


def _restored_epoch(rows: EpochRows) -> _Epoch:
    return _Epoch(
        started=rows.wrote,
        last_mono_ns=rows.last_t_mono_ns,
        final=rows.final.payload if rows.final is not None else None,
        receipt=rows.receipt,
        heartbeat_bytes=rows.heartbeat.payload["written_bytes"] if rows.heartbeat is not None else 0,
        durable_bytes=rows.rollover_bytes,
        ramp_bytes=rows.ramp_bytes,
        rollovers=rows.rollovers,
    )


def _agents(number: int) -> str:
    return "1 agent" if number == 1 else f"{number} agents"


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    shown = ", ".join(listed[:10])
    return shown if len(listed) <= 10 else f"{shown} and {len(listed) - 10} more"


def _address(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
