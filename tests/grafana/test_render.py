"""The dashboards as a person sees them: drawn by Grafana's own libraries over a fixed past, in a real Chromium.

Not by a Grafana server: what its front end adds (menus, its own panel plugins, its data source) is written small in render/.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from grafana import checks
from tests.grafana import history, renderer
from tests.grafana.prometheus import need, with_past
from tests.grafana.seeded import Tree, put

pytestmark = pytest.mark.prometheus

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "tests/output"
DASHBOARDS = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in ROOT.glob("grafana/dashboards/*.json")
}
AGENTS = list(history.AGENTS)

# What each is asked to show, and what is to be seen of it: while the first run goes on, after it, and both runs.
VIEWS: dict[str, Tree] = {
    "fleet": {"begin": history.BEGIN, "end": history.BEGIN + 258, "run": history.FIRST},
    "agent": {"begin": history.BEGIN, "end": history.BEGIN + 310, "run": history.FIRST, "agent": "alecto"},
    "compare": {"begin": history.BEGIN, "end": history.END},
}
MARKS = {
    "fleet": {"Start", "Late agents", "Lost agents"},
    "agent": {"Start", "End", "Late agents", "Lost agents", "Process start"},
    "compare": {"Start", "End", "Late agents", "Lost agents", "Failed agents"},
}
NAMES = {
    "fleet": {
        "Fleet throughput": ["fleet"],
        "Throughput per agent": AGENTS,
        "Write latency of the fleet": ["p50", "p95", "p99"],
        "Agents": ["Agent", "Host", "Throughput", "Written", "Rollovers", "Write p99", "fsync p99", "Errors", "Least free"],
    },
    "agent": {
        "Throughput beside the fleet": ["alecto", "slowest", "median", "fastest"],
        "Where the time goes": ["write", "fsync", "read back"],
        "Identity": ["Agent", "Host", "Version", "Directory", "Processes", "Chunk size"],
    },
    "compare": {
        "Throughput over time": [history.FIRST, history.SECOND],
        "Throughput per agent": ["Agent", history.FIRST, history.SECOND],
        "fsync latency": [f"{p} {run}" for p in ("p50", "p95", "p99") for run in (history.FIRST, history.SECOND)],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[renderer.Renderer]:
    """A renderer with the packages of render/package-lock.json."""
    need("node", "npm", "chromium")
    with renderer.Renderer.start(tmp_path_factory.mktemp("site")) as started:
        yield started


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prometheus with two runs of three agents."""
    need("prometheus", "promtool")
    with with_past(tmp_path_factory.mktemp("past"), AGENTS) as prometheus:
        yield prometheus.url


def defects(shown: Tree) -> list[str]:
    """Returns what is wrong with what was drawn: errors, missing files, panels without data, variables left in texts."""
    problems = [*shown["errors"], *shown["complaints"]]
    for panel in shown["panels"]:
        if panel["state"] != "Done" or panel["error"]:
            problems.append(f"{panel['title']}: {panel['state']} {panel['error']}")
    queries = [query["expr"] for query in shown["queries"]]
    problems += [f"left in a text: {found}" for found in re.findall(r"\$\{?\w+", " ".join([shown["text"], *queries]))]
    empty = [query["where"] for query in shown["queries"] if not query["series"] and "annotation" not in query["where"]]
    problems += [f"no data: {where}" for where in empty]
    if "No data" in shown["text"]:
        problems.append("No data")
    return problems


def marks(shown: Tree) -> set[str]:
    """Returns the names of the marks that every panel has got."""
    (all_of_them,) = {frozenset(panel["marks"]) for panel in shown["panels"]}
    return set(all_of_them)


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("name", VIEWS)
def test_a_dashboard_is_drawn_whole(drawn: renderer.Renderer, past: str, name: str, theme: str) -> None:
    """No error, nothing missing, data in every panel, the expected series and columns, and the marks of what happened."""
    picture = OUTPUT / f"grafana-{name}-{theme}.png"
    shown = drawn.show(DASHBOARDS[name], past, theme=theme, picture=picture, **VIEWS[name])
    assert defects(shown) == []
    assert len(shown["panels"]) == len([each for each in DASHBOARDS[name]["panels"] if each["type"] != "row"])
    names = {panel["title"]: panel["names"] for panel in shown["panels"] if panel["title"] in NAMES[name]}
    assert names == NAMES[name]
    assert marks(shown) == MARKS[name]
    assert shown["text"].count(history.FIRST) >= 1


def test_an_agent_that_cannot_be_scraped_is_marked(drawn: renderer.Renderer, past: str) -> None:
    """The agent that was silent for a while has the mark of it on its own dashboard."""
    shown = drawn.show(DASHBOARDS["agent"], past, **{**VIEWS["agent"], "agent": "tisiphone"})
    assert defects(shown) == []
    assert marks(shown) == MARKS["agent"] | {"Not scraped"}


def test_links_keep_run_agent_and_time(drawn: renderer.Renderer, past: str) -> None:
    """From the fleet's table to an agent, and from the comparison to a run's fleet, with the time range that is shown."""
    fleet = drawn.show(DASHBOARDS["fleet"], past, **VIEWS["fleet"])["links"]
    expected = (
        rf"/d/fury-agent\?var-agent=alecto&var-run={history.FIRST}&var-datasource=fury-prometheus&from=2026.*&to=2026.*"
    )
    assert [link for link in fleet if re.fullmatch(expected, link)]
    compare = drawn.show(DASHBOARDS["compare"], past, **VIEWS["compare"])["links"]
    expected = rf"/d/fury-fleet\?var-run={history.SECOND}&var-datasource=fury-prometheus&from=2026.*&to=2026.*"
    assert [link for link in compare if re.fullmatch(expected, link)]


def test_a_fleet_of_one_agent_is_drawn_whole(drawn: renderer.Renderer, tmp_path: Path) -> None:
    """One agent fills every panel of every dashboard."""
    need("prometheus", "promtool")
    with with_past(tmp_path, ["alecto"]) as prometheus:
        for name, view in VIEWS.items():
            shown = drawn.show(DASHBOARDS[name], prometheus.url, **view)
            assert defects(shown) == [], name
            assert marks(shown) == MARKS[name] - {"Late agents", "Lost agents", "Failed agents"}


def test_an_empty_prometheus_is_no_error(drawn: renderer.Renderer, tmp_path: Path) -> None:
    """Before the first run each panel says that there are no data, and nothing breaks."""
    need("prometheus")
    with with_past(tmp_path, []) as prometheus:
        for name, dashboard in DASHBOARDS.items():
            picture = OUTPUT / f"grafana-{name}-empty.png"
            shown = drawn.show(dashboard, prometheus.url, begin=history.BEGIN, end=history.END, picture=picture)
            assert [*shown["errors"], *shown["complaints"]] == []
            assert {panel["state"] for panel in shown["panels"]} == {"Done"}
            assert shown["text"].count("No data") + shown["text"].count("no collector") >= len(shown["panels"])


def test_what_the_checks_know_is_what_grafana_knows(drawn: renderer.Renderer, past: str) -> None:
    """Units and transformations that the static checks accept are those of Grafana's libraries."""
    shown = drawn.show(DASHBOARDS["compare"], past, **VIEWS["compare"])
    assert set(shown["transformations"]) >= checks.TRANSFORMATIONS
    used = set(re.findall(r'"unit": "(\w+)"|"id": "unit", "value": "(\w+)"', json.dumps([*DASHBOARDS.values()])))
    assert {one or other for one, other in used} <= set(shown["units"])


def test_the_picture_of_the_readme_is_current(drawn: renderer.Renderer, past: str) -> None:
    """docs/images/fleet.png looks like what is drawn today; where it does not, take the new one from tests/output."""
    picture, shown = OUTPUT / "fleet.png", ROOT / "docs/images/fleet.png"
    drawn.show(DASHBOARDS["fleet"], past, picture=picture, height=1000, **VIEWS["fleet"])
    assert shown.stat().st_size < 300_000
    assert drawn.difference(picture, shown) < 0.02
    assert drawn.difference(picture, OUTPUT / "grafana-fleet-light.png") > 0.2


DRAWN_DEFECTS: dict[str, tuple[Callable[[Tree], None], str]] = {
    "misspelt metric": (put("Fleet throughput", "targets.0.expr", "sum(rate(fury_writen_bytes_total[1m]))"), "no data"),
    "broken PromQL": (put("Fleet throughput", "targets.0.expr", "sum(rate(fury_written_bytes_total[1m])"), "query: "),
    "unknown variable": (put("Fleet throughput", "targets.0.expr", 'up{agent="$agnet"}'), "left in a text: $agnet"),
    "another data source": (put("Fleet throughput", "datasource.uid", "abc"), "unknown data source"),
    "unknown transformation": (put("Agents", "transformations.0.id", "joinByFeild"), "joinByFeild"),
    "unknown panel": (put("Fleet throughput", "type", "timeserie"), "timeserie"),
}  # fmt: skip


@pytest.mark.parametrize("defect", DRAWN_DEFECTS)
def test_a_seeded_defect_is_seen(drawn: renderer.Renderer, past: str, defect: str) -> None:
    """Each seeded defect shows in what was drawn, in words that name it."""
    mutate, expected = DRAWN_DEFECTS[defect]
    dashboard = copy.deepcopy(DASHBOARDS["fleet"])
    mutate(dashboard)
    problems = defects(drawn.show(dashboard, past, **VIEWS["fleet"]))
    assert any(expected in problem for problem in problems), problems
