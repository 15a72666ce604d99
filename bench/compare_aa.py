"""What `fury_collector compare` says of runs that do not differ, and of runs that are 15 % slower: real agents, by turns.

    python -m bench.compare_aa [--rounds 20] [--seconds 20] [--rate-mb-s 100] [--only upqs]
                               [--directory /var/tmp] [--keep DIR] [--from DIR]

A round is four runs of two agents with a collector on loopback: two as fast as it goes (unpaced), one paced at
``--rate-mb-s`` an agent and one paced 15 % lower; every second round has a fifth, paced to 85 % of what the round's first
unpaced run did. Odd rounds go through theirs backwards (ABBA), so that a drift of the machine is not taken for a
difference. --only makes only runs of these kinds: u(npaced, two), p(aced), q (15 % lower), s (85 % of unpaced). --keep leaves
the databases, --from judges those that an earlier call has left, without a new run.

Told are the differences of the fleet's throughput in percent, what was said of them (called: faster or slower), and how
many pairs had any other figure of fleet or agents called.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import serving
from bench.table import report
from fury_collector import compare
from fury_collector.compare import FASTER, FLEET, SLOWER, Observed
from fury_collector.db import Database
from fury_collector.report import judge

ROOT = Path(__file__).resolve().parents[1]
AGENTS = ("alecto", "megaera")
SLOWER_BY = 0.85


@contextlib.contextmanager
def _ended(processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def make_run(
    home: Path,
    run_id: str,
    *,
    seconds: int,
    rate_mb_s: int | None = None,
    chunk_mb: int = 20,
    ramp_seconds: int = 0,
    sample_seconds: int = 10,
    agents: Sequence[str] = AGENTS,
) -> Path:
    """A real run of agents on this machine, all its events in the database whose path is returned."""
    with tempfile.TemporaryDirectory(prefix="fury-aa-", dir=home) as name:
        here = Path(name)
        (here / "data").mkdir()
        database = home / f"{run_id}.db"
        told = {"chunk_mb": chunk_mb, "ramp_seconds": ramp_seconds, "directory": str(here / "data")}
        document = serving.plan(
            run_id,
            [{"name": agent, "seconds": seconds + ramp_seconds, **told} for agent in agents],
            chunk_mb=chunk_mb, seconds=seconds, ramp_seconds=ramp_seconds, rate_mb_s=rate_mb_s,
        )  # fmt: skip
        writers: list[subprocess.Popen[bytes]] = []
        with serving.collector(here, document, database=database) as (collector, url), _ended(writers):
            for agent in agents:
                (here / agent).mkdir()
                argv = [sys.executable, "-m", "fury_agent", agent, "--run-id", run_id, "--chunk-mb", str(chunk_mb)]
                argv += ["--seconds", str(seconds), "--ramp-seconds", str(ramp_seconds)]
                argv += ["--sample-seconds", str(sample_seconds), "--directory", str(here / "data")]
                argv += [
                    "--state-directory",
                    str(here / agent),
                    "--plain-http",
                    "--collector-url",
                    url,
                ]
                argv += ["--rate-mb-s", str(rate_mb_s)] if rate_mb_s is not None else []
                writers.append(subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            codes = [writer.wait() for writer in writers]
            if any(codes):
                raise RuntimeError(f"the agents of {run_id} ended with {codes}")
            collector.wait(60)
    os.sync()  # the next run does not pay for what this one left to write back
    return database


def make_rounds(home: Path, *, rounds: int, seconds: int, rate_mb_s: int, only: str) -> None:
    """All runs of the benchmark, as databases <kind><round><turn>.db in a directory."""
    unpaced = 0.0
    for number in range(rounds):
        turns = [("u", 1), ("u", 2), ("p", 1), ("q", 1)] + [("s", 1)] * (number % 2 == 0)
        for kind, turn in turns[:: -1 if number % 2 else 1]:
            if kind not in only:
                continue
            rate = {"u": None, "p": rate_mb_s, "q": round(SLOWER_BY * rate_mb_s), "s": round(SLOWER_BY * unpaced)}[kind]
            path = make_run(home, f"{kind}{number:02}{turn}", seconds=seconds, rate_mb_s=rate, ramp_seconds=3)
            if (kind, turn) == ("u", 1):
                unpaced = observed(path).result.rate / len(AGENTS) / 1e6
            print(f"round {number + 1} of {rounds}: {path.stem}", file=sys.stderr, flush=True)


def observed(path: Path) -> Observed:
    """The run of a database."""
    store = Database(path, create=False, read_only=True)
    try:
        run = store.read_run("latest")
        result = judge(run, store.samples(run.id))
        return compare.observe(run, result, store.rollovers(run.id), store.samples(run.id))
    finally:
        store.close()


def pairs(home: Path) -> Iterator[tuple[str, list[Path], list[Path]]]:
    """What is compared: a title, and the runs of both sides."""
    found = {kind: sorted(home.glob(f"{kind}??1.db")) for kind in "upqs"}
    unpaced = [(one, one.with_name(f"{one.stem[:-1]}2.db")) for one in found["u"]]
    for one, two in unpaced:
        yield "unpaced A/A", [one], [two]
    for before, after in zip(unpaced[::2], unpaced[1::2]):
        yield "unpaced A/A, two ABBA", [before[0], after[0]], [before[1], after[1]]
    for one, two in zip(found["p"], found["p"][1:] + found["p"][:1]):
        yield "paced A/A", [one], [two]
    for one in found["q"]:
        yield "paced 15 % lower", [one.with_name(f"p{one.stem[1:]}.db")], [one]
    for one in found["s"]:
        yield "paced to 85 % of unpaced", [one.with_name(f"u{one.stem[1:]}.db")], [one]


def judge_rounds(home: Path) -> None:
    """Compare all pairs and print what was said."""
    seen: dict[Path, Observed] = {}
    differences: dict[str, list[float]] = {}
    said: dict[str, Counter[str]] = {}
    for title, *sides in pairs(home):
        if not all(path.exists() for side in sides for path in side):
            continue
        for path in (path for side in sides for path in side):
            if path not in seen:
                seen[path] = observed(path)
        comparison = compare.compare([(letter, [seen[path] for path in side]) for letter, side in zip("AB", sides)])
        first, *others = comparison.pairs[0].lines
        assert (first.scope, first.metric.key) == (FLEET, "throughput")
        differences.setdefault(title, []).append(100 * (first.difference.ratio or 0.0))
        words = said.setdefault(title, Counter())
        words["called" if first.word in (FASTER, SLOWER) else first.word] += 1
        words["any other figure called"] += any(line.word in (FASTER, SLOWER) for line in others)
    notes = {title: ", ".join(f"{word} {count}" for word, count in words.items()) for title, words in said.items()}
    report("compare_aa", differences, notes=notes)


def main() -> None:
    """Make runs, or take those that are there, and tell what comparing them says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--rate-mb-s", type=int, default=100)
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--only", default="upqs", help="kinds of runs to make")
    parser.add_argument("--keep", type=Path, help="where the databases are left")
    parser.add_argument("--from", dest="taken", type=Path, help="judge the databases in this directory")
    options = parser.parse_args()
    if options.taken is not None:
        judge_rounds(options.taken)
        return
    with tempfile.TemporaryDirectory(prefix="fury-aa-", dir=options.directory) as name:
        home = options.keep or Path(name)
        home.mkdir(parents=True, exist_ok=True)
        make_rounds(
            home, rounds=options.rounds, seconds=options.seconds, rate_mb_s=options.rate_mb_s, only=options.only
        )
        judge_rounds(home)


if __name__ == "__main__":
    main()
