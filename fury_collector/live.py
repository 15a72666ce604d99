"""The live page at /: how the run is going, for people in a browser; its figures are those of GET /api/v1/live.

The answer has one size whatever the fleet's: a page of agents, the newest messages, a thinned curve. What comes from agents
travels as JSON and becomes text in the page, never markup.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional, Union

from flask import Blueprint, Response, request, send_file

from fury_collector import html, wire
from fury_collector.errors import Unknown
from fury_collector.run import Figures, Run
from fury_collector.wire import LiveQuery

SHOWN_MESSAGES = 50
SHOWN_MISSING = 10
MESSAGES_BYTES = 10_000
LONGEST_TEXT = 300
LONGEST_HOST = 60

# Not a folder but a list: nothing else is ever served.
_ASSETS = {
    "fury.css": ("fury.css", "text/css"),
    "uPlot.css": ("vendor/uplot/uPlot.min.css", "text/css"),
    "uPlot.js": ("vendor/uplot/uPlot.iife.min.js", "text/javascript"),
    "charts.js": ("charts.js", "text/javascript"),
    "live.js": ("live.js", "text/javascript"),
}
_STATIC = Path(__file__).parent / "static"
_WORST = ("lost", "suspect", "late", "failed", "waiting", "green", "finished")

# Key to sort by, heading, what it is, class of the heading; in the order of static/live.js' cells.
_COLUMNS = (
    ("name", "agent", "", ""),
    ("host", "host", "", ""),
    (None, "health", "", ""),
    ("bytes_per_second", "MB/s now", "over the last heartbeats", "num"),
    ("mean_bytes_per_second", "MB/s mean", "since the first write", "num"),
    ("rollovers", "rollovers", "", "num"),
    ("write_p99_s", "write p99 ms", "99 of 100 write calls of the newest sample took no longer", "num"),
    ("agent_cpu_ratio", "CPU %", "of the agent; one core is 100 %", "num"),
    ("host_cpu_ratio", "host CPU %", "of the host; all cores are 100 %", "num"),
    ("agent_rss_bytes", "memory MB", "of the agent, resident", "num"),
    ("host_memory_ratio", "host memory %", "used on the host", "num"),
    ("disk_free_bytes", "free GB", "left on the file system, 10^9 bytes", "num"),
)

Key = tuple[Union[float, str], ...]


def blueprint(run: Run) -> Blueprint:
    """The routes of the live page of one run, all of which only read it."""
    pages = Blueprint("live", __name__)

    @pages.get("/")
    def page() -> Response:
        text = html.document("live.html", run_id=run.run_id, columns=_COLUMNS, healths=wire.HEALTHS)
        return Response(text, content_type="text/html; charset=utf-8")

    @pages.get("/static/<name>")
    def static(name: str) -> Response:
        if name not in _ASSETS:
            raise Unknown(f"static/{wire.shown(name)[1:-1]} is not a part of the live page: {', '.join(_ASSETS)} are")
        path, kind = _ASSETS[name]
        return send_file(_STATIC / path, kind)  # asked for each time: the next run may be another version's

    @pages.get("/api/v1/live")
    def figures() -> Response:
        query = wire.live_query(request.args.items(multi=True))
        return Response(wire.dumps(overview(run, query)), content_type="application/json")

    return pages


def overview(run: Run, query: LiveQuery) -> dict[str, Any]:
    """What GET /api/v1/live answers (docs/protocol.md): the run, its curve, its newest messages, a page of its agents."""
    state = run.overview()
    missing: list[str] = state.pop("missing")
    if state["reason"] is not None:
        state["reason"] = _short(state["reason"], LONGEST_TEXT)
    step, values = run.curve
    found = [one for one in run.figures() if _wanted(one, query)]
    shown = _sorted(found, query)[query.offset : query.offset + query.limit]
    return {
        **state,
        "missing": missing[:SHOWN_MISSING],
        "missing_count": len(missing),
        "curve": {"step_s": step, "bytes_per_second": html.series(values)},
        "messages": _messages(run),
        "agents": {
            "found": len(found),
            "offset": query.offset,
            "rows": [_row(one) for one in shown],
        },
    }


def _wanted(one: Figures, query: LiveQuery) -> bool:
    if query.health is not None and one.health != query.health:
        return False
    told = f"{one.name} {one.host} {one.health} {one.phase or ''} {one.verdict or ''}".lower()
    return all(word in told for word in query.text.lower().split())


def _sorted(found: list[Figures], query: LiveQuery) -> list[Figures]:
    """By the key and then by name; what is not known comes last in both directions."""
    down = query.direction == "descending"
    known: list[tuple[Key, Figures]] = []
    unknown: list[Figures] = []
    for one in sorted(found, key=lambda one: one.name):
        key = _badness(one) if query.sort == "worst" else _plain(getattr(one, query.sort))
        if key is None:
            unknown.append(one)
        else:
            known.append((key, one))
    return [one for _, one in sorted(known, key=lambda pair: pair[0], reverse=down)] + unknown


def _plain(value: Union[float, str, None]) -> Optional[Key]:
    return None if value is None else (value,)


def _badness(one: Figures) -> Key:
    """The least for the worst: by health, a verdict that is no PASS before those that go on well, then the slowest."""
    failed = one.verdict not in (None, "PASS") and one.health not in ("lost", "suspect", "late")
    rate = one.bytes_per_second if one.phase == "writing" and one.health == "green" else one.mean_bytes_per_second
    return (_WORST.index("failed" if failed else one.health), float("inf") if rate is None else rate)


def _row(one: Figures) -> dict[str, Any]:
    return {
        **{key: _rounded(value) if isinstance(value, (int, float)) else value for key, value in vars(one).items()},
        "host": _short(one.host, LONGEST_HOST),
        "rollovers": one.rollovers,
        "silent_s": None if one.silent_s is None else round(one.silent_s, 1),
    }


def _messages(run: Run) -> list[dict[str, Any]]:
    """The newest messages, oldest first: at most SHOWN_MESSAGES, and as many as fit into MESSAGES_BYTES."""
    taken: list[dict[str, Any]] = []
    room = MESSAGES_BYTES
    for message in reversed(run.messages[-SHOWN_MESSAGES:]):
        shown = {**vars(message), "text": _short(message.text, LONGEST_TEXT), "t_wall": round(message.t_wall, 3)}
        room -= len(wire.dumps(shown).encode())
        if room < 0:
            break
        taken.append(shown)
    return taken[::-1]


def _short(text: str, longest: int) -> str:
    """One line that is at most so many bytes of JSON, and in which nothing hides or turns the text."""
    line = html.cut(str(html.visible(html.cut(text, longest))), longest)
    while len(wire.dumps(line).encode()) - 2 > longest:  # letters beyond ASCII, quotes
        line = html.cut(line, len(line) - max(1, len(line) // 16))
    return line


def _rounded(value: float) -> Optional[float]:
    return html.series((value,))[0]
