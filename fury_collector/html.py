"""Offline pages: a template and values in, one self-contained HTML file out. No database, no clock.

Styles, scripts and curves are in the file itself, which loads nothing: a Content-Security-Policy allows the inlined parts by
their hashes and nothing else. Whatever comes from an agent is escaped, and what would hide or reorder text is made visible.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Optional

import jinja2
from markupsafe import Markup

_HERE = Path(__file__).parent
_STYLES = ("vendor/uplot/uPlot.min.css", "fury.css")
_SCRIPTS = ("sharp.js", "vendor/uplot/uPlot.iife.min.js", "charts.js", "page.js")

# C0 and C1 but tab and newline, what reorders or hides text (Unicode TR 36), and halves of surrogate pairs.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)

_BYTES = ((1e18, "EB"), (1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def document(template: str, *, charts: Optional[Mapping[str, Any]] = None, **values: Any) -> str:
    """The whole page of a template that extends base.html.

    charts: what static/charts.js draws, by the id that the template names.
    """
    return _environment().get_template(template).render(charts=charts, **values)


def visible(value: Any) -> Any:
    """The value, a string's control and direction characters written out: nothing an agent says may hide or turn a text."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return _HIDDEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", value)
    return value


def json_block(value: Any, name: str) -> Markup:
    """A data block that scripts find by its id; nothing in it ends the block or is markup."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # The id is our own word; the text has no markup left.
    return Markup(f'<script type="application/json" id="{name}">{text}</script>')


def series(values: Iterable[Optional[float]]) -> list[Optional[float]]:
    """Values of a curve with the four significant digits that a chart can show; None is a gap."""
    return [None if value is None or not math.isfinite(value) else _four(value) for value in values]


def digits(value: Optional[float]) -> str:
    """Three significant digits, but no whole number is rounded; a dash for None."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    size = abs(value)
    places = next((places for limit, places in ((0.9995, 3), (9.995, 2), (99.95, 1)) if size < limit), 0)
    return f"{value:.{places}f}"


def size(value: Optional[float]) -> str:
    """Bytes with the unit that fits."""
    return _scaled(value, _BYTES, "B")


def rate(value: Optional[float]) -> str:
    """Bytes per second with the unit that fits."""
    return "–" if value is None else f"{size(value)}/s"


def seconds(value: Optional[float]) -> str:
    """A duration of calls, with the unit that fits."""
    return "0 s" if value == 0 else _scaled(value, _SECONDS, "s")


def lasting(value: Optional[float]) -> str:
    """How long something took, in hours and minutes where it is long."""
    if value is None:
        return "–"
    if value < 120:
        return f"{value:.1f} s"
    whole = round(value)
    days, hours, minutes, rest = whole // 86400, whole // 3600 % 24, whole // 60 % 60, whole % 60
    parts = ((days, "d"), (hours, "h"), (minutes, "min"), (rest, "s"))
    return " ".join([f"{number} {unit}" for number, unit in parts if number][:3])


def clock(value: float) -> str:
    """An instant of a run as h:mm:ss or m:ss."""
    sign, whole = ("-", round(-value)) if value < -0.5 else ("", max(0, round(value)))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{sign}{hours}:{minutes:02}:{rest:02}" if hours else f"{sign}{minutes}:{rest:02}"


def percent(ratio: Optional[float]) -> str:
    """A ratio as a percentage."""
    return "–" if ratio is None else f"{digits(ratio * 100)} %"


def count(value: Optional[int]) -> str:
    """A whole number with thin spaces between its thousands."""
    return "–" if value is None else f"{value:,}".replace(",", "\u202f")


def cut(text: str, longest: int) -> str:
    """At most so many characters, on one line."""
    flat = " ".join(text.split())
    return flat if len(flat) <= longest else f"{flat[: longest - 1]}…"


def names(listed: Sequence[str], most: int = 3) -> str:
    """Some names, and how many more there are."""
    shown = ", ".join(listed[:most])
    return shown if len(listed) <= most else f"{shown} and {len(listed) - most} more"


def _four(value: float) -> float:
    rounded = float(f"{value:.4g}")
    return int(rounded) if rounded == int(rounded) and abs(rounded) < 1e15 else rounded


def _scaled(value: Optional[float], units: Sequence[tuple[float, str]], least: str) -> str:
    if value is None:
        return "–"
    for factor, unit in units:
        if abs(value) >= factor * 0.9995:
            return f"{digits(value / factor)} {unit}"
    return f"{value:g} {least}"


@cache
def _environment() -> jinja2.Environment:
    from fury_collector import __version__  # the package imports the application, which may import this

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        finalize=visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    styles, scripts = _inlined(_STYLES), _inlined(_SCRIPTS)
    environment.globals |= {
        "styles": styles,
        "scripts": scripts,
        "csp": _policy(styles, scripts),
        "version": __version__,
    }
    for filter_ in (json_block, digits, size, rate, seconds, lasting, clock, percent, count, cut, names):
        environment.filters[filter_.__name__] = filter_
    return environment


def _inlined(paths: Sequence[str]) -> list[Markup]:
    """Our own files as they stand between tags; a file that would end its tag is a mistake of ours."""
    texts = [(_HERE / "static" / path).read_text(encoding="utf-8") for path in paths]
    for path, text in zip(paths, texts):
        if re.search(r"</(script|style)|<!--", text, re.IGNORECASE) or "\r" in text:
            raise ValueError(
                f"static/{path} can't be inlined: it has a closing tag, a comment or a carriage return in it"
            )
    return [Markup(text) for text in texts]


def _policy(styles: Sequence[str], scripts: Sequence[str]) -> Markup:
    hashed = {
        kind: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts
        )
        for kind, texts in (("style", styles), ("script", scripts))
    }
    policy = (
        f"default-src 'none'; script-src {hashed['script']}; style-src {hashed['style']}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return Markup('<meta http-equiv="Content-Security-Policy" content="{}">').format(policy)
