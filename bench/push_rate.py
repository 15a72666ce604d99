"""How many pushes a second the collector takes, next to Prometheus' Pushgateway on the same machine, by turns.

    python -m bench.push_rate [--rounds 5] [--seconds 5] [--connections 32]

The same clients load both, over kept connections on loopback in plain HTTP, each as soon as its last push was acknowledged:
Fury with pushes of 1 event and of 50 (stored durably before the acknowledgement), the Pushgateway (Debian's package) with one
metric of 1 sample (in its memory, not durable). Then Fury alone at half the rate it reached with 50, each push at its own time:
how long an acknowledgement takes then, counted from that time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import serving
from bench.collector_messages import event
from bench.table import report

EPOCH = "ab" * 8
RUN = "bench-rate"
Request = Callable[[int], bytes]


def requests(connection: int, per_push: int) -> Request:
    """The n-th push of an agent of its own: the same events but for their numbers, which are put in where they belong."""
    pieces: list[bytes] = []
    for index in range(per_push):
        text = json.dumps({**event(0), "seq": "@"}, separators=(",", ":")).encode()
        pieces += [b"," if index else b"", text.replace(b'"seq":"@"', b'"seq":%d')]
    body = b'{"v":1,"epoch":"%s","events":[' % EPOCH.encode() + b"".join(pieces) + b"]}"
    path = f"/api/v1/runs/{RUN}/agents/agent-{connection:03}/events".encode()

    def request(number: int) -> bytes:
        filled = body % tuple(range(number * per_push, (number + 1) * per_push))
        return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
            path, len(filled), filled,
        )  # fmt: skip

    return request


def gateways(connection: int, per_push: int) -> Request:
    """The n-th push to the Pushgateway: one sample, in a group of this client's own."""
    path = f"/metrics/job/fury/instance/agent-{connection:03}".encode()

    def request(number: int) -> bytes:
        body = b"fury_written_bytes_total %d\n" % number
        return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (path, len(body), body)

    return request


def client(
    port: int,
    make: Callable[[int, int], Request],
    connection: int,
    per_push: int,
    seconds: float,
    every_s: float,
    out: str,
) -> None:
    """Push until `seconds` are over; how long each took to be acknowledged goes to a file, as seconds."""
    request = make(connection, per_push)
    took: list[float] = []
    with socket.create_connection(("127.0.0.1", port)) as sock, sock.makefile("rb") as answers:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began = time.monotonic() + every_s * (connection % 32) / 32
        number = 0
        while (due := began + number * every_s if every_s else time.monotonic()) < began + seconds:
            if (early := due - time.monotonic()) > 0:
                time.sleep(early)
            sock.sendall(request(number))
            status = answers.readline()
            length = 0
            while (line := answers.readline()) not in (b"\r\n", b""):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            answers.read(length)
            if b" 20" not in status[:13]:
                sys.exit(f"push {number} of client {connection} was answered {status!r}")
            took.append(time.monotonic() - due)
            number += 1
    Path(out, str(connection)).write_text("\n".join(map(repr, took)))


def load(
    port: int,
    make: Callable[[int, int], Request],
    *,
    connections: int,
    per_push: int,
    seconds: float,
    every_s: float = 0.0,
) -> list[float]:
    """All pushes' seconds from when they were due to their acknowledgement."""
    with tempfile.TemporaryDirectory(prefix="fury-rate-") as out:
        clients = [
            multiprocessing.Process(target=client, args=(port, make, number, per_push, seconds, every_s, out))
            for number in range(connections)
        ]
        for one in clients:
            one.start()
        for one in clients:
            one.join()
        if any(one.exitcode for one in clients):
            sys.exit("a client failed")
        return [float(line) for path in Path(out).iterdir() for line in path.read_text().split()]


@contextlib.contextmanager
def fury(directory: Path, connections: int) -> Iterator[int]:
    """The port of a collector over a database of its own."""
    agents = [{"name": f"agent-{number:03}"} for number in range(connections)]
    with (
        tempfile.TemporaryDirectory(prefix="fury-rate-", dir=directory) as name,
        serving.collector(Path(name), serving.plan(RUN, agents), "--barrier-seconds", "86400") as (_, url),
    ):
        yield urllib.parse.urlsplit(url).port or 0


@contextlib.contextmanager
def pushgateway() -> Iterator[int]:
    """The port of a Pushgateway that keeps its metrics in memory."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    argv = ["prometheus-pushgateway", f"--web.listen-address=127.0.0.1:{port}"]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Load both by turns and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    options = parser.parse_args()
    if shutil.which("prometheus-pushgateway") is None:
        sys.exit("prometheus-pushgateway is not on PATH (Debian: apt-get install prometheus-pushgateway)")
    common = {"connections": options.connections, "seconds": options.seconds}
    rows: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for label, per_push in (("Fury, 1 event", 1), ("Pushgateway, 1 sample", 0), ("Fury, 50 events", 50)):
            with fury(options.directory, options.connections) if per_push else pushgateway() as port:
                took = load(port, requests if per_push else gateways, per_push=per_push, **common)
            rows.setdefault(f"{label}: pushes/s", []).append(len(took) / options.seconds)
            rows.setdefault(f"{label}: p99 ms", []).append(1000 * statistics.quantiles(took, n=100)[98])
        half = rows["Fury, 50 events: pushes/s"][-1] / 2
        with fury(options.directory, options.connections) as port:
            took = load(port, requests, per_push=50, every_s=options.connections / half, **common)
        rows.setdefault("Fury, 50 events at half its rate: p99 ms", []).append(
            1000 * statistics.quantiles(took, n=100)[98]
        )
    fury_1, gateway = rows["Fury, 1 event: pushes/s"], rows["Pushgateway, 1 sample: pushes/s"]
    rows["ratio, 1 event"] = [one / other for one, other in zip(fury_1, gateway)]
    rows["Fury, 50 events: events/s"] = [50 * value for value in rows["Fury, 50 events: pushes/s"]]
    report("push_rate", rows, notes=common)


if __name__ == "__main__":
    main()
