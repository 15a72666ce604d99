"""report.html: what it says, that nothing an agent says becomes markup, its bound, and that a real browser draws it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Optional

import pytest

from bench import report_size
from fury_collector import html, report, report_page
from fury_collector.__main__ import _report
from fury_collector.curves import Curves
from fury_collector.db import Database
from fury_collector.rows import EpochRows
from fury_controller import tree
from tests import browser

from .conftest import CHUNK, NAMES, ROOT, RUN, Collector, Open, event, life, plan
from .test_report import agent, epoch, run, word

OUTPUT = Path(os.environ.get("FURY_TEST_OUTPUT", ROOT / "tests" / "output"))
NASTY = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "'; DROP TABLE runs; --",
    '" onmouseover="alert(1)',
    "{{ 7 * 7 }}{% raw %}",
    "<!-- -- ]]>",
)
HIDDEN = "abc\u202edcba\u2066\x1b[31m\u200b\x85\ud800z"


@dataclass
class Reader(HTMLParser):
    """A page as it is parsed: elements with their attributes, the text outside scripts, data blocks."""

    page: str
    elements: list[tuple[str, dict[str, Optional[str]]]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    inlined: dict[str, list[str]] = field(default_factory=lambda: {"script": [], "style": []})
    blocks: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self._within: Optional[str] = None
        self._data: Optional[str] = None
        self.feed(self.page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Optional[str]]]) -> None:
        told = dict(attrs)
        self.elements.append((tag, told))
        if tag in self.inlined:
            self._within, self._data = tag, told.get("id") if told.get("type") == "application/json" else None
            if self._data is None:
                self.inlined[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._within:
            self._within = None

    def handle_data(self, data: str) -> None:
        if self._within is None:
            self.words.append(data)
        elif self._data is not None:
            self.blocks[self._data] = json.loads(data)
        else:
            self.inlined[self._within][-1] += data

    @property
    def text(self) -> str:
        """Everything that is to be read, spaces evened out."""
        return " ".join(" ".join(self.words).split())

    def all(self, *tags: str) -> list[dict[str, Optional[str]]]:
        return [attrs for tag, attrs in self.elements if tag in tags]


def page_of(collector: Collector) -> str:
    return made(collector.database, RUN)[1]


def made(database: Database, run_id: str) -> tuple[report.Result, str]:
    result, page = _report(database, run_id)
    return result, page()


def finish(collector: Collector, **finals: dict[str, Any]) -> None:
    """All agents write three chunks and end; `finals` are changes of some agents' last words."""
    collector.arm_and_start()
    for name in NAMES:
        assert collector.push(name, *life(**finals.get(name, {}))).status_code == 200


# What it says


def test_a_report_says_what_became_of_the_run(collector: Collector) -> None:
    """Verdict and why, parameters, facts, checks, notes and percentiles, all of them from the stored rows."""
    notes = [f"vda wrote {ratio} times what this agent gave it" for ratio in ("1.20", "4.74")]
    finish(
        collector,
        alecto={"honesty": {"io_used": "direct", "io_confirmed_by": "statx", "steady": True}, "notes": notes[:1]},
        megaera={"honesty": {"io_used": "direct", "io_confirmed_by": "statx", "steady": False}, "notes": notes[1:]},
    )
    result, page = made(collector.database, RUN)
    text = Reader(page).text
    assert f"Run {RUN}" in text
    assert result.verdict in text
    assert html.cut(result.reason, 700) in text
    for name in NAMES:
        assert name in text
    assert html.rate(result.rate) in text
    for ratio in (0.5, 0.95, 0.99, 0.999):
        assert html.seconds(result.writes.quantile(ratio)) in text
        assert html.seconds(result.fsyncs.quantile(ratio)) in text
    assert "chunk_mb 20" in text
    assert "kernel 6.18" in text
    assert "direct (confirmed by statx): alecto, megaera; buffered: tisiphone" in text
    assert "2 of 3 agents" in text  # steady
    assert "alecto, megaera : vda wrote 1.20–4.74 times what this agent gave it" in text
    assert "No call failed" in text


def test_an_agent_that_is_slow_is_marked_and_stands_first(collector: Collector) -> None:
    """The worst verdict first, of the same the slowest; far below the median is said in a word, not by colour alone."""
    finish(collector, megaera={"seconds": 120.0}, tisiphone={"verdict": "DISK_ERROR", "reason": "it broke"})
    page = page_of(collector)
    rows = re.findall(
        r"<tr( class=\"slow\")?><th scope=\"row\">(\w+)</th>(.*?)</tr>",
        page.partition('id="agent-table"')[2].partition("</table>")[0],
        re.DOTALL,
    )
    assert [(name, bool(slow)) for slow, name, _ in rows] == [
        ("tisiphone", False),
        ("megaera", True),
        ("alecto", False),
    ]
    assert "it broke" in rows[0][2]
    assert ">slow<" in rows[1][2]
    assert "-50.0 %" in rows[1][2]


def test_faults_stand_on_a_timeline_with_their_words(collector: Collector) -> None:
    """Errors of agents, silences as spans from late to lost, and the collector's warnings, each with its time."""
    collector.arm_and_start()
    for name in NAMES:
        collector.push(name, event(0, "start"))
    collector.push(
        "alecto", event(1, "error", message="write failed: No space left on device", t_mono_ns=6_000_000_000)
    )
    for _ in range(12):
        collector.pass_time(4)
        for name in NAMES[:2]:
            collector.push(name, event(100 + int(collector.clock.now), "heartbeat"))
    text = Reader(page := page_of(collector)).text
    assert "0:05 alecto write write failed: No space left on device /x 28" in text
    assert "tisiphone is lost" in text
    for kind in ("late", "suspect", "lost", "error"):
        assert f'<rect class="{kind}"' in page
    assert "1 error reported by agents, 1 agent silent for more than 10 s" in text


def test_a_run_of_which_nothing_is_known_has_a_report_as_well(collector: Collector) -> None:
    """No agent ever got ready: no curve, no division by nothing, the verdict and why."""
    text = Reader(page_of(collector)).text
    assert "INCOMPLETE" in text
    assert "never got ready" in text
    assert "No agent wrote." in text


def test_objectives_are_shown_with_what_is_missed_first(collector_at: Open) -> None:
    """Each objective with its figure and whether it is met."""
    document = plan() | {"slo": {"errors": "==0", "throughput_mb_s": ">=100000"}}
    collector = collector_at(document)
    finish(collector)
    page = page_of(collector)
    assert "SLO_MISSED" in page
    rows = re.findall(r'<td class="mono">(.*?)</td>.*?>(met|missed)<', page.partition('id="slo"')[2])
    assert rows == [("throughput_mb_s &gt;= 100000", "missed"), ("errors == 0", "met")]


# Curves


def rolled(at_s: float, *, seconds: float, size: int = CHUNK, ramp: int = 0, read: Optional[float] = None) -> Any:
    """A rollover that was done `at_s` after the start word() of an agent, which is at 1 s of its clock."""
    return (int((1 + at_s) * 1e9), size, ramp, seconds, read)


def ended(seconds: float) -> EpochRows:
    """A process that wrote for so long."""
    return epoch(final={"seconds": seconds}, last_t_mono_ns=int((1 + seconds) * 1e9))


def curves_of(*rollovers: Any, seconds: float = 20.0) -> Curves:
    curves = Curves(run(agent("alecto", ended(seconds))))
    curves.add_rollovers("alecto", "0" * 16, rollovers)
    return curves


def test_a_rollover_is_spread_over_the_time_that_it_took() -> None:
    """Its bytes lie in the bins between its first write and its fsync, and not in those of its reading back."""
    curves = curves_of(rolled(4.0, seconds=2.0, read=1.0))
    assert (curves.step_s, curves.bins) == (0.5, 40)
    rates = curves.rates("alecto")
    assert rates[1] == 0
    assert rates[2:6] == [pytest.approx(CHUNK / 2)] * 4
    assert rates[6] == 0
    assert curves.fleet_rates() == rates


def test_no_byte_is_lost_between_bins() -> None:
    """Whatever rollovers there are, also such that began before the start or end after the end, their sum is the curve's."""
    rollovers = [rolled(0.37 * n, seconds=0.01 + n % 7 * 0.61) for n in range(1, 60)]
    assert sum(curves_of(*rollovers).agents["alecto"].written) == pytest.approx(59 * CHUNK)


def test_what_was_written_in_the_ramp_is_in_the_curve_but_in_no_duration() -> None:
    """The ramp is shown, and not counted."""
    curves = curves_of(
        rolled(1.0, seconds=1.0, ramp=CHUNK), rolled(2.0, seconds=0.5, ramp=10), rolled(3.0, seconds=1.0)
    )
    assert sum(curves.agents["alecto"].written) == pytest.approx(3 * CHUNK)
    assert curves.durations.count == 2
    assert sum(curves.heat.values()) == 2
    assert curves.durations.quantile(0.5) == pytest.approx(0.5, rel=0.01)


def test_hosts_whose_clocks_began_elsewhere_have_one_axis() -> None:
    """Each agent's monotonic clock becomes seconds since the fleet's first write, by its start on the collector's clock."""
    late = word(0, "start", start_collector_mono_s=8128.5, t_mono_ns=77_000_000_000_000)
    curves = Curves(
        run(
            agent("alecto", ended(20.0)),
            agent("megaera", epoch(start=late, last_t_mono_ns=77_010_000_000_000)),
        )
    )
    curves.add_rollovers("megaera", "0" * 16, [(77_002_000_000_000, CHUNK, 0, 1.0, None)])
    rates = curves.rates("megaera")
    assert rates[:10] == [None] * 10  # it began 5 s later
    assert rates[11:15] == [0, pytest.approx(CHUNK), pytest.approx(CHUNK), 0]


def test_a_week_and_a_second_have_as_many_bins_at_most() -> None:
    """The number of bins is bounded whatever a run's time."""
    for seconds in (1.0, 60.0, 3600.0, 604_800.0):
        curves = curves_of(rolled(seconds, seconds=seconds / 2), seconds=seconds)
        assert 1 < curves.bins <= 368
        assert curves.sampled_bins <= 184
        assert sum(curves.agents["alecto"].written) == pytest.approx(CHUNK)


def test_samples_are_means_by_time_and_a_dropped_one_is_a_gap() -> None:
    """What no sample says is not drawn; percentiles over time come from merged histograms."""
    curves = Curves(run(agent("alecto", ended(100.0))))
    sample = event(0, "sample") | {"agent": "alecto", "epoch": "0" * 16}
    told = [sample | {"t_mono_ns": at * 10**9, "agent_cpu_ratio": cpu} for at, cpu in ((11, 0.1), (21, 0.3), (41, 0.5))]
    assert len(list(curves.watching(told))) == 3
    assert curves.sampled_step_s == 5
    expected = [0.1, 0.1, 0.3, 0.3, None, None, 0.5, 0.5]
    assert curves.agents["alecto"].samples("agent_cpu_ratio")[:8] == [
        None if value is None else pytest.approx(value) for value in expected
    ]
    assert curves.quantiles("write", 1.0)[:5] == [0.002, 0.002, 0.002, 0.002, None]
    assert not curves.measured("read")


# Nothing that an agent says becomes markup


@pytest.mark.parametrize("text", NASTY)
def test_no_words_of_an_agent_become_markup(collector_at: Open, text: str) -> None:
    """Host, facts, notes, honesty, reason, error and parameters stand there as text, and the page has our elements only."""
    plain = collector_at()
    finish(plain, tisiphone={"verdict": "DISK_ERROR", "reason": "x"})
    expected = len(Reader(page_of(plain)).all("script"))
    Path(plain.database.name).unlink()
    document = plan()
    document["parameters"] = {"directory": text}
    collector = collector_at(document)
    collector.arm_and_start()
    words = [event(0, "start", host=text, facts={"cpu_model": text}), event(1, "error", message=text, path=text)]
    words.append(
        event(2, "final", verdict="DISK_ERROR", reason=text, honesty={"io_used": text, "steady": True}, notes=[text])
    )
    assert collector.push("alecto", *words).status_code == 200
    page = Reader(page_of(collector))
    assert len(page.all("script")) == expected
    assert page.text.count(" ".join(text.split())) >= 6
    assert not page.all("img")
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on") or name == "style"]


def test_words_can_neither_hide_nor_turn_a_text(collector: Collector) -> None:
    """Control characters, characters of direction and halves of surrogates are written out, and the page is UTF-8."""
    assert html.visible(HIDDEN) == "abc⟨U+202E⟩dcba⟨U+2066⟩⟨U+001B⟩[31m⟨U+200B⟩⟨U+0085⟩⟨U+D800⟩z"
    finish(collector, alecto={"verdict": "DISK_ERROR", "reason": HIDDEN[:-2], "notes": [HIDDEN[:-2]]})
    page = page_of(collector)
    page.encode()
    assert "abc⟨U+202E⟩dcba" in page
    for character in ("\u202e", "\u2066", "\x1b", "\u200b", "\x85"):
        assert character not in page


def test_data_for_curves_cannot_end_its_block() -> None:
    """No < of a value is left in it, and what a script reads is what was put in."""
    value = {"label": "</script><!--<script>\u2028", "values": [1.5, None]}
    block = str(html.json_block(value, "x"))
    assert block.count("<") == 2
    assert Reader(block).blocks["x"] == value
    with pytest.raises(ValueError, match="Out of range"):
        html.json_block([float("nan")], "x")


def test_the_file_loads_nothing_and_runs_only_what_is_ours(collector: Collector) -> None:
    """Everything is inlined, and the policy allows each of its scripts and styles by hash and nothing else."""
    finish(collector)
    page = Reader(page_of(collector))
    for attrs in page.all("link", "script", "img", "a", "iframe", "object", "form"):
        for name in ("src", "href", "action", "data"):
            assert (attrs.get(name) or "#").startswith(("#", "data:,")), attrs
    (policy,) = (attrs["content"] for attrs in page.all("meta") if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    for tag in ("script", "style"):
        hashed = [
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
            for text in page.inlined[tag]
        ]
        assert rules[f"{tag}-src"].split() == hashed
        assert hashed
    assert "@import" not in "".join(page.inlined["style"])
    assert "url(" not in "".join(page.inlined["style"])


def test_a_screen_reader_finds_its_way(collector: Collector) -> None:
    """One h1, no level left out, unique ids that references meet, captions, scopes, a text for each drawing."""
    finish(collector, tisiphone={"seconds": 500.0, "verdict": "DISK_ERROR", "reason": "it broke"})
    page = Reader(page_of(collector))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(later <= before + 1 for before, later in zip(levels, levels[1:]))
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in page.elements:
        for name in ("aria-labelledby", "aria-describedby", "for"):
            assert attrs.get(name) is None or attrs[name] in ids, attrs
    targets = [attrs["href"] for attrs in page.all("a")]
    assert all(target and target[1:] in ids for target in targets)
    assert len(page.all("table")) == len(page.all("caption"))
    assert all("scope" in attrs for attrs in page.all("th"))
    assert all({"aria-labelledby", "aria-describedby"} <= attrs.keys() for attrs in page.all("figure"))
    assert all(attrs.get("aria-hidden") == "true" for attrs in page.all("svg"))


# Its bound


@pytest.mark.parametrize(("rollovers", "agents"), [(1_000_000, 20), (60_000, 1000)])
def test_a_large_run_has_a_report_of_at_most_5_mb(tmp_path: Path, rollovers: int, agents: int) -> None:
    """A million rollovers, and an hour of a thousand agents; ten million: bench/report_size.py."""
    report_size.fill(tmp_path / "fury.db", rollovers=rollovers, agents=agents, seconds=3600, sample_s=120)
    with contextlib.closing(Database(tmp_path / "fury.db", read_only=True)) as database:
        result, page = made(database, "latest")
    assert result.rollovers == sum(one.rollovers for one in result.agents) > 0.9 * rollovers
    assert len(page.encode()) <= 5_000_000
    reader = Reader(page)
    for name in ("agent0007", f"agent{agents - 1:04}"):
        assert f'<th scope="row">{name}</th>' in page
    assert "agent0007" in reader.text.split("The worst first")[1][:900]
    series = sum(len(spec["series"]) for spec in reader.blocks["fury-charts"].values())
    assert series < 100
    assert max(len(one["values"]) for spec in reader.blocks["fury-charts"].values() for one in spec["series"]) <= 368
    assert f"8 of {agents:,} agents".replace(",", " ") in reader.text


def test_however_many_agents_with_whatever_words_it_keeps_its_bound() -> None:
    """4,000 agents whose every character has to be escaped: the worst are shown, and how many are not."""
    rows = run(
        *(
            agent(
                f"agent{number}",
                epoch(
                    final={
                        "verdict": "DISK_ERROR",
                        "reason": "&'\"" * 100,
                        "notes": [f"{'&' * 200}{chr(65 + n)}" for n in range(9)],
                    }
                ),
                host="&'" * 120,
            )
            for number in range(4000)
        )
    )
    page = report_page.report(rows, report.judge(rows, ()), Curves(rows), report_page.Faults())
    assert len(page.encode()) <= 5_000_000
    assert "more agents, which are better than these, are in summary.json" in page


# Where it comes from


def test_export_and_report_write_the_same_page(collector: Collector, tmp_path: Path) -> None:
    """Every run has it beside summary.json, and it can be made again from the database."""
    finish(collector)
    collector.database.close()
    for command in (
        ("export", RUN, "--output", tmp_path / "out"),
        ("report", RUN, "--html", tmp_path / "again.html"),
    ):
        told = fury(tmp_path / "fury.db", *command)
        assert told.returncode == 0, told.stderr
        assert f"{RUN}" in (tmp_path / "out" / "report.html").read_text()
    assert (tmp_path / "out" / "report.html").read_bytes() == (tmp_path / "again.html").read_bytes()
    told = fury(tmp_path / "fury.db", "report", RUN, "--html", tmp_path / "no" / "where.html")
    assert told.returncode == 3
    assert told.stderr.startswith("fury_collector: cannot write")
    assert told.stderr.count("\n") == 1


def fury(database: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fury_collector", *map(str, arguments), "--database", str(database)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_templates_and_assets_go_to_the_collectors_host() -> None:
    """A collector on a host of its own makes pages as well."""
    import tarfile

    with tarfile.open(tree.collector_code_archive()) as packed:
        names = set(packed.getnames())
    for folder in ("templates", "static"):
        wanted = {
            str(path.relative_to(ROOT)) for path in (ROOT / "fury_collector" / folder).rglob("*") if path.is_file()
        }
        assert wanted
        assert wanted <= names


# In a real browser


def busy(collector: Collector) -> str:
    """The page of a run with something of everything on it."""
    collector.arm_and_start()
    for index, name in enumerate(NAMES):
        words = [event(0, "start")]
        for n in range(1, 240):
            lasting = (0.2 if n % 11 else 0.9) * (1 + index / 2)
            words.append(
                event(
                    n,
                    "rollover",
                    chunk=n,
                    seconds=lasting,
                    read_seconds=0.01,
                    t_mono_ns=1_000_000_000 + n * 250_000_000,
                )
            )
        reads = report_size.CHUNK * 239
        for n in range(6):
            at = 1_000_000_000 + (n + 1) * 10 * 10**9
            words.append(event(240 + n, "sample", t_mono_ns=at, read_histogram=event(0, "sample")["write_histogram"]))
        final: dict[str, Any] = {
            "written_bytes": 239 * CHUNK,
            "rollovers": 239,
            "seconds": 60.0 * (1 + index),
            "read_bytes": reads,
        }
        final["read_histogram"] = event(0, "sample")["write_histogram"]
        final["notes"] = ["writes ended in the page cache"]
        if index == 2:
            words.append(event(246, "error", t_mono_ns=30_000_000_000))
        words.append(event(246 + (index == 2), "final", t_mono_ns=62 * 10**9, **final))
        assert collector.push(name, *words).status_code == 200
    return page_of(collector)


def test_a_browser_draws_it_without_a_network(chromium: browser.Chromium, collector: Collector, tmp_path: Path) -> None:
    """No complaint, no request but for the file itself, every chart with ink on it: light, dark and on a phone."""
    file = tmp_path / "report.html"
    file.write_text(busy(collector), encoding="utf-8")
    shades = {}
    for name, width, dark in (("light", 1280, False), ("dark", 1280, True), ("phone", 390, False)):
        with chromium.page(width=width, height=844, dark=dark, scale=1 + (width < 600), mobile=width < 600) as page:
            page.offline()
            page.open(file.as_uri())
            page.screenshot(OUTPUT / f"report-{name}.png")
            assert page.complaints == []
            assert page.requests == [file.as_uri()]
            ink = page.evaluate(INK)
            assert len(ink) == 2 + 3 + 4  # throughput; write, fsync, read back; CPU and memory
            assert all(pixels > 200 for pixels in ink.values()), ink
            assert page.evaluate("document.querySelectorAll('noscript').length") == 0
            assert page.evaluate("(c => c.width / c.clientWidth)(document.querySelector('canvas'))") == pytest.approx(
                2, abs=0.1
            )
            assert page.evaluate("document.querySelectorAll('figure svg path').length") > 20
            assert page.evaluate("document.documentElement.scrollWidth") == width
            shades[name] = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert shades["light"] == shades["phone"] != shades["dark"]


# How many pixels of each chart's canvas are not transparent.
INK = """Object.fromEntries([...document.querySelectorAll("[data-chart]")].map((plot) => {
  const canvas = plot.querySelector("canvas");
  if (!canvas) return [plot.dataset.chart, 0];
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let ink = 0;
  for (let i = 3; i < data.length; i += 4) ink += data[i] > 0;
  return [plot.dataset.chart, ink];
}))"""


def test_it_prints_light_whatever_the_screen_prefers(
    chromium: browser.Chromium, collector: Collector, tmp_path: Path
) -> None:
    """Charts are drawn again for paper, in its colours and its width, and once more for the screen afterwards."""
    file = tmp_path / "report.html"
    file.write_text(busy(collector), encoding="utf-8")
    with chromium.page(width=1280, height=900, dark=True) as page:
        page.open(file.as_uri())
        colour = "getComputedStyle(document.documentElement).getPropertyValue('--accent').trim()"
        width = "document.querySelector('[data-chart=throughput] .uplot').clientWidth"
        dark, wide = page.evaluate(colour), page.evaluate(width)
        page.evaluate("dispatchEvent(new Event('beforeprint'))")  # the screen's colours are still those in force
        page.settle()
        assert page.evaluate(colour) == "#1f5fbf" != dark
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        page.settle()
        assert (page.evaluate(colour), page.evaluate(width)) == (dark, wide)
        page.scheme("dark", media="print")
        page.settle()
        assert page.evaluate(colour) == "#1f5fbf" != dark
        assert page.evaluate("document.querySelector('[data-chart=throughput] canvas').width") < 2 * 710
        page.scheme("dark", media="")
        page.settle()
        assert (page.evaluate(colour), page.evaluate(width)) == (dark, wide)
        page.pdf(OUTPUT / "report-print.pdf")
        page.call("Emulation.setDeviceMetricsOverride", width=710, height=1000, deviceScaleFactor=1.5, mobile=False)
        page.scheme("dark", media="print")
        page.settle()
        page.screenshot(OUTPUT / "report-print.png")
        assert page.evaluate("document.documentElement.scrollWidth") <= 710
        assert page.complaints == []
    assert (OUTPUT / "report-print.pdf").read_bytes().startswith(b"%PDF")


def test_the_table_of_agents_sorts_and_filters(
    chromium: browser.Chromium, collector: Collector, tmp_path: Path
) -> None:
    """A click, or a key, on a heading sorts, and again turns round; typed words leave the rows that have them."""
    file = tmp_path / "report.html"
    file.write_text(busy(collector), encoding="utf-8")
    rows = "[...document.querySelectorAll('#agent-table tbody tr:not([hidden]) th')].map(th => th.textContent)"
    head = "[...document.querySelectorAll('#agent-table thead button')].find(b => b.textContent === '%s')"
    with chromium.page() as page:
        page.open(file.as_uri())
        assert page.evaluate(rows) == ["tisiphone", "megaera", "alecto"]
        page.evaluate(f"{head % 'MB/s'}.click()")
        assert page.evaluate(rows) == ["alecto", "megaera", "tisiphone"]
        page.evaluate(f"{head % 'MB/s'}.click()")
        assert page.evaluate(rows) == ["tisiphone", "megaera", "alecto"]
        assert page.evaluate(f"{head % 'MB/s'}.closest('th').getAttribute('aria-sort')") == "ascending"
        page.evaluate(
            "const i = document.getElementById('agent-filter'); i.value = 'slow pass'; i.dispatchEvent(new Event('input'))"
        )
        assert page.evaluate(rows) == ["tisiphone"]
        assert page.evaluate("document.getElementById('agent-count').textContent") == "1 of 3 shown"
        legend = "document.querySelector('[data-chart=throughput-agents] .legend button')"
        page.evaluate(f"{legend}.click()")
        assert page.evaluate(f"{legend}.getAttribute('aria-pressed')") == "false"
        assert page.complaints == []
