"""Delivery against a collector that fails in every way: at least once, in order, and never twice in effect."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any, Dict, List

import pytest

from fury_agent.channel import Channel, Refused, Sender, Trouble
from fury_agent.events import Event, Events
from tests.agent.peer import Answer, Peer


def channel(url: str, **more: Any) -> Channel:
    return Channel(url, run_id="r1", agent="alecto", epoch="00000000000000aa", **more)


def send_all(peer: Peer, events: Events, timeout_s: float = 10) -> Sender:
    sender = Sender(
        channel(peer.url, timeout_s=0.5),
        peek=events.peek,
        acknowledge=events.acknowledge,
        set_aside=events.set_aside,
        on_command=lambda command: None,
        backoff_first_s=0.02,
        linger_s=0.01,
    )
    sender.start()
    sender.finish()
    sender.join(timeout_s)
    sender.cancel()
    return sender


def some_events(count: int = 3) -> Events:
    events = Events(keep=True)
    for chunk in range(count):
        events.append("rollover", {"chunk": chunk})
    events.append("final", {})
    return events


def test_a_batch_is_the_contracts(peer: Peer) -> None:
    """Path, version, epoch and events as in docs/protocol.md; the answer's receipt is understood."""
    events = some_events()
    sender = send_all(peer, events)
    (batch,) = peer.batches
    assert batch["path"] == "/api/v1/runs/r1/agents/alecto/events"
    assert (batch["v"], batch["epoch"]) == (1, "00000000000000aa")
    assert [event["seq"] for event in batch["events"]] == [0, 1, 2, 3]
    assert sender.receipt
    assert events.counts().stored == 4


def test_one_connection_serves_all(peer: Peer) -> None:
    """Batches share one keep-alive connection."""
    send_all(peer, some_events(2000))
    assert len(peer.batches) == 5
    assert peer.connections == 1


FAULTS: Dict[str, Answer] = {
    "500": (500, {"error": "broken"}),
    "503 with a page": (503, b"<html>busy</html>"),
    "429": (429, {"error": "slow down"}),
    "408": (408, {}),
    "302": (302, {}),
    "connection closed without an answer": "drop",
    "no answer": "hang",
    "200 with a login page": (200, b"<html>hotel wifi</html>"),
    "200 with another object": (200, {"hello": "world"}),
    "200 with a list": (200, []),
    "200 that stored too little": (200, {"stored": 1, "duplicates": 0, "receipt": True, "command": None}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_trouble_is_tried_again_until_it_passes(peer: Peer, fault: str) -> None:
    """Whatever is not a clear yes or no is no acknowledgement: everything is sent again and stored once."""
    troubles: List[int] = []

    def answer(body: Dict[str, Any]) -> Answer:
        troubles.append(1)
        return FAULTS[fault] if len(troubles) <= 2 else peer.store(body)

    peer.events = answer
    events = some_events()
    sender = send_all(peer, events)
    assert sender.receipt
    assert sorted(peer.stored) == [0, 1, 2, 3]
    assert events.counts().pending == 0
    assert len(troubles) == 3


def test_a_lost_acknowledgement_leads_to_a_duplicate_not_to_a_loss(peer: Peer) -> None:
    """Stored, but the answer is lost: the same bytes come again (the stand-in fails the test if they differ)."""
    lost: List[int] = []

    def answer(body: Dict[str, Any]) -> Answer:
        stored = peer.store(body)
        lost.append(1)
        return "drop" if len(lost) == 1 else stored

    peer.events = answer
    events = some_events()
    assert send_all(peer, events).receipt
    assert events.counts().stored == 4


@pytest.mark.parametrize("status", [400, 404, 409, 413, 422])
def test_a_refusal_is_set_aside_and_counted(peer: Peer, status: int) -> None:
    """Trying again would change nothing: the events are set aside with the collector's sentence."""
    peer.events = lambda body: (status, {"error": "the events make no sense", "field": "events[0].seq"})
    events = some_events()
    sender = send_all(peer, events)
    assert len(peer.batches) == 1
    assert sender.refusal == f"the events make no sense ({status})"
    assert (events.counts().set_aside, events.counts().pending) == (4, 0)
    assert not sender.receipt


@pytest.mark.parametrize("status", [401, 403])
def test_events_whose_sender_is_refused_are_kept(peer: Peer, status: int) -> None:
    """They are not at fault: they go as soon as the collector lets the agent in, or are fetched over ssh."""
    refusals: List[int] = []

    def answer(body: Dict[str, Any]) -> Answer:
        refusals.append(status)
        return (status, {"error": "who are you?", "field": None}) if len(refusals) < 4 else peer.store(body)

    peer.events = answer
    events = some_events()
    sender = send_all(peer, events)
    assert sender.trouble == f"who are you? ({status})"
    assert (events.counts().set_aside, events.counts().pending, sender.receipt) == (0, 0, True)


def test_what_comes_after_a_refusal_is_still_delivered(peer: Peer) -> None:
    """One bad batch does not stop the rest."""
    peer.events = lambda body: (400, {"error": "no"}) if body["events"][0]["seq"] == 0 else peer.store(body)
    events = some_events(600)
    send_all(peer, events)
    assert sorted(peer.stored) == list(range(500, 601))


def test_a_collector_that_is_not_there_is_trouble() -> None:
    """A closed port, an unknown host and a name that is none raise the same, with the reason."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}", "http://no-such-host.invalid:1", f"http://{'x' * 70}.a..b:1"):
        with pytest.raises(Trouble, match="no connection"):
            channel(url, timeout_s=2).send([b"{}"])


def test_cancelling_ends_it_while_the_collector_is_away(peer: Peer) -> None:
    """The drain deadline is kept: a sender that is told to give up is gone soon."""
    peer.events = lambda body: (500, {})
    events = some_events()
    began = time.monotonic()
    sender = send_all(peer, events, timeout_s=0.3)
    assert sender.join(2)
    assert time.monotonic() - began < 2
    assert events.counts().pending == 4
    assert sender.trouble == "Internal Server Error (500)"


def test_a_stop_command_is_passed_on(peer: Peer) -> None:
    """The collector stops an agent with its next answer."""
    peer.events = lambda body: peer.store(body, command="stop")
    commands: List[str] = []
    events = some_events()
    sender = Sender(
        channel(peer.url),
        peek=events.peek,
        acknowledge=events.acknowledge,
        set_aside=events.set_aside,
        on_command=commands.append,
    )
    sender.start()
    sender.finish()
    assert sender.join(5)
    assert commands == ["stop"]


def test_an_idle_connection_that_was_closed_is_opened_again_at_once(peer: Peer) -> None:
    """A kept connection that the other side has closed is no trouble and costs no waiting."""
    answers: List[Answer] = [(200, {"stored": 1, "duplicates": 0}), "drop", (200, {"stored": 1, "duplicates": 0})]
    peer.events = lambda body: answers.pop(0)
    one = channel(peer.url)
    one.send([b"{}"])
    one.send([b"{}"])
    assert peer.connections == 2


def test_ready_gives_the_clock_offset(peer: Peer) -> None:
    """The collector's instant is the middle of the round trip; here both clocks are the same one."""
    one = channel(peer.url)
    exchange = one.ready({"host": "h"})
    assert peer.asks[0]["path"] == "/api/v1/runs/r1/agents/alecto/ready"
    assert peer.asks[0]["epoch"] == "00000000000000aa"
    assert abs(exchange.offset_s) <= exchange.round_trip_s
    assert exchange.answer["state"] == "start"


@pytest.mark.parametrize("status", [404, 409])
def test_a_refused_ready_says_why(peer: Peer, status: int) -> None:
    """An unknown run or a second epoch is the collector's no, with its sentence."""
    peer.ready = lambda ask: (status, {"error": "unknown run"})
    with pytest.raises(Refused, match="unknown run"):
        channel(peer.url).ready({})


@pytest.mark.parametrize("body", [{}, {"state": "start"}, {"state": "dance", "collector_mono_s": 1.0}, {"state": 1}])
def test_an_answer_that_makes_no_sense_starts_nothing(peer: Peer, body: Dict[str, Any]) -> None:
    """Only the contract's answers are believed."""
    peer.ready = lambda ask: (200, body)
    with pytest.raises(Trouble):
        channel(peer.url).ready({})


def test_an_endless_answer_is_cut_off() -> None:
    """A peer that is no collector cannot fill the memory."""
    listener = socket.create_server(("127.0.0.1", 0))

    def talk() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
            try:
                for _ in range(100):
                    connection.sendall(b"x" * 100_000)
            except OSError:
                return

    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    with pytest.raises(Trouble):
        channel(f"http://127.0.0.1:{listener.getsockname()[1]}").send([json.dumps({}).encode()])
    thread.join(5)
    assert not thread.is_alive()
    listener.close()


@pytest.mark.parametrize("talk", ["one byte at a time", "one header at a time"])
def test_a_collector_that_dribbles_does_not_hold_it(talk: str) -> None:
    """The whole call has a deadline, not each byte of the answer."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def dribble() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            if talk == "one byte at a time":
                connection.sendall(b"Content-Length: 1000\r\n\r\n")
            try:
                while not over.wait(0.1):
                    connection.sendall(b" " if talk == "one byte at a time" else b"X-Wait: more\r\n")
            except OSError:
                return

    thread = threading.Thread(target=dribble, daemon=True)
    thread.start()
    began = time.monotonic()
    with pytest.raises(Trouble, match="no answer: timed out"):
        channel(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.5).send([b"{}"])
    assert 0.4 < time.monotonic() - began < 1.5
    over.set()
    thread.join(5)
    listener.close()


def test_batches_shrink_until_they_get_through_a_slow_link(peer: Peer) -> None:
    """A link on which no batch of more than 10 kB arrives in time: what is sent becomes small enough, nothing is lost."""

    def answer(body: Dict[str, Any]) -> Answer:
        return "hang" if len(json.dumps(body)) > 10_000 else peer.store(body)

    peer.events = answer
    events = Events(keep=True)
    for chunk in range(100):
        events.append("rollover", {"chunk": chunk, "filler": "x" * 300})
    sender = Sender(
        channel(peer.url, timeout_s=0.3, slowest_bytes_per_s=1e9),
        peek=events.peek,
        acknowledge=events.acknowledge,
        set_aside=events.set_aside,
        on_command=lambda command: None,
        backoff_first_s=0.01,
    )
    sender.start()
    sender.finish()
    assert sender.join(20)
    assert sorted(peer.stored) == list(range(100))
    assert peer.duplicates == 0


def test_a_predecessors_final_is_no_receipt(peer: Peer) -> None:
    """What an earlier process left goes under its epoch, and only the own final counts as the end."""
    other = "00000000000000bb"
    batches = [
        [Event(other, 0, "final", b'{"seq":0,"kind":"final"}')],
        [Event("00000000000000aa", 0, "start", b'{"seq":0,"kind":"start"}')],
    ]
    sender = Sender(
        channel(peer.url),
        peek=lambda limit, size: batches[0] if batches else [],
        acknowledge=lambda keys: batches.clear() if len(batches) == 1 else batches.__delitem__(0),
        set_aside=lambda keys, sentence: None,
        on_command=lambda command: None,
    )
    sender.start()
    sender.finish()
    assert sender.join(5)
    assert sorted(peer.all) == [("00000000000000aa", 0), (other, 0)]
    assert not sender.receipt
