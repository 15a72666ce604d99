"""The collector as a process: a gevent WSGI server that no slow client can hold up, and the loop of a run's life.

Nothing is monkey-patched. The hub's thread serves HTTP and owns the run; the database's writer is a thread of its own,
and a request waits for its commit without keeping the others waiting. Without TLS it listens on loopback only.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import os
import resource
import signal
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Optional, TypeVar

import gevent
import gevent.event
import gevent.pool
import gevent.pywsgi
import gevent.socket
import gevent.ssl

from fury_collector import Config, api, create_app, report, stores, wire
from fury_collector.access import Access, refusal
from fury_collector.db import Database
from fury_collector.errors import BadInput, CollectorError, Precondition
from fury_collector.run import Run

IDLE_S = 75.0  # between two requests of a connection
HEAD_S = 15.0  # for the headers of a request
REQUEST_S = 30.0  # for its body, the commit and the answer
CONNECTIONS = 20_000
OWN_DESCRIPTORS = 40  # for the database, its readers, the state file and the rest
FEWEST_CONNECTIONS = 8
TICK_S = 0.5

T = TypeVar("T")


def _refusal(status: str, sentence: str) -> bytes:
    """An answer to what never reaches the application, of the kind that the application gives."""
    body = wire.dumps({"error": sentence, "field": None})
    head = f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n{body}".encode("ascii")


_REFUSALS = {
    400: _refusal(
        "400 Bad Request", "this is not a request of HTTP/1.1 with headers of at most 65536 bytes each, 100 at most"
    ),
    414: _refusal("414 URI Too Long", f"the request line is longer than {gevent.pywsgi.MAX_REQUEST_LINE} bytes"),
}


class HubWait(api.Wait):
    """Waits for a future of another thread while the hub serves everybody else."""

    def __init__(self) -> None:
        self._done: deque[tuple[gevent.event.AsyncResult, Future[Any]]] = deque()
        self._wake = gevent.get_hub().loop.async_()
        self._wake.start(self._deliver)

    def __call__(self, future: Future[T]) -> T:
        if not future.done():
            woken = gevent.event.AsyncResult()
            future.add_done_callback(lambda done: self._hand_over(woken, done))
            woken.get()
        return future.result()

    def close(self) -> None:
        """Let go of the hub."""
        self._wake.stop()
        self._wake.close()

    def _hand_over(self, woken: gevent.event.AsyncResult, done: Future[Any]) -> None:
        # In the writer's thread: gevent's objects may not be touched here, only the watcher may.
        self._done.append((woken, done))
        self._wake.send()

    def _deliver(self) -> None:
        while self._done:
            self._done.popleft()[0].set(None)


class Handler(gevent.pywsgi.WSGIHandler):  # type: ignore[misc] # gevent has no types
    """Gives every step of a connection its time, and shuts the connection when that has passed."""

    _timer: Any = None

    def handle(self) -> None:
        """Serve one connection to its end."""
        self.server.make_room()
        try:
            if self.server.ssl_enabled:
                self._give(HEAD_S)
                self.server.idle[self] = None
                try:
                    self.socket.do_handshake()
                except OSError:  # a scanner, or a client that does not believe this run's authority
                    return
            super().handle()
        finally:
            self._give(None)
            self.server.idle.pop(self, None)

    def read_requestline(self) -> Any:
        """Wait for the next request."""
        self._give(IDLE_S)
        self.server.idle.pop(self, None)
        self.server.idle[self] = None
        self.server.make_room()
        return super().read_requestline()

    def read_request(self, raw_requestline: str) -> Any:
        """Read the headers."""
        self._give(HEAD_S)
        return super().read_request(raw_requestline)

    def handle_one_response(self) -> None:
        """Read the body, answer."""
        self._give(REQUEST_S)
        self.server.idle.pop(self, None)
        self.server.answering += 1
        try:
            super().handle_one_response()
        finally:
            self.server.answering -= 1

    def handle_one_request(self) -> Any:
        """Serve a request; what is none is answered as everything else is, and ends the connection."""
        result = super().handle_one_request()
        return result if result is None or result is True else (result[0], _REFUSALS[int(result[0])])

    def _handle_client_error(self, ex: Exception) -> Any:
        return ("400", b"")  # gevent's would print the traceback of some

    def log_error(self, msg: str, *args: Any) -> None:
        """Broken requests are answered, not logged: their number is the sender's choice."""

    def handle_error(self, t: Any, v: Any, tb: Any) -> None:
        """A client that has gone is no error of ours; anything else is told."""
        if isinstance(v, OSError):
            self.close_connection = True
            return
        super().handle_error(t, v, tb)

    def shut(self) -> None:
        """End the connection from outside."""
        self._shut(self.socket)

    def _give(self, seconds: Optional[float]) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None
        if seconds is not None and self.socket is not None:
            self._timer = gevent.get_hub().loop.timer(seconds)
            self._timer.start(self._shut, self.socket)

    @staticmethod
    def _shut(connection: Any) -> None:
        # Ends whatever read or write it is in, from the outside and without an exception in the middle of the app.
        with contextlib.suppress(OSError):
            connection._sock.shutdown(socket.SHUT_RDWR)


class Server(gevent.pywsgi.WSGIServer):  # type: ignore[misc] # gevent has no types
    """Serves at most `connections` at once: where more come, those that have asked nothing for longest are shut for them.

    Without that, idle clients of a process with few descriptors would keep all others out; who is shut out sends again.
    """

    def __init__(self, listener: Any, app: Any, *, connections: int, context: Optional[gevent.ssl.SSLContext]) -> None:
        super().__init__(
            listener,
            app,
            log=None,
            error_log=sys.stderr,
            handler_class=Handler,
            spawn=gevent.pool.Pool(connections),
            # The handshake is the handler's, which gives it its time.
            **({} if context is None else {"ssl_context": context, "do_handshake_on_connect": False}),
        )
        self.answering = 0
        self.idle: dict[Handler, None] = {}  # whose handshake, request or headers are awaited, the longest first

    def make_room(self) -> None:
        """Keep a place free for the next connection if any can be."""
        if self.full():
            oldest = next(iter(self.idle), None)
            if oldest is not None:
                del self.idle[oldest]
                oldest.shut()


def serve(
    plan: wire.Plan,
    where: stores.Where,
    *,
    host: str,
    port: int,
    state_file: Optional[Path],
    barrier_seconds: float,
    credentials: Optional[Path],
    stay: bool,
    tell: Callable[[str], None],
) -> None:
    """Serve one run until it is over (or, with `stay`, until a signal), then print the general statistics.

    credentials: the directory with what the run gave this collector (fury_collector.access); None for plain HTTP without any
    credential, on loopback only.
    """
    access = context = None
    if credentials is not None:
        access, context = Access.read(credentials, now=time.monotonic), _server_context(credentials)
    elif not _is_loopback(host):
        raise BadInput(
            f"host: {host} is not allowed with --plain-http; an address of loopback is (for example 127.0.0.1)"
        )
    if state_file is not None and not os.access(state_file.parent, os.W_OK | os.X_OK):
        why = "it cannot be written to" if state_file.parent.is_dir() else "there is no such directory"
        raise Precondition(f"cannot write the state file {state_file}: {why}; name another with --state-file")
    descriptors = _raise_descriptor_limit()
    listener = listen(host, port)
    database = None
    try:
        database = Database(where, exclusive=True)
        database.start()
        _serve(
            plan,
            database,
            listener,
            state_file,
            access=access,
            context=context,
            barrier_seconds=barrier_seconds,
            stay=stay,
            tell=tell,
            connections=min(CONNECTIONS, max(FEWEST_CONNECTIONS, descriptors - OWN_DESCRIPTORS)),
        )
    finally:
        listener.close()
        if database is not None:
            database.close()


def _serve(
    plan: wire.Plan,
    database: Database,
    listener: Any,
    state_file: Optional[Path],
    *,
    access: Optional[Access],
    context: Optional[gevent.ssl.SSLContext],
    barrier_seconds: float,
    stay: bool,
    tell: Callable[[str], None],
    connections: int,
) -> None:
    ending = gevent.event.Event()
    handlers = [gevent.signal_handler(number, ending.set) for number in (signal.SIGTERM, signal.SIGINT)]
    wait = HubWait()
    app = create_app(Config(plan, database, access=access, barrier_seconds=barrier_seconds, wait=wait, tell=tell))
    run: Run = app.extensions["fury_run"]
    recorder: api.Recorder = app.extensions["fury_recorder"]
    server = Server(listener, app, connections=connections, context=context)
    try:
        server.start()
        where, listening = listener.getsockname()[:2]
        url = _url("http" if context is None else "https", where, listening)
        if state_file is not None:
            _write_state(
                state_file, {"pid": os.getpid(), "host": where, "port": listening, "run_id": plan.run_id, "url": url}
            )
        tell(f"the collector listens on {url}")
        while not ending.wait(TICK_S):
            run.tick()
            recorder.flush()
            if run.over and not stay:
                break
    finally:
        server.close()
        with gevent.Timeout(2, False):  # let those finish that are being answered, idle connections need no time
            while server.answering:
                gevent.sleep(0.01)
        server.stop(timeout=0)
        if state_file is not None:
            state_file.unlink(missing_ok=True)
        recorder.flush()
        # A writer that has taken everything before this one has taken everything.
        with contextlib.suppress(CollectorError):
            wait(database.change(lambda connection: None))
        wait.close()
        for handler in handlers:
            handler.cancel()
    tell("")
    tell(report.table(statistics(database, plan.run_id)))


def statistics(database: Database, run_id: str) -> report.Result:
    """The result of a run as the database has it now."""
    run = database.read_run(run_id)
    needed = any(epoch.final is None for agent in run.agents for epoch in agent.epochs)
    return report.judge(run, database.samples(run.id) if needed else ())


def listen(host: str, port: int) -> Any:
    """A listening socket, or Precondition naming the port and what to do."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = gevent.socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit it. pywsgi sends head and body apart: Nagle would hold each answer back for 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except (OSError, OverflowError) as error:
        listener.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise Precondition(
                f"port {port} on {host} is in use: end what listens there, or choose another with --port (0: any free)"
            ) from None
        raise Precondition(
            f"cannot listen on {host} port {port}: {error}; choose another with --host and --port"
        ) from None
    listener.setblocking(False)
    return listener


def _write_state(path: Path, state: dict[str, Any]) -> None:
    """Write the state file so that a reader sees all of it or nothing."""
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "w") as file:
            json.dump(state, file)
            file.write("\n")
        os.replace(name, path)
    except OSError as error:
        raise Precondition(
            f"cannot write the state file {path}: {error.strerror}; name another with --state-file"
        ) from None


def _url(scheme: str, host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme}://[{shown}]:{port}" if ":" in shown else f"{scheme}://{shown}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _server_context(credentials: Path) -> gevent.ssl.SSLContext:
    """TLS with the key and certificate in tls.pem; Precondition if they can't be used."""
    context = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = gevent.ssl.TLSVersion.TLSv1_3
    path = credentials / "tls.pem"
    try:
        context.load_cert_chain(path)
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        why = error.strerror if isinstance(error, FileNotFoundError) else "it holds no key with its certificate"
        raise Precondition(refusal(path, str(why))) from None
    return context


def _raise_descriptor_limit() -> int:
    """Each agent holds one connection: take as many descriptors as this process may have, and say how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return 2**31 if soft == resource.RLIM_INFINITY else soft


def printer() -> Callable[[str], None]:
    """A line printer on standard output that survives its reader's end, and a full disk under its log."""
    gone = False

    def tell(line: str) -> None:
        nonlocal gone
        if gone:
            return
        try:
            print(line, flush=True)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return  # what could not be written is in the buffer, and comes with a later line
            gone = True
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process

    return tell
