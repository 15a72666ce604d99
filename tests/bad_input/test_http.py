"""What the collector may be sent wrongly: the right 4xx, one sentence in JSON, and no row; over TLS with the right token."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Optional

import pytest

from fury_collector import wire
from tests.bad_input import check
from tests.collector.conftest import EPOCH, NAMES, RUN, Process, event, histogram, plan, ready
from tests.secured import Secured

MINE = f"/api/v1/runs/{RUN}/agents/alecto"
EVENTS, READY, STOP = f"{MINE}/events", f"{MINE}/ready", f"/api/v1/runs/{RUN}/stop"
JSON = "application/json"
AGENT, READER, CONTROLLER = "the agent", "the reader", "the controller"


@dataclass(frozen=True)
class Bad:
    """A request that is right but for one thing, and the refusal that is wanted."""

    status: int
    says: list[str]
    about: Optional[str] = None  # the field
    method: str = "POST"
    path: str = EVENTS
    shown: Optional[str] = AGENT  # as whom, or the Authorization as it is
    headers: tuple[tuple[str, str], ...] = ()
    kind: Optional[str] = JSON
    body: Any = None  # bytes are sent as they are; None: a good batch
    raw: Optional[bytes] = None  # instead of all of that


def batch(*events: Any, **changes: Any) -> dict[str, Any]:
    """A batch, right but for ``changes``."""
    return {"v": 1, "epoch": EPOCH, "events": list(events) or [event(0, "heartbeat")], **changes}


def deep(levels: int, around: bytes = b'{"v": 1, "epoch": %s}') -> bytes:
    """JSON of so many levels."""
    return around % (b"[" * levels + b"]" * levels)


def chunked(size: int) -> bytes:
    """A body in chunks that says nowhere how long it is."""
    part = b"10000\r\n" + b" " * 65536 + b"\r\n"
    return part * (size // 65536 + 1) + b"0\r\n\r\n"


def odd(**changes: Any) -> dict[str, Any]:
    """A rollover with changed fields."""
    return batch(event(0, "rollover", **changes))


def without(kind: str, name: str) -> dict[str, Any]:
    """An event that lacks a field."""
    return batch({key: value for key, value in event(0, kind).items() if key != name})


BODIES: dict[str, Bad] = {
    "empty": Bad(400, ["the body is not JSON"], body=b""),
    "cut off": Bad(400, ["the body is not JSON"], body=b'{"v": 1, "epoch'),
    "two values": Bad(400, ["the body is not JSON"], body=b"{}{}"),
    "not UTF-8": Bad(400, ["not UTF-8", "byte 1"], body=b'"\xff"'),
    "UTF-16": Bad(400, ["not UTF-8"], body='{"v": 1}'.encode("utf-16")),
    "a byte order mark": Bad(400, ["the body is not JSON"], body=b"\xef\xbb\xbf{}"),
    "a form": Bad(400, ["the body is not JSON"], body=b"v=1&epoch=0"),
    "NaN": Bad(400, ["NaN is not a number in JSON"], body=b'{"v": NaN}'),
    "infinity": Bad(400, ["Infinity is not a number in JSON"], body=b'{"v": -Infinity}'),
    "a number of 5000 digits": Bad(400, ["the body is not JSON"], body=b'{"v": ' + b"9" * 5000 + b"}"),
    "a million levels": Bad(400, ["nested too deeply"], body=deep(1_000_000)),
    "a hundred levels": Bad(400, ["epoch must be 16 hex digits"], "epoch", body=deep(100)),
    "objects in objects": Bad(400, ["nested too deeply"], body=b'{"v":' * 100_000),
    "null": Bad(400, ["body must be an object, not null"], "body", body=b"null"),
    "a list": Bad(400, ["body must be an object"], "body", body=[1]),
    "a string": Bad(400, ["body must be an object"], "body", body="events"),
    "no version": Bad(400, ["v is missing"], "v", body={"epoch": EPOCH}),
    "another version": Bad(400, ["v must be 1", "not 2"], "v", body=batch(v=2)),
    "a version like 1": Bad(400, ["v must be 1", "not true"], "v", body=batch(v=True)),
    "another epoch": Bad(400, ["16 hex digits", "not 7"], "epoch", body=batch(epoch=7)),
    "a long epoch": Bad(400, ["16 hex digits"], "epoch", body=batch(epoch="0" * 5000)),
    "an unknown field": Bad(400, ["surprise is not a field of a batch"], "surprise", body=batch(surprise=1)),
    "an unknown field with a newline": Bad(400, ["a\\nb is not a field of a batch"], "a\nb", body=batch(**{"a\nb": 1})),
    "an unknown field of a megabyte": Bad(400, ["is not a field of a batch"], "x" * 64, body=batch(**{"x" * 10**6: 1})),
    "a fact with a newline": Bad(
        400,
        ["events[0].facts.a\\nb must be a number"],
        "events[0].facts.a\\nb",
        body=batch(event(0, "start", facts={"a\nb": []})),
    ),
    "no events": Bad(400, ["1 to 500 events, not 0"], "events", body={"v": 1, "epoch": EPOCH, "events": []}),
    "501 events": Bad(
        400, ["1 to 500 events, not 501"], "events", body=batch(*[event(n, "heartbeat") for n in range(501)])
    ),
    "events by name": Bad(400, ["1 to 500 events"], "events", body=batch(events={"0": {}})),
    "an event that is none": Bad(400, ["events[0] must be an object, not 7"], "events[0]", body=batch(7)),
    "an unknown kind": Bad(400, ["one of start, rollover"], "events[0].kind", body=batch({"kind": "rolover"})),
    "the second is wrong": Bad(
        400, ["events[1].seq", "not -1"], "events[1].seq", body=batch(event(0, "start"), event(-1, "heartbeat"))
    ),
    "a number as text": Bad(
        400, ["a whole number", 'not "1"'], "events[0].seq", body=batch({**event(0, "rollover"), "seq": "1"})
    ),
    "beyond 64 bits": Bad(400, ["from 0 to 9223372036854775807"], "events[0].bytes", body=odd(bytes=2**63)),
    "a fraction of a byte": Bad(400, ["a whole number"], "events[0].bytes", body=odd(bytes=0.5)),
    "negative seconds": Bad(400, ["a number from 0 to 1e+18", "not -1"], "events[0].seconds", body=odd(seconds=-1)),
    "too large a float": Bad(
        400,
        ["a number from 0 to 1e+18", "not Infinity"],
        "events[0].seconds",
        body=json.dumps(odd(seconds=7)).replace('"seconds": 7', '"seconds": 1e999').encode(),
    ),
    "a missing field": Bad(400, ["events[0].bytes is missing"], "events[0].bytes", body=without("rollover", "bytes")),
    "a field too many": Bad(
        400, ["events[0].<b> is not a field of the protocol"], "events[0].<b>", body=odd(**{"<b>": 1})
    ),
    "more ramp than bytes": Bad(400, ["at most bytes"], "events[0].ramp_bytes", body=odd(ramp_bytes=2**40)),
    "NUL in a text": Bad(
        400, ["without the character NUL"], "events[0].message", body=batch(event(0, "error", message="a\0b"))
    ),
    "half a surrogate": Bad(
        400, ["can be written in UTF-8"], "events[0].message", body=batch(event(0, "error", message="\ud800"))
    ),
    "a long text": Bad(
        400, ["at most 4000 characters"], "events[0].message", body=batch(event(0, "error", message="x" * 4001))
    ),
    "too many facts": Bad(
        400,
        ["at most 200 values"],
        "events[0].facts",
        body=batch(event(0, "start", facts={str(n): n for n in range(201)})),
    ),
    "too many buckets": Bad(
        400,
        ["at most 4096 buckets"],
        "events[0].write_histogram.buckets",
        body=batch(event(0, "sample", write_histogram={**histogram(1.0), "buckets": {str(n): 1 for n in range(4097)}})),
    ),
    "a histogram that does not add up": Bad(
        400,
        ["the sum of zero and all buckets, 1"],
        "events[0].write_histogram.count",
        body=batch(event(0, "sample", write_histogram={**histogram(1.0), "count": 2})),
    ),
    "an unknown verdict": Bad(400, ["one of PASS"], "events[0].verdict", body=batch(event(0, "final", verdict="FINE"))),
    "ready without a port": Bad(
        400, ["from 0 to 65535"], "metrics_port", path=READY, body={**ready(), "metrics_port": 65536}
    ),
    "ready for ever": Bad(400, ["from 0.001 to 691200"], "seconds", path=READY, body={**ready(), "seconds": 1e9}),
    "ready after nobody": Bad(400, ["16 hex digits"], "after", path=READY, body={**ready(), "after": "me"}),
    "stop without a reason": Bad(400, ["reason is missing"], "reason", path=STOP, shown=CONTROLLER, body={}),
    "stop with a novel": Bad(
        400, ["at most 500 characters"], "reason", path=STOP, shown=CONTROLLER, body={"reason": "x" * 501}
    ),
}
HEADERS: dict[str, Bad] = {
    "no type": Bad(415, ["must be application/json"], kind=None),
    "another type": Bad(415, ["must be application/json", "text/plain"], kind="text/plain"),
    "a form's type": Bad(415, ["must be application/json"], kind="application/x-www-form-urlencoded"),
    "a long type": Bad(415, ["must be application/json"], kind="text/" + "x" * 5000),
    "gzip": Bad(415, ["without Content-Encoding"], headers=(("Content-Encoding", "gzip"),), body=gzip.compress(b"{}")),
    "a gzip bomb": Bad(
        415,
        ["without Content-Encoding"],
        headers=(("Content-Encoding", "gzip"),),
        body=gzip.compress(bytes(1_000_000_000 // 8), 1),
    ),
    "brotli": Bad(415, ["without Content-Encoding"], headers=(("Content-Encoding", "br"),)),
    "one byte too many": Bad(413, ["larger than 2097152 bytes"], body=b" " * (wire.MAX_BODY_BYTES + 1)),
    "a terabyte announced": Bad(
        413,
        ["larger than 2097152 bytes"],
        raw=f"POST {EVENTS} HTTP/1.1\r\nHost: x\r\nAuthorization: AGENT\r\nContent-Type: {JSON}\r\n"
        "Content-Length: 1099511627776\r\n\r\n".encode(),
    ),
    "chunks without end": Bad(
        413, ["larger than 2097152 bytes"], headers=(("Transfer-Encoding", "chunked"),), body=chunked(2**22)
    ),
    "broken chunks": Bad(400, [], headers=(("Transfer-Encoding", "chunked"),), body=b"zz\r\n{}\r\n0\r\n\r\n"),
    "chunks of another encoding": Bad(
        400, [], headers=(("Transfer-Encoding", "gzip, chunked"),), body=b"5\r\nhello\r\n0\r\n\r\n"
    ),
    "a negative length": Bad(400, ["HTTP/1.1"], raw=b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n"),
    "a length in words": Bad(400, ["HTTP/1.1"], raw=b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: ten\r\n\r\n"),
    "a header of 70000 bytes": Bad(400, ["HTTP/1.1"], raw=b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000 + b"\r\n\r\n"),
    "300 headers": Bad(400, ["HTTP/1.1"], raw=b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 300 + b"\r\n"),
    "no header at all": Bad(401, ["read credential"], raw=b"GET / HTTP/1.1\r\nno colon\r\n\r\n"),
    "another protocol": Bad(400, ["HTTP/1.1"], raw=b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
    "another version": Bad(400, ["HTTP/1.1"], raw=b"GET / HTTP/9.9\r\n\r\n"),
    "a version that is none": Bad(400, ["HTTP/1.1"], raw=b"GET / HTTP/one\r\n\r\n"),
    "a long path": Bad(414, ["longer than 8192"], raw=b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n"),
}
PLACES: dict[str, Bad] = {
    "nowhere": Bad(404, ["docs/protocol.md"], path="/nowhere", method="GET", shown=READER),
    "up": Bad(404, ["docs/protocol.md"], path="/static/../app.py", method="GET", shown=READER),
    "up in disguise": Bad(404, ["docs/protocol.md"], path="/static/%2e%2e%2fapp.py", method="GET", shown=READER),
    "another file": Bad(404, ["static/app.py is not a part"], path="/static/app.py", method="GET", shown=READER),
    "another run": Bad(404, [f"serves run {RUN}"], path="/api/v1/runs/other/agents/alecto/events"),
    "another run's state": Bad(404, [f"serves run {RUN}"], path="/api/v1/runs/x", method="GET", shown=READER),
    "getting events": Bad(405, ["GET is not for this path", "POST"], method="GET", shown=READER),
    "deleting a run": Bad(405, ["DELETE", "GET"], path=f"/api/v1/runs/{RUN}", method="DELETE", shown=READER),
    "an invented method": Bad(405, ["FURY", "POST"], method="FURY", shown=READER),
    "tracing": Bad(405, ["TRACE", "GET"], path="/", method="TRACE", shown=READER),
    "an unknown parameter": Bad(
        400, ["<i> is not a parameter"], "<i>", path="/api/v1/live?<i>=1", method="GET", shown=READER
    ),
    "a parameter twice": Bad(
        400, ["limit is given twice"], "limit", path="/api/v1/live?limit=1&limit=2", method="GET", shown=READER
    ),
    "a limit beyond": Bad(400, ["from 1 to 100"], "limit", path="/api/v1/live?limit=101", method="GET", shown=READER),
    "other digits": Bad(
        400, ["from 0 to 1000000"], "offset", path="/api/v1/live?offset=%D9%A3", method="GET", shown=READER
    ),
    "an unknown order": Bad(400, ["one of worst"], "sort", path="/api/v1/live?sort=x", method="GET", shown=READER),
    "a long search": Bad(
        400, ["at most 100"], "text", path="/api/v1/live?text=" + "x" * 101, method="GET", shown=READER
    ),
}
STRANGERS: dict[str, Bad] = {
    "nobody": Bad(401, ["not the token of that agent"], shown=None),
    "an empty word": Bad(401, ["not the token of that agent"], shown=""),
    "no token": Bad(401, ["not the token of that agent"], shown="Bearer "),
    "a wrong token": Bad(401, ["not the token of that agent"], shown="Bearer " + "A" * 43),
    "a token beyond ASCII": Bad(401, ["not the token of that agent"], shown="Bearer \xe4\xff"),
    "a token of 8000 characters": Bad(401, ["not the token of that agent"], shown="Bearer " + "A" * 8000),
    "another scheme": Bad(401, ["not the token of that agent"], shown="Digest username=fury"),
    "another agent's": Bad(401, ["not the token of that agent"], path=EVENTS.replace("alecto", "megaera")),
    "an agent that is none": Bad(401, ["not the token of that agent"], path=EVENTS.replace("alecto", "nobody")),
    "a reader that writes": Bad(401, ["not the token of that agent"], shown=READER),
    "the controller that writes": Bad(401, ["not the token of that agent"], shown=CONTROLLER),
    "an agent that reads": Bad(401, ["read credential"], path="/api/v1/live", method="GET"),
    "an agent that stops": Bad(401, ["only the run's controller"], path=STOP, body={"reason": "x"}),
    "a reader that stops": Bad(401, ["only the run's controller"], path=STOP, shown=READER, body={"reason": "x"}),
    "a reader that closes": Bad(401, ["only the run's controller"], path=f"/api/v1/runs/{RUN}/close", shown=READER),
    "metrics for nobody": Bad(401, ["read credential"], path="/metrics", method="GET", shown=None),
    "nowhere for nobody": Bad(401, ["read credential"], path="/nowhere", method="GET", shown=None),
    "a password that is none": Bad(401, ["read credential"], path="/", method="GET", shown="Basic ====="),
    "a password without a name": Bad(401, ["read credential"], path="/", method="GET", shown="Basic Og=="),
    "the method of nobody": Bad(401, ["read credential"], path=EVENTS, method="DELETE", shown=None),
}
ALL = {
    f"{kind}: {name}": bad
    for kind, table in (("body", BODIES), ("header", HEADERS), ("place", PLACES), ("stranger", STRANGERS))
    for name, bad in table.items()
}


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """One collector for all of them: it has to stand them all."""
    home = tmp_path_factory.mktemp("collector")
    secured = Secured(home / "secured", RUN, NAMES)
    process = Process(home, plan(), "--stay", secured=secured)
    deadline = time.monotonic() + 10
    while not check.rows(home / "fury.db")["messages"]:  # its own first word
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield process
    code = process.end()
    told = process.output.read_text()
    assert code == 0, told
    assert "Traceback" not in told, told


def raw(bad: Bad, secured: Secured) -> bytes:
    """The request as it goes over the wire."""
    who = {AGENT: secured.bearer("alecto"), READER: secured.reader, CONTROLLER: secured.controller}
    if bad.raw is not None:
        return bad.raw.replace(b"AGENT", who[AGENT].encode())
    given = batch() if bad.body is None else bad.body
    body = b"" if bad.method == "GET" else given if isinstance(given, bytes) else json.dumps(given).encode()
    headers = {"Host": "x", **dict(bad.headers)}
    if bad.shown is not None:
        headers["Authorization"] = who.get(bad.shown, bad.shown)
    if bad.kind is not None:
        headers["Content-Type"] = bad.kind
    if "Transfer-Encoding" not in headers:
        headers["Content-Length"] = str(len(body))
    lines = [f"{bad.method} {bad.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def answer(connection: ssl.SSLSocket, request: bytes) -> tuple[http.client.HTTPResponse, bytes]:
    """What comes back; who answers early may shut the connection before everything is sent."""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        connection.sendall(request)
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response, response.read()


def connect(process: Process) -> ssl.SSLSocket:
    """A TLS connection to the collector."""
    assert process.secured is not None
    plain = socket.create_connection(("127.0.0.1", process.port), timeout=20)
    return process.secured.context.wrap_socket(plain, server_hostname="127.0.0.1")


@pytest.mark.parametrize("case", ALL)
def test_a_bad_request_is_refused_in_one_sentence(case: str, collector: Process) -> None:
    """4xx, JSON with error and field, never a stored row; the collector answers the next one."""
    bad = ALL[case]
    assert collector.secured is not None
    database = collector.directory / "fury.db"
    before = check.rows(database)
    with connect(collector) as connection:
        response, body = answer(connection, raw(bad, collector.secured))
    assert response.status == bad.status, body
    assert response.headers["Content-Type"] == JSON
    told = json.loads(body)
    assert set(told) == {"error", "field"}
    check.one_sentence(told["error"], bad.says)
    assert told["field"] == bad.about
    assert ("WWW-Authenticate" in response.headers) == (bad.status == 401)
    assert check.rows(database) == before
