"""Follows a run at the collector until it has ended, and says what happens in words."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

POLL_S = 0.25
SLOW_POLL_S = 1.0
BUSY = 0.1  # the share of its time that the collector may spend on these answers: a large fleet's cost it something
PLAIN_LINE_EVERY_S = 10.0  # without a terminal a progress line is a line of its own: fewer of them
TIMEOUT_S = 5.0
PATIENCE_S = 15.0  # how long the collector may be silent before it is said
STOPPING_S = 30.0  # how long a stopped run may take to deliver what it has


@dataclass(frozen=True)
class Outcome:
    """How following ended. state: the run's last known state, ``overdue`` or ``unreachable``; reason: a sentence or None."""

    state: str
    reason: str | None
    agents: list[dict[str, Any]]
    start_skew_s: float | None


def names(some: list[str], most: int = 5) -> str:
    """``some`` names as a list for a sentence, at most ``most`` of them spelled out."""
    spelled = ", ".join(some[:most])
    return spelled if len(some) <= most else f"{spelled} and {len(some) - most} more"


def progress(state: Mapping[str, Any]) -> str:
    """The one line that tells how the run is going."""
    health = state["health"]
    fleet = state["fleet"]
    total = state["total_s"]
    elapsed = min(max(state["elapsed_s"], 0.0), total)
    parts = [
        f"{elapsed:3.0f} of {total:.0f} s",
        f"{fleet['bytes_per_second'] / 1e6:8.1f} MB/s",
        f"{fleet['rollovers']} rollovers",
        f"{health['green']} green",
    ]
    parts += [f"{health[sign]} {sign}" for sign in ("late", "suspect", "lost", "finished") if health[sign]]
    return " | ".join(parts)


class Follower:
    """One run seen from the controller.

    opener: reaches the collector as its run's controller; reading: who may read the live page, for the terminal;
    say: prints a line for good; show: shows the progress line, replaced by the next (None where there is no terminal);
    interrupted: asked between two questions to the collector, True once the user wants to stop.
    """

    def __init__(
        self,
        *,
        url: str,
        run_id: str,
        opener: urllib.request.OpenerDirector,
        reading: str,
        say: Callable[[str], None],
        show: Callable[[str], None] | None,
        interrupted: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._page = f"{url}/"
        self._url = f"{url}/api/v1/runs/{run_id}"
        self._open, self._reading = opener.open, reading
        self._say, self._show, self._interrupted = say, show, interrupted
        self._clock, self._sleep = clock, sleep
        self._seen_messages = -1
        self._shown_at = clock()  # the first plain line after a while: short waits need none
        self._told: set[str] = set()

    def follow(self, *, arming_s: float, running_s: float) -> Outcome:
        """Follow until the run has ended, whatever becomes of the collector.

        arming_s: how long it may take until the start; running_s: how long from the start until every agent has ended by
        itself. A collector that is gone does not end the run: agents go on and keep their events.
        """
        last: dict[str, Any] | None = None
        heard = self._clock()
        deadline = heard + arming_s
        while True:
            now = self._clock()
            if self._interrupted() and "interrupted" not in self._told:
                self._once("interrupted", "stopping: every agent is told to stop, then the hosts are cleaned")
                self.post("stop", reason="interrupted by the user")
                deadline = min(deadline, now + STOPPING_S)
            try:
                last = self._get()
            except (OSError, ValueError) as error:
                if last is not None and last["state"] in ("finished", "aborted"):
                    return self._outcome(last)
                self._silent(now - heard, error, started=last is not None and last["state"] != "arming")
                if last is None and now - heard > PATIENCE_S:
                    return self._gone(last, f"the collector at {self._url} has never answered ({error})")
            else:
                if last["state"] not in ("arming", "aborted") and "running" not in self._told:
                    self._told.add("running")
                    deadline = now + (STOPPING_S if "interrupted" in self._told else running_s)
                if now - heard > PATIENCE_S:
                    self._say(f"the collector answers again after {now - heard:.0f} s")
                    self._told.discard("silent")
                heard = now
                self._report(last)
                if last["state"] in ("finished", "aborted"):
                    return self._outcome(last)
            if now > deadline:
                if now - heard > PATIENCE_S:
                    return self._gone(
                        last, f"the collector had not answered for {now - heard:.0f} s when the run was over"
                    )
                return self._overdue(last)
            self._sleep(max(POLL_S, min(SLOW_POLL_S, (self._clock() - now) / BUSY)))

    def post(self, action: str, **body: str) -> None:
        """Ask the collector to ``stop`` or ``close`` the run; that it is gone already is no trouble."""
        request = urllib.request.Request(
            f"{self._url}/{action}", json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        with contextlib.suppress(OSError):  # following goes on and will see for itself
            self._open(request, timeout=TIMEOUT_S).close()

    # -- internals

    def _silent(self, seconds: float, error: Exception, *, started: bool) -> None:
        if seconds > PATIENCE_S and started:
            self._once(
                "silent",
                f"error: the collector at {self._url} has not answered for {seconds:.0f} s ({error}); the agents go on "
                "without it and keep their events until the end",
            )

    def _overdue(self, last: dict[str, Any] | None) -> Outcome:
        """Every agent has ended by itself by now; what some could not deliver in their time is with them."""
        agents = list(last["agents"]) if last else []
        waiting = [agent["name"] for agent in agents if not agent["receipt"]]
        self._say(f"drained: what {names(waiting)} could not deliver in time is fetched from the hosts")
        return Outcome("overdue", None, agents, last["start_skew_s"] if last else None)

    @staticmethod
    def _gone(last: Mapping[str, Any] | None, reason: str) -> Outcome:
        return Outcome(
            "unreachable",
            f"{reason}; if it runs, fury_collector_address has to name an address at which this controller and all hosts "
            "reach it, if it has ended, collector.log in the results says why",
            list(last["agents"]) if last else [],
            last["start_skew_s"] if last else None,
        )

    def _get(self) -> dict[str, Any]:
        with self._open(self._url, timeout=TIMEOUT_S) as answer:
            state: dict[str, Any] = json.load(answer)
        return state

    def _report(self, state: dict[str, Any]) -> None:
        """Say what is new in ``state``."""
        if state["state"] not in ("arming", "aborted"):
            armed = len(state["agents"]) - len(state["missing"])
            expected = state["fleet"]["agents_expected"]
            self._once(
                "armed", f"armed: {armed} of {expected} agents are ready; live page: {self._page} ({self._reading})"
            )
        if state["state"] in ("running", "draining", "finished") and state["start_skew_s"] is not None:
            if "started" not in self._told:
                self._shown_at = float("-inf")
            self._once("started", f"started: all agents within {state['start_skew_s'] * 1000:.1f} ms")
        for message in state["messages"]:
            if message["n"] > self._seen_messages:
                self._seen_messages = message["n"]
                if message["level"] != "info":
                    self._say(f"{message['level']}: {message['text']}")
        if state["state"] == "running" and "started" in self._told:
            if self._show is not None:
                self._show(progress(state))
            elif self._clock() - self._shown_at >= PLAIN_LINE_EVERY_S:
                self._shown_at = self._clock()
                self._say(progress(state))
        elif state["state"] == "arming":
            waiting = f"arming: waiting for {names(state['missing'])}"
            if self._show is not None:
                self._show(waiting)
            elif self._clock() - self._shown_at >= PLAIN_LINE_EVERY_S:
                self._shown_at = self._clock()
                self._say(waiting)
        elif state["state"] == "finished":
            received = sum(agent["receipt"] for agent in state["agents"])
            rest = "" if received == len(state["agents"]) else "; what the others have is fetched from their hosts"
            self._once(
                "drained", f"drained: every event of {received} of {len(state['agents'])} agents is stored{rest}"
            )
        elif state["state"] == "aborted":
            self._once("aborted", f"not started: {state['reason']}")

    def _once(self, key: str, line: str) -> None:
        if key not in self._told:
            self._told.add(key)
            self._say(line)

    @staticmethod
    def _outcome(state: Mapping[str, Any]) -> Outcome:
        return Outcome(state["state"], state["reason"], list(state["agents"]), state["start_skew_s"])
