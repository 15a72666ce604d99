"""report.html: a judged run and its curves in, one offline page out. No database, no clock.

The page has a bound: what there is one of for each agent is cut, the worst first, until it is at most LIMIT_BYTES.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from fury_collector import drawing, html
from fury_collector.curves import GAMMA, HEAT, Curves, quantile
from fury_collector.histogram import PERCENTILES, Histogram
from fury_collector.report import SEVERITY, AgentResult, Result
from fury_collector.rows import Message, RunRows

LIMIT_BYTES = 5_000_000
SHOWN_FAULTS = 200
_ROWS = (2000, 1000, 400, 100, 20)
_CURVES = 8  # agents that get curves of their own
_TOGETHER = 4  # agents whose curves go into one chart
_LANES = 40
_NOTES = 40
_WORDS = 300  # characters of a sentence of an agent
_VALUES = 6  # distinct values of a fact
_SPARK = 48
_BAD = ("late", "suspect", "lost")
_FIGURE = re.compile(r"(?<![\w.])[0-9]+(?:\.[0-9]+)?")  # but not those of a name, as in nvme0n1

Row = dict[str, Any]


@dataclass(frozen=True)
class Faults:
    """What went wrong, the first of each and how many there were: agents' errors, the collector's warnings."""

    errors: Sequence[Mapping[str, Any]] = ()
    error_count: int = 0
    warnings: Sequence[Message] = ()
    warning_count: int = 0


def report(run: RunRows, result: Result, curves: Curves, faults: Faults) -> str:
    """The page, at most LIMIT_BYTES in UTF-8 whatever the run's size."""
    page = ""
    for most in _ROWS:
        page = _page(run, result, curves, faults, most)
        if len(page.encode()) <= LIMIT_BYTES:
            break
    return page


def _page(run: RunRows, result: Result, curves: Curves, faults: Faults, most: int) -> str:
    chosen, how_chosen = _chosen(result)
    charts = {
        **_throughput(run, result, curves, chosen, how_chosen, faults),
        **_latency_charts(curves),
        **_machine_charts(curves, chosen),
    }
    ordered = _worst_first(result.agents)
    return html.document(
        "report.html",
        charts={name: chart.spec for name, chart in charts.items()},
        summaries={name: chart.summary for name, chart in charts.items()},
        run=run,
        result=result,
        kind=_kind(result.verdict),
        kinds={verdict: _kind(verdict) for verdict in SEVERITY},
        how_chosen=how_chosen,
        multiples=[
            (f"throughput-{number}", agent.name)
            for number, agent in enumerate(chosen)
            if f"throughput-{number}" in charts
        ],
        multiples_words=f"Shown: {how_chosen}; all on one scale, behind each the median"
        f"{' and the middle 80 %' if len(result.agents) > len(chosen) else ''} of all agents.",
        remarks=any(agent.verdict != "PASS" or agent.remark for agent in result.agents),
        tiles=_tiles(run, result),
        objectives=sorted(result.slo, key=lambda one: one.met)[:most],
        hidden_objectives=max(0, len(result.slo) - most),
        latencies=_latencies(result, curves),
        histograms=_histograms(result),
        durations=_durations(curves),
        agents=_agent_rows(ordered[:most], result, curves),
        hidden_agents=max(0, len(ordered) - most),
        checks=_checks(run, result),
        notes=_notes(result.agents),
        parameters=[(name, _plain(name, value)) for name, value in sorted(result.parameters.items())],
        facts=_facts(result.agents),
        faults=_fault_rows(run, curves, faults, result),
        sampled=any(name in charts for _, name, _, _ in _MACHINE),
    )


@dataclass(frozen=True)
class _Chart:
    spec: dict[str, Any]
    summary: str


# Which agents


def _worst_first(agents: Iterable[AgentResult]) -> list[AgentResult]:
    """The worst verdict first, and of the same the slowest."""
    return sorted(agents, key=lambda agent: (SEVERITY.index(agent.verdict), agent.rate, agent.name))


def _chosen(result: Result) -> tuple[list[AgentResult], str]:
    """The agents that get curves, and a sentence that says which they are."""
    agents = result.agents
    if len(agents) <= _CURVES:
        return list(agents), "every agent"
    wrote = sorted((agent for agent in agents if agent.rate), key=lambda agent: agent.rate)
    if len(wrote) <= _CURVES:
        return wrote, f"the {len(wrote)} agents that wrote, of {len(agents)}"
    middle = len(wrote) // 2
    picked = [*wrote[:3], *wrote[middle - 1 : middle + 1], *wrote[-3:]]
    return picked, f"8 of {html.count(len(agents))} agents: the 3 slowest, 2 at the median, the 3 fastest"


# Curves


def _throughput(
    run: RunRows, result: Result, curves: Curves, chosen: Sequence[AgentResult], how: str, faults: Faults
) -> dict[str, _Chart]:
    fleet = curves.fleet_rates()
    known = [value for value in fleet if value is not None]
    ramp = max((agent.ramp_seconds for agent in run.agents), default=0.0)
    shades = [{"from": 0, "to": ramp, "label": "ramp, not in the figures"}] if ramp else []
    marks = list(_marks(run, curves, faults))
    each = f"{curves.step_s:g} s"
    told = "No agent wrote."
    if known and result.rate:
        told = (
            f"Durable bytes per second in steps of {each}, each rollover spread over the time that it took: lowest "
            f"{html.rate(min(known))}, highest {html.rate(max(known))}; over the whole run {html.rate(result.rate)}."
            f"{' Red lines: where an agent had an error or was lost.' if marks else ''}"
        )
    shared = {
        "unit": "B/s",
        "x": [curves.step_s / 2, curves.step_s],
        "until": curves.seconds,
        "shades": shades,
        "marks": marks,
    }
    charts = {
        "throughput": _Chart(
            shared
            | {
                "height": 240,
                "series": [{"label": "fleet", "values": html.series(fleet), "color": "fleet", "fill": True}],
            },
            told,
        )
    }
    if len(result.agents) > 1:
        charts |= _agents_throughput(result, curves, chosen, how, shared)
    return charts


def _agents_throughput(
    result: Result, curves: Curves, chosen: Sequence[AgentResult], how: str, shared: Row
) -> dict[str, _Chart]:
    """The agents in one chart where they are few, else a small one for each of those chosen, all on one scale."""
    rates = {agent.name: curves.rates(agent.name) for agent in result.agents}
    if len(chosen) <= _TOGETHER:
        lines = [{"label": html.visible(agent.name), "values": html.series(rates[agent.name])} for agent in chosen]
        wrote = sorted((agent for agent in result.agents if agent.rate), key=lambda agent: agent.rate)
        summary = "No agent wrote."
        if wrote:
            summary = (
                f"Shown: {how}. Slowest {html.visible(wrote[0].name)} with {html.rate(wrote[0].rate)}, "
                f"fastest {html.visible(wrote[-1].name)} with {html.rate(wrote[-1].rate)}."
            )
        return {"throughput-agents": _Chart(shared | {"height": 240, "series": lines}, summary)}
    low, median, high = map(html.series, _spread(list(rates.values())))
    tops = [value for agent in chosen for value in rates[agent.name] if value is not None]
    most = max([*tops, *(value for value in high if value is not None)], default=1.0)
    charts = {}
    for number, agent in enumerate(chosen):
        lines = [
            {"label": "this agent", "values": html.series(rates[agent.name]), "color": 1 if agent.slow else 0},
            {"label": "median of all", "values": median, "color": 7, "dash": True},
        ]
        spec = shared | {"height": 150, "max": most * 1.05, "series": lines}
        if len(result.agents) > len(chosen):
            spec["bands"] = [{"label": "p10 to p90 of all", "low": low, "high": high}]
        charts[f"throughput-{number}"] = _Chart(spec, f"{html.rate(agent.rate)}, {_off(agent)}.")
    return charts


def _off(agent: AgentResult) -> str:
    """How far from the median an agent is, in words."""
    below = (agent.below_median_ratio or 0.0) * 100
    if abs(below) < 0.05:
        return "as the median"
    return f"{abs(below):.1f} % {'below' if below > 0 else 'above'} the median{': slow' if agent.slow else ''}"


def _spread(rates: Sequence[Sequence[Optional[float]]]) -> tuple[list[Optional[float]], ...]:
    """p10, median and p90 of all agents in each bin."""
    spread: tuple[list[Optional[float]], ...] = ([], [], [])
    for values in zip(*rates):
        known = sorted(value for value in values if value is not None)
        for ratio, row in zip((0.1, 0.5, 0.9), spread):
            row.append(quantile(known, ratio) if known else None)
    return spread


def _marks(run: RunRows, curves: Curves, faults: Faults) -> Iterator[Row]:
    """Vertical lines where agents were lost or had errors: the first few, so that the curve stays visible."""
    found = [(at, error["agent"]) for error, at in zip(faults.errors, _error_times(curves, faults))]
    start = run.state.start_wall
    if start is not None:
        for agent in run.agents:
            found += [
                (change.t_wall - start, f"{agent.name} lost") for change in agent.liveness if change.health == "lost"
            ]
    last = -math.inf
    for at, label in sorted(found)[:SHOWN_FAULTS]:
        if at - last > curves.seconds / 100:
            last = at
            yield {"x": round(at, 3), "label": html.visible(label), "level": "error"}


def _error_times(curves: Curves, faults: Faults) -> list[float]:
    return [curves.at(error["agent"], error["epoch"], error["t_mono_ns"]) for error in faults.errors]


def _latency_charts(curves: Curves) -> dict[str, _Chart]:
    charts = {}
    for kind, what in _KINDS:
        if not curves.measured(kind):
            continue
        lines = (("max", 1.0), ("p99.9", 0.999), ("p99", 0.99), ("p50", 0.5))
        series = [
            {"label": name, "values": html.series(curves.quantiles(kind, ratio)), "color": index}
            for (name, ratio), index in zip(lines, (1, 4, 0, 2))
        ]
        worst = [value for value in curves.quantiles(kind, 0.99) if value is not None]
        charts[f"{kind}-time"] = _Chart(
            {
                "unit": "s",
                "scale": "log",
                "x": [curves.sampled_step_s / 2, curves.sampled_step_s],
                "until": curves.seconds,
                "series": series,
                "height": 190,
            },
            f"Percentiles of {what} of the fleet from merged histograms in steps of {curves.sampled_step_s:g} s: "
            f"p99 from {html.seconds(min(worst))} to {html.seconds(max(worst))}.",
        )
    return charts


_KINDS = (("write", "single write calls"), ("fsync", "fsyncs"), ("read", "single calls that read back"))
_MACHINE = (  # what of a sample, the chart, its unit, the end of its axis
    ("agent_cpu_ratio", "agent-cpu", "ratio", None),
    ("host_cpu_ratio", "host-cpu", "ratio", 1.0),
    ("agent_rss_bytes", "agent-rss", "B", None),
    ("host_memory_used_bytes", "host-memory", "B", None),
)


def _machine_charts(curves: Curves, chosen: Sequence[AgentResult]) -> dict[str, _Chart]:
    charts = {}
    for what, name, unit, most in _MACHINE:
        lines = [(agent, curves.agents[agent.name].samples(what)) for agent in chosen]
        lines = [(agent, values) for agent, values in lines if values]
        known = [value for _, values in lines for value in values if value is not None]
        if not known:
            continue
        spec: Row = {
            "unit": unit,
            "x": [curves.sampled_step_s / 2, curves.sampled_step_s],
            "until": curves.seconds,
            "series": [{"label": html.visible(agent.name), "values": html.series(values)} for agent, values in lines],
            "height": 170,
        }
        if most is not None:
            spec["max"] = most
        shown = html.percent if unit == "ratio" else html.size
        mean = sum(known) / len(known)
        charts[name] = _Chart(
            spec, f"Mean {shown(mean)}, from {shown(min(known))} to {shown(max(known))} over the agents shown."
        )
    return charts


# Figures


def _tiles(run: RunRows, result: Result) -> list[tuple[str, str, str]]:
    finished = sum(agent.finished for agent in result.agents)
    lost = sum(any(change.health == "lost" for change in agent.liveness) for agent in run.agents)
    median = "" if result.median_rate is None else f"the median is {html.rate(result.median_rate)}"
    return [
        ("Throughput", html.rate(result.rate), "of the fleet, durable bytes only"),
        ("Written", html.size(result.written_bytes), f"in {html.lasting(result.seconds)}"),
        ("Rollovers", html.count(result.rollovers), _each(result)),
        (
            "Agents finished",
            f"{html.count(finished)} of {html.count(len(result.agents))}",
            f"{html.count(lost)} lost for a while or for good" if lost else "none lost",
        ),
        ("Slow agents", html.count(len(result.slow)), median),
        ("Write p99", html.seconds(result.writes.quantile(0.99)), f"max {html.seconds(result.writes.high)}"),
        ("Fsync p99", html.seconds(result.fsyncs.quantile(0.99)), f"max {html.seconds(result.fsyncs.high)}"),
        (
            "Read back p99",
            html.seconds(result.reads.quantile(0.99)),
            f"{html.size(result.read_bytes)} compared" if result.reads.count else "nothing was read back",
        ),
        ("Start skew", html.seconds(result.skew_s), "between first writes, at most"),
        ("Errors", html.count(result.errors), "failed calls to the storage"),
    ]


def _each(result: Result) -> str:
    sizes = sorted({agent.chunk_mb for agent in result.agents})
    if not sizes:
        return ""
    return f"of {sizes[0]:g} MB" if len(sizes) == 1 else f"of {sizes[0]:g} to {sizes[-1]:g} MB"


def _latencies(result: Result, curves: Curves) -> list[Row]:
    kinds = [
        ("write call", result.writes),
        ("fsync", result.fsyncs),
        ("read-back call", result.reads),
        ("rollover", curves.durations),
    ]
    return [
        {
            "name": name,
            "count": counted.count,
            "mean": counted.total / counted.count,
            **{key: counted.quantile(ratio) for key, ratio in PERCENTILES},
            "max": counted.high,
        }
        for name, counted in kinds
        if counted.count
    ]


def _histograms(result: Result) -> list[Row]:
    kinds = (
        ("write", "Write calls", result.writes),
        ("fsync", "Fsyncs", result.fsyncs),
        ("read", "Read back", result.reads),
    )
    measured = [kind for kind in kinds if kind[2].count]
    width = 400 if len(measured) == 3 else 470 if len(measured) == 2 else 700
    return [
        {"name": name, "title": title, "svg": drawing.histogram(counted, width=width), "summary": _spoken(counted)}
        for name, title, counted in measured
    ]


def _spoken(counted: Histogram) -> str:
    return (
        f"{html.count(counted.count)} in all: half within {html.seconds(counted.quantile(0.5))}, 99 % within "
        f"{html.seconds(counted.quantile(0.99))}, 99.9 % within {html.seconds(counted.quantile(0.999))}, "
        f"the longest {html.seconds(counted.high)}."
    )


def _durations(curves: Curves) -> Optional[Row]:
    counted = curves.durations
    if not counted.count:
        return None
    return {
        "heat": drawing.heat(
            curves.heat, step_s=curves.heat_step_s, seconds=curves.seconds, bucket=GAMMA**HEAT, counted=counted
        ),
        "summary": _spoken(counted),
        "step": f"{curves.heat_step_s:g} s",
    }


def _agent_rows(agents: Sequence[AgentResult], result: Result, curves: Curves) -> list[Row]:
    small = {agent.name: drawing.thinned(curves.rates(agent.name), _SPARK) for agent in agents}
    most = max((value for values in small.values() for value in values if value is not None), default=0.0)
    rows = []
    for agent in agents:
        durations = curves.agents[agent.name].durations
        words = [agent.reason] if agent.verdict != "PASS" else []
        words += [agent.remark] if agent.remark else []
        rows.append(
            {
                "agent": agent,
                "host": html.cut(agent.host, 80),
                "severity": SEVERITY.index(agent.verdict),
                # Adding zero turns a -0.0 that rounding made into 0.0.
                "off": None if agent.below_median_ratio is None else round(-100 * agent.below_median_ratio, 1) + 0.0,
                "spark": drawing.spark(small[agent.name], most=most, median=result.median_rate),
                "rollover_p50": durations.quantile(0.5),
                "rollover_max": durations.high,
                "latencies": [
                    counted.quantile(ratio) if ratio < 1 else counted.high
                    for counted in (agent.writes, agent.fsyncs)
                    for ratio in (0.5, 0.99, 1)
                ],
                "words": html.cut("; ".join(words), _WORDS),
            }
        )
    return rows


# Whether the figures may be believed


def _checks(run: RunRows, result: Result) -> list[Row]:
    """The honesty checks over all agents: what was found, and whether it is as it should be (None: nobody knows)."""
    agents = result.agents
    honest = [(agent.name, agent.honesty) for agent in agents]
    checks = [
        _words("How the writes really went", honest, "io_used", "as the agents saw it, not as it was asked for"),
        _ranged(
            "The kernel's count ÷ the agents' bytes",
            honest,
            "process_bytes_ratio",
            "1 means that every byte was sent towards the storage, once",
            lambda value: abs(value - 1) <= 0.02,
        ),
        _ranged(
            "The device's count ÷ the agents' bytes",
            honest,
            "block_device_bytes_ratio",
            "above 1 others wrote as well: agents on the same device, the journal, metadata",
            lambda value: value >= 0.98,
        ),
        _ranged(
            "Chunks in the page cache at the end",
            honest,
            "page_cache_ratio",
            "what was read back from there would say nothing of the storage",
            lambda value: value <= 0.10,
            shown=html.percent,
        ),
        _ranged(
            "The agents' own share of the time",
            honest,
            "generator_ratio",
            "above 20 % the agent was a limit itself",
            lambda value: value <= 0.20,
            shown=html.percent,
        ),
        _steady(honest),
    ]
    issued = sum(agent.events_issued for agent in agents)
    stored = sum(agent.events_stored for agent in agents)
    checks.append(
        {
            "name": "Events stored",
            "told": "every event that an agent issued has to be here",
            "found": f"{html.count(stored)} of {html.count(issued)}",
            "good": stored == issued and bool(issued),
        }
    )
    dropped = sum(
        epoch.final.payload["samples_dropped"]
        for agent in run.agents
        for epoch in agent.epochs
        if epoch.final is not None
    )
    checks.append(
        {
            "name": "Samples dropped",
            "told": "gaps in the curves of CPU, memory and latency, never in sums",
            "found": html.count(dropped),
            "good": dropped == 0,
        }
    )
    cleaned = sum(agent.cleanup == "confirmed" for agent in agents)
    checks.append(
        {
            "name": "Clean-up confirmed",
            "told": "nothing of Fury is left on the host",
            "found": f"{html.count(cleaned)} of {html.count(len(agents))}",
            "good": True if cleaned == len(agents) else None if _pending(agents) else False,
        }
    )
    return checks


def _pending(agents: Iterable[AgentResult]) -> bool:
    return all(agent.cleanup in ("confirmed", "pending") for agent in agents)


def _words(name: str, honest: Sequence[tuple[str, Mapping[str, Any]]], key: str, told: str) -> Row:
    found: dict[str, list[str]] = {}
    for agent, honesty in honest:
        if honesty.get(key) is not None:
            by = f" (confirmed by {honesty['io_confirmed_by']})" if honesty.get("io_confirmed_by") else ""
            found.setdefault(html.cut(f"{honesty[key]}{by}", 80), []).append(agent)
    shown = "; ".join(
        value if len(found) == 1 else f"{value}: {html.names(whose)}" for value, whose in list(found.items())[:_VALUES]
    )
    good = None if not found else not any(value.startswith("buffered") for value in found)
    return {"name": name, "told": told, "found": shown or "not known", "good": good}


def _ranged(
    name: str,
    honest: Sequence[tuple[str, Mapping[str, Any]]],
    key: str,
    told: str,
    good: Callable[[float], bool],
    *,
    shown: Callable[[Optional[float]], str] = html.digits,
) -> Row:
    known = [(float(honesty[key]), agent) for agent, honesty in honest if isinstance(honesty.get(key), (int, float))]
    if not known:
        return {"name": name, "told": told, "found": "not known", "good": None}
    low, high = min(known), max(known)
    found = shown(low[0])
    if shown(high[0]) != found:
        found = f"{found} ({low[1]}) to {shown(high[0])} ({high[1]})"
    bad = sum(not good(value) for value, _ in known)
    if bad and len(honest) > 1:
        found += f"; {html.count(bad)} of {html.count(len(honest))} agents outside"
    if len(known) < len(honest):
        found += f"; not known of {html.count(len(honest) - len(known))}"
    return {"name": name, "told": told, "found": found, "good": not bad}


def _steady(honest: Sequence[tuple[str, Mapping[str, Any]]]) -> Row:
    told = "rise at most 10 %, range at most 20 % of the mean in the last third (after SNIA's PTS)"
    known = [honesty for _, honesty in honest if honesty.get("steady") is not None]
    if not known:
        return {"name": "Steady state", "told": told, "found": "not known", "good": None}
    steady = sum(honesty["steady"] is True for honesty in known)
    found = f"{html.count(steady)} of {html.count(len(honest))} agents"
    slopes = [abs(one["steady_slope_ratio"]) for one in known if one.get("steady_slope_ratio") is not None]
    spreads = [one["steady_spread_ratio"] for one in known if one.get("steady_spread_ratio") is not None]
    if slopes and spreads:
        found += f"; rise up to {html.percent(max(slopes))}, range up to {html.percent(max(spreads))}"
    return {"name": "Steady state", "told": told, "found": found, "good": steady == len(honest)}


def _notes(agents: Iterable[AgentResult]) -> list[tuple[str, str]]:
    """Each note once with the agents that have it; where notes differ in figures only, the figures' range."""
    groups: dict[str, dict[str, str]] = {}
    for agent in agents:
        for note in agent.notes:
            told = html.cut(note, _WORDS)
            groups.setdefault(_FIGURE.sub("#", told), {})[agent.name] = told
    noted = [(html.names(list(group)), _ranges(list(group.values()))) for group in groups.values()]
    if len(noted) > _NOTES:
        noted = [*noted[:_NOTES], (f"{html.count(len(noted) - _NOTES)} more notes", "see summary.json")]
    return noted


def _ranges(notes: Sequence[str]) -> str:
    """Notes that differ in figures only as one, each figure from its least to its greatest."""
    columns = zip(*(_FIGURE.findall(note) for note in notes))

    def figure(_: re.Match[str]) -> str:
        column = next(columns)
        low, high = min(column, key=float), max(column, key=float)
        return low if float(low) == float(high) else f"{low}–{high}"

    return _FIGURE.sub(figure, notes[0])


def _facts(agents: Sequence[AgentResult]) -> list[tuple[str, str]]:
    """What the agents said of their machines; where they differ, each value with who said it."""
    found: dict[str, dict[str, list[str]]] = {}
    for agent in agents:
        for key, value in list(agent.facts.items())[:100]:
            shown = html.cut(_plain(key, value), 160)
            found.setdefault(html.cut(str(key), 60), {}).setdefault(shown, []).append(agent.name)
    rows = []
    for key, values in sorted(found.items())[:100]:
        ordered = sorted(values.items(), key=lambda item: -len(item[1]))
        if len(ordered) == 1:
            rows.append((key, ordered[0][0]))
            continue
        shown = "; ".join(f"{value} ({html.names(whose, 2)})" for value, whose in ordered[:_VALUES])
        more = f"; {html.count(len(ordered) - _VALUES)} more values" if len(ordered) > _VALUES else ""
        rows.append((key, shown + more))
    return rows


def _plain(name: str, value: Any) -> str:
    """A parameter or fact as a person reads it; bytes also with the unit that fits."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return html.cut(", ".join(_plain(name, one) for one in value[:20]), _WORDS)
    if isinstance(value, dict):
        return html.cut(", ".join(f"{key} {_plain(str(key), one)}" for key, one in list(value.items())[:20]), _WORDS)
    if isinstance(value, (int, float)):
        if name.endswith("_bytes_per_second"):
            return html.rate(value)
        if name.endswith("_bytes") and abs(value) >= 1e4:
            return html.size(value)
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    return html.cut(str(value), _WORDS)


# What went wrong, and when


def _fault_rows(run: RunRows, curves: Curves, faults: Faults, result: Result) -> Row:
    start = run.state.start_wall
    silences = _silences(run, start, curves.seconds)
    shown = list(faults.errors)[:SHOWN_FAULTS]
    ticks: dict[str, list[tuple[float, str]]] = {}
    for error, at in zip(shown, _error_times(curves, faults)):
        ticks.setdefault(error["agent"], []).append((at, "error"))
    restarts = {agent.name: agent.restarts for agent in result.agents if agent.restarts}
    troubled = [
        agent.name
        for agent in _worst_first(result.agents)
        if agent.name in ticks or silences.get(agent.name) or agent.name in restarts
    ]
    rows = []
    told = [
        (message.t_wall - start, "warning" if message.level == "warning" else "error")
        for message in faults.warnings
        if start is not None
    ]
    if told:
        rows.append(drawing.Lane("collector", (), tuple(told)))
    for name in troubled[:_LANES]:
        curve = curves.agents[name]
        alive = ((curve.begin_s, curve.end_s, "alive"),) if curve.end_s else ()
        rows.append(drawing.Lane(name, (*alive, *silences.get(name, ())), tuple(ticks.get(name, ()))))
    return {
        "any": bool(rows),
        "lanes": drawing.lanes(rows, seconds=curves.seconds),
        "hidden": max(0, len(troubled) - _LANES),
        "summary": _fault_words(len(troubled), faults, silences),
        "errors": [
            {
                "at": html.clock(at),
                "agent": error["agent"],
                "operation": html.cut(str(error.get("operation") or ""), 40),
                "message": html.cut(str(error.get("message") or ""), _WORDS),
                "path": html.cut(str(error.get("path") or ""), 160),
                "errno": error.get("errno"),
            }
            for error, at in zip(shown, _error_times(curves, faults))
        ],
        "error_count": faults.error_count,
        "warnings": [
            {
                "at": "–" if start is None else html.clock(message.t_wall - start),
                "level": message.level,
                "text": html.cut(message.text, _WORDS),
            }
            for message in list(faults.warnings)[:SHOWN_FAULTS]
        ],
        "warning_count": faults.warning_count,
    }


def _silences(run: RunRows, start: Optional[float], seconds: float) -> dict[str, list[tuple[float, float, str]]]:
    """The spans in which each agent was late, suspect or lost."""
    spans: dict[str, list[tuple[float, float, str]]] = {}
    if start is None:
        return spans
    for agent in run.agents:
        since: Optional[tuple[float, str]] = None
        for change in agent.liveness[-1000:]:
            at = change.t_wall - start
            if since is not None:
                spans.setdefault(agent.name, []).append((since[0], at, since[1]))
            since = (at, change.health) if change.health in _BAD else None
        if since is not None:
            spans.setdefault(agent.name, []).append((since[0], seconds, since[1]))
    return spans


def _fault_words(troubled: int, faults: Faults, silences: Mapping[str, Sequence[Any]]) -> str:
    if not troubled and not faults.warning_count:
        return (
            "No call failed, no agent was silent for more than 10 s or restarted, and the collector warned of nothing."
        )
    silent = sum(bool(spans) for spans in silences.values())
    return (
        f"{_some(faults.error_count, 'error')} reported by agents, {_some(silent, 'agent')} silent for more than 10 s "
        f"at some time, {_some(faults.warning_count, 'warning')} of the collector."
    )


def _some(number: int, what: str) -> str:
    return f"{html.count(number)} {what}" if number == 1 else f"{html.count(number)} {what}s"


def _kind(verdict: str) -> str:
    return "pass" if verdict == "PASS" else "warn" if verdict in ("SLO_MISSED", "CLEANUP_UNCONFIRMED") else "fail"
