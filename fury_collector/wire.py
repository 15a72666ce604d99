"""What comes in is checked here, field by field, before anything else sees it: docs/protocol.md as a table."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn, Optional, Union

from fury_collector import slo
from fury_collector.errors import BadInput
from fury_collector.html import visible
from fury_collector.slo import Objective

MAX_BATCH = 500
MAX_BODY_BYTES = 2 * 1024 * 1024
MAX_BUCKETS = 4096
MAX_NOTES = 20
LONGEST_S = 604_800 + 86_400  # an agent's seconds with its ramp
SLOW_PERCENT = 20
WHOLE = 2**63 - 1
VERDICTS = (
    "PASS",
    "SLO_MISSED",
    "BAD_INPUT",
    "PRECONDITION",
    "DISK_ERROR",
    "DATA_CORRUPTION",
    "INCOMPLETE",
    "CLEANUP_UNCONFIRMED",
)
PHASES = ("armed", "writing", "draining")
CLEANUPS = ("confirmed", "unconfirmed", "pending")
HEALTHS = ("waiting", "green", "late", "suspect", "lost", "finished")
SORTS = (
    "worst",
    "name",
    "host",
    "bytes_per_second",
    "mean_bytes_per_second",
    "rollovers",
    "write_p99_s",
    "agent_cpu_ratio",
    "host_cpu_ratio",
    "agent_rss_bytes",
    "host_memory_ratio",
    "disk_free_bytes",
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_EPOCH = re.compile(r"[0-9a-f]{16}")
_UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|\+00:00)", re.ASCII)
_DIGITS = re.compile(r"[0-9]{1,9}")
_BUCKET = re.compile(r"-?[0-9]{1,5}")

Payload = dict[str, Any]
Check = Callable[[Any, str], Any]


@dataclass(frozen=True)
class Event:
    """One checked event of an agent; `payload` holds exactly the fields of its kind, numbers in their own type."""

    seq: int
    kind: str
    t_mono_ns: int
    t_wall: float
    payload: Payload


@dataclass(frozen=True)
class Batch:
    """One push: events of one epoch (16 hex digits), in the order they came."""

    epoch: str
    events: tuple[Event, ...]


@dataclass(frozen=True)
class Ready:
    """An armed agent's question; rates in bytes per second, durations in seconds."""

    epoch: str
    metrics_address: str
    metrics_port: int
    chunk_bytes: int
    seconds: float
    calibrated_bytes_per_second: Optional[float]
    host: str
    agent_version: str
    after: Optional[str] = None  # the epoch of the crashed process whose place this one takes


@dataclass(frozen=True)
class PlannedAgent:
    """One agent the plan expects."""

    name: str
    host: str
    chunk_mb: int
    seconds: float
    directory: str
    drain_seconds: float = 60.0
    ramp_seconds: float = 0.0  # how many of its seconds come before those that count


@dataclass(frozen=True)
class Plan:
    """A run as the controller planned it; `document` is the whole plan.json."""

    run_id: str
    created_at: str
    parameters: Payload
    agents: tuple[PlannedAgent, ...]
    document: Payload
    slow_percent: int = SLOW_PERCENT
    slo: tuple[Objective, ...] = ()


@dataclass(frozen=True)
class LiveQuery:
    """Which agents the live page is to show, and in which order; `health` is None for all."""

    sort: str = "worst"
    direction: str = "ascending"
    text: str = ""
    health: Optional[str] = None
    limit: int = 100
    offset: int = 0


def shown(value: object) -> str:
    """The value for a sentence: as JSON, cut to a length a person reads."""
    try:
        text = json.dumps(value, default=str)
    except RecursionError:  # what could just be read cannot always be written
        return f"{type(value).__name__} with many levels"
    return text if len(text) <= 60 else text[:57] + "..."


def loads(raw: Union[bytes, str], *, what: str = "the body") -> Any:
    """The JSON value of `raw`; NaN, infinities, bad UTF-8, and too deep or too long values are refused as BadInput.

    what: how the sentence calls it.
    """
    try:
        text = raw if isinstance(raw, str) else raw.decode("utf-8")
        return json.loads(text, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise BadInput(f"{what} is not UTF-8 (byte {error.start}): send JSON in UTF-8") from None
    except RecursionError:
        raise BadInput(f"{what} is nested too deeply: at most a few levels are meant") from None
    except ValueError as error:
        raise BadInput(f"{what} is not JSON: {error}") from None


def dumps(value: Any) -> str:
    """The value as compact JSON."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def plan(value: Any) -> Plan:
    """The run of a plan.json, or BadInput naming field, value and what is allowed."""
    body = _object(value, "plan")
    agents_in = _required(body, "agents", "plan")
    if not isinstance(agents_in, list) or not 1 <= len(agents_in) <= 100_000:
        raise BadInput("plan.agents must be a list of 1 to 100000 agents", field="plan.agents")
    agents = []
    for index, entry in enumerate(agents_in):
        where = f"plan.agents[{index}]"
        item = _object(entry, where)
        agents.append(
            PlannedAgent(
                name=name(_required(item, "name", where), f"{where}.name"),
                host=_said(255)(_required(item, "host", where), f"{where}.host"),
                chunk_mb=_whole(1, 1_000_000)(_required(item, "chunk_mb", where), f"{where}.chunk_mb"),
                seconds=_number(0.001, LONGEST_S)(_required(item, "seconds", where), f"{where}.seconds"),
                directory=_text(4096)(_required(item, "directory", where), f"{where}.directory"),
                drain_seconds=_number(0, 86_400)(item.get("drain_seconds", 60), f"{where}.drain_seconds"),
                ramp_seconds=_number(0, 86_400)(item.get("ramp_seconds", 0), f"{where}.ramp_seconds"),
            )
        )
    names = [agent.name for agent in agents]
    if len(set(names)) != len(names):
        twice = next(one for one in names if names.count(one) > 1)
        raise BadInput(f"plan.agents names {twice} twice: each agent needs a name of its own", field="plan.agents")
    return Plan(
        run_id=name(_required(body, "run_id", "plan"), "plan.run_id"),
        created_at=_instant(_required(body, "created_at", "plan"), "plan.created_at"),
        parameters=_object(body.get("parameters", {}), "plan.parameters"),
        agents=tuple(agents),
        document=body,
        slow_percent=_whole(1, 99)(body.get("slow_percent", SLOW_PERCENT), "plan.slow_percent"),
        slo=slo.parse(body["slo"]) if body.get("slo") else (),
    )


def hosts(value: Any) -> dict[str, Payload]:
    """What the controller saw of each agent's host (export --hosts): reachable, cleanup, detail by agent name."""
    result = {}
    for agent, entry in _object(value, "hosts").items():
        where = f"hosts.{shown(agent)[1:-1]}"
        item = _object(entry, where)
        result[agent] = {
            "reachable": _boolean(item.get("reachable", True), f"{where}.reachable"),
            "cleanup": _one_of(CLEANUPS)(item.get("cleanup", "pending"), f"{where}.cleanup"),
            "detail": _text(2000)(item.get("detail", ""), f"{where}.detail"),
        }
    return result


def ready(value: Any) -> Ready:
    """The checked body of POST …/ready."""
    body = {"after": None, **_version(_object(value, "body"))}
    return Ready(**_fields(body, _READY, "", ignored=("v",)))


def batch(value: Any) -> Batch:
    """The checked body of POST …/events: all of it, or BadInput for the first field that is wrong."""
    body = _version(_object(value, "body"))
    for key in body:
        if key not in ("v", "epoch", "events"):
            raise BadInput(f"{shown(key)[1:-1]} is not a field of a batch: v, epoch and events are", field=key[:64])
    epoch = _epoch(_required(body, "epoch", ""), "epoch")
    events_in = _required(body, "events", "")
    if not isinstance(events_in, list) or not 1 <= len(events_in) <= MAX_BATCH:
        found = len(events_in) if isinstance(events_in, list) else shown(events_in)
        raise BadInput(f"events must be a list of 1 to {MAX_BATCH} events, not {found}", field="events")
    return Batch(epoch, tuple(_event(entry, index) for index, entry in enumerate(events_in)))


def reason(value: Any) -> str:
    """The checked body of POST …/stop: why the run is to stop."""
    return str(_said(500)(_required(_object(value, "body"), "reason", ""), "reason"))


def live_query(items: Iterable[tuple[str, str]]) -> LiveQuery:
    """The checked query of GET /api/v1/live; each parameter may come once."""
    found: Payload = {}
    for key, value in items:
        check = _LIVE.get(key)
        if check is None:
            field = shown(key)[1:-1]
            raise BadInput(f"{field} is not a parameter of the live page: {', '.join(_LIVE)} are", field=key[:64])
        if key in found:
            raise BadInput(f"{key} is given twice: once is allowed", field=key)
        found[key] = check(value, key)
    return LiveQuery(**found)


def name(value: Any, where: str) -> str:
    """A run id or an agent's name, or BadInput."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        _wrong(where, value, "1 to 64 of A-Z a-z 0-9 . _ -, starting with a letter or digit")
    return value


def _event(entry: Any, index: int) -> Event:
    where = f"events[{index}]"
    item = _object(entry, where)
    kind = item.get("kind")
    fields = _KINDS.get(kind) if isinstance(kind, str) else None
    if fields is None:
        _wrong(f"{where}.kind", kind, "one of " + ", ".join(_KINDS))
    payload = _fields(item, fields, f"{where}.", ignored=("kind",))
    if kind == "rollover" and payload["ramp_bytes"] > payload["bytes"]:
        _wrong(f"{where}.ramp_bytes", payload["ramp_bytes"], f"at most bytes, {payload['bytes']}")
    return Event(payload.pop("seq"), str(kind), payload.pop("t_mono_ns"), payload.pop("t_wall"), payload)


def _fields(item: Payload, fields: dict[str, Check], prefix: str, *, ignored: tuple[str, ...]) -> Payload:
    result = {}
    for key, check in fields.items():
        if key not in item:
            raise BadInput(f"{prefix}{key} is missing", field=prefix + key)
        result[key] = check(item[key], prefix + key)
    if len(item) > len(result):
        for key in item:
            if key not in result and key not in ignored:
                raise BadInput(f"{prefix}{shown(key)[1:-1]} is not a field of the protocol", field=prefix + key[:64])
    return result


def _version(body: Payload) -> Payload:
    version = _required(body, "v", "")
    if version != 1 or isinstance(version, bool):
        _wrong("v", version, "1, the only version of the protocol that this collector speaks")
    return body


def _required(item: Payload, key: str, where: str) -> Any:
    if key not in item:
        path = f"{where}.{key}" if where else key
        raise BadInput(f"{path} is missing", field=path)
    return item[key]


def _wrong(where: str, value: object, allowed: str) -> NoReturn:
    raise BadInput(f"{where} must be {allowed}, not {shown(value)}", field=where)


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number in JSON")


def _object(value: Any, where: str) -> Payload:
    if not isinstance(value, dict):
        _wrong(where, value, "an object")
    return value


def _boolean(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        _wrong(where, value, "true or false")
    return value


def _epoch(value: Any, where: str) -> str:
    if not isinstance(value, str) or not _EPOCH.fullmatch(value):
        _wrong(where, value, "16 hex digits in lower case")
    return value


def _whole(low: int = 0, high: int = WHOLE) -> Check:
    def check(value: Any, where: str) -> int:
        if type(value) is not int or not low <= value <= high:
            _wrong(where, value, f"a whole number from {low} to {high}")
        return value

    return check


def _digits(low: int, high: int) -> Check:
    def check(value: Any, where: str) -> int:
        if not _DIGITS.fullmatch(value) or not low <= int(value) <= high:
            _wrong(where, value, f"a whole number from {low} to {high}")
        return int(value)

    return check


def _number(low: float = 0.0, high: float = 1e18) -> Check:
    def check(value: Any, where: str) -> float:
        if type(value) is int and -WHOLE <= value <= WHOLE:
            value = float(value)
        if type(value) is not float or not low <= value <= high:
            _wrong(where, value, f"a number from {low:g} to {high:g}")
        return value

    return check


def _text(longest: int) -> Check:
    def check(value: Any, where: str) -> str:
        if not isinstance(value, str) or len(value) > longest:
            _wrong(where, value, f"text of at most {longest} characters")
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            _wrong(where, value, "text that can be written in UTF-8")
        if "\0" in value:
            _wrong(where, value, "text without the character NUL")
        return value

    return check


def _said(longest: int) -> Check:
    """Text of an agent: one line in which nothing hides or turns it, for pages, terminals and files alike."""
    check = _text(longest)
    return lambda value, where: _one_line(check(value, where))


def _one_line(text: str) -> str:
    return str(visible(text.replace("\n", " ").replace("\t", " ")))


def _instant(value: Any, where: str) -> str:
    if isinstance(value, str) and _UTC.fullmatch(value):
        with contextlib.suppress(ValueError):
            datetime.fromisoformat(value)
            return value
    _wrong(where, value, "a time in UTC as in ISO 8601, 2026-11-24T03:04:05Z")


def _address(value: Any, where: str) -> str:
    with contextlib.suppress(ValueError):
        if isinstance(value, str) and len(value) <= 255:
            ipaddress.ip_address(value)
            return value
    _wrong(where, value, "an IP address, 10.0.0.2")


def _one_of(allowed: tuple[str, ...]) -> Check:
    def check(value: Any, where: str) -> str:
        if not isinstance(value, str) or value not in allowed:
            _wrong(where, value, "one of " + ", ".join(allowed))
        return value

    return check


def _or_null(check: Check) -> Check:
    return lambda value, where: None if value is None else check(value, where)


def _facts(value: Any, where: str) -> Payload:
    facts = _object(value, where)
    if len(facts) > 200:
        _wrong(where, len(facts), "an object of at most 200 values")
    taken: Payload = {}
    for key, fact in facts.items():
        _text(64)(key, f"{where} (a key)")
        taken[_one_line(key)] = _one_line(fact) if isinstance(fact, str) else fact
        if isinstance(fact, str):
            _text(1000)(fact, f"{where}.{shown(key)[1:-1]}")
        elif fact is not None and not isinstance(fact, bool):
            _number(-1e18, 1e18)(fact, f"{where}.{shown(key)[1:-1]}")
    return taken


def _notes(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or len(value) > MAX_NOTES:
        found = len(value) if isinstance(value, list) else value
        _wrong(where, found, f"a list of at most {MAX_NOTES} sentences")
    return [visible(_text(1000)(note, f"{where}[{index}]")) for index, note in enumerate(value)]


def _histogram(value: Any, where: str) -> Payload:
    item = _fields(_object(value, where), _HISTOGRAM, f"{where}.", ignored=())
    buckets: dict[str, int] = item["buckets"]
    total = item["zero"]
    for index, number in buckets.items():
        if not _BUCKET.fullmatch(index) or type(number) is not int or not 0 < number <= WHOLE:
            _wrong(f"{where}.buckets", {index: number}, 'an object of "index": count with counts above 0')
        total += number
    if total != item["count"]:
        _wrong(f"{where}.count", item["count"], f"the sum of zero and all buckets, {total}")
    low, high = item["min"], item["max"]
    if (low is None) != (total == 0) or (high is None) != (total == 0) or (total and low > high):
        _wrong(f"{where}.min", low, "null when the histogram is empty and at most max otherwise")
    if item["gamma"] <= 1:
        _wrong(f"{where}.gamma", item["gamma"], "a number above 1")
    return item


def _buckets(value: Any, where: str) -> Payload:
    buckets = _object(value, where)
    if len(buckets) > MAX_BUCKETS:
        _wrong(where, len(buckets), f"an object of at most {MAX_BUCKETS} buckets")
    return buckets


_ANY_WALL = _number(-1e12, 1e12)
_COMMON: dict[str, Check] = {"seq": _whole(0, 2**53), "t_mono_ns": _whole(), "t_wall": _ANY_WALL}
_RATIO = _number(0.0, 1e6)
_HISTOGRAM: dict[str, Check] = {
    "gamma": _number(1.0, 100.0),
    "zero": _whole(),
    "buckets": _buckets,
    "count": _whole(),
    "sum": _number(),
    "min": _or_null(_number()),
    "max": _or_null(_number()),
}
_READY: dict[str, Check] = {
    "epoch": _epoch,
    "metrics_address": _address,
    "metrics_port": _whole(0, 65535),
    "chunk_bytes": _whole(1),
    "seconds": _number(0.001, LONGEST_S),
    "calibrated_bytes_per_second": _or_null(_number()),
    "host": _said(255),
    "agent_version": _said(64),
    "after": _or_null(_epoch),
}
_LIVE: dict[str, Check] = {
    "sort": _one_of(SORTS),
    "direction": _one_of(("ascending", "descending")),
    "text": _text(100),
    "health": _one_of(HEALTHS),
    "limit": _digits(1, 100),
    "offset": _digits(0, 1_000_000),
}
_KINDS: dict[str, dict[str, Check]] = {
    "start": {
        **_COMMON,
        "start_collector_mono_s": _or_null(_number(-1e12, 1e12)),
        "rtt_s": _or_null(_number()),
        "chunk_bytes": _whole(1),
        "block_bytes": _whole(1),
        "planned_seconds": _number(),
        "host": _said(255),
        "facts": _facts,
    },
    "rollover": {
        **_COMMON,
        "chunk": _whole(),
        "bytes": _whole(),
        "ramp_bytes": _whole(),
        "seconds": _number(),
        "fsync_seconds": _number(),
        "read_seconds": _or_null(_number()),
        "write_p50_s": _number(),
        "write_p99_s": _number(),
        "write_max_s": _number(),
    },
    "sample": {
        **_COMMON,
        "interval_s": _number(),
        "written_bytes": _whole(),
        "read_bytes": _whole(),
        "agent_cpu_ratio": _RATIO,
        "agent_rss_bytes": _whole(),
        "host_cpu_ratio": _or_null(_RATIO),
        "host_memory_used_bytes": _or_null(_whole()),
        "host_memory_total_bytes": _or_null(_whole()),
        "disk_free_bytes": _whole(),
        "write_histogram": _histogram,
        "fsync_histogram": _histogram,
        "read_histogram": _histogram,
    },
    "heartbeat": {
        **_COMMON,
        "phase": _one_of(PHASES),
        "written_bytes": _whole(),
        "rollovers": _whole(),
        "pending_events": _whole(),
    },
    "error": {
        **_COMMON,
        "message": _said(4000),
        "operation": _or_null(_said(64)),
        "path": _or_null(_said(4096)),
        "errno": _or_null(_whole(-(2**31), 2**31)),
    },
    "final": {
        **_COMMON,
        "verdict": _one_of(VERDICTS),
        "reason": _or_null(_said(4000)),
        "written_bytes": _whole(),
        "ramp_bytes": _whole(),
        "read_bytes": _whole(),
        "tail_bytes": _whole(),
        "rollovers": _whole(),
        "seconds": _number(),
        "samples_dropped": _whole(),
        "heartbeats_coalesced": _whole(),
        "errors": _whole(),
        "write_histogram": _histogram,
        "fsync_histogram": _histogram,
        "read_histogram": _histogram,
        "device_written_bytes": _or_null(_whole()),
        "honesty": _facts,
        "notes": _notes,
    },
}
