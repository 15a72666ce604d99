"""Clients that are slow, idle, rude or too many, with TLS and without: the others are answered within a second."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Optional

import pytest

from tests.bad_input import check
from tests.collector.conftest import EPOCH, NAMES, RUN, Process, event, plan
from tests.secured import Secured

EACH = 150
HEAD = f"POST /api/v1/runs/{RUN}/agents/alecto/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"  # how a TLS handshake begins

Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts collectors with TLS or without, which have to end well."""
    started: list[Process] = []

    def do(tls: bool, before: str = "") -> Process:
        secured = Secured(tmp_path / "secured", RUN, NAMES) if tls else None
        started.append(Process(tmp_path, plan(), "--stay", before=before, secured=secured))
        return started[-1]

    yield do
    for process in started:
        code = process.end()
        told = process.output.read_text()
        assert code == 0, told
        assert "Traceback" not in told, told


def connect(process: Process, sent: bytes, *, shaken: bool = True) -> socket.socket:
    """A connection on which so much was sent; not `shaken`: before any TLS."""
    made = socket.create_connection(("127.0.0.1", process.port), timeout=20)
    if process.secured is not None and shaken:
        made = process.secured.context.wrap_socket(made, server_hostname="127.0.0.1")
    made.sendall(sent)
    return made


def push(process: Process, seq: int, agent: str = "alecto") -> float:
    """Seconds that a push over a new connection takes."""
    shown = process.secured.bearer(agent) if process.secured is not None else None
    body = {"v": 1, "epoch": EPOCH, "events": [event(seq, "rollover")]}
    if process._connection is not None:
        process._connection.close()
    began = time.monotonic()
    status, answer = process.request("POST", f"/api/v1/runs/{RUN}/agents/{agent}/events", body, shown=shown)
    assert (status, answer["stored"]) == (200, 1)
    return time.monotonic() - began


def kinds(process: Process) -> list[tuple[bytes, bool]]:
    """What slow clients have sent before they fall silent, and whether their handshake was complete."""
    shown = f"Authorization: {process.secured.bearer('alecto')}\r\n" if process.secured is not None else ""
    slow = [(b"", True), (HEAD.encode(), True), (f"{HEAD}{shown}Content-Length: 1000000\r\n\r\n{{".encode(), True)]
    strangers = [(f"{HEAD}Content-Length: 1000000\r\n\r\n{{".encode(), True), (b"", False), (HELLO, False)]
    return slow + strangers if process.secured is not None else slow


@pytest.mark.parametrize("tls", [True, False])
def test_slow_and_idle_clients_hold_nobody_up(tls: bool, start: Start) -> None:
    """150 of each kind: idle, in the middle of headers or body, and with TLS in the middle of the handshake or before it."""
    process = start(tls)
    with contextlib.ExitStack() as rude:
        for sent, shaken in kinds(process):
            for _ in range(EACH):
                rude.enter_context(connect(process, sent, shaken=shaken))
        took = [push(process, seq) for seq in range(5)]
        assert max(took) < 1, took
    assert push(process, 5) < 1


@pytest.mark.parametrize(
    ("tls", "sent", "shaken"),
    [(True, b"", False), (True, HELLO, False), (True, HEAD.encode(), True), (False, HEAD.encode(), True)],
    ids=["before the handshake", "in the handshake", "in the headers", "in the headers without TLS"],
)
def test_silent_clients_make_room_where_connections_are_few(tls: bool, sent: bytes, shaken: bool, start: Start) -> None:
    """With 64 descriptors, 60 that never finish their handshake or headers are shut for one that does."""
    process = start(tls, before="import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))")
    began = time.monotonic()
    with contextlib.ExitStack() as rude:
        for _ in range(60):
            with contextlib.suppress(OSError):  # shut for the next one
                rude.enter_context(connect(process, sent, shaken=shaken))
        assert _patiently(lambda: push(process, 0)) < 1
    assert time.monotonic() - began < 10  # and not after HEAD_S


def _patiently(ask: Callable[[], float]) -> float:
    """As an agent does: who is shut out sends again."""
    for _ in range(5):
        with contextlib.suppress(OSError, ssl.SSLError):
            return ask()
    return ask()


@pytest.mark.parametrize("sent", [b"", HELLO])
def test_a_handshake_that_dribbles_is_cut_off_when_its_time_is_up(sent: bytes, start: Start) -> None:
    """With a second for each step it is over in two, whatever still comes."""
    process = start(True, before="import fury_collector.server as s; s.IDLE_S = s.HEAD_S = s.REQUEST_S = 1.0")
    with connect(process, sent, shaken=False) as slow:
        began = time.monotonic()
        slow.settimeout(0.3)
        ended = False
        while not ended and time.monotonic() - began < 8:
            try:
                if sent:
                    slow.sendall(b"\0")
                ended = not slow.recv(1000)
            except TimeoutError:
                pass
            except OSError:
                ended = True
        assert 0.5 < time.monotonic() - began < 5
    assert push(process, 0) < 1


@pytest.mark.parametrize("raw", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x00\x05hello", bytes(5000)])
def test_what_is_no_handshake_ends_that_connection_only(raw: bytes, start: Start) -> None:
    """Plain HTTP and noise at the TLS port: nothing is answered but an alert, nothing is logged."""
    process = start(True)
    for _ in range(20):
        with connect(process, raw, shaken=False) as rude, contextlib.suppress(ConnectionError):
            answer = rude.recv(1000)
            assert b"HTTP" not in answer
    assert push(process, 0) < 1


def test_old_tls_is_refused(start: Start) -> None:
    """TLS 1.3 it is."""
    process = start(True)
    assert process.secured is not None
    context = ssl.create_default_context(cadata=process.secured.authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("127.0.0.1", process.port), timeout=20) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname="127.0.0.1")
    assert push(process, 0) < 1


def test_one_token_has_a_rate(start: Start, tmp_path: Path) -> None:
    """Beyond 100 a second and a burst of 300 an agent is told 429 and when to come again; others are not held up by it."""
    process = start(True)
    assert process.secured is not None
    shown = process.secured.bearer("alecto")
    one = f"{HEAD}Authorization: {shown}\r\nContent-Length: 1\r\n\r\n{{".encode()
    told: list[Optional[bytes]] = []
    with connect(process, b"") as greedy, greedy.makefile("rb") as answers:
        for _ in range(80):
            greedy.sendall(one * 10)
            for _ in range(10):
                head = [answers.readline()]
                while head[-1] not in (b"\r\n", b""):
                    head.append(answers.readline())
                fields = dict(line.rstrip().lower().split(b": ", 1) for line in head[1:-1])
                body = json.loads(answers.read(int(fields[b"content-length"])))
                told.append(fields.get(b"retry-after") if head[0].split()[1] == b"429" else None)
        assert push(process, 0, "megaera") < 1
    refused = [after for after in told if after is not None]
    assert 50 < len(refused) <= 500
    assert set(refused) == {b"1"}
    check.one_sentence(body["error"], ["alecto asks more than 100 times a second"])
    time.sleep(1)
    assert push(process, 0) < 1
