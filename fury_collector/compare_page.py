"""The page of a comparison: what is not the same first, then figures, and curves over each other. A comparison in, HTML out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Optional

from fury_collector import html
from fury_collector.compare import (
    FASTER,
    FLEET,
    KINDS,
    MISSING,
    SAME,
    SLOWER,
    UNKNOWN,
    Comparison,
    Line,
    method,
    percent,
    spoken,
)
from fury_collector.histogram import Histogram

DRAWN = 24  # agents with charts of their own
ROWS = 500  # agents in the page's table
AGENT_METRICS = ("throughput", "write_p99", "fsync_p99", "rollover_p50")  # of each there


def page(comparison: Comparison) -> str:
    """The comparison as one offline HTML page with curves over each other."""
    worst = _worst_first(comparison)
    shown, rows = worst[:DRAWN], set(worst[:ROWS])
    charts: dict[str, Any] = {"throughput": _throughput_chart(comparison, FLEET)}
    for number, name in enumerate(shown):
        charts[f"throughput-{number}"] = _throughput_chart(comparison, name)
    return html.document(
        "compare.html",
        charts=charts,
        comparison=comparison,
        drawn=list(enumerate(shown)),
        fleet=FLEET,
        most=ROWS,
        listed=lambda pair: [one for one in pair.lines if one.scope in rows and one.metric.key in AGENT_METRICS],
        words={FASTER: "pass", SLOWER: "fail", SAME: "plain", UNKNOWN: "warn", MISSING: "plain"},
        method=method(comparison),
        percent=percent,
        interval=spoken,
        bar=lambda line: _bar(line, comparison.margin if line.metric.narrow else comparison.latency_margin),
        latencies=_latency_drawings(comparison, FLEET),
        latencies_of=lambda name: _latency_drawings(comparison, name),
    )


def _worst_first(comparison: Comparison) -> list[str]:
    """The agents that all runs have, those whose throughput differs most first."""
    worst: dict[str, float] = {}
    for pair in comparison.pairs:
        for line in pair.lines:
            if line.scope != FLEET and line.metric.rate:
                worst[line.scope] = max(worst.get(line.scope, 0.0), abs(line.difference.ratio or 0.0))
    return sorted(worst, key=lambda name: -worst[name])


def _throughput_chart(comparison: Comparison, scope: str) -> dict[str, Any]:
    curves = []
    for number, side in enumerate(comparison.sides):
        for repeat, run in enumerate(side.runs):
            label = side.letter if len(side.runs) == 1 else f"{side.letter} {repeat + 1}"
            curve = {
                "label": f"{label} {run.run_id}",
                "values": html.series(run.rates.get(scope, [])),
                "color": number % 8,
                "x": [run.step_s / 2, run.step_s],
            }
            curves.append(curve | ({"dash": True} if repeat else {}))
    first = comparison.sides[0].runs[0]
    return {"unit": "B/s", "x": [first.step_s / 2, first.step_s], "series": curves, "min": 0}


@dataclass(frozen=True)
class Bar:
    """An interval drawn: the margin's band, the interval's line and the difference's dot, in 0 to 120 from left to right."""

    band: tuple[float, float]
    span: tuple[float, float]
    dot: float
    title: str


def _bar(line: Line, margin: float) -> Optional[Bar]:
    """None where nothing is known; logarithmic, so that both ways are alike, and a factor of three is as far out as it goes."""
    if line.difference.ratio is None:
        return None

    def x(ratio: float) -> float:
        place = math.log(max(ratio, -0.999999) + 1) / math.log(3) if math.isfinite(ratio) else 1.0
        return round(60 + 58 * min(1.0, max(-1.0, place)), 1)

    difference = line.difference
    return Bar(
        (x(-margin / 100), x(margin / 100)),
        (x(difference.low), x(difference.high)),
        x(difference.ratio or 0.0),
        f"{percent(difference.ratio)}, {spoken(difference)}; the margin is {margin:g} %",
    )


# Percentile curves: how far up each call has to be, from one in two to one in 100,000, against how long it took.

_LEFT, _RIGHT, _TOP, _BOTTOM, _WIDE, _HIGH = 52, 8, 8, 22, 460, 220
_NINES = ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p99.9"), (0.9999, "p99.99"))


@dataclass(frozen=True)
class Drawing:
    """A static drawing of paths: one for each run, in the colour of its side."""

    kind: str
    paths: tuple[tuple[int, bool, str, str], ...]  # colour, whether dashed, label, path
    across: tuple[tuple[float, str], ...]
    up: tuple[tuple[float, str], ...]
    summary: str
    wide: int = _WIDE
    high: int = _HIGH
    left: int = _LEFT
    right: int = _WIDE - _RIGHT
    top: int = _TOP
    bottom: int = _HIGH - _BOTTOM


def _latency_drawings(comparison: Comparison, scope: str) -> list[Drawing]:
    return [drawing for kind in KINDS if (drawing := _latency_drawing(comparison, scope, kind)) is not None]


def _latency_drawing(comparison: Comparison, scope: str, kind: str) -> Optional[Drawing]:
    curves = []
    for number, side in enumerate(comparison.sides):
        for repeat, run in enumerate(side.runs):
            histogram = run.histograms.get((scope, kind))
            if histogram is not None and histogram.count:
                curves.append((number, bool(repeat), side.letter, histogram, _percentile_points(histogram)))
    if not curves:
        return None
    values = [value for *_, points in curves for _, value in points]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
    furthest = max(place for *_, points in curves for place, _ in points)

    def x(place: float) -> float:
        return round(_LEFT + (_WIDE - _LEFT - _RIGHT) * place / max(furthest, 1.0), 1)

    def y(value: float) -> float:
        return round(_HIGH - _BOTTOM - (_HIGH - _TOP - _BOTTOM) * (math.log10(value) - low) / max(1, high - low), 1)

    summary = "; ".join(
        f"{letter}: p50 {html.seconds(h.quantile(0.5))}, p99 {html.seconds(h.quantile(0.99))}, greatest {html.seconds(h.high)}"
        for _, dashed, letter, h, _ in curves[:8]
        if not dashed
    )
    paths = tuple(
        (number % 8, dashed, letter, "M" + " L".join(f"{x(place)} {y(value)}" for place, value in points))
        for number, dashed, letter, _, points in curves
    )
    across = tuple((x(_place(ratio)), name) for ratio, name in _NINES if _place(ratio) <= furthest + 1e-9)
    up = tuple((y(10.0**power), html.seconds(10.0**power)) for power in range(low, high + 1))
    return Drawing(kind, paths, across, up, summary)


def _place(ratio: float) -> float:
    """Where a percentile stands: each further step is one in ten of what lay beyond, p50 at 0."""
    return -math.log10(1 - ratio) - math.log10(2)


def _percentile_points(histogram: Histogram) -> list[tuple[float, float]]:
    """Places and seconds of the percentiles that so many values can show."""
    furthest = min(5.0, math.log10(max(histogram.count, 2)))
    points = []
    for step in range(int(furthest * 12) + 1):
        ratio = 1 - 10 ** -(math.log10(2) + step / 12)
        if (1 - ratio) * histogram.count < 1 and step:
            break
        value = histogram.quantile(ratio)
        if value:
            points.append((step / 12, value))
    return points or [(0.0, histogram.high or 1e-9)]
