"""Real runs in a real Prometheus: collector, three agents, the shipped scrape configuration, every query of every dashboard.

The runs are made once (`run`): a good one, and one with faults. They gather what each test then looks at.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grafana import checks
from tests.grafana.prometheus import Prometheus, free_port, get, need, text, until
from tests.secured import Secured

pytestmark = pytest.mark.prometheus

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in ROOT.glob("grafana/dashboards/*.json")
}
RUN_ID = "test-run.1"
FAULTY_RUN_ID = "test-run.2"
OTHER_RUN_ID = "test.run.1"  # as a pattern it would match RUN_ID
AGENTS = ("alecto", "megaera", "tisiphone")
CHOICES = (".+", "megaera", "(alecto|tisiphone)")  # all, one and two agents, as Grafana puts them
SECONDS = 20
RATE_INTERVAL = "4s"  # Grafana's at a scrape interval of 1 s: four scrapes


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
    variables: dict[str, dict[str, list[str]]] = dataclasses.field(default_factory=dict)  # dashboard, variable: values
    live: dict[str, dict[str, list[str]]] = dataclasses.field(default_factory=dict)  # agents chosen, query: defects
    graphs: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    after: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    marks: dict[str, dict[str, list[str]]] = dataclasses.field(default_factory=dict)  # dashboard, annotation: defects
    both: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    other_run: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    metrics_findings: dict[str, str] = dataclasses.field(default_factory=dict)
    rules: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    recorded: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    exit_codes: dict[str, int] = dataclasses.field(default_factory=dict)


class Lab:
    """The processes of the test: started here, ended here, whatever happens between."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
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
        """Starts an agent of the present run that writes small chunks for SECONDS."""
        home, run_id = self.secured.home, self.secured.run_id
        for part in (f"disk-{name}", f"state-{name}"):
            (home / part).mkdir()
        config = {
            "name": name,
            "run_id": run_id,
            "chunk_mb": 4,
            "verify": "readback",
            "seconds": SECONDS,
            "directory": str(home / f"disk-{name}"),
            "state_directory": str(home / f"state-{name}"),
            "credentials_directory": str(self.secured.agents[name]),
            "collector_url": collector_url,
            "free_floor_mb": 100,
            "heartbeat_seconds": 1,
            "sample_seconds": 1,
            "drain_seconds": 20,
            "barrier_seconds": 90,
        }
        path = home / f"{name}.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        self.start(name, sys.executable, "-m", "fury_agent", name, "--config", str(path))

    def start_collector(self, run_id: str) -> str:
        """Starts a collector that expects the three agents in a new run and stays; returns its URL."""
        home = self.directory / run_id
        home.mkdir()
        credentials = self.directory / "credentials"  # one for all runs, as the controller has it
        if credentials.exists():
            shutil.copytree(credentials, home / "credentials")
        self.secured = Secured(home, run_id, AGENTS)
        shutil.copytree(home / "credentials", credentials, dirs_exist_ok=True)
        urllib.request.install_opener(self.secured.opener())
        plan = {
            "run_id": run_id,
            "created_at": "2026-01-01T00:00:00Z",
            "parameters": {"chunk_mb": 4},
            "agents": [
                {
                    "name": name,
                    "host": f"host-of-{name}",
                    "chunk_mb": 4,
                    "seconds": SECONDS,
                    "directory": str(home / f"disk-{name}"),
                }
                for name in AGENTS
            ],
        }
        (home / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
        state_file = home / "collector-state.json"
        options = {
            "--plan": str(home / "plan.json"),
            "--database": str(home / "fury.db"),
            "--port": str(self.port),
            "--state-file": str(state_file),
            "--barrier-seconds": "90",
            "--credentials-directory": str(self.secured.collector),
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
        path = self.directory / "grafana" / "prometheus.yml"  # beside credentials/, as it is shipped
        path.parent.mkdir()
        path.write_text(config, encoding="utf-8")
        shutil.copytree(ROOT / "grafana/rules", path.parent / "rules")
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


def chosen(dashboard: str, agent: str, run_id: str = RUN_ID) -> dict[str, str]:
    """Returns what Grafana would put for each variable of a dashboard."""
    several = {each["name"] for each in DASHBOARDS[dashboard]["templating"]["list"] if each.get("multi")}
    run = run_id.replace(".", r"\\.") if "run" in several else run_id
    one = agent if agent in AGENTS else AGENTS[0]
    values = {"__rate_interval": RATE_INTERVAL, "__range": "900s"}
    return {**values, "run": run, "agent": agent if "agent" in several else one}


def ask(prometheus: Prometheus, agent: str, run_id: str = RUN_ID) -> dict[str, tuple[list[dict[str, Any]], str]]:
    """Returns the answer and the legend of every query of every dashboard now."""
    return {
        f"{name}: {where}": (
            prometheus.query(checks.substitute(target["expr"], chosen(name, agent, run_id))),
            target.get("legendFormat") or "",
        )
        for name, dashboard in DASHBOARDS.items()
        for where, target in checks.expressions(dashboard)
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
    """Makes the runs and returns what was seen of them."""
    seen = Run()
    collector = lab.start_collector(RUN_ID)
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
    for url in (collector, *(f"https://{target['targets'][0]}" for target in get(f"{collector}/api/v1/targets"))):
        seen.metrics_findings[url] = promtool_findings(f"{url}/metrics")

    # While it writes, every query comes to have an answer: with all agents, with one, with two.
    deadline = time.monotonic() + SECONDS / 2
    for agent in CHOICES:
        seen.live[agent] = judge(prometheus, agent, deadline)
    for name, dashboard in DASHBOARDS.items():
        queries = {each["name"]: checks.label_query(each) for each in dashboard["templating"]["list"]}
        seen.variables[name] = {
            variable: prometheus.label_values(checks.substitute(query[0], chosen(name, ".+")), query[1])
            for variable, query in queries.items()
            if query
        }
    seen.other_run = {where: answer for where, (answer, _) in ask(prometheus, ".+", OTHER_RUN_ID).items()}
    seen.state_after_queries = state()["state"]

    for name in AGENTS:
        seen.exit_codes[name] = lab.processes[name].wait(timeout=SECONDS + 60)
    until("no agent is a target", lambda: prometheus.agents() == {}, 20)
    seen.final_targets = prometheus.agents()

    # The graphs over the whole run, and what the numbers and the tables say when it is over.
    for name, dashboard in DASHBOARDS.items():
        for where, target in checks.expressions(dashboard):
            expr, legend = checks.substitute(target["expr"], chosen(name, ".+")), target.get("legendFormat") or ""
            if not target.get("instant"):
                seen.graphs[f"{name}: {where}"] = defects(prometheus.query_range(expr, start, time.time()), legend)
            elif "_over_time" in expr:
                seen.after[f"{name}: {where}"] = defects(prometheus.query(expr), legend)
    groups = get(f"{prometheus.url}/api/v1/rules")["data"]["groups"]
    seen.rules = [rule for group in groups for rule in group["rules"]]
    for rule in seen.rules:
        if rule["type"] == "recording":
            series = prometheus.query_range(f'{rule["name"]}{{run_id="{RUN_ID}"}}', start, time.time())
            seen.recorded[rule["name"]] = [float(value) for one in series for _, value in one["values"]]
    lab.processes["collector"].terminate()  # it was told to stay
    seen.exit_codes["collector"] = lab.processes["collector"].wait(timeout=30)
    observe_faults(lab, prometheus, seen, start)
    return seen


def observe_faults(lab: Lab, prometheus: Prometheus, seen: Run, start: float) -> None:
    """Makes a second run in which one agent is stopped and another stands still; looks at its marks and at both runs."""
    collector = lab.start_collector(FAULTY_RUN_ID)
    for name in AGENTS:
        lab.start_agent(name, collector)

    def health() -> Any:
        return get(f"{collector}/api/v1/runs/{FAULTY_RUN_ID}")["health"]

    until("three targets are up", lambda: list(prometheus.agents().values()) == ["up"] * 3)
    until("all write", lambda: health()["green"] == 3, 60)
    time.sleep(4)  # Prometheus has seen the collector count none as failed
    lab.processes["megaera"].terminate()
    lab.processes["tisiphone"].send_signal(signal.SIGSTOP)
    try:
        until("tisiphone is late", lambda: health()["late"] == 1, 20)
        time.sleep(3)  # for Prometheus to see it
    finally:
        lab.processes["tisiphone"].send_signal(signal.SIGCONT)
    for name in AGENTS:
        lab.processes[name].wait(timeout=SECONDS + 60)
    time.sleep(3)  # for Prometheus to see the end
    lab.processes["collector"].terminate()
    lab.processes["collector"].wait(timeout=30)

    for name, dashboard in DASHBOARDS.items():
        values = chosen(name, "tisiphone", FAULTY_RUN_ID)
        seen.marks[name] = {
            mark["name"]: defects(
                prometheus.query_range(checks.substitute(mark["expr"], values), start, time.time()),
                mark["legendFormat"],
            )
            for _, mark in checks.marks(dashboard)
        }
    values = {**chosen("compare", ".+"), "run": f"({RUN_ID}|{FAULTY_RUN_ID})".replace(".", r"\\.")}
    for where, target in checks.expressions(DASHBOARDS["compare"]):
        expr, legend = checks.substitute(target["expr"], values), target.get("legendFormat") or ""
        instant = target.get("instant")
        series = prometheus.query(expr) if instant else prometheus.query_range(expr, start, time.time())
        runs = {one["metric"].get("run_id") for one in series}
        lacking = [f"no run {run}" for run in (RUN_ID, FAULTY_RUN_ID) if run not in runs]
        seen.both[where] = defects(series, legend) + lacking


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """What was seen of two real runs."""
    need("prometheus", "promtool")
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
        urllib.request.install_opener(urllib.request.build_opener())
        shutil.rmtree(lab.directory, ignore_errors=True)


def test_agents_are_targets_from_armed_to_finished(run: Run) -> None:
    """Prometheus finds an agent when it is armed, before the run starts, and drops it when it has finished."""
    assert run.armed_targets == dict.fromkeys(AGENTS[:2], "up")
    assert run.running_targets == dict.fromkeys(AGENTS, "up")
    assert run.final_targets == {}


@pytest.mark.parametrize("agent", CHOICES)
def test_every_query_has_numbers_during_the_run(run: Run, agent: str) -> None:
    """With all, one and two agents every query of every panel returns data, no NaN, and its legend's labels."""
    assert {where: problems for where, problems in run.live[agent].items() if problems} == {}
    assert run.state_after_queries == "running", "the queries took longer than the run: their answers prove nothing"


def test_variables_offer_the_run_and_its_agents(run: Run) -> None:
    """On every dashboard the run variable offers the run, the agent variable its three agents."""
    assert run.variables == {name: {"run": [RUN_ID], "agent": list(AGENTS)} for name in DASHBOARDS}


def test_another_run_shows_nothing_of_this_one(run: Run) -> None:
    """With another run chosen every query is empty, but for the one that says so."""
    assert [series["metric"] for series in run.other_run.pop("fleet: State A")] == [{"state": "no collector"}]
    assert {where: answer for where, answer in run.other_run.items() if answer} == {}


def test_start_end_and_faults_of_a_run_are_marked(run: Run) -> None:
    """Each annotation has something to show of a run in which it happened, and nothing where it did not."""
    happened = {name: list[str]() for name in ("Start", "End", "Late agents", "Failed agents")}
    common = {**happened, "Lost agents": ["empty"]}  # an agent is lost after 40 s
    assert run.marks == {
        "fleet": common,
        "compare": common,
        "agent": {**common, "Not scraped": [], "Process start": []},
    }


def test_both_runs_are_in_every_comparison(run: Run) -> None:
    """With two runs chosen, made one after the other at the same address, each query of Compare runs tells of both."""
    assert len(run.both) >= 15
    assert {where: problems for where, problems in run.both.items() if problems} == {}


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
    need("promtool")
    config = str(ROOT / "grafana/prometheus.yml")
    checked = subprocess.run(["promtool", "check", "config", config], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "WARNING" not in checked.stdout + checked.stderr
