"""A fixed past for pictures: two runs of one fleet as Prometheus would have scraped them, always the same.

The agents' samples come from the agent's own metrics, so that their names and buckets are those of today. What happens:
in the first run one agent is not heard for a while; the second is slower, and another agent's disk fails in it.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Iterator
from pathlib import Path

from fury_agent.histogram import Histogram
from fury_agent.metrics import AgentCollector, HostSample, Reading

BEGIN = datetime.datetime(2026, 1, 5, 10, 0, tzinfo=datetime.timezone.utc).timestamp()
END = BEGIN + 630
FIRST, SECOND = "20260105-100010-a1f0", "20260105-100520-b2e7"
AGENTS = {"alecto": 300e6, "megaera": 285e6, "tisiphone": 240e6}  # bytes a second
SCRAPE_S = 2
CHUNK_BYTES = 20_000_000
ARMED_S, STARTS_S, SECONDS = 10, 22, 240  # after the run's own beginning
SILENT = range(150, 196)  # seconds of the first run in which tisiphone is not heard
BROKEN_S = 180  # when megaera's disk fails in the second

Sample = tuple[str, dict[str, str], float, float]  # name, labels, value, time


def write(path: Path, agents: list[str]) -> None:
    """Writes what was scraped of both runs with these agents, in the text that `promtool tsdb create-blocks-from` reads."""
    series: dict[str, list[str]] = {}
    for n, run_id in enumerate((FIRST, SECOND)):
        begin = BEGIN + 310 * n
        for name, labels, value, at in (*_collector(run_id, n, begin, agents), *_agents(run_id, n, begin, agents)):
            text = ",".join(f'{label}="{value}"' for label, value in labels.items())
            series.setdefault(f"{name}{{{text}}}", []).append(f"{value!r} {at:.0f}")
    lines = (f"{key} {sample}\n" for key, samples in series.items() for sample in samples)
    path.write_text("".join(lines) + "# EOF\n", encoding="utf-8")


def _agents(run_id: str, n: int, begin: float, agents: list[str]) -> Iterator[Sample]:
    for number, agent in enumerate(agents):
        chance = random.Random(f"{run_id} {agent}")
        rate, broken = AGENTS[agent] * (0.85 if n else 1), bool(n) and agent == "megaera"
        target = {
            "job": "fury_agents",
            "instance": f"10.0.0.{number + 1}:{40001 + n}",
            "agent": agent,
            "host": f"node{number + 1}",
        }
        write, fsync, read = Histogram(), Histogram(), Histogram()
        pending, chunks, cpu_s, journal = 0.0, 0, 0.0, 0
        at = begin + ARMED_S
        while at <= begin + STARTS_S + SECONDS + 4:
            elapsed = at - begin - STARTS_S
            failed = broken and elapsed >= BROKEN_S
            if 0 <= elapsed < SECONDS and not failed:
                swing = 1 + 0.06 * chance.gauss(0, 1) - (0.25 if 100 <= elapsed < 120 and agent == "alecto" else 0)
                pending += rate * SCRAPE_S * swing
                done, pending = divmod(pending, CHUNK_BYTES)
                chunks += int(done)
                for _ in range(40):
                    write.add(chance.lognormvariate(-6.9, 0.5) * (300e6 / rate))
                for _ in range(int(done)):
                    fsync.add(chance.lognormvariate(-4.6, 0.4) * (300e6 / rate))
                    read.add(chance.lognormvariate(-7.4, 0.5))
                cpu_s += SCRAPE_S * chance.uniform(0.25, 0.4)
            silent = not n and agent == "tisiphone" and elapsed in SILENT
            journal = journal + 24 if silent else int(chance.random() < 0.3)
            reading = Reading(
                written_bytes=chunks * CHUNK_BYTES,
                read_bytes=chunks * CHUNK_BYTES,
                rollovers=chunks,
                write_errors=int(failed),
                write_latency=write,
                fsync_latency=fsync,
                read_latency=read,
                journal_events=journal,
                chunk_bytes=CHUNK_BYTES,
                disk_free_bytes=int(90e9 - 5e9 * number - 64 * CHUNK_BYTES * chance.random()),
                host=HostSample(
                    interval_s=10.0,
                    agent_cpu_ratio=0.3,
                    agent_rss_bytes=31_000_000,
                    host_cpu_ratio=chance.uniform(0.08, 0.2) + (0.25 if 0 <= elapsed < SECONDS else 0),
                    host_memory_used_bytes=int(3e9 + 2e8 * chance.random()),
                    host_memory_total_bytes=16_000_000_000,
                ),
            )
            yield "up", target, float(not silent), at
            at += SCRAPE_S
            if silent:
                continue
            collector = AgentCollector(lambda: reading, run_id=run_id, version="0.1.0", directory="/var/tmp/fury")  # noqa: B023
            for family in collector.collect():
                for sample in family.samples:
                    yield sample.name, {**sample.labels, **target}, float(sample.value), at - SCRAPE_S
            yield from _process(
                target, at - SCRAPE_S, start=begin + 5, cpu_s=cpu_s, rss=31e6 + 4e5 * chance.random(), fds=14
            )
            if failed and elapsed > BROKEN_S + 6:
                break


def _collector(run_id: str, n: int, begin: float, agents: list[str]) -> Iterator[Sample]:
    chance = random.Random(run_id)
    target = {"job": "fury_collector", "instance": f"127.0.0.1:{9475 + n}"}
    stored, pushes, cpu_s, counts = 0, 0, 0.0, [0, 0, 0]
    at = begin + 4
    while at <= begin + STARTS_S + SECONDS + 10:
        elapsed = at - begin - STARTS_S
        state = (
            "arming" if elapsed < -2 else "starting" if elapsed < 0 else "running" if elapsed < SECONDS else "finished"
        )
        failed = int(bool(n) and "megaera" in agents and elapsed >= BROKEN_S)
        health = dict.fromkeys(("waiting", "green", "late", "suspect", "lost", "finished"), 0)
        silent_s = elapsed - SILENT.start if not n and "tisiphone" in agents and elapsed in SILENT else 0
        if silent_s >= 10:
            health["lost" if silent_s >= 40 else "suspect" if silent_s >= 20 else "late"] = 1
        others = len(agents) - failed - sum(health.values())
        health["waiting" if elapsed < -8 else "finished" if elapsed >= SECONDS else "green"] += others
        health["finished"] += failed
        if state == "running":
            stored += 38 * len(agents)
            pushes += 4 * len(agents)
            counts = [count + chance.randrange(1, 4) for count in counts]
            cpu_s += SCRAPE_S * chance.uniform(0.02, 0.04)
        for each, number in health.items():
            yield "fury_collector_agents", {"health": each, **target}, float(number), at
        for each in ("arming", "starting", "running", "draining", "finished", "aborted"):
            yield "fury_collector_run_state", {"state": each, **target}, float(state == each), at
        yield "fury_collector_events_pending", target, float(12 * silent_s), at
        yield "fury_collector_silence_seconds", target, silent_s or 5 * chance.random(), at
        yield "fury_collector_agents_failed", target, float(failed), at
        yield "fury_collector_run_info", {"run_id": run_id, **target}, 1.0, at
        if elapsed >= 2:
            yield "fury_collector_start_skew_seconds", target, 0.0021, at
        for name, value in (
            ("events_stored", stored),
            ("pushes", pushes),
            ("events_duplicate", 0),
            ("batches_refused", 0),
        ):
            yield f"fury_collector_{name}_total", target, float(value), at
        total = 0
        for bound, count in zip(("0.001", "0.0025", "0.005", "+Inf"), (*counts, 0)):
            total += count
            yield "fury_collector_push_duration_seconds_bucket", {"le": bound, **target}, float(total), at
        yield from _process(target, at, start=begin + 3, cpu_s=cpu_s, rss=48e6 + 5e5 * chance.random(), fds=18)
        yield "up", target, 1.0, at
        at += SCRAPE_S


def _process(
    target: dict[str, str], at: float, *, start: float, cpu_s: float, rss: float, fds: int
) -> Iterator[Sample]:
    yield "process_start_time_seconds", target, start, at
    yield "process_cpu_seconds_total", target, cpu_s, at
    yield "process_resident_memory_bytes", target, rss, at
    yield "process_open_fds", target, float(fds), at
