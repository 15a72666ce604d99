"""What a comparison says of runs whose truth is known, of real ones, and of what cannot be compared."""

from __future__ import annotations

import json
import math
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Optional

import pytest

from bench.compare_aa import make_run
from fury_collector import compare, compare_page, report, wire
from fury_collector.compare import FASTER, FLEET, SAME, SLOWER, UNKNOWN, Comparison, Line, Observed
from fury_collector.db import Database
from tests import browser

from .conftest import ROOT, event, histogram
from .test_db import of_schema_0001

MB = 1_000_000
ROLLOVERS = 4  # a second


def wander(chance: random.Random, length: int, *, phi: float = 0.6, spread: float = 0.03) -> list[float]:
    """An AR(1) series around one: how a disk goes on doing what it did a moment ago."""
    value, series = chance.gauss(0, spread), []
    for _ in range(length):
        series.append(1 + value)
        value = phi * value + chance.gauss(0, spread * math.sqrt(1 - phi**2))
    return series


def stored(
    path: Path,
    rates: Sequence[float],
    *,
    run_id: Optional[str] = None,
    agents: Sequence[str] = ("alecto", "megaera"),
    latency_s: float = 0.01,
    chance: Optional[random.Random] = None,
    parameters: Optional[dict[str, Any]] = None,
    facts: Optional[dict[str, Any]] = None,
    honesty: Optional[dict[str, Any]] = None,
    final: bool = True,
) -> Path:
    """A database with a run of agents that each wrote `rates` (bytes per second, second by second)."""
    chance = chance or random.Random(1)
    run_id = run_id or path.stem
    seconds = len(rates)
    document = {
        "run_id": run_id,
        "created_at": "2026-11-24T03:04:05Z",
        "parameters": {"chunk_mb": 20, "seconds": seconds, **(parameters or {})},
        "agents": [
            {"name": name, "host": "host1", "chunk_mb": 20, "seconds": seconds, "directory": "/x"} for name in agents
        ],
    }
    store = Database(path)
    run_ref = store.add_run(wire.plan(document))
    store.start()
    for agent in store.read_run(run_id).agents:
        events = [
            event(
                0,
                "start",
                t_mono_ns=0,
                facts={"kernel": "6.18", "cpus": 2, "free_bytes": chance.random(), **(facts or {})},
            )
        ]
        written, everything, synced = 0, [], []
        for second, rate in enumerate(rates):
            values = [latency_s * chance.lognormvariate(0, 0.4) for _ in range(20)]
            everything += values
            synced += values[:ROLLOVERS]
            for part in range(ROLLOVERS):
                size = int(rate / ROLLOVERS)
                written += size
                events.append(
                    event(
                        len(events),
                        "rollover",
                        t_mono_ns=int((second + (part + 1) / ROLLOVERS) * 1e9),
                        bytes=size,
                        seconds=1 / ROLLOVERS,
                        fsync_seconds=values[part],
                    )
                )
            if (second + 1) % 10 == 0:
                told = histogram(*everything[-200:])
                ended = int((second + 1) * 1e9)
                events.append(
                    event(len(events), "sample", t_mono_ns=ended, written_bytes=written, write_histogram=told)
                )
        if final:
            events.append(
                event(
                    len(events),
                    "final",
                    t_mono_ns=int(seconds * 1e9) + 1,
                    seconds=float(seconds),
                    written_bytes=written,
                    rollovers=seconds * ROLLOVERS,
                    write_histogram=histogram(*everything),
                    fsync_histogram=histogram(*synced),
                    honesty={"io_used": "direct", **(honesty or {})},
                )
            )
        for at in range(0, len(events), 400):
            store.store(agent.id, wire.batch({"v": 1, "epoch": "0" * 16, "events": events[at : at + 400]})).result(10)
    hosts = {name: {"reachable": True, "cleanup": "confirmed", "detail": ""} for name in agents}
    store.record_hosts(run_ref, hosts)
    store.close()
    return path


def observed(path: Path) -> Observed:
    """A run of a database as the command observes it."""
    store = Database(path, create=False, read_only=True)
    try:
        run = store.read_run("latest")
        result = report.judge(run, store.samples(run.id))
        return compare.observe(run, result, store.rollovers(run.id), store.samples(run.id))
    finally:
        store.close()


def of(*paths: Path, **margins: float) -> Comparison:
    return compare.compare([(path.stem, [observed(path)]) for path in paths], **margins)


def line(comparison: Comparison, key: str = "throughput", scope: str = FLEET) -> Line:
    return next(one for one in comparison.pairs[0].lines if (one.scope, one.metric.key) == (scope, key))


def fury(*arguments: object, cwd: Path = ROOT, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    code = f"{before}\nfrom fury_collector.__main__ import main\nmain()"
    command = [sys.executable, "-c", code, "compare", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def runs(tmp_path: Path) -> Callable[..., Path]:
    """Makes runs of a mean rate (MB/s an agent) that wander, each with a name of its own."""
    chance = random.Random(42)
    made: list[Path] = []

    def make(rate_mb_s: float, *, seconds: int = 60, spread: float = 0.015, **more: Any) -> Path:
        path = tmp_path / f"run{len(made)}.db"
        made.append(path)
        rates = [rate_mb_s * MB * value for value in wander(chance, seconds, spread=spread)]
        return stored(path, rates, chance=chance, **more)

    return make


# Words


def test_runs_that_do_not_differ_are_hardly_ever_called_different(runs: Callable[..., Path]) -> None:
    """20 pairs with autocorrelated noise and runs 1 % apart by chance: at most one is called, whatever the figure."""
    chance = random.Random(9)
    called = [
        any(
            one.word in (FASTER, SLOWER)
            for one in of(runs(chance.gauss(200, 2)), runs(chance.gauss(200, 2))).pairs[0].lines
        )
        for _ in range(20)
    ]
    assert sum(called) <= 1


def test_a_run_15_percent_slower_is_always_found(runs: Callable[..., Path]) -> None:
    """Of the fleet and of each agent, in 10 of 10 pairs; and seen from the other side it is faster."""
    for _ in range(10):
        fast, slow = runs(200), runs(170)
        found = of(fast, slow)
        assert [line(found, scope=scope).word for scope in (FLEET, "alecto", "megaera")] == [SLOWER] * 3
        assert line(found).difference.ratio == pytest.approx(-0.15, abs=0.03)
        assert line(of(slow, fast)).word == FASTER


def test_no_difference_and_cannot_tell_are_two_answers(runs: Callable[..., Path]) -> None:
    """Calm runs are told to be alike; wild ones leave it open, and say for how long they would have to go on."""
    calm, wild = of(runs(200, spread=0.005), runs(200, spread=0.005)), of(runs(200, spread=0.3), runs(200, spread=0.3))
    assert line(calm).word == SAME
    assert line(calm).advice == ""
    assert line(wild).word == UNKNOWN
    assert re.fullmatch(r"takes (runs of \d+ (s|min)|repeats \(--group\))", line(wild).advice)


def test_a_step_in_the_middle_leaves_it_open(tmp_path: Path) -> None:
    """A run that halves its rate half way has no steady rate of which more could be said."""
    steady = stored(tmp_path / "steady.db", [200 * MB] * 60)
    stepped = stored(tmp_path / "stepped.db", [220 * MB] * 30 + [140 * MB] * 30)
    assert line(of(steady, stepped)).word == UNKNOWN


def test_more_latency_is_slower(runs: Callable[..., Path]) -> None:
    """Half as much again at p50, in the samples' histograms as in the rollovers'."""
    found = of(runs(200, latency_s=0.010, seconds=120), runs(200, latency_s=0.015, seconds=120))
    assert line(found, "write_p50").word == SLOWER
    assert line(found, "fsync_p50").word == SLOWER
    assert line(found).word == SAME
    assert (
        line(of(runs(200, latency_s=0.015, seconds=120), runs(200, latency_s=0.010, seconds=120)), "write_p50").word
        == FASTER
    )


def test_the_margin_decides_what_matters(runs: Callable[..., Path]) -> None:
    """8 % is a difference to who asks for 2 %, and none to who asks for 20 %."""
    fast, slow = runs(200, spread=0.01), runs(184, spread=0.01)
    assert line(of(fast, slow, margin=2)).word == SLOWER
    assert line(of(fast, slow, margin=20)).word == SAME


def test_repeats_that_scatter_take_a_call_back(runs: Callable[..., Path]) -> None:
    """One run against one is called slower; two of each, no more alike than that, are not."""
    one, two, three, four = (observed(runs(rate, spread=0.01)) for rate in (220, 180, 185, 215))
    assert line(compare.compare([("a", [one]), ("b", [two])])).word == SLOWER
    assert line(compare.compare([("a", [one, three]), ("b", [two, four])])).word == UNKNOWN
    alike = compare.compare(
        [("a", [one, observed(runs(221, spread=0.01))]), ("b", [two, observed(runs(181, spread=0.01))])]
    )
    assert line(alike).word == SLOWER
    assert line(alike).values[0] == pytest.approx(2 * 220.5 * MB, rel=0.02)


def test_what_others_wrote_to_the_disk_is_credited(runs: Callable[..., Path]) -> None:
    """30 % slower while others wrote half as much again is no slower disk; at a rate that was asked for, it is slower."""

    def shared(ratio: float) -> dict[str, Any]:
        return {"block_device": "sda", "block_device_written_bytes": int(ratio * 2e9), "process_written_bytes": 10**9}

    alone, disturbed = runs(200, honesty=shared(1.0)), runs(140, honesty=shared(1.5))
    found = of(alone, disturbed)
    assert line(found).word == UNKNOWN
    assert line(found).difference.high > 0.0
    assert any("others wrote to the same disks" in warning for warning in found.warnings)
    paced = runs(139.9, spread=0.0, honesty=shared(1.5), parameters={"rate_mb_s": 140})
    assert line(of(alone, paced)).word == SLOWER
    assert line(of(alone, runs(140, honesty=shared(1.0)))).word == SLOWER


# What comes first


def test_what_is_not_the_same_comes_before_any_figure(runs: Callable[..., Path]) -> None:
    """Parameters, agents and machine facts; what is never the same twice is not told."""
    one = runs(200, parameters={"io": "direct"}, facts={"kernel": "6.1"})
    other = runs(200, seconds=50, parameters={"io": "sync"}, agents=("alecto", "lethe"))
    told = compare.table(of(one, other))
    before, _, _ = told.partition("throughput")
    assert "io: A direct, B sync" in before
    assert "seconds: A 60, B 50" in before
    assert "kernel: A 6.1, B 6.18 (alecto)" in before
    assert "agents: A alecto, megaera, B alecto, lethe" in before
    assert "free_bytes" not in told
    assert "megaera throughput" not in told


def test_the_same_setting_is_said_to_be_the_same(runs: Callable[..., Path]) -> None:
    told = compare.table(of(runs(200), runs(200)))
    assert "Parameters: the same\nMachine facts: the same" in told


def test_a_run_that_did_not_end_well_is_compared_with_a_warning(runs: Callable[..., Path]) -> None:
    """The word INCOMPLETE stands above the figures, which are there all the same."""
    found = of(runs(200), runs(200, final=False))
    assert any(warning.startswith("B is INCOMPLETE: ") for warning in found.warnings)
    assert line(found).values[1] == pytest.approx(400 * MB, rel=0.1)


def test_a_warm_up_is_told(tmp_path: Path) -> None:
    """Ten seconds at twice the rate are no part of a steady run: ramp_seconds leaves them out."""
    chance = random.Random(4)
    settled = [200 * MB * value for value in wander(chance, 60, phi=0.2, spread=0.01)]
    warmed = of(
        stored(tmp_path / "a.db", settled),
        stored(tmp_path / "b.db", [2 * rate for rate in settled[:10]] + settled[10:]),
    )
    assert [warning for warning in warmed.warnings if "ramp_seconds" in warning] == [
        "B had not settled for its first 10 s, which widens its intervals: run it with ramp_seconds, which leaves them out"
    ]


# Figures


def test_figures_are_those_of_the_summary(runs: Callable[..., Path]) -> None:
    """Whoever looks into summary.json finds the same rates and percentiles."""
    seen = observed(runs(200))
    summary = report.summary(seen.result)
    assert seen.estimates[FLEET, "throughput"].value == summary["fleet"]["throughput_bytes_per_second"]
    assert seen.estimates["alecto", "write_p99"].value == summary["agents"][0]["write_latency_seconds"]["p99"]
    assert seen.estimates[FLEET, "fsync_p50"].value == summary["fleet"]["fsync_latency_seconds"]["p50"]


def test_the_bytes_of_all_batches_are_the_runs(runs: Callable[..., Path]) -> None:
    """Spreading rollovers over their time loses none of them."""
    seen = observed(runs(200))
    assert sum(seen.rates[FLEET]) * seen.step_s == pytest.approx(seen.result.written_bytes)


def test_a_long_run_has_no_more_batches_than_a_page_can_show(tmp_path: Path) -> None:
    """Half an hour in 240 parts."""
    seen = observed(stored(tmp_path / "long.db", [200 * MB] * 1800, agents=("alecto",)))
    assert len(seen.rates[FLEET]) == 240
    assert sum(seen.rates[FLEET]) * seen.step_s == pytest.approx(seen.result.written_bytes)


# The command


def test_runs_are_named_by_directory_database_or_id(runs: Callable[..., Path], tmp_path: Path) -> None:
    """All three ways lead to the same words, which end with 0 whatever came out."""
    one, other = runs(200), runs(170)
    (tmp_path / "results" / "run0").mkdir(parents=True)
    one.rename(tmp_path / "results" / "run0" / "fury.db")
    both = stored(tmp_path / "all.db", [200 * MB] * 20, run_id="first")
    stored(both, [100 * MB] * 20, run_id="second")
    mixed = fury(tmp_path / "results" / "run0", other)
    assert mixed.returncode == 0, mixed.stderr
    assert mixed.stdout.splitlines()[-1].startswith("B against A: slower in throughput, -1")
    by_id = fury("first", "second", "--database", both)
    assert by_id.stdout.splitlines()[-1].startswith("B against A: slower in throughput, -50.0 %")
    assert fury(both, other).stderr == (
        f"fury_collector: {both} has 2 runs: name each by its id, with --database {both}\n"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere", "else"], "nowhere is no directory and no file, and there is no fury.db that could have a run"),
        (["run0.db"], "one run alone is nothing to compare: name two or more, or groups of them with --group"),
        (["."], ". has no fury.db: name a directory that a run has left"),
        (["--group", "fast"], "fast does not say which runs it is: write it as NAME=RUN,RUN,..."),
        (["run0.db", "run0.db", "--margin", "0"], "Invalid value for '--margin': 0"),
        (["a", "b", "--database", "run0.db"], "run0.db has no run a: `fury_collector runs` lists those it has"),
    ],
)
def test_what_cannot_be_compared_is_said_in_a_sentence(
    runs: Callable[..., Path], tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    runs(200, seconds=10)
    told = fury(*arguments, cwd=tmp_path)
    assert told.returncode == 2
    assert told.stdout == ""
    assert sentence in told.stderr
    assert "Traceback" not in told.stderr


def test_groups_and_json(runs: Callable[..., Path]) -> None:
    """Repeats under one name; no number that JSON does not know, and everything that the table tells."""
    fast, slow = [runs(200, spread=0.01) for _ in range(2)], [runs(170, spread=0.01) for _ in range(2)]
    told = fury("--json", "--group", f"fast={fast[0]},{fast[1]}", "--group", f"slow={slow[0]},{slow[1]}")
    assert told.returncode == 0, told.stderr
    document = json.loads(told.stdout, parse_constant=lambda constant: pytest.fail(constant))
    assert [(side["name"], len(side["runs"])) for side in document["sides"]] == [("fast", 2), ("slow", 2)]
    figures = document["comparisons"][0]["figures"]
    first = next(one for one in figures if one["metric"] == "throughput" and one["agent"] is None)
    assert first["word"] == SLOWER
    assert first["low_percent"] < first["difference_percent"] < first["high_percent"] < -5


def test_a_database_of_an_older_fury_is_compared_and_left_as_it_is(runs: Callable[..., Path], tmp_path: Path) -> None:
    """Schema 0001 has no figures of reading back, and is not changed by being looked at."""
    old = of_schema_0001(tmp_path / "old.db")
    before = old.read_bytes()
    told = fury(old, runs(200))
    assert told.returncode == 0, told.stderr
    assert "against A" in told.stdout
    assert old.read_bytes() == before


def test_nobody_s_words_become_markup(tmp_path: Path) -> None:
    """What an agent says of its host stands on the page as text."""
    facts = {"kernel": "<script>alert(1)</script>"}
    page = compare_page.page(
        of(stored(tmp_path / "a.db", [MB] * 20), stored(tmp_path / "b.db", [MB] * 20, facts=facts))
    )
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.skipif(browser.find() is None and "CI" not in os.environ, reason="needs a Chromium")
def test_the_page_is_one_offline_file_with_curves_over_each_other(runs: Callable[..., Path], tmp_path: Path) -> None:
    """In a real browser without a network: all charts drawn, no complaint, no request, no sideways scrolling on a phone."""
    page_file = tmp_path / "compare.html"
    told = fury(runs(200), runs(170), runs(200, spread=0.1), "--html", page_file)
    assert told.returncode == 0, told.stderr
    with browser.Chromium.start() as chromium:
        for width in (1280, 390):
            with chromium.page(width=width, height=900) as page:
                page.offline()
                page.open(page_file.as_uri())
                assert page.complaints == []
                assert page.requests == [page_file.as_uri()]
                drawn = page.evaluate("[...document.querySelectorAll('[data-chart]')].map(e => e.dataset.drawn)")
                assert drawn == ["3", "3", "3"]  # the fleet and two agents, each with three curves
                assert page.evaluate("document.querySelectorAll('#fleet-write ~ .drawn path').length") == 3
                assert page.evaluate("document.documentElement.scrollWidth") == width
                words = page.evaluate("document.querySelector('#figures ~ .panel tbody tr').innerText")
                assert SLOWER in words


# Real runs


def test_real_agents_paced_down_by_15_percent_are_found_and_paced_alike_are_not(tmp_path: Path) -> None:
    """Two runs at 40 MB/s an agent and one at 34, by real agents through a real collector; 20 pairs: bench/compare_aa.py."""
    first, slow, again = (
        observed(make_run(tmp_path, f"run{number}", seconds=10, rate_mb_s=rate, chunk_mb=4))
        for number, rate in enumerate((40, 34, 40))
    )
    found = compare.compare([("40", [first]), ("34", [slow]), ("again", [again])])
    slower, alike = (pair.of(FLEET)[0] for pair in found.pairs)
    assert slower.word == SLOWER, slower
    assert slower.difference.ratio == pytest.approx(-0.15, abs=0.03)
    assert alike.word in (SAME, UNKNOWN), alike
