"""Who may do what at a collector with TLS: every route, every kind of credential, until after the end."""

from __future__ import annotations

import base64
import hashlib
import http.client
import socket
import sqlite3
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Optional

import pytest

from fury_collector.access import BURST, Access
from fury_collector.errors import TooMany, Unauthorized
from tests.collector.conftest import NAMES, RUN, Process, life, plan
from tests.secured import Secured

Serve = Callable[..., Process]
AGENT = NAMES[0]
READING = ("/", "/static/live.js", "/api/v1/live", f"/api/v1/runs/{RUN}", "/api/v1/targets", "/metrics")
APPENDING = tuple(f"/api/v1/runs/{RUN}/agents/{AGENT}/{what}" for what in ("ready", "events"))
ENDING = tuple(f"/api/v1/runs/{RUN}/{what}" for what in ("stop", "close"))


@pytest.fixture
def secured(tmp_path: Path) -> Secured:
    """The credentials of the tests' run."""
    return Secured(tmp_path / "credentials", RUN, NAMES)


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def status(collector: Process, method: str, path: str, shown: Optional[str]) -> int:
    return collector.request(method, path, {} if method == "POST" else None, shown=shown)[0]


def test_each_credential_opens_its_own_routes_and_no_other(serve: Serve, secured: Secured) -> None:
    """401 in JSON, with the scheme that would do, for everybody else."""
    collector = serve(plan(), "--stay", secured=secured)
    strangers = (
        None, "", "Bearer", "Bearer x", "Basic !!", "Basic " + "A" * 9000, basic("fury", "x"), basic("root", secured.password),
        basic("fury", secured.token(AGENT)), f"Bearer {secured.password}", "Negotiate abc",
    )  # fmt: skip
    for path in READING:
        for shown in (*strangers, secured.bearer(AGENT)):
            code, answer = collector.request("GET", path, shown=shown)
            assert (code, set(answer)) == (401, {"error", "field"}), (path, shown)
            assert collector.headers is not None
            assert collector.headers["WWW-Authenticate"] == 'Basic realm="fury"'
        assert status(collector, "GET", path, secured.reader) == 200, path
        assert status(collector, "GET", path, secured.controller) == 200, path
    for path in APPENDING:
        for shown in (*strangers, secured.reader, secured.controller, secured.bearer(NAMES[1])):
            assert status(collector, "POST", path, shown) == 401, (path, shown)
        assert status(collector, "POST", path, secured.bearer(AGENT)) == 400, "an empty body, but from the right one"
    for path in ENDING:
        for shown in (*strangers, secured.reader, secured.bearer(AGENT)):
            assert status(collector, "POST", path, shown) == 401, (path, shown)
    assert status(collector, "GET", "/healthz", None) == 200
    assert status(collector, "GET", "/no/such/path", None) == 401
    assert status(collector, "GET", "/no/such/path", secured.reader) == 404
    stranger = f"/api/v1/runs/{RUN}/agents/nobody/events"
    assert status(collector, "POST", stranger, secured.bearer(AGENT)) == 401


def test_every_answer_is_guarded(serve: Serve, secured: Secured) -> None:
    """A strict policy on pages, JSON and refusals alike; nothing is kept by a cache."""
    collector = serve(plan(), "--stay", secured=secured)
    for path, shown in (
        ("/", secured.reader),
        ("/api/v1/live", secured.reader),
        ("/metrics", None),
        ("/healthz", None),
    ):
        collector.request("GET", path, shown=shown)
        assert collector.headers is not None
        assert collector.headers["Content-Security-Policy"].startswith("default-src 'self'; script-src 'self'; ")
        assert "unsafe" not in collector.headers["Content-Security-Policy"]
        assert collector.headers["X-Content-Type-Options"] == "nosniff"
        assert collector.headers["X-Frame-Options"] == "DENY"
        assert collector.headers["Referrer-Policy"] == "no-referrer"
        assert collector.headers["Cache-Control"] in ("no-store", "no-cache")


def test_nothing_is_spoken_without_tls_or_with_an_old_one(serve: Serve, secured: Secured) -> None:
    """Plain HTTP gets no answer, TLS 1.2 no handshake; the collector goes on."""
    collector = serve(plan(), "--stay", secured=secured)
    unsecured = http.client.HTTPConnection("127.0.0.1", collector.port, timeout=10)
    unsecured.request("GET", "/healthz")
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        unsecured.getresponse()
    old = ssl.create_default_context(cadata=secured.authority)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("127.0.0.1", collector.port), 10) as raw, pytest.raises(ssl.SSLError):
        old.wrap_socket(raw, server_hostname="127.0.0.1")
    with (
        socket.create_connection(("127.0.0.1", collector.port), 10) as raw,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        ssl.create_default_context().wrap_socket(raw, server_hostname="127.0.0.1")
    assert status(collector, "GET", "/healthz", None) == 200
    assert "Traceback" not in collector.output.read_text()


def test_tokens_are_void_after_the_end_also_for_the_next_process(
    serve: Serve, secured: Secured, tmp_path: Path
) -> None:
    """What a token could append while the run went on it can not append once the drain is over."""
    collector = serve(plan((AGENT,)), "--stay", secured=secured)
    assert collector.ready(AGENT)[0] == 200
    words = life()
    code, answer = collector.push(AGENT, *words)
    assert (code, answer["receipt"]) == (200, True)
    assert collector.push(AGENT, words[-1])[0] == 200, "the last answer may have been lost: asking again is allowed"
    deadline = time.monotonic() + 15
    while (code := collector.push(AGENT, words[-1])[0]) == 200 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert code == 401
    assert "the run is over" in collector.push(AGENT, words[-1])[1]["error"]
    assert collector.ready(AGENT)[0] == 401
    collector.kill()
    with sqlite3.connect(tmp_path / "fury.db") as database:
        (before,) = database.execute("SELECT count(*) FROM events").fetchone()
    again = serve(plan((AGENT,)), "--stay", secured=secured)
    assert again.push(AGENT, words[0], epoch="bb" * 8)[0] == 401
    with sqlite3.connect(tmp_path / "fury.db") as database:
        assert database.execute("SELECT count(*) FROM events").fetchone() == (before,)


def test_a_token_is_of_one_run_only(serve: Serve, tmp_path: Path) -> None:
    """The same agent's token of another run opens nothing."""
    other = Secured(tmp_path / "other", "another-run", NAMES)
    collector = serve(plan(), "--stay", secured=Secured(tmp_path / "credentials", RUN, NAMES))
    for path in APPENDING:
        assert status(collector, "POST", path, other.bearer(AGENT)) == 401
    for path in ENDING:
        assert status(collector, "POST", path, other.controller) == 401


def test_the_collector_holds_no_secret_of_anybody_else(secured: Secured) -> None:
    """Digests only: who reads its files can not speak for an agent."""
    held = "".join(file.read_text() for file in secured.collector.iterdir())
    assert secured.token(AGENT) not in held
    assert secured.password not in held
    assert secured.controller.split()[1] not in held


def test_an_agent_that_asks_too_often_is_held_back_and_the_others_are_not() -> None:
    """429 once its burst is spent, again welcome after a while."""
    now = [0.0]
    words = {name: name * 43 for name in ("a", "b")}
    digests = {name: digest(word) for name, word in words.items()}
    access = Access(digest("c"), digest("r"), digests, now=lambda: now[0])
    for _ in range(int(BURST)):
        access.admit_agent("a", f"Bearer {words['a']}", revoked=False)
    with pytest.raises(TooMany, match="more than 100 times a second"):
        access.admit_agent("a", f"Bearer {words['a']}", revoked=False)
    access.admit_agent("b", f"Bearer {words['b']}", revoked=False)
    now[0] += 0.1
    for _ in range(10):
        access.admit_agent("a", f"Bearer {words['a']}", revoked=False)
    for _ in range(1000):  # guesses cost the agent nothing of its own
        with pytest.raises(Unauthorized):
            access.admit_agent("b", "Bearer x", revoked=False)
    access.admit_agent("b", f"Bearer {words['b']}", revoked=False)


def digest(word: str) -> str:
    return hashlib.sha256(word.encode()).hexdigest()


@pytest.mark.parametrize("damage", ["missing", "empty", "[]", '{"control": 1}', "no json"])
def test_credentials_that_can_not_be_used_are_told_before_anything_listens(
    secured: Secured, tmp_path: Path, damage: str, serve: Serve
) -> None:
    """One sentence that names the file, exit code 3, no traceback."""
    path = secured.collector / "access.json"
    path.unlink()
    if damage != "missing":
        path.write_text("" if damage == "empty" else damage)
    with pytest.raises(AssertionError, match=r"access\.json cannot be used") as told:
        serve(plan(), secured=secured)
    assert "Traceback" not in str(told.value)
