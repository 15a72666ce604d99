"""A collector's stand-in that misbehaves on command: it answers by script, drops, hangs, and remembers everything."""

from __future__ import annotations

import json
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

Answer = Union[Tuple[int, Any], str]
"""A status and a body (JSON, or bytes as they are), or a fault: "drop" closes without answer, "hang" says nothing."""


class Peer:
    """Listens at once, with TLS where a context is given; `ready` and `events` decide each answer, tests may replace them."""

    def __init__(self, context: Optional[ssl.SSLContext] = None) -> None:
        self.batches: List[Dict[str, Any]] = []
        self.asks: List[Dict[str, Any]] = []
        self.authorizations: List[Optional[str]] = []
        self.all: Dict[Tuple[str, int], Dict[str, Any]] = {}
        self.duplicates = 0
        self._lock = threading.Lock()
        self.connections = 0
        self.ready: Callable[[Dict[str, Any]], Answer] = lambda ask: (200, self.start(0.3))
        self.events: Callable[[Dict[str, Any]], Answer] = self.store
        self.closing = threading.Event()
        peer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                peer.connections += 1
                super().setup()

            def do_POST(self) -> None:
                peer.authorizations.append(self.headers["Authorization"])
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path.endswith("/ready"):
                    peer.asks.append({"path": self.path, **body})
                    self.give(peer.ready(body))
                else:
                    peer.batches.append({"path": self.path, **body})
                    self.give(peer.events(body))

            def give(self, answer: Answer) -> None:
                if answer == "hang":
                    peer.closing.wait(30)
                if isinstance(answer, str):
                    self.close_connection = True
                    return
                status, body = answer
                text = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'http' if context is None else 'https'}://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def start(self, start_in_s: float) -> Dict[str, Any]:
        """The answer that opens the barrier."""
        return {"state": "start", "start_in_s": start_in_s, "collector_mono_s": time.monotonic()}

    def waiting(self) -> Dict[str, Any]:
        """The answer that keeps an agent waiting."""
        return {
            "state": "waiting",
            "missing": ["megaera"],
            "missing_count": 1,
            "collector_mono_s": time.monotonic(),
        }

    def store(self, body: Dict[str, Any], *, command: Optional[str] = None) -> Answer:
        """Stores a batch as the protocol says."""
        epoch, duplicates = body["epoch"], 0
        with self._lock:
            for event in body["events"]:
                key = (epoch, event["seq"])
                if key in self.all:
                    assert self.all[key] == event, "the same key came with another body"
                    duplicates += 1
                self.all[key] = event
            self.duplicates += duplicates
            seqs = {seq for one, seq in self.all if one == epoch}
            final = next((seq for seq in seqs if self.all[epoch, seq]["kind"] == "final"), None)
        receipt = final is not None and all(seq in seqs for seq in range(final))
        stored = len(body["events"]) - duplicates
        return 200, {"stored": stored, "duplicates": duplicates, "receipt": receipt, "command": command}

    @property
    def stored(self) -> Dict[int, Dict[str, Any]]:
        """The stored events of the process that was heard last, by number."""
        said = self.asks or self.batches
        epoch = said[-1]["epoch"] if said else None
        return {seq: event for (one, seq), event in list(self.all.items()) if one == epoch}

    def kinds(self) -> List[str]:
        """The kinds of all stored events in the order of their numbers."""
        return [event["kind"] for _, event in sorted(self.stored.items())]

    def close(self) -> None:
        """Stops listening."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
