"""The controller follows a run through whatever becomes of its collector; the peer is a real HTTP server with a script."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from fury_controller import follow
from fury_controller.follow import Follower, Outcome, progress


def state(name: str, **more: Any) -> dict[str, Any]:
    """A run's state as the collector tells it."""
    agent = {"name": "alecto", "receipt": name == "finished"}
    return {
        "state": name,
        "reason": None,
        "elapsed_s": 5.0,
        "total_s": 60.0,
        "start_skew_s": 0.001,
        "fleet": {"agents_expected": 1, "bytes_per_second": 2e8, "rollovers": 7},
        "health": {"waiting": 0, "green": 1, "late": 0, "suspect": 0, "lost": 0, "finished": 0},
        "missing": [],
        "agents": [agent],
        "messages": [],
        **more,
    }


class Peer:
    """Answers each question with the next of ``script``, the last one for ever; None closes the connection without an answer."""

    def __init__(self, script: list[dict[str, Any] | None]) -> None:
        self.script, self.asked, self.posted = script, 0, list[dict[str, Any]]()
        peer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = peer.script[min(peer.asked, len(peer.script) - 1)]
                peer.asked += 1
                if answer is None:
                    self.close_connection = True
                    return
                self._give(answer)

            def do_POST(self) -> None:
                peer.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self._give({})

            def _give(self, answer: dict[str, Any]) -> None:
                body = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def peer() -> Iterator[Callable[..., Peer]]:
    """Makes peers and stops them."""
    made: list[Peer] = []

    def make(*script: dict[str, Any] | None) -> Peer:
        made.append(Peer(list(script)))
        return made[-1]

    yield make
    for one in made:
        one.server.shutdown()
        one.server.server_close()


def following(
    peer: Peer, *, interrupted: bool = False, asking_s: float = 0.0, slept: list[float] | None = None
) -> tuple[Outcome, list[str]]:
    """Follow with a clock that runs as fast as it is asked, each answer taking `asking_s`; what was said comes back too."""
    said: list[str] = []
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if slept is not None:
            slept.append(seconds)

    def asked() -> bool:
        now[0] += asking_s
        return interrupted

    follower = Follower(
        url=peer.url,
        run_id="r",
        opener=urllib.request.build_opener(),
        reading="user fury",
        say=said.append,
        show=None,
        interrupted=asked,
        clock=lambda: now[0],
        sleep=sleep,
    )
    return follower.follow(arming_s=300, running_s=120), said


def test_a_run_is_told_from_its_start_to_its_end(peer: Callable[..., Peer]) -> None:
    """Armed, started with the skew, progress, drained; each once."""
    outcome, said = following(
        peer(state("arming"), state("starting", start_skew_s=None), state("running"), state("finished"))
    )
    assert outcome.state == "finished"
    assert [line.split(":")[0].strip() for line in said] == [
        "armed",
        "started",
        said[2].split(":")[0].strip(),
        "drained",
    ]
    assert "200.0 MB/s" in said[2]


@pytest.mark.parametrize(("asking_s", "pause_s"), [(0.001, 0.25), (0.06, 0.6), (0.5, 1.0)])
def test_a_large_fleet_is_asked_for_less_often(peer: Callable[..., Peer], asking_s: float, pause_s: float) -> None:
    """Four times a second, unless that were more than a tenth of the collector's time; once a second at least."""
    slept: list[float] = []
    following(peer(*[state("running")] * 3, state("finished")), asking_s=asking_s, slept=slept)
    assert slept == pytest.approx([pause_s] * 3)


def test_a_collector_that_is_away_for_a_while_does_not_end_the_run(peer: Callable[..., Peer]) -> None:
    """It is said after 15 s, and that it is back; then the run goes on as if nothing had been."""
    outcome, said = following(peer(state("running"), *[None] * 80, state("running"), state("finished")))
    assert outcome.state == "finished"
    assert any("has not answered for" in line and "the agents go on" in line for line in said)
    assert any("answers again" in line for line in said)


def test_a_collector_that_is_gone_for_good_is_waited_for_until_the_agents_are_done(peer: Callable[..., Peer]) -> None:
    """The agents write to their end; what they have is fetched after it."""
    made = peer(state("running"), None)
    outcome, _ = following(made)
    assert outcome.state == "unreachable"
    assert made.asked >= 120 / follow.POLL_S
    assert [agent["receipt"] for agent in outcome.agents] == [False]


def test_a_collector_that_never_answers_ends_it_soon(peer: Callable[..., Peer]) -> None:
    """Nothing has started, so nothing is lost."""
    outcome, _ = following(peer(None))
    assert outcome.state == "unreachable"
    assert "fury_collector_address" in str(outcome.reason)


def test_ctrl_c_stops_the_run_once(peer: Callable[..., Peer]) -> None:
    """One word to the collector, then the end is waited for."""
    made = peer(state("running"), state("draining"), state("finished"))
    outcome, said = following(made, interrupted=True)
    assert made.posted == [{"reason": "interrupted by the user"}]
    assert outcome.state == "finished"
    assert sum("stopping" in line for line in said) == 1


def test_ctrl_c_without_a_collector_ends_in_bounded_time(peer: Callable[..., Peer]) -> None:
    """Nobody waits two minutes for a collector that is gone."""
    made = peer(state("running"), None)
    outcome, _ = following(made, interrupted=True)
    assert outcome.state == "unreachable"
    assert made.asked <= follow.STOPPING_S / follow.POLL_S + 5


def test_late_and_lost_agents_are_in_the_progress_line() -> None:
    """Only what is not well is named beside the green."""
    health = {"waiting": 0, "green": 2, "late": 1, "suspect": 0, "lost": 1, "finished": 0}
    line = progress(state("running", health=health))
    assert line.endswith("2 green | 1 late | 1 lost")
