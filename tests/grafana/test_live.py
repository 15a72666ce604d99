"""A real run in a real Prometheus: one collector, three agents, the shipped scrape configuration, every query.

The run is made once (`run`); it gathers what each test then looks at.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from grafana import checks

pytestmark = pytest.mark.prometheus

ROOT = Path(__file__).resolve().parents[2]
FLEET = json.loads((ROOT / "grafana/dashboards/fleet.json").read_text(encoding="utf-8"))
RUN_ID = "test-run.1"
OTHER_RUN_ID = "test.run.1"  # as a pattern it would match RUN_ID
AGENTS = ("alecto", "megaera", "tisiphone")
SECONDS = 20
RATE_INTERVAL = "4s"  # Grafana's at a scrape interval of 1 s: four scrapes


def get(url: str, query: dict[str, str] | None = None) -> Any:
    """Returns the JSON at a URL; the answer's text is in the error where the status is not 2xx."""
    encoded = urllib.parse.urlencode(query or {})
    address = f"{url}?{encoded}" if encoded else url
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{error.code} from {address}: {error.read().decode()}") from error


def text(url: str) -> str:
    """Returns the text at a URL."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def until(what: str, ready: Callable[[], Any], timeout_s: float = 30) -> Any:
    """Returns the first true value of `ready`; an error of the network means not yet."""
    deadline = time.monotonic() + timeout_s
    last: object = None
    while time.monotonic() < deadline:
        try:
            last = ready()
        except OSError as error:
            last = error
        else:
            if last:
                return last
        time.sleep(0.2)
    raise AssertionError(f"not within {timeout_s:g} s: {what}; last: {last!r}")


def free_port() -> int:
    """Returns a port of the loopback that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Prometheus:
    """The parts of Prometheus' HTTP API that Grafana uses."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Returns the series of `expr` now, each with `metric` and `values`."""
        result = get(f"{self.url}/api/v1/query", {"query": expr})["data"]["result"]
        return [{"metric": series["metric"], "values": [series["value"]]} for series in result]

    def query_range(self, expr: str, start: float, end: float) -> list[dict[str, Any]]:
        """Returns the series of `expr` from start to end (seconds since the epoch), a value each second."""
        query = {"query": expr, "start": f"{start}", "end": f"{end}", "step": "1"}
        return list(get(f"{self.url}/api/v1/query_range", query)["data"]["result"])

    def label_values(self, selector: str, label: str) -> list[str]:
        """Returns what Grafana's `label_values(selector, label)` offers."""
        return list(get(f"{self.url}/api/v1/label/{label}/values", {"match[]": selector})["data"])

    def agents(self) -> dict[str, str]:
        """Returns the health of every agent that is a target now, by name."""
        targets = get(f"{self.url}/api/v1/targets", {"state": "active"})["data"]["activeTargets"]
        return {
            target["labels"]["agent"]: target["health"] for target in targets if target["scrapePool"] == "fury_agents"
        }


def defects(results: list[dict[str, Any]], legend: str) -> list[str]:
    """Returns what is wrong with the answer to one query: nothing there, no number, a legend's label missing."""
    if not results:
        return ["empty"]
    problems = []
    labels = re.findall(r"\{\{\s*(\w+)\s*\}\}", legend)
    for series in results:
        problems += [f"no label {label} in {series['metric']}" for label in labels if label not in series["metric"]]
        problems += [f"{value} at {at}" for at, value in series["values"] if not math.isfinite(float(value))]
    return problems


@dataclasses.dataclass
class Run:
    """What was seen of the run, in the order it happened."""

    armed_targets: dict[str, str] = dataclasses.field(default_factory=dict)
    running_targets: dict[str, str] = dataclasses.field(default_factory=dict)
    final_targets: dict[str, str] | None = None
    state_after_queries: str = ""
    variables: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    live: dict[str, dict[str, list[str]]] = dataclasses.field(default_factory=dict)  # agents chosen, query: defects
    graphs: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    after: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    other_run: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    metrics_findings: dict[str, str] = dataclasses.field(default_factory=dict)
    rules: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    recorded: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    exit_codes: dict[str, int] = dataclasses.field(default_factory=dict)


class Lab:
    """The processes of the test: started here, ended here, whatever happens between."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Starts a process of this name; its output goes to <name>.log."""
        with (self.directory / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        return self.processes[name]

    def log(self, name: str) -> str:
        """Returns the end of a process's output."""
        return (self.directory / f"{name}.log").read_text(encoding="utf-8", errors="replace")[-3000:]

    def start_agent(self, name: str, collector_url: str) -> None:
        """Starts an agent that writes small chunks for SECONDS."""
        for part in (f"disk-{name}", f"state-{name}"):
            (self.directory / part).mkdir()
        config = {
            "name": name,
            "run_id": RUN_ID,
            "chunk_mb": 4,
            "verify": "readback",
            "seconds": SECONDS,
            "directory": str(self.directory / f"disk-{name}"),
            "state_directory": str(self.directory / f"state-{name}"),
            "collector_url": collector_url,
            "free_floor_mb": 100,
            "heartbeat_seconds": 1,
            "sample_seconds": 1,
            "drain_seconds": 20,
            "barrier_seconds": 90,
        }
        path = self.directory / f"{name}.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        self.start(name, sys.executable, "-m", "fury_agent", name, "--config", str(path))

    def start_collector(self) -> str:
        """Starts a collector that expects the three agents and stays; returns its URL."""
        plan = {
            "run_id": RUN_ID,
            "created_at": "2026-01-01T00:00:00Z",
            "parameters": {"chunk_mb": 4},
            "agents": [
                {
                    "name": name,
                    "host": f"host-of-{name}",
                    "chunk_mb": 4,
                    "seconds": SECONDS,
                    "directory": str(self.directory / f"disk-{name}"),
                }
                for name in AGENTS
            ],
        }
        (self.directory / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
        state_file = self.directory / "collector-state.json"
        options = {
            "--plan": str(self.directory / "plan.json"),
            "--database": str(self.directory / "fury.db"),
            "--port": str(free_port()),
            "--state-file": str(state_file),
            "--barrier-seconds": "90",
        }
        command = [word for option in options.items() for word in option]
        self.start("collector", sys.executable, "-m", "fury_collector", "serve", *command, "--stay")
        state = until("the collector listens", lambda: state_file.exists() and json.loads(state_file.read_text()))
        return str(state["url"])

    def start_prometheus(self, collector_url: str) -> Prometheus:
        """Starts a Prometheus with the shipped configuration, at the collector's port and a scrape a second."""
        shipped = (ROOT / "grafana/prometheus.yml").read_text(encoding="utf-8")
        address = urllib.parse.urlsplit(collector_url).netloc
        config, addresses = re.subn(r"127\.0\.0\.1:9475(?=/|\")", address, shipped)
        config, intervals = re.subn(r"(scrape_interval|scrape_timeout|refresh_interval): 2s", r"\1: 1s", config)
        assert (addresses, intervals) == (2, 3), "grafana/prometheus.yml has changed: change the substitution here"
        path = self.directory / "prometheus.yml"
        path.write_text(config, encoding="utf-8")
        shutil.copytree(ROOT / "grafana/rules", self.directory / "rules")
        port = free_port()
        self.start(
            "prometheus",
            "prometheus",
            f"--config.file={path}",
            f"--storage.tsdb.path={self.directory / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
            # Hidden option: by default discovered targets are taken over only every 5 s, a quarter of this run.
            "--scrape.discovery-reload-interval=1s",
        )
        prometheus = Prometheus(f"http://127.0.0.1:{port}")
        until("Prometheus is ready", lambda: "Ready" in text(f"{prometheus.url}/-/ready"))
        return prometheus

    def stop(self) -> None:
        """Ends every process that is still there, and waits for it."""
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            process.kill()  # does nothing to one that has been waited for
            process.wait()


def ask(prometheus: Prometheus, agent: str, run_id: str = RUN_ID) -> dict[str, tuple[list[dict[str, Any]], str]]:
    """Returns the answer and the legend of every query of the dashboard now, with `agent` as Grafana would put it."""
    values = {"__rate_interval": RATE_INTERVAL, "__range": "900s", "run": run_id, "agent": agent}
    return {
        where: (prometheus.query(checks.substitute(target["expr"], values)), target.get("legendFormat") or "")
        for where, target in checks.expressions(FLEET)
    }


def judge(prometheus: Prometheus, agent: str, deadline: float) -> dict[str, list[str]]:
    """Returns what is wrong with each query: what is empty may come until the deadline, a NaN is never forgiven."""
    while True:
        problems = {where: defects(*answer) for where, answer in ask(prometheus, agent).items()}
        found = [problem for each in problems.values() for problem in each]
        if not found or set(found) != {"empty"} or time.monotonic() > deadline:
            return problems
        time.sleep(0.3)


def promtool_findings(url: str) -> str:
    """Returns what `promtool check metrics` says of the metrics at a URL, nothing when they are clean."""
    command = ["promtool", "check", "metrics"]
    checked = subprocess.run(command, input=text(url), capture_output=True, text=True, check=False)
    return f"exit {checked.returncode}: {checked.stdout}{checked.stderr}" if checked.returncode else checked.stderr


def observe(lab: Lab) -> Run:
    """Makes the run and returns what was seen of it."""
    seen = Run()
    collector = lab.start_collector()
    prometheus = lab.start_prometheus(collector)

    def state() -> Any:
        return get(f"{collector}/api/v1/runs/{RUN_ID}")

    # Two of three are armed: both are targets, nothing has started.
    for name in AGENTS[:2]:
        lab.start_agent(name, collector)
    until("two targets are up", lambda: list(prometheus.agents().values()) == ["up", "up"])
    seen.armed_targets = prometheus.agents()
    assert state()["state"] == "arming"

    start = time.time()
    lab.start_agent(AGENTS[2], collector)
    until("the run runs", lambda: state()["state"] == "running", 60)
    until("three targets are up", lambda: list(prometheus.agents().values()) == ["up"] * 3, 10)
    seen.running_targets = prometheus.agents()
    for url in (collector, *(f"http://{target['targets'][0]}" for target in get(f"{collector}/api/v1/targets"))):
        seen.metrics_findings[url] = promtool_findings(f"{url}/metrics")

    # While it writes, every query comes to have an answer: with all agents as Grafana puts it, with one, with two.
    deadline = time.monotonic() + SECONDS / 2
    for agent in (".+", "megaera", "(alecto|tisiphone)"):
        seen.live[agent] = judge(prometheus, agent, deadline)
    for variable in FLEET["templating"]["list"]:
        found = checks.label_query(variable)
        if found:
            selector = checks.substitute(found[0], {"run": RUN_ID})
            seen.variables[variable["name"]] = prometheus.label_values(selector, found[1])
    seen.other_run = {where: answer for where, (answer, _) in ask(prometheus, ".+", OTHER_RUN_ID).items()}
    seen.state_after_queries = state()["state"]

    for name in AGENTS:
        seen.exit_codes[name] = lab.processes[name].wait(timeout=SECONDS + 60)
    until("no agent is a target", lambda: prometheus.agents() == {}, 20)
    seen.final_targets = prometheus.agents()

    # The graphs over the whole run, and what the numbers and the table say when it is over.
    values = {"__rate_interval": RATE_INTERVAL, "__range": "900s", "run": RUN_ID, "agent": ".+"}
    for where, target in checks.expressions(FLEET):
        expr, legend = checks.substitute(target["expr"], values), target.get("legendFormat") or ""
        if not target.get("instant"):
            seen.graphs[where] = defects(prometheus.query_range(expr, start, time.time()), legend)
        elif "max_over_time" in expr or "min_over_time" in expr:
            seen.after[where] = defects(prometheus.query(expr), legend)
    groups = get(f"{prometheus.url}/api/v1/rules")["data"]["groups"]
    seen.rules = [rule for group in groups for rule in group["rules"]]
    for rule in seen.rules:
        if rule["type"] == "recording":
            series = prometheus.query_range(f'{rule["name"]}{{run_id="{RUN_ID}"}}', start, time.time())
            seen.recorded[rule["name"]] = [float(value) for one in series for _, value in one["values"]]
    lab.processes["collector"].terminate()  # it was told to stay
    seen.exit_codes["collector"] = lab.processes["collector"].wait(timeout=30)
    return seen


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """What was seen of one real run."""
    missing = [name for name in ("prometheus", "promtool") if shutil.which(name) is None]
    if missing:
        reason = f"{' and '.join(missing)} not on PATH (Debian: apt-get install prometheus)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    lab = Lab(tmp_path_factory.mktemp("prometheus"))
    try:
        yield observe(lab)
    except BaseException:
        for name in lab.processes:
            with contextlib.suppress(OSError):
                print(f"--- {name}: {lab.log(name)}")
        raise
    finally:
        lab.stop()
        shutil.rmtree(lab.directory, ignore_errors=True)


def test_agents_are_targets_from_armed_to_finished(run: Run) -> None:
    """Prometheus finds an agent when it is armed, before the run starts, and drops it when it has finished."""
    assert run.armed_targets == dict.fromkeys(AGENTS[:2], "up")
    assert run.running_targets == dict.fromkeys(AGENTS, "up")
    assert run.final_targets == {}


@pytest.mark.parametrize("agent", [".+", "megaera", "(alecto|tisiphone)"])
def test_every_query_has_numbers_during_the_run(run: Run, agent: str) -> None:
    """With all, one and two agents every query of every panel returns data, no NaN, and its legend's labels."""
    assert {where: problems for where, problems in run.live[agent].items() if problems} == {}
    assert run.state_after_queries == "running", "the queries took longer than the run: their answers prove nothing"


def test_variables_offer_the_run_and_its_agents(run: Run) -> None:
    """The run variable offers the run, the agent variable its three agents."""
    assert run.variables == {"run": [RUN_ID], "agent": list(AGENTS)}


def test_another_run_shows_nothing_of_this_one(run: Run) -> None:
    """With another run chosen every query is empty, though both runs lie in one Prometheus."""
    assert {where: answer for where, answer in run.other_run.items() if answer} == {}


def test_graphs_of_the_whole_run_have_no_gaps_of_nan(run: Run) -> None:
    """Over the whole run, arming and end included, every graph has data and never a NaN."""
    assert {where: problems for where, problems in run.graphs.items() if problems} == {}


def test_totals_stay_when_the_agents_have_gone(run: Run) -> None:
    """The totals and the table's columns over the time range still have data after the run."""
    assert len(run.after) >= 8
    assert {where: problems for where, problems in run.after.items() if problems} == {}


def test_promtool_finds_the_metrics_clean(run: Run) -> None:
    """`promtool check metrics` has nothing to say about the collector's metrics or any agent's."""
    assert len(run.metrics_findings) == 1 + len(AGENTS)
    assert {url: findings for url, findings in run.metrics_findings.items() if findings} == {}


def test_the_rules_record_the_run_and_raise_no_alarm(run: Run) -> None:
    """Every recording rule has seen this run by its id, every rule could be evaluated, and no alert fired for a good one."""
    assert {rule["health"] for rule in run.rules} == {"ok"}
    assert len(run.recorded) >= 6
    for name, values in run.recorded.items():
        assert max((value for value in values if not math.isnan(value)), default=0) > 0, name
    firing = {rule["name"] for rule in run.rules if rule.get("state") == "firing"}
    assert firing == set()


def test_the_run_passed(run: Run) -> None:
    """Being watched disturbs nothing: every agent and the collector end with 0."""
    assert run.exit_codes == dict.fromkeys((*AGENTS, "collector"), 0)


def test_promtool_finds_the_scrape_configuration_clean() -> None:
    """`promtool check config` accepts grafana/prometheus.yml as shipped."""
    if shutil.which("promtool") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("promtool not on PATH")
        pytest.skip("promtool not on PATH (Debian: apt-get install prometheus)")
    config = str(ROOT / "grafana/prometheus.yml")
    checked = subprocess.run(["promtool", "check", "config", config], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "WARNING" not in checked.stdout + checked.stderr
