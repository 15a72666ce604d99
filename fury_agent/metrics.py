"""What Prometheus sees of the agent, and what the agent sees of its host. Nothing here costs the writer anything.

The writer's own histograms are converted when somebody asks for them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import socket
import socketserver
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, Callable, Iterator, List, Optional, Tuple

import psutil
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from fury_agent.credentials import READER, Guard
from fury_agent.histogram import Histogram
from fury_agent.verdict import FuryError, Verdict

LATENCY_BOUNDS_S = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
_MAX_CONNECTIONS = 16
_IDLE_S = 10.0
_REQUEST_S = 30.0


@dataclasses.dataclass(frozen=True)
class HostSample:
    """The agent's and its host's CPU and memory over `interval_s`; None where this system does not tell.

    `agent_cpu_ratio` is of one CPU, `host_cpu_ratio` of all of them.
    """

    interval_s: float
    agent_cpu_ratio: float
    agent_rss_bytes: int
    host_cpu_ratio: Optional[float]
    host_memory_used_bytes: Optional[int]
    host_memory_total_bytes: Optional[int]


@dataclasses.dataclass(frozen=True)
class Reading:
    """Everything `/metrics` shows besides the process itself, at one instant."""

    written_bytes: int
    read_bytes: int
    rollovers: int
    write_errors: int
    write_latency: Histogram
    fsync_latency: Histogram
    read_latency: Histogram
    journal_events: int
    chunk_bytes: int
    disk_free_bytes: Optional[int]
    host: HostSample


class HostSampler:
    """Measures CPU shares between two calls of `sample`; the first interval begins when this is made."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._at_s = time.monotonic()
        self._agent_cpu_s = time.process_time()
        self._host_cpu = _host_cpu_s()
        self.latest = self._measure(0.0, 0.0, None)

    def sample(self) -> HostSample:
        """CPU shares since the last sample, and memory now."""
        now, agent_cpu_s, host_cpu = time.monotonic(), time.process_time(), _host_cpu_s()
        interval_s = max(now - self._at_s, 1e-9)
        host_ratio = None
        if host_cpu is not None and self._host_cpu is not None:
            busy, total = host_cpu[0] - self._host_cpu[0], host_cpu[1] - self._host_cpu[1]
            host_ratio = min(1.0, max(0.0, busy / total)) if total > 0 else 0.0
        self.latest = self._measure(interval_s, (agent_cpu_s - self._agent_cpu_s) / interval_s, host_ratio)
        self._at_s, self._agent_cpu_s, self._host_cpu = now, agent_cpu_s, host_cpu
        return self.latest

    def _measure(self, interval_s: float, agent_ratio: float, host_ratio: Optional[float]) -> HostSample:
        used = total = None
        with contextlib.suppress(OSError, psutil.Error, RuntimeError):  # /proc/meminfo may be hidden from a service
            memory = psutil.virtual_memory()
            used, total = int(memory.total - memory.available), int(memory.total)
        return HostSample(
            interval_s=interval_s,
            agent_cpu_ratio=max(0.0, agent_ratio),
            agent_rss_bytes=int(self._process.memory_info().rss),
            host_cpu_ratio=host_ratio,
            host_memory_used_bytes=used,
            host_memory_total_bytes=total,
        )


class AgentCollector(Collector):
    """Turns one `Reading` per scrape into metric families."""

    def __init__(self, read: Callable[[], Reading], *, run_id: str, version: str, directory: str) -> None:
        self._read = read
        self._info = {"run_id": run_id, "version": version, "directory": directory}

    def collect(self) -> Iterator[Metric]:
        """One family per metric of docs/protocol.md."""
        now = self._read()
        yield InfoMetricFamily("fury_run", "The run this agent belongs to.", value=self._info)
        yield CounterMetricFamily(
            "fury_written_bytes", "Bytes written and confirmed durable by fsync.", value=now.written_bytes
        )
        yield CounterMetricFamily(
            "fury_read_bytes", "Bytes read back and compared after their fsync.", value=now.read_bytes
        )
        yield CounterMetricFamily("fury_rollovers", "Chunks that became full, durable and closed.", value=now.rollovers)
        yield CounterMetricFamily(
            "fury_write_errors", "Failed calls to the storage; the first one ends the agent.", value=now.write_errors
        )
        yield _histogram("fury_write_duration_seconds", "Duration of one write call.", now.write_latency)
        yield _histogram("fury_fsync_duration_seconds", "Duration of one fsync call.", now.fsync_latency)
        yield _histogram("fury_read_duration_seconds", "Duration of one read of what was written.", now.read_latency)
        for name, documentation, value in (
            ("fury_journal_events", "Events the collector has not acknowledged yet.", now.journal_events),
            ("fury_chunk_bytes", "Size of one chunk in bytes.", now.chunk_bytes),
            ("fury_host_cpu_ratio", "Share of all CPUs that was busy in the last sample.", now.host.host_cpu_ratio),
            ("fury_host_memory_used_bytes", "Memory that is not available.", now.host.host_memory_used_bytes),
            ("fury_host_memory_total_bytes", "Memory of the host.", now.host.host_memory_total_bytes),
            ("fury_disk_free_bytes", "Bytes free to this user on the tested file system.", now.disk_free_bytes),
        ):
            if value is not None:
                yield GaugeMetricFamily(name, documentation, value=value)


def make_registry(read: Callable[[], Reading], *, run_id: str, version: str, directory: str) -> CollectorRegistry:
    """A registry of the agent's metrics and its process', with no `_created` series."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(AgentCollector(read, run_id=run_id, version=version, directory=directory))
    return registry


class MetricsServer:
    """Serves `/metrics` from threads of its own until `close`."""

    def __init__(self, registry: CollectorRegistry, *, address: str, port: int, guard: Optional[Guard] = None) -> None:
        """Listens at once. Raises FuryError (PRECONDITION) where the address or port cannot be had."""
        try:
            self._server = _Server(registry, address, port, guard)
        except (OSError, OverflowError) as error:
            raise FuryError(Verdict.PRECONDITION, _refusal(address, port, error)) from error
        self.address = address
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="metrics", daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """Where a browser or Prometheus finds the metrics."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{'https' if self._server.guard else 'http'}://{host}:{self.port}/metrics"

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingMixIn, HTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 16

    def __init__(self, registry: CollectorRegistry, address: str, port: int, guard: Optional[Guard]) -> None:
        self.registry, self.guard = registry, guard
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._room = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__((address, port), _Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own would ask DNS for this host's name
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return self._room.acquire(blocking=False)  # beyond the bound a connection is closed, not queued

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        # Ends a client that dribbles, from the outside: the few places are for those who ask.
        connection = [request]
        timer = threading.Timer(_REQUEST_S, _shut, (connection,))
        timer.daemon = True
        timer.start()
        try:
            if self.guard is not None:
                request.settimeout(_IDLE_S)  # the handshake as a whole
                try:
                    connection[0] = self.guard.context.wrap_socket(request, server_side=True)
                except OSError:  # a scanner, or a client that does not believe the run's authority
                    self.shutdown_request(request)
                    return
            super().process_request_thread(connection[0], client_address)
        finally:
            timer.cancel()
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        return  # a scraper that hangs up is its own business


class _Handler(BaseHTTPRequestHandler):
    timeout = _IDLE_S
    server: _Server

    def do_GET(self) -> None:
        if self.server.guard is not None and not self.server.guard.admits(self.headers.get("Authorization")):
            self._answer(401, b"401: /metrics is read with the run's read credential (HTTP basic)\n", "text/plain")
            return
        if self.path.split("?", 1)[0] != "/metrics":
            self.send_error(404, "only /metrics is here")
            return
        self._answer(200, generate_latest(self.server.registry), CONTENT_TYPE_LATEST)

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        if status == 401:
            self.send_header("WWW-Authenticate", f'Basic realm="{READER}"')
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        return

    def version_string(self) -> str:
        return "fury_agent"


def _shut(connection: List[socket.socket]) -> None:
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection[0], socket.SHUT_RDWR)


def _histogram(name: str, documentation: str, histogram: Histogram) -> HistogramMetricFamily:
    count = histogram.count
    buckets = [
        (repr(bound), float(at_most))
        for bound, at_most in zip(LATENCY_BOUNDS_S, histogram.cumulative(LATENCY_BOUNDS_S))
    ]
    buckets.append(("+Inf", float(count)))
    return HistogramMetricFamily(name, documentation, buckets=buckets, sum_value=histogram.sum)


def _refusal(address: str, port: int, error: BaseException) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRINUSE:
        return f"metrics_port: {port} at {address} is in use; free it, or give another port or 0 for any free one"
    if number == errno.EADDRNOTAVAIL:
        return f"metrics_address: {address} is not an address of this host; give one that is, or 0.0.0.0 for all"
    if number == errno.EACCES:
        return f"metrics_port: {port} needs privileges; give a port from 1024 on, or 0 for any free one"
    reason = os.strerror(number) if number else str(error)
    return f"metrics_address: {address} port {port} cannot be listened on ({reason}); give others"


def _host_cpu_s() -> Optional[Tuple[float, float]]:
    """Busy and total CPU seconds of the host since it booted, or None where /proc/stat is hidden."""
    try:
        times = psutil.cpu_times()
    except (OSError, psutil.Error, RuntimeError, ValueError):
        return None
    # guest and guest_nice are counted in user and nice already
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    idle = times.idle + getattr(times, "iowait", 0.0)
    return total - idle, total
