"""Whatever comes in, a parser takes it or says what is wrong in its own error, within a second.

FURY_FUZZ=20 multiplies the number of examples, and draws new ones each time.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import json
import math
import os
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from fury_agent import config
from fury_agent.credentials import Guard
from fury_agent.verdict import FuryError
from fury_collector import ingest, slo, wire
from fury_collector.access import Access
from fury_collector.db import Database
from fury_collector.errors import CollectorError, Precondition, Unauthorized
from tests.bad_input import check
from tests.collector.conftest import EPOCH, RUN, event, journal, plan, ready

TIMES = int(os.environ.get("FURY_FUZZ", "1"))
many = settings(
    max_examples=200 * TIMES,
    derandomize=TIMES == 1,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    phases=(Phase.explicit, Phase.generate),  # making a failure small takes longer than the rest
)

KINDS = ("start", "rollover", "sample", "heartbeat", "error", "final")
BATCH = {"v": 1, "epoch": EPOCH, "events": [event(n, kind) for n, kind in enumerate(KINDS)]}
PLAN = {**plan(), "slow_percent": 20, "slo": {"throughput_mb_s": ">=1", "agent.errors": ["==0"]}}
HOSTS = {"alecto": {"reachable": True, "cleanup": "confirmed", "detail": ""}}
AGENT = {"name": "alecto", "chunk_mb": 20, "minutes": 1, "directory": "/var/tmp", "io": "direct", "jobs": 2}
SLO = {"throughput_mb_s": ">=1", "agent.errors": ["==0", "<= 1.5"]}

atoms = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**31, 2**53, 2**63, -(2**63), 10**30, 10**400]),
    st.floats(),
    st.text(),
    st.sampled_from(["", "\0", "\ud800", "<script>", "9" * 5000, "x" * 5000, "../..", "\n"]),
)
anything = st.recursive(
    atoms, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5), max_leaves=20
)
GONE = object()


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to all parts of a document."""
    yield way
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield from places(value[key], (*way, key))


@st.composite
def bent(draw: st.DrawFn, document: Any) -> Any:
    """A document that was right, with one to three parts of it replaced, left out, or joined by another."""
    made = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from([way for way in places(made) if way] or [("",)]))
        inner = made
        for key in way:
            inner = inner[key]
        if not isinstance(inner, (dict, list)) or (isinstance(inner, list) and last == ""):
            return made
        new = draw(st.one_of(anything, st.just(GONE)))
        if new is not GONE:
            inner[last] = new
        elif last != "":
            del inner[last]
        if isinstance(inner, dict) and draw(st.booleans()):
            inner[draw(st.text())] = draw(anything)
    return made


def tried(parse: Callable[[Any], object], value: Any) -> None:
    """It gives a value or a sentence, and soon."""
    began = time.thread_time()
    try:
        parse(value)
    except (CollectorError, FuryError) as error:
        check.one_sentence(error.message, [])
        field = getattr(error, "field", None)
        assert field is None or len(field) < 300
    assert time.thread_time() - began < 1


PARSERS: dict[str, tuple[Callable[[Any], object], Any]] = {
    "batch": (wire.batch, BATCH),
    "ready": (wire.ready, ready()),
    "plan": (wire.plan, PLAN),
    "hosts": (wire.hosts, HOSTS),
    "reason": (wire.reason, {"reason": "enough"}),
    "objectives": (slo.parse, SLO),
    "agent": (config.make_config, AGENT),
}


@pytest.mark.parametrize("name", PARSERS)
@many
@given(data=st.data())
def test_a_document_is_taken_or_refused(name: str, data: st.DataObject) -> None:
    """Right ones bent, and those that were never right."""
    parse, document = PARSERS[name]
    parse(document)
    tried(parse, data.draw(bent(document)))
    whole = data.draw(anything)
    if name != "agent" or isinstance(whole, dict):  # its caller has seen to that
        tried(parse, whole)


@many
@given(st.binary() | st.text().map(str.encode) | anything.map(lambda one: json.dumps(one).encode()))
@example(b"[" * 900 + b"]" * 900)
@example(b'{"a":' * 990 + b"1" + b"}" * 990)
@example(b"9" * 5000)
@example("\ufeff{}".encode())
def test_bytes_are_json_or_refused(raw: bytes) -> None:
    """As a body, and as an agent's configuration file."""
    tried(lambda one: wire.batch(wire.loads(one)), raw)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "agent.json"
        path.write_bytes(raw)
        tried(lambda one: config.make_config(config.read_file(one)), str(path))
        assert list(Path(directory).iterdir()) == [path]


@many
@given(st.lists(st.tuples(st.sampled_from([*wire._LIVE, "x"]) | st.text(), st.text() | st.just("1")), max_size=4))
def test_a_query_is_taken_or_refused(items: list[tuple[str, str]]) -> None:
    """Each parameter once, with a value that is allowed."""
    tried(wire.live_query, items)


def test_no_depth_is_one_that_can_be_read_but_not_be_named(tmp_path: Path) -> None:
    """How deep the interpreter goes depends on who asks; the sentences name the value at all of them."""
    file = tmp_path / "agent.json"
    for depth in range(500, 1000):
        value = b"[" * depth + b"]" * depth
        tried(lambda one: wire.batch(wire.loads(one)), b'{"v":1,"epoch":' + value + b"}")
        file.write_bytes(b'{"chunk_mb":' + value + b"}")
        tried(lambda one: config.make_config(config.read_file(one)), str(file))


HEADERS = st.one_of(
    st.none(),
    st.text(),
    st.builds("{} {}".format, st.sampled_from(["Basic", "basic", "Bearer", "bEaReR", "Digest"]), st.text()),
    st.builds(lambda raw: "Basic " + base64.b64encode(raw).decode(), st.binary()),
    st.builds(lambda text: "Basic " + base64.b64encode(f"fury:{text}".encode(errors="replace")).decode(), st.text()),
)


@many
@given(HEADERS, st.text())
@example("Basic fury:", "alecto")
@example("Bearer \ud800\xff", "alecto")
@example("Basic \xe4", "alecto")
def test_no_authorization_but_the_right_one_opens_anything(shown: str | None, name: str) -> None:
    """Neither at the collector nor at an agent's metrics, and nothing falls over."""
    digest = "0" * 64  # of no secret that anybody knows
    access = Access(digest, digest, {"alecto": digest, name: digest}, now=lambda: 0.0)
    with pytest.raises(Unauthorized):
        access.admit_agent(name, shown, revoked=False)
    with pytest.raises(Unauthorized):
        access.admit_agent("nobody", shown, revoked=True)
    with pytest.raises(Unauthorized):
        access.admit_reader(shown)
    with pytest.raises(Unauthorized):
        access.admit_controller(shown)
    assert not Guard(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), digest.encode()).admits(shown)


@settings(many, max_examples=40 * TIMES)
@given(data=st.data())
def test_a_journal_is_read_as_far_as_it_can_be(data: st.DataObject) -> None:
    """Noise, and a right one with bytes changed or cut: only what is an event is stored, and only Precondition is raised."""
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        path = journal(home / "journal.db", [event(n, kind) for n, kind in enumerate(KINDS)])
        raw = bytearray(path.read_bytes())
        if data.draw(st.booleans()):
            for place, byte in data.draw(
                st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), min_size=1)
            ):
                raw[place] = byte
            raw = raw[: data.draw(st.integers(0, len(raw)) | st.just(len(raw)))]
        else:
            raw = bytearray(data.draw(st.binary()))
        for leftover in home.glob("journal.db-*"):
            leftover.unlink()
        path.write_bytes(raw)
        database = Database(home / "fury.db")
        with contextlib.closing(database):
            database.add_run(wire.plan(plan()))
            database.start()
            try:
                said: list[str] = []
                problems = ingest.ingest(database, RUN, [("alecto", path)], tell=said.append)
            except Precondition as error:
                check.one_sentence(error.message, [])
            else:
                for sentence in (*said, *problems):
                    check.one_sentence(sentence, [])
            assert path.read_bytes() == raw
            stored = database.read_run(RUN).agents[0].epochs
        assert sum(epoch.stored for epoch in stored) <= len(KINDS)


def test_numbers_that_json_cannot_say_do_not_come_back() -> None:
    """What the collector answers is JSON, whatever it was told."""
    with pytest.raises(CollectorError):
        wire.loads(b"[NaN]")
    assert math.isinf(wire.loads(b"[1e999]")[0])  # which each field refuses by its range
