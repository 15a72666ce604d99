"""The link to Grafana at the end of a run."""

from __future__ import annotations

import json
import urllib.parse
from pathlib import Path
from typing import Any

import pytest

from fury_controller.grafana import FLEET_UID, link

DASHBOARD = json.loads((Path(__file__).parents[2] / "grafana/dashboards/fleet.json").read_text())


def summary(**changes: Any) -> dict[str, Any]:
    """What the link needs of summary.json."""
    told = {
        "run_id": "r-1",
        "started_at": "2026-11-24T07:16:58.168Z",
        "seconds": 60.5,
        "parameters": {"ramp_seconds": 0},
    }
    return {**told, **changes}


@pytest.mark.parametrize(("ramp", "extra_ms"), [(0, 0), (10, 10_000), ([5, 20], 20_000)])
def test_it_opens_the_fleet_dashboard_at_exactly_the_runs_time(ramp: object, extra_ms: int) -> None:
    """From the common start to the last agent's end, for that run."""
    found = link("https://g.example/grafana/", summary(parameters={"ramp_seconds": ramp}))
    assert found is not None
    parts = urllib.parse.urlsplit(found)
    assert f"{parts.scheme}://{parts.netloc}{parts.path}" == f"https://g.example/grafana/d/{DASHBOARD['uid']}"
    asked = dict(urllib.parse.parse_qsl(parts.query))
    assert asked["var-run"] == "r-1"
    assert int(asked["from"]) == 1_795_504_618_168
    assert int(asked["to"]) - int(asked["from"]) == 60_500 + extra_ms


def test_a_run_that_never_started_has_none() -> None:
    """There is nothing to be seen."""
    assert link("http://g:3000", summary(started_at=None)) is None


def test_it_names_a_dashboard_and_a_variable_that_exist() -> None:
    """Those that are shipped."""
    assert DASHBOARD["uid"] == FLEET_UID
    assert "run" in [variable["name"] for variable in DASHBOARD["templating"]["list"]]
