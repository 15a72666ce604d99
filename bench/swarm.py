"""A swarm of agents that speak the agents' protocol to one collector, over TLS with their tokens, from a few processes.

    python -m bench.swarm [--agents 10000] [--minutes 10] [--processes 2] [--restart] [--rollovers 1.0]

Each agent has a connection of its own and says what a real one says: ready as often as it is told to, then a push at each
heartbeat (5 s) with the rollovers since the last one (`--rollovers` a second), a sample with every second of them, and its
final. --restart ends the collector in the middle with kill -9 and starts another over the same database and port; agents
come back with full jitter, as theirs do. Told are lost events (there may be none), acknowledgement times from when a push was
due, agents falsely late, the collector's CPU, memory and descriptors over time, and pushes in each second after the restart.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import multiprocessing
import os
import random
import resource
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench import serving
from bench.collector_messages import event
from bench.table import report
from tests.secured import Secured

RUN = "bench-swarm"
BEAT_S = 5.0
BACKOFF_FIRST_S, BACKOFF_LAST_S = 0.5, 15.0
NEW_A_SECOND = 150  # connections, of a process: what a playbook's forks would arm
ASK = {"v": 1, "metrics_address": "127.0.0.1", "metrics_port": 1, "chunk_bytes": 20_000_768, "seconds": 60,
       "calibrated_bytes_per_second": 8e8, "host": "swarm", "agent_version": "0.1.0", "after": None}  # fmt: skip
START: dict[str, Any] = {"start_collector_mono_s": None, "rtt_s": None, "chunk_bytes": 20_000_768, "block_bytes": 2**20,
         "planned_seconds": 60, "host": "swarm", "facts": {}}  # fmt: skip
FINAL = {"verdict": "PASS", "reason": "", "ramp_bytes": 0, "read_bytes": 0, "tail_bytes": 0, "samples_dropped": 0,
         "heartbeats_coalesced": 0, "errors": 0, "device_written_bytes": None, "honesty": {}, "notes": [],
         **{f"{what}_histogram": event(49)["write_histogram"] for what in ("write", "fsync", "read")}}  # fmt: skip


@dataclass
class Tally:
    """What the agents of one process saw."""

    acknowledged: int = 0  # events
    issued: int = 0
    late_s: list[float] = field(default_factory=list)  # from when a push was due to its acknowledgement
    reconnects: int = 0
    seconds: collections.Counter[int] = field(default_factory=collections.Counter)  # pushes by second of the wall clock
    troubles: collections.Counter[str] = field(default_factory=collections.Counter)


class Agent:
    """One of the swarm."""

    def __init__(
        self, name: str, token: str, port: int, context: ssl.SSLContext, tally: Tally, rollovers: float, wait_s: float
    ) -> None:
        self.name, self.port, self.context, self.tally = name, port, context, tally
        self.head = f"Host: 127.0.0.1\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
        self.path = f"/api/v1/runs/{RUN}/agents/{name}/"
        self.epoch = os.urandom(8).hex()
        self.per_beat = rollovers * BEAT_S
        self.wait_s = wait_s
        self.seq = self.chunk = 0
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def live(self, seconds: float) -> None:
        """From ready to the receipt."""
        await asyncio.sleep(self.wait_s)
        start_s = await self.barrier()
        await asyncio.sleep(max(0.0, start_s - time.monotonic()))
        began = time.monotonic()
        await self.deliver([self.word("start")], time.monotonic())
        beat = 0
        offset = random.uniform(0, BEAT_S)  # a fleet's heartbeats are not in step for long
        while (due := began + offset + beat * BEAT_S) < began + seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            words = [self.word("rollover") for _ in range(round(self.per_beat))]
            words.append(self.word("heartbeat"))
            if beat % 2:
                words.append(self.word("sample"))
            await self.deliver(words, due)
            beat += 1
        await self.deliver([self.word("final")], time.monotonic())
        if self.streams:
            self.streams[1].close()

    async def barrier(self) -> float:
        ask = {**ASK, "epoch": self.epoch}
        body = json.dumps(ask).encode()
        while True:
            answer = await self.post("ready", body)
            if answer["state"] == "start":
                return time.monotonic() + float(answer["start_in_s"])
            if answer["state"] != "waiting":
                raise SystemExit(f"{self.name}: {answer}")
            await asyncio.sleep(float(answer["ask_in_s"]))

    def word(self, kind: str) -> dict[str, Any]:
        """The next event, of a size as real ones have."""
        common = {"seq": self.seq, "kind": kind, "t_mono_ns": time.monotonic_ns(), "t_wall": time.time()}
        self.seq += 1
        self.tally.issued += 1
        if kind == "rollover":
            self.chunk += 1
            return {**event(0), **common, "chunk": self.chunk}
        if kind == "heartbeat":
            more = {
                "phase": "writing",
                "written_bytes": self.chunk * 20_000_768,
                "rollovers": self.chunk,
                "pending_events": 0,
            }
            return {**common, **more}
        if kind == "sample":
            return {**event(49), **common}
        if kind == "start":
            return {**common, **START}
        return {**common, **FINAL, "written_bytes": self.chunk * 20_000_768, "rollovers": self.chunk, "seconds": 60.0}

    async def deliver(self, words: list[dict[str, Any]], due: float) -> None:
        body = json.dumps({"v": 1, "epoch": self.epoch, "events": words}).encode()
        answer = await self.post("events", body)
        if answer["stored"] + answer["duplicates"] != len(words):
            raise SystemExit(f"{self.name}: {answer}")
        self.tally.acknowledged += len(words)
        self.tally.late_s.append(time.monotonic() - due)
        self.tally.seconds[int(time.time())] += 1

    async def post(self, what: str, body: bytes) -> dict[str, Any]:
        """One request, again until it is answered: a new connection for each attempt that failed, with full jitter."""
        failures = 0
        while True:
            try:
                return await asyncio.wait_for(self.attempt(what, body), 30)
            except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError, ValueError) as error:
                self.tally.troubles[f"{type(error).__name__}: {error}"[:80]] += 1
                if self.streams:
                    self.streams[1].close()
                    self.streams = None
                await asyncio.sleep(random.uniform(0, min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2**failures)))
                failures += 1

    async def attempt(self, what: str, body: bytes) -> dict[str, Any]:
        if self.streams is None:
            self.tally.reconnects += 1
            self.streams = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.context)
        reader, writer = self.streams
        writer.write(
            f"POST {self.path}{what} HTTP/1.1\r\n{self.head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        )
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r")[0])
        text = await reader.readexactly(length)
        if head[9:12] != b"200":
            raise ValueError(f"answered {head[9:12].decode()}: {text[:100].decode(errors='replace')}")
        answer: dict[str, Any] = json.loads(text)
        return answer


def process(names: Sequence[tuple[str, str]], port: int, ca: str, seconds: float, rollovers: float, out: str) -> None:
    """The agents of one process, to their end; what they saw goes to a file."""
    tally = Tally()
    context = ssl.create_default_context(cadata=ca)

    async def all_of_them() -> None:
        agents = [
            Agent(name, token, port, context, tally, rollovers, number / NEW_A_SECOND)
            for number, (name, token) in enumerate(names)
        ]
        await asyncio.gather(*(agent.live(seconds) for agent in agents))

    asyncio.run(all_of_them())
    Path(out).write_text(json.dumps({**vars(tally), "seconds": dict(tally.seconds), "troubles": dict(tally.troubles)}))


def swarm(
    agents: int, seconds: float, *, processes: int, restart: bool, rollovers: float, directory: Path
) -> dict[str, Any]:
    """One run of the swarm."""
    names = [f"agent-{number:05}" for number in range(agents)]
    with tempfile.TemporaryDirectory(prefix="fury-swarm-", dir=directory) as name:
        home = Path(name)
        secured = Secured(home / "credentials", RUN, names)
        tokens = [(one, secured.token(one)) for one in names]
        document = serving.plan(RUN, [{"name": one, "seconds": seconds} for one in names])
        options = ("--barrier-seconds", "3600", "--stay")
        seen: list[tuple[float, float, int, int]] = []
        with serving.collector(home, document, *options, credentials=secured.collector) as (collector, url):
            port = urllib.parse.urlsplit(url).port or 0
            clients = []
            for number in range(processes):
                part = tokens[number::processes]
                argv = (part, port, secured.authority, seconds, rollovers, str(home / f"tally-{number}"))
                clients.append(multiprocessing.Process(target=process, args=argv))
            for one in clients:
                one.start()
            watched = psutil.Process(collector.pid)
            again: subprocess.Popen[bytes] | None = None
            killed = 0.0
            began = time.monotonic()
            while any(one.is_alive() for one in clients):
                time.sleep(1.0)
                with watched.oneshot():
                    cpu = watched.cpu_times()
                    seen.append(
                        (time.monotonic() - began, cpu.user + cpu.system, watched.memory_info().rss, watched.num_fds())
                    )
                if (
                    restart
                    and again is None
                    and time.monotonic() - began > agents / processes / NEW_A_SECOND + seconds / 2
                ):
                    collector.kill()
                    collector.wait()
                    killed = time.time()
                    (home / "collector.json").unlink()
                    argv_again = [str(port) if word == "0" else str(word) for word in collector.args]  # type: ignore[union-attr]
                    again = subprocess.Popen(
                        argv_again, cwd=serving.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                    )
                    watched = psutil.Process(again.pid)
            if any(one.exitcode for one in clients):
                sys.exit("a client failed")
            told = (home / "output.txt").read_text()
            for one_process in (collector, again):
                if one_process is not None and one_process.poll() is None:
                    one_process.terminate()
                    one_process.wait(120)
        tallies = [json.loads((home / f"tally-{number}").read_text()) for number in range(processes)]
        export = [sys.executable, "-m", "fury_collector", "report", RUN, "--database", str(home / "fury.db")]
        subprocess.run(export, cwd=serving.ROOT, check=True, stdout=subprocess.DEVNULL)
        return {
            "tallies": tallies,
            "seen": seen,
            "killed": killed,
            "told": told,
            "bytes": (home / "fury.db").stat().st_size,
        }


def main() -> None:
    """Let it loose and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, nargs="+", default=[10_000])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--restart", action="store_true")
    parser.add_argument("--rollovers", type=float, default=1.0)
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    lost = 0
    for agents in options.agents:
        found = swarm(agents, 60 * options.minutes, processes=options.processes, restart=options.restart,
                      rollovers=options.rollovers, directory=options.directory)  # fmt: skip
        took = [1000 * value for tally in found["tallies"] for value in tally["late_s"]]
        issued, stored = (sum(tally[what] for tally in found["tallies"]) for what in ("issued", "acknowledged"))
        lost += issued - stored
        seen = found["seen"]
        tenth = max(1, len(seen) // 10)
        rows = {
            "acknowledgement, ms": took,
            "RSS in the second tenth, MiB": [one[2] / 2**20 for one in seen[tenth : 2 * tenth]],
            "RSS in the last tenth, MiB": [one[2] / 2**20 for one in seen[-tenth:]],
            "descriptors": [float(one[3]) for one in seen[tenth:]],
        }
        late = sum(" is late: " in line or "agents are late" in line for line in found["told"].splitlines())
        notes: dict[str, object] = {
            "agents": agents,
            "events issued, acknowledged": (issued, stored),
            "p99 of acknowledgement, ms": round(statistics.quantiles(took, n=100)[98], 1),
            "lines about late agents": late,
            "CPU s of the collector, and a agent": (round(seen[-1][1], 1), round(seen[-1][1] / agents, 4)),
            "reconnects": sum(tally["reconnects"] for tally in found["tallies"]) - agents,
            "troubles": sum(
                (collections.Counter(tally["troubles"]) for tally in found["tallies"]), collections.Counter()
            ),
        }
        if found["killed"]:
            after: collections.Counter[int] = collections.Counter()
            for tally in found["tallies"]:
                for second, pushes in tally["seconds"].items():
                    after[int(second) - int(found["killed"])] += pushes
            notes["pushes a second around the restart"] = [after[second] for second in range(-3, 30)]
        report(f"swarm-{agents}", rows, notes=notes)
    sys.exit(f"{lost} events are lost" if lost else 0)


if __name__ == "__main__":
    main()
