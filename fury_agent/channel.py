"""The only module that touches the network on the agent's behalf: asking for the start, and delivering events.

TLS and the token are here as well: the run's own authority is the only one that is believed (RFC 8446, RFC 6750).
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import random
import socket
import ssl
import threading
import time
import urllib.parse
from typing import Any, Callable, Dict, List, Mapping, Optional, Protocol, Sequence, Tuple

from fury_agent.credentials import Badge

_TIMEOUT_S = 10.0
# What a request may take beyond that: a batch of 64 KiB needs 8 s on a link of 64 kbit/s that it has for itself.
_SLOWEST_BYTES_PER_S = 4000
_LONGEST_S = 60.0
_LINGER_S = 0.2
_READ_BACK_S = 0.02
_BACKOFF_FIRST_S = 0.5
_BACKOFF_LAST_S = 15.0
_MAX_ANSWER_BYTES = 1_000_000
_BATCH_EVENTS = 500
_BATCH_LEAST_BYTES = 4_096
_BATCH_FIRST_BYTES = 65_536
_BATCH_MOST_BYTES = 262_144
# A batch that took longer than the first figure is followed by a smaller one, one quicker than the second by a larger.
_BATCH_SLOW_S = 5.0
_BATCH_QUICK_S = 0.5
_RETRIED = (408, 429)
NOT_BELIEVED = "its certificate is not to be believed"
"""What is said of a collector that is another's, or that has a certificate which is not valid at this host's time."""


class Trouble(Exception):  # neither this nor Refused ends the agent: it decides what they mean
    """The collector could not be asked or gave no usable answer; worth another try."""


class Refused(Exception):
    """The collector understood and said no; trying again would change nothing."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(f"{sentence} ({status})")
        self.status = status
        self.sentence = sentence


@dataclasses.dataclass(frozen=True)
class Exchange:
    """One answer to `ready`, with this host's monotonic clock before the question and after the answer."""

    answer: Mapping[str, Any]
    asked_s: float
    answered_s: float
    collector_s: float
    held_s: float = 0.0

    @property
    def ask_in_s(self) -> float:
        """When to ask again, as the collector would have it; 0 where it does not say."""
        said = self.answer.get("ask_in_s")
        return float(said) if isinstance(said, (int, float)) else 0.0

    @property
    def round_trip_s(self) -> float:
        """How long question and answer were on their way, without the time the collector held the question."""
        return max(0.0, self.answered_s - self.asked_s - self.held_s)

    @property
    def offset_s(self) -> float:
        """This host's clock minus the collector's, if both ways took the same time; wrong by half a round trip at most."""
        return self.answered_s - self.round_trip_s / 2 - self.collector_s


@dataclasses.dataclass(frozen=True)
class Receipt:
    """The collector's answer to a batch: it is stored; `complete` says that everything up to the final is."""

    complete: bool
    command: Optional[str]


def own_address(url: Optional[str]) -> str:
    """This host's address on the way to the collector at `url`; loopback without one. Asks the routing table, sends nothing."""
    parts = urllib.parse.urlsplit(url or "http://127.0.0.1")
    try:
        family, _, _, _, where = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(where)
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"  # no way to the collector either: that is said when it is asked for the start


class Channel:
    """One keep-alive connection to the collector; every call either answers, or raises Trouble or Refused.

    A call ends after `timeout_s` and what its size may take on a slow link, however the other side dribbles; only
    looking up a host's name is up to the system. One thread at a time.
    """

    def __init__(
        self,
        url: str,
        *,
        run_id: str,
        agent: str,
        epoch: str,
        badge: Optional[Badge] = None,
        timeout_s: float = _TIMEOUT_S,
        slowest_bytes_per_s: float = _SLOWEST_BYTES_PER_S,
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        self.url = url
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        if (parts.scheme == "https") is not (badge is not None):
            raise ValueError(f"{url} {'takes' if parts.scheme == 'https' else 'takes no'} a badge")
        self._context = None
        self._headers = {"Content-Type": "application/json"}
        if badge is not None:
            self._context = badge.context
            self._context.sslsocket_class = _SecureSocket
            self._headers["Authorization"] = f"Bearer {badge.token}"
        quoted = urllib.parse.quote(run_id, safe=""), urllib.parse.quote(agent, safe="")
        self._path = "/api/v1/runs/{}/agents/{}/".format(*quoted)
        self.epoch = epoch
        self._timeout_s = timeout_s
        self._slowest_bytes_per_s = slowest_bytes_per_s
        self._deadline_s = 0.0
        self._connection: Optional[http.client.HTTPConnection] = None

    def ready(self, description: Mapping[str, Any]) -> Exchange:
        """Says that this agent is armed and asks whether to start."""
        body = json.dumps({"v": 1, "epoch": self.epoch, **description}).encode()
        self._allow(len(body))
        self._connect()  # before the clock is read: the connection's own round trip is not the exchange's
        asked_s = time.monotonic()
        answer = self._post("ready", body)
        answered_s = time.monotonic()
        collector_s = answer.get("collector_mono_s")
        if answer.get("state") not in ("waiting", "start", "abort") or not isinstance(collector_s, (int, float)):
            raise Trouble("an answer without state or collector_mono_s; is this the collector?")
        if answer["state"] == "start" and not _is_number(answer.get("start_in_s")):
            raise Trouble("a start without start_in_s; is this the collector?")
        held_s = answer.get("held_s", 0.0)
        if not isinstance(held_s, (int, float)):
            raise Trouble("an answer whose held_s is no number; is this the collector?")
        return Exchange(answer, asked_s, answered_s, float(collector_s), float(held_s))

    def send(self, bodies: Sequence[bytes], *, epoch: Optional[str] = None) -> Receipt:
        """Delivers the events whose JSON `bodies` are; returns once the collector has committed all of them.

        They are of `epoch`, which may be a predecessor's; without it of this channel's own.
        """
        body = b'{"v":1,"epoch":"%s","events":[%s]}' % ((epoch or self.epoch).encode(), b",".join(bodies))
        self._allow(len(body))
        answer = self._post("events", body)
        if not _is_number(answer.get("stored")) or not _is_number(answer.get("duplicates")):
            raise Trouble("an acknowledgement without counts; is this the collector?")
        if answer["stored"] + answer["duplicates"] < len(bodies):
            raise Trouble("an acknowledgement of fewer events than were sent")
        command = answer.get("command")
        return Receipt(complete=answer.get("receipt") is True, command=command if isinstance(command, str) else None)

    def close(self) -> None:
        """Closes the connection; the next call opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _allow(self, size: int) -> None:
        """Sets the instant by which a call of `size` bytes has to have ended, the second attempt included."""
        self._deadline_s = time.monotonic() + min(_LONGEST_S, self._timeout_s + size / self._slowest_bytes_per_s)

    def _connect(self) -> None:
        if self._connection is not None and self._connection.sock is not None:
            return
        self.close()
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise Trouble("no connection: timed out")
        timeout_s = min(left_s, self._timeout_s)
        connection = (
            http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
            if self._context is None
            else http.client.HTTPSConnection(self._host, self._port, timeout=timeout_s, context=self._context)
        )
        try:
            connection.connect()  # sets TCP_NODELAY
            if self._context is None:
                connection.sock = _Socket.of(connection.sock)
        except (OSError, UnicodeError) as error:  # the latter for a host name that DNS cannot spell
            connection.close()
            raise Trouble(f"no connection: {_reason(error)}") from error
        self._connection = connection

    def _post(self, what: str, body: bytes) -> Dict[str, Any]:
        fresh = self._connection is None or self._connection.sock is None
        try:
            return self._post_once(what, body)
        except Trouble as trouble:
            if fresh or not isinstance(trouble.__cause__, (ConnectionError, http.client.BadStatusLine)):
                raise
        # A connection that was kept open may have been closed by the other side meanwhile; that says nothing about
        # the collector, and sending an event twice changes nothing.
        return self._post_once(what, body)

    def _post_once(self, what: str, body: bytes) -> Dict[str, Any]:
        self._connect()
        connection = self._connection
        if connection is None or not isinstance(connection.sock, (_Socket, _SecureSocket)):
            raise Trouble("no connection")
        connection.sock.deadline_s = self._deadline_s
        try:
            connection.request("POST", self._path + what, body, self._headers)
            response = connection.getresponse()
            text = response.read(_MAX_ANSWER_BYTES + 1)
            status = response.status
            if len(text) > _MAX_ANSWER_BYTES or response.getheader("Connection", "").lower() == "close":
                self.close()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Trouble(f"no answer: {_reason(error)}") from error
        except BaseException:
            self.close()
            raise
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):
            answer = None
        if status == 200:
            if not isinstance(answer, dict):
                self.close()
                raise Trouble("an answer that is no JSON object; is this the collector?")
            return answer
        sentence = answer.get("error") if isinstance(answer, dict) else None
        sentence = sentence if isinstance(sentence, str) else f"{response.reason or 'no reason given'}"
        if 400 <= status < 500 and status not in _RETRIED:
            raise Refused(status, sentence)
        raise Trouble(f"{sentence} ({status})")


def _arm(connection: Any) -> None:
    """Give the next call on a socket what is left until its `deadline_s`, however little at a time comes or goes."""
    left_s = connection.deadline_s - time.monotonic()
    if left_s <= 0:
        raise socket.timeout("timed out")  # TimeoutError is its name only from 3.10 on
    connection.settimeout(left_s)


class _Socket(socket.socket):
    """A socket on which no call lasts beyond `deadline_s`."""

    deadline_s = 0.0

    @classmethod
    def of(cls, other: socket.socket) -> _Socket:
        """Takes over the connection of another one."""
        return cls(other.family, other.type, other.proto, fileno=other.detach())

    def sendall(self, *arguments: Any) -> None:
        _arm(self)
        super().sendall(*arguments)

    def recv_into(self, *arguments: Any) -> int:  # the only way in which http.client reads
        _arm(self)
        return super().recv_into(*arguments)


class _SecureSocket(ssl.SSLSocket):
    """The same over TLS, whose sendall is made of many sends."""

    deadline_s = 0.0

    def send(self, *arguments: Any) -> int:
        _arm(self)
        return super().send(*arguments)

    def recv_into(self, *arguments: Any) -> int:
        _arm(self)
        return super().recv_into(*arguments)


class Pending(Protocol):
    """What the sender needs of an event: whose it is, its number and its JSON."""

    @property
    def epoch(self) -> str:
        """The process that issued it."""

    @property
    def seq(self) -> int:
        """Its number."""

    @property
    def body(self) -> bytes:
        """Its JSON."""


class Sender:
    """The thread that delivers events in order and at least once, until `finish`ed or out of time."""

    def __init__(
        self,
        channel: Channel,
        *,
        peek: Callable[[int, int], Sequence[Pending]],
        acknowledge: Callable[[List[Tuple[str, int]]], None],
        set_aside: Callable[[List[Tuple[str, int]], str], None],
        on_command: Callable[[str], None],
        more: Callable[[], bool] = lambda: False,
        backoff_first_s: float = _BACKOFF_FIRST_S,
        linger_s: float = _LINGER_S,
    ) -> None:
        """`peek` is given the most events and bytes of a batch; its events are all of one epoch.

        `more` says whether there is anything to come when `peek` gives nothing: it may have to be read from the disk.
        """
        self._channel = channel
        self._peek = peek
        self._acknowledge = acknowledge
        self._set_aside = set_aside
        self._on_command = on_command
        self._more = more
        self._backoff_first_s = backoff_first_s
        self._linger_s = linger_s
        self._batch_bytes = _BATCH_FIRST_BYTES
        self._wake = threading.Event()
        self._finishing = False
        self._cancelled = False
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
        self.receipt = False
        self.trouble: Optional[str] = None
        self.refusal: Optional[str] = None

    def start(self) -> None:
        """Begins to deliver."""
        self._thread.start()

    def finish(self) -> None:
        """Says that the final is appended: deliver what is left at once, then end."""
        self._finishing = True
        self._wake.set()

    def cancel(self) -> None:
        """Gives up: ends before the next attempt."""
        self._cancelled = True
        self._wake.set()

    def join(self, timeout_s: float) -> bool:
        """Waits for the thread's end; False when it is still trying after `timeout_s`."""
        self._thread.join(max(0.0, timeout_s))
        return not self._thread.is_alive()

    def _run(self) -> None:
        failures = 0
        try:
            while not self._cancelled:
                finishing = self._finishing  # read before the peek: what was appended before it is then in the peek
                batch = self._peek(_BATCH_EVENTS, self._batch_bytes)
                if not batch:
                    more = self._more()
                    if finishing and not more:
                        return
                    self._pause(_READ_BACK_S if more else self._linger_s)
                    continue
                try:
                    self._deliver(batch)
                    failures = 0
                except Trouble as trouble:
                    self.trouble = str(trouble)
                    if isinstance(trouble.__cause__, socket.timeout):
                        self._batch_bytes = max(_BATCH_LEAST_BYTES, self._batch_bytes // 2)
                    ceiling = min(_BACKOFF_LAST_S, self._backoff_first_s * 2**failures)
                    failures = min(failures + 1, 16)
                    self._pause(random.uniform(0, ceiling))
                else:
                    if not self._finishing and not self._is_full(batch):
                        self._pause(self._linger_s)  # what happens meanwhile goes into one batch
        except Exception as error:  # noqa: BLE001 - a thread's loop: what is pending then is missed at the end
            self.trouble = f"the sender failed: {type(error).__name__}: {error}"
        finally:
            self._channel.close()

    def _deliver(self, batch: Sequence[Pending]) -> None:
        keys = [(event.epoch, event.seq) for event in batch]
        began_s = time.monotonic()
        try:
            receipt = self._channel.send([event.body for event in batch], epoch=batch[0].epoch)
        except Refused as refused:
            if refused.status in (401, 403):  # it is the sender that is refused: the events are good, and stay
                raise Trouble(str(refused)) from refused
            self.refusal = self.refusal or str(refused)
            self._set_aside(keys, str(refused))
            return
        took_s = time.monotonic() - began_s
        if took_s > _BATCH_SLOW_S:
            self._batch_bytes = max(_BATCH_LEAST_BYTES, self._batch_bytes // 2)
        elif took_s < _BATCH_QUICK_S:
            self._batch_bytes = min(_BATCH_MOST_BYTES, self._batch_bytes * 2)
        self._acknowledge(keys)
        if batch[0].epoch in ("", self._channel.epoch):  # a predecessor's final is no receipt for this process
            self.receipt = self.receipt or receipt.complete
        if receipt.command:
            self._on_command(receipt.command)

    def _is_full(self, batch: Sequence[Pending]) -> bool:
        return len(batch) >= _BATCH_EVENTS or 2 * sum(len(event.body) for event in batch) > self._batch_bytes

    def _pause(self, seconds: float) -> None:
        woken = self._wake.wait(seconds)
        if woken and not self._cancelled:
            self._wake.clear()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{NOT_BELIEVED}: {error.verify_message}"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text)
