"""Service level objectives: thresholds on a run's figures, read before anything starts and judged when it is over."""

from __future__ import annotations

import difflib
import math
import operator
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Optional

from fury_collector.errors import BadInput
from fury_collector.histogram import Histogram

EACH = "agent."
_LATENCIES = tuple(
    f"{what}_{percentile}_ms"
    for what in ("write", "fsync", "read")
    for percentile in ("p50", "p95", "p99", "p999", "max")
)
_OF_BOTH = ("throughput_mb_s", "written_gb", "rollovers", "errors", *_LATENCIES)
FLEET = (*_OF_BOTH, "agent_spread_percent", "start_skew_ms", "slow_agents")
AGENT = (*_OF_BOTH, "below_median_percent")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
}
_WANTED = re.compile(r"\s*(>=|<=|==|>|<)\s*([0-9]+(?:\.[0-9]+)?)\s*", re.ASCII)
_MOST = 100
_SHORT = reprlib.Repr()  # aliases in YAML make a value of a few lines that is gigabytes long as text
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 60
_QUANTILES = (("p50", 0.50), ("p95", 0.95), ("p99", 0.99), ("p999", 0.999))


@dataclass(frozen=True)
class Objective:
    """A threshold on a figure of the fleet, or with `each` on that of every agent."""

    metric: str
    each: bool
    sign: str
    bound: float

    @property
    def text(self) -> str:
        """As it is asked for: `agent.write_p99_ms <= 50`."""
        return f"{EACH if self.each else ''}{self.metric} {self.sign} {self.bound:.15g}"


@dataclass(frozen=True)
class Judged:
    """An objective and what became of it; `agent` is None for the fleet, `value` where there was no figure."""

    objective: Objective
    agent: Optional[str]
    value: Optional[float]
    met: bool

    @property
    def text(self) -> str:
        """`fleet: throughput_mb_s >= 100: met (853.8)`."""
        figure = "no figure" if self.value is None else f"{self.value:.6g}"
        wanted = f"{self.objective.metric} {self.objective.sign} {self.objective.bound:.15g}"
        return f"{self.agent or 'fleet'}: {wanted}: {'met' if self.met else 'missed'} ({figure})"


def parse(value: Any) -> tuple[Objective, ...]:
    """The objectives of an object like `{"throughput_mb_s": ">=100", "agent.write_p99_ms": ["<=50", ">0"]}`.

    Raises BadInput in a sentence with name, value and what is allowed.
    """
    if not isinstance(value, Mapping) or not 1 <= len(value) <= _MOST:
        raise _wrong(
            "slo", value, f'an object of 1 to {_MOST} objectives is (for example {{"throughput_mb_s": ">=100"}})'
        )
    found = []
    for name, wanted in value.items():
        each = isinstance(name, str) and name.startswith(EACH)
        metric = name[len(EACH) :] if each else name
        known = AGENT if each else FLEET
        if metric not in known:
            raise BadInput(f"slo: {_shown(name)} is not a figure that can be judged{_meant(name)}", field="slo")
        for one in wanted if isinstance(wanted, list) and wanted else [wanted]:
            match = _WANTED.fullmatch(one) if isinstance(one, str) and len(one) <= 40 else None
            if match is None:
                allowed = f'one of {" ".join(_COMPARE)} and a number from 0 on is (for example "{name}": "<=50")'
                raise _wrong(f"slo.{name}", one, allowed)
            found.append(Objective(metric=metric, each=each, sign=match[1], bound=float(match[2])))
    return tuple(found)


def judge(
    objectives: Iterable[Objective],
    *,
    fleet: Mapping[str, Optional[float]],
    agents: Mapping[str, Mapping[str, Optional[float]]],
) -> tuple[Judged, ...]:
    """Each objective held against the fleet's figures, or against every agent's; a figure that is missing misses it."""
    judged = []
    for objective in objectives:
        for agent, figures in agents.items() if objective.each else [(None, fleet)]:
            value = figures.get(objective.metric)
            met = value is not None and _COMPARE[objective.sign](value, objective.bound)
            judged.append(Judged(objective, agent, value, met))
    return tuple(judged)


def latencies(**histograms: Histogram) -> dict[str, Optional[float]]:
    """The figures `write_p99_ms` and their like (milliseconds) of histograms by `write`, `fsync` and `read`."""
    figures: dict[str, Optional[float]] = {}
    for what, histogram in histograms.items():
        for name, ratio in _QUANTILES:
            figures[f"{what}_{name}_ms"] = _ms(histogram.quantile(ratio))
        figures[f"{what}_max_ms"] = _ms(histogram.high)
    return figures


def _ms(seconds: Optional[float]) -> Optional[float]:
    return None if seconds is None or not math.isfinite(seconds) else seconds * 1000


def _meant(name: object) -> str:
    names = [*FLEET, *(EACH + one for one in AGENT)]
    close = difflib.get_close_matches(str(name), names, n=1)
    each = f"for every agent on its own {EACH}{_OF_BOTH[0]} and so on"
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(FLEET)}, and {each}"


def _wrong(where: str, value: object, allowed: str) -> BadInput:
    return BadInput(f"{where}: {_shown(value)} is not allowed; {allowed}", field=where[:64])


def _shown(value: object) -> str:
    text = _SHORT.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
