"""The collector stands whatever its OpenAPI description can be turned into, and the description is that of the collector.

More than a run of CI tries: FURY_FUZZ=20 multiplies the number of examples, and draws new ones each time.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from fury_collector import Config, create_app, wire
from fury_collector.db import Database
from tests.collector.conftest import RUN, Process, plan, ready
from tests.secured import Secured

ROOT = Path(__file__).parents[2]
TIMES = int(os.environ.get("FURY_FUZZ", "1"))
DESCRIPTION = ROOT / "docs" / "openapi.json"
# The last one is never heard of: the run goes on whatever the others say.
NAMES = (*(f"agent{n}" for n in range(8)), "quiet")
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]

api = schemathesis.openapi.from_path(DESCRIPTION)
api.config.generation.update(modes=list(GenerationMode))
api.config.output.sanitization.update(enabled=False)
few = settings(
    max_examples=60 * TIMES,
    derandomize=TIMES == 1,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)


@dataclass
class Target:
    """A real collector with its credentials, and what came back from it so far."""

    process: Process
    secured: Secured
    session: requests.Session = field(default_factory=requests.Session)
    answers: dict[int, int] = field(default_factory=dict)

    def send(self, case: schemathesis.Case[Any], headers: dict[str, str]) -> None:
        """Send a request and hold the answer against the description."""
        authority = str(self.secured.agents[NAMES[0]] / "ca.pem")
        response = case.call(
            base_url=self.process.url, session=self.session, headers=headers, verify=authority, timeout=10
        )
        self.answers[response.status_code] = self.answers.get(response.status_code, 0) + 1
        case.validate_response(response, checks=CHECKS)

    @property
    def requests(self) -> int:
        """How many there were."""
        return sum(self.answers.values())


def start(home: Path) -> Iterator[Target]:
    """A target that has to end well."""
    secured = Secured(home / "secured", RUN, NAMES)
    process = Process(home, plan(NAMES, seconds=600_000), "--stay", secured=secured)
    target = Target(process, secured)
    for name in NAMES:  # a run that goes on is not aborted by what one of them says
        path = f"/api/v1/runs/{RUN}/agents/{name}/ready"
        assert process.request("POST", path, ready(), shown=secured.bearer(name))[0] == 200
    yield target
    code = process.end()
    told = process.output.read_text()
    print(f"\n{target.requests} requests fuzzed: {dict(sorted(target.answers.items()))}")
    assert code == 0, told
    assert "Traceback" not in told, told


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """For those who may."""
    yield from start(tmp_path_factory.mktemp("fuzzed"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """For those who may not."""
    yield from start(tmp_path_factory.mktemp("strange"))


@api.parametrize()
@few
def test_whatever_is_sent_with_the_right_credential_is_answered_as_described(
    case: schemathesis.Case[Any], target: Target
) -> None:
    """No 5xx, no hang, no status, type or field that the description does not have; two of three are for what there is."""
    if case.path.endswith("/close") and "run_id" in case.path_parameters:
        case.path_parameters["run_id"] = "another"  # closing is the end: that is tried by others
    elif case.path_parameters and target.requests % 3:
        there = {"run_id": RUN, "name": NAMES[target.requests % 8] if "{run_id}" in case.path else "live.js"}
        case.path_parameters.update({key: there[key] for key in case.path_parameters if key in there})
    role = case.operation.definition.raw["security"]
    shown = {"controller": target.secured.controller, "reader": target.secured.reader}
    name = case.path_parameters.get("name")
    shown["agent"] = target.secured.bearer(name if name in NAMES else NAMES[0])
    target.send(case, {"Authorization": shown[next(iter(role[0]))]} if role else {})


@api.parametrize()
@settings(few, max_examples=15 * TIMES)
def test_whatever_is_sent_without_a_credential_is_refused(case: schemathesis.Case[Any], stranger: Target) -> None:
    """401 for everything but /healthz; no row is stored."""
    before = dict(stranger.answers)
    stranger.send(case, {})
    if case.path != "/healthz":
        assert stranger.answers.get(401, 0) == before.get(401, 0) + 1


def test_enough_was_sent(target: Target, stranger: Target) -> None:
    """The fuzzer found its way past the credentials: there are all kinds of answers."""
    assert target.requests > 1000
    assert {200, 400, 404, 409} <= set(target.answers)
    assert set(stranger.answers) <= {200, 401}


def test_the_description_has_exactly_the_routes_that_there_are(tmp_path: Path) -> None:
    """Each route with its methods, and docs/protocol.md tells of each."""
    database = Database(tmp_path / "fury.db")
    app = create_app(Config(wire.plan(plan()), database))
    database.close()
    routes = {
        (re.sub(r"<(\w+)>", r"{\1}", rule.rule), method)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    paths = json.loads(DESCRIPTION.read_text())["paths"]
    described = {(path, method.upper()) for path, ways in paths.items() for method in ways if method != "parameters"}
    assert described == routes
    protocol = (ROOT / "docs" / "protocol.md").read_text()
    for path, _ in described:
        assert f"{path.partition('{name}')[0] if path.startswith('/static') else path}" in protocol


def test_the_description_has_exactly_the_fields_that_are_checked() -> None:
    """Every kind of event, ready and the live page's query, with the limits of the collector."""
    document: dict[str, Any] = json.loads(DESCRIPTION.read_text())
    schemas = document["components"]["schemas"]
    for kind, fields in wire._KINDS.items():
        assert set(schemas[f"{kind.capitalize()}Event"]["properties"]) == {"kind", *fields}
        assert set(schemas[f"{kind.capitalize()}Event"]["required"]) == {"kind", *fields}
    assert set(schemas["Ready"]["properties"]) == {"v", *wire._READY}
    assert [one["name"] for one in document["paths"]["/api/v1/live"]["get"]["parameters"]] == list(wire._LIVE)
    assert set(schemas["Histogram"]["properties"]) == set(wire._HISTOGRAM)
    assert schemas["Batch"]["properties"]["events"]["maxItems"] == wire.MAX_BATCH
    assert str(wire.MAX_BODY_BYTES) in document["components"]["responses"]["TooLarge"]["description"]
