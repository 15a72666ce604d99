"""Static SVG: histograms, the heat map of rollovers, the lanes of faults, sparklines. Numbers in, markup out.

Colours are classes of static/fury.css, so that a drawing follows light, dark and print. Only figures and escaped words
become markup here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Optional

from markupsafe import Markup, escape

from fury_collector import html
from fury_collector.histogram import Histogram

_BUCKETS = 8  # of a histogram's in a bar: 17 % of a value
_LEVELS = 8


@dataclass(frozen=True)
class Lane:
    """A row of the timeline: spans (from, to, class) and ticks (at, class), seconds since the start."""

    label: str
    spans: tuple[tuple[float, float, str], ...] = ()
    ticks: tuple[tuple[float, str], ...] = ()


def histogram(counted: Histogram, *, width: int = 400, height: int = 190) -> Markup:
    """Bars of a histogram over a logarithmic axis of seconds, as high as the logarithm of their count."""
    if not counted.count or counted.gamma is None or counted.low is None or counted.high is None:
        return Markup("")
    left, right, top, bottom = 44, 16, 30, 22
    bars: dict[int, int] = {}
    for index, number in counted.buckets.items():
        bars[index // _BUCKETS] = bars.get(index // _BUCKETS, 0) + number
    step = _BUCKETS * math.log10(counted.gamma)
    if not bars:
        return Markup("")
    first, last = min(bars), max(bars)
    low = (first * _BUCKETS - 1) * math.log10(counted.gamma) - step
    high = low + (last - first + 3) * step
    most = max(bars.values())
    span = max(1.0, math.ceil(math.log10(most) + 1e-9)) + 0.15

    def x(seconds: float) -> float:
        return left + (math.log10(seconds) - low) / (high - low) * (width - left - right)

    def y(number: float) -> float:
        return height - bottom - (math.log10(number) + 0.15) / span * (height - top - bottom)

    parts = [_svg(width, height)]
    for power in range(int(span) + 1):
        if y(10**power) < top - 1:
            break
        parts.append(_line(left, y(10**power), width - right, y(10**power), "grid"))
        if power % max(1, round(span / 5)) == 0:
            parts.append(_text(left - 5, y(10**power) + 3.5, _short(10**power), anchor="end"))
    for seconds in _log_ticks(10**low, 10**high):
        parts.append(_line(x(seconds), height - bottom, x(seconds), height - bottom + 4, "axis"))
        parts.append(_text(x(seconds), height - bottom + 15, _trim(html.seconds(seconds)), anchor="middle"))
    wide = step / (high - low) * (width - left - right)
    path = []
    for place, number in sorted(bars.items()):
        at = left + (place - first + 1) / (last - first + 3) * (width - left - right)
        path.append(f"M{at + 0.4:.1f} {height - bottom}V{y(number):.1f}h{max(0.6, wide - 0.8):.1f}V{height - bottom}z")
    parts.append(f'<path class="bar" d="{"".join(path)}"/>')
    parts.append(_line(left, height - bottom, width - right, height - bottom, "axis"))
    told: list[float] = []
    for name, ratio in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)):
        value = counted.quantile(ratio)
        if value is None or value <= 0:
            continue
        at = x(value)
        row = sum(abs(at - other) < 38 for other in told)
        told.append(at)
        parts.append(_line(at, 14 + 11 * min(row, 1), at, height - bottom, "mark"))
        if row < 2:
            parts.append(_text(min(at, width - 18), 11 + 11 * row, name, anchor="middle", kind="mark"))
    parts.append(_text(left - 5, 11, "calls", anchor="end"))
    return _done(parts)


def heat(
    cells: Mapping[tuple[int, int], int],
    *,
    step_s: float,
    seconds: float,
    bucket: float,
    counted: Histogram,
    width: int = 1140,
    height: int = 280,
) -> Markup:
    """Durations over time: a cell is as dark as the logarithm of what fell into it; beside it all of the run together.

    cells: (bin of time, bucket) -> count; bucket b holds durations from bucket**b on (seconds).
    """
    if not cells:
        return Markup("")
    left, right, top, bottom, margin = 66, 8, 18, 42, 150
    whole, width = width, width - margin
    low, high = min(b for _, b in cells), max(b for _, b in cells) + 1
    low, high = low - 1, high + 1
    most = max(cells.values())
    tall = (height - top - bottom) / (high - low)
    wide = step_s / seconds * (width - left - right)
    paths: dict[int, list[str]] = {}
    for (place, row), number in sorted(cells.items()):
        level = 1 if most == 1 else 1 + int((_LEVELS - 1) * math.log(number) / math.log(most) + 1e-9)
        w = min(wide, width - right - left - place * wide)
        if w <= 0:
            continue
        paths.setdefault(level, []).append(
            f"M{left + place * wide:.1f} {height - bottom - (row + 1 - low) * tall:.1f}h{w:.1f}v{tall:.1f}h-{w:.1f}z"
        )
    parts = [_svg(whole, height)]

    def y(value: float) -> float:
        return height - bottom - (math.log(value) / math.log(bucket) - low) * tall

    for value in _log_ticks(bucket**low, bucket**high):
        at = y(value)
        parts.append(_line(left, at, width - right, at, "grid"))
        parts.append(_text(left - 6, at + 3.5, _trim(html.seconds(value)), anchor="end"))
    parts += [f'<path class="h{level}" d="{"".join(drawn)}"/>' for level, drawn in sorted(paths.items())]
    parts += _time_axis(seconds, left, width - right, height - bottom)
    # All of the run, on the same axis.
    base, wide = width + 14, margin - 60
    rows: dict[int, int] = {}
    for (_, row), number in cells.items():
        rows[row] = rows.get(row, 0) + number
    fullest = max(rows.values())
    bars = "".join(
        f"M{base} {height - bottom - (row + 1 - low) * tall:.1f}"
        f"h{max(1.0, wide * number / fullest):.1f}v{max(0.5, tall - 0.8):.1f}H{base}z"
        for row, number in sorted(rows.items())
    )
    parts.append(f'<path class="share" d="{bars}"/>')
    parts.append(_line(base, top, base, height - bottom, "axis"))
    share = f"share of all, up to {100 * fullest / sum(rows.values()):.0f} %"
    parts.append(_text(whole - 2, height - bottom + 15, share, anchor="end"))
    told: list[float] = []
    for name, ratio in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)):
        value = counted.quantile(ratio) or 0.0
        if value > 0 and all(abs(y(value) - other) > 11 for other in told):
            told.append(y(value))
            parts.append(_line(base, y(value), base + wide + 6, y(value), "mark"))
            parts.append(_text(base + wide + 9, y(value) + 3.5, name, anchor="start", kind="mark"))
    # What the darkness means.
    at = left
    parts.append(_text(at, height - 4, "rollovers in a cell:", anchor="start"))
    at += 142
    shown = sorted({1, *(round(most ** (level / (_LEVELS - 1))) for level in range(_LEVELS))})
    for number in shown:
        level = 1 if most == 1 else 1 + int((_LEVELS - 1) * math.log(number) / math.log(most) + 1e-9)
        parts.append(f'<rect class="h{level}" x="{at:.0f}" y="{height - 13}" width="14" height="10"/>')
        parts.append(_text(at + 19, height - 4, _short(number), anchor="start"))
        at += 32 + 9 * len(_short(number))
    return _done(parts)


def lanes(rows: Sequence[Lane], *, seconds: float, width: int = 1140) -> Markup:
    """A timeline: a row per agent with the spans of its silences and ticks for its errors."""
    if not rows:
        return Markup("")
    left, right, tall, bottom = 150, 8, 20, 26
    height = tall * len(rows) + bottom + 4

    def x(at: float) -> float:
        return left + min(max(at / seconds, 0.0), 1.0) * (width - left - right)

    parts = [_svg(width, height)]
    for index, row in enumerate(rows):
        top = 4 + index * tall
        parts.append(_text(left - 8, top + 13, html.cut(row.label, 22), anchor="end", kind="strong"))
        for begin, end, kind in row.spans:
            wide = max(1.5, x(end) - x(begin))
            parts.append(
                f'<rect class="{kind}" x="{x(begin):.1f}" y="{top + 3}" width="{wide:.1f}" height="{tall - 7}"/>'
            )
        seen = set()
        for at, kind in row.ticks:
            place = (round(x(at)), kind)
            if place not in seen:
                seen.add(place)
                parts.append(
                    f'<rect class="{kind}" x="{x(at) - 1:.1f}" y="{top + 1}" width="2.5" height="{tall - 3}"/>'
                )
    parts += _time_axis(seconds, left, width - right, height - bottom)
    return _done(parts)


def spark(values: Sequence[Optional[float]], *, most: float, median: Optional[float]) -> Markup:
    """A small curve from 0 to `most`, the median as a line behind it; gaps stay gaps."""
    if not most or all(value is None for value in values):
        return Markup("")

    def y(value: float) -> str:
        return f"{19 - 18 * min(1.0, value / most):.0f}"

    path, pen = [], "M"
    for index, value in enumerate(values):
        if value is None:
            pen = "M"
            continue
        path.append(f"{pen}{index * 2} {y(value)}")
        pen = "L"
    wide = max(2, 2 * (len(values) - 1))
    behind = f'<path class="median" d="M0 {y(median)}H{wide}"/>' if median else ""
    return Markup(
        '<svg class="spark" viewBox="0 0 {} 20" preserveAspectRatio="none" aria-hidden="true">{}<path d="{}"/></svg>'
    ).format(wide, Markup(behind), Markup("".join(path)))


def thinned(values: Sequence[Optional[float]], most: int) -> list[Optional[float]]:
    """At most so many means of neighbours; None where none is known."""
    if len(values) <= most:
        return list(values)
    means: list[Optional[float]] = []
    for index in range(most):
        part = values[index * len(values) // most : (index + 1) * len(values) // most]
        known = [value for value in part if value is not None]
        means.append(sum(known) / len(known) if known else None)
    return means


def _time_axis(seconds: float, left: float, right: float, at: float) -> list[str]:
    parts = [_line(left, at, right, at, "axis")]
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
    step: float = next((step for step in steps if seconds / step <= 10), 86400 * math.ceil(seconds / 864000))
    for index in range(int(seconds / step) + 1):
        x = left + index * step / seconds * (right - left)
        value = index * step
        label = f"{value:g} s" if seconds < 120 else html.clock(value)
        parts.append(_line(x, at, x, at + 4, "axis"))
        parts.append(_text(x, at + 15, label, anchor="end" if x > right - 14 else "middle"))
    return parts


def _log_ticks(low: float, high: float) -> Iterable[float]:
    """Decades within, and where there are few of them the 2s and 5s between."""
    decades = math.log10(high / low)
    factors = (1,) if decades > 3.2 else (1, 3) if decades > 1.8 else (1, 2, 5)
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        for factor in factors:
            if low <= factor * 10.0**power <= high:
                yield factor * 10.0**power


def _trim(text: str) -> str:
    number, _, unit = text.partition(" ")
    return f"{float(number):g} {unit}"


def _short(number: float) -> str:
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g}{letter}"
    return f"{number:g}"


def _svg(width: int, height: int) -> str:
    return f'<svg viewBox="0 0 {width} {height}" aria-hidden="true" focusable="false">'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<path class="{kind}" d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"/>'


def _text(x: float, y: float, words: str, *, anchor: str, kind: str = "") -> str:
    shown = escape(html.visible(words))
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}>{shown}</text>'


def _done(parts: Sequence[str]) -> Markup:
    return Markup("".join(parts) + "</svg>")
