"""The supervisor: an agent without systemd has a lease, an heir and a result."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any, Callable, Dict

import psutil
import pytest

from tests.agent.conftest import AgentProcess

Run = Callable[..., AgentProcess]
MODULE = "fury_agent.supervisor"


class Home:
    """A directory with a configuration, a state directory and one to write to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data, self.state = path / "data", path / "state"
        self.data.mkdir()
        self.state.mkdir()

    def config(self, **more: Any) -> str:
        values = {
            "name": "alecto",
            "run_id": "r1",
            "chunk_mb": 5,
            "seconds": 60,
            "directory": str(self.data),
            "state_directory": str(self.state),
            **more,
        }
        path = self.path / "agent.json"
        path.write_text(json.dumps(values))
        return str(path)

    @property
    def result(self) -> Dict[str, Any]:
        result: Dict[str, Any] = json.loads((self.state / "result.json").read_text())
        return result

    def is_clean(self) -> bool:
        return list(self.data.iterdir()) == []


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Where one supervised agent lives."""
    return Home(tmp_path)


def child_of(agent: AgentProcess) -> psutil.Process:
    (child,) = psutil.Process(agent.process.pid).children()
    return child


def wait_until_gone(process: psutil.Process) -> None:
    psutil.wait_procs([process], timeout=10)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_it_passes_on_what_the_agent_says_and_how_it_ends(run_agent: Run, home: Home) -> None:
    """The agent's lines, its exit code and its own result.json; an old result is no result of this run."""
    (home.state / "result.json").write_text('{"verdict": "old"}')
    agent = run_agent("--config", home.config(seconds=1), module=MODULE)
    assert agent.code == 0, agent.out + agent.err
    assert agent.lines[-1].startswith("PASS: alecto wrote")
    assert (home.result["verdict"], home.result["run_id"]) == ("PASS", "r1")
    assert home.is_clean()


def test_the_end_of_the_lease_ends_the_agent(run_agent: Run, home: Home) -> None:
    """Whoever has forgotten it: after lease_seconds it is stopped and cleaned up."""
    began = time.monotonic()
    agent = run_agent("--config", home.config(lease_seconds=2), module=MODULE)
    assert 2 <= time.monotonic() - began < 10
    assert agent.code == 6
    assert "the lease of 2 s was over" in agent.lines[-1]
    assert home.result["verdict"] == "INCOMPLETE"
    assert home.is_clean()


def test_an_agent_that_does_not_answer_is_killed_after_its_lease(start_agent: Run, home: Home) -> None:
    """SIGTERM, the grace, SIGKILL; then the supervisor empties the directory and writes the result."""
    agent = start_agent("--config", home.config(lease_seconds=3), "--grace-seconds", "0.5", module=MODULE)
    agent.wait_for("rollover 1:")
    child_of(agent).send_signal(signal.SIGSTOP)
    agent.finish()
    assert agent.code == 6
    assert "the lease of 3 s was over, killed by SIGKILL" in agent.lines[-1]
    assert home.result["exit_code"] == -signal.SIGKILL
    assert home.result["cleanup"] == "confirmed"
    assert home.is_clean()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_agent(start_agent: Run, home: Home, number: signal.Signals) -> None:
    """Stopping the supervisor stops the agent cleanly, with statistics."""
    agent = start_agent("--config", home.config(), module=MODULE)
    agent.wait_for("rollover 1:")
    agent.process.send_signal(number)
    agent.finish()
    assert agent.code == 6
    assert f"stopped by {number.name}" in agent.lines[-1]
    assert home.is_clean()


def test_a_killed_agent_comes_back_for_the_rest_of_its_time(start_agent: Run, home: Home) -> None:
    """After kill -9 of the agent it is started again and ends when it would have; one process more is told."""
    began = time.monotonic()
    agent = start_agent("--config", home.config(seconds=8), module=MODULE)
    agent.wait_for("rollover 1:")
    child_of(agent).kill()
    agent.wait_for("the agent was killed by SIGKILL and is started again (1 of 4)")
    agent.finish()
    assert agent.code == 0, agent.out
    assert 8 <= time.monotonic() - began < 12
    assert (home.result["verdict"], home.result["epochs"]) == ("PASS", 2)
    assert home.result["seconds"] < 7
    assert sorted(os.listdir(home.state)) == ["result.json"]
    assert home.is_clean()


def test_an_agent_that_is_back_too_late_says_so(start_agent: Run, home: Home) -> None:
    """Where its time is over it does not write at all."""
    agent = start_agent("--config", home.config(seconds=2), module=MODULE)
    agent.wait_for("rollover 1:")
    child = child_of(agent)
    child.suspend()
    time.sleep(2)
    child.kill()
    agent.finish()
    assert agent.code == 6
    assert "the time to write was over" in home.result["reason"]
    assert home.is_clean()


def test_an_agent_that_is_killed_over_and_over_is_given_up(start_agent: Run, home: Home) -> None:
    """After four more tries the supervisor cleans up and leaves a result in its place."""
    agent = start_agent("--config", home.config(), module=MODULE)
    for _ in range(5):
        agent.wait_for("is writing")
        child_of(agent).kill()
    agent.finish()
    assert agent.code == 6
    assert agent.lines[-1] == "INCOMPLETE: alecto: the agent was killed by SIGKILL"
    assert (home.result["verdict"], home.result["exit_code"]) == ("INCOMPLETE", -9)
    assert home.is_clean()


def test_no_agent_is_started_again_that_was_told_to_end(start_agent: Run, home: Home) -> None:
    """A signal to the supervisor holds, also if the agent then dies of another one."""
    agent = start_agent("--config", home.config(), module=MODULE)
    agent.wait_for("rollover 1:")
    child = child_of(agent)
    child.suspend()
    agent.process.terminate()
    time.sleep(0.3)
    child.kill()
    agent.finish()
    assert agent.code == 6
    assert "started again" not in agent.out
    assert home.is_clean()


def test_a_killed_supervisor_takes_the_agent_with_it(start_agent: Run, home: Home) -> None:
    """After kill -9 of the supervisor the agent gets SIGTERM from the kernel and cleans up itself."""
    agent = start_agent("--config", home.config(), module=MODULE)
    agent.wait_for("rollover 1:")
    child = child_of(agent)
    agent.process.kill()
    wait_until_gone(child)
    assert home.is_clean()
    assert "stopped by SIGTERM" in home.result["reason"]


def test_an_agent_that_refuses_is_reported_as_it_is(run_agent: Run, home: Home) -> None:
    """Its code and verdict are the agent's own."""
    agent = run_agent("--config", home.config(free_floor_mb=1_000_000_000), module=MODULE)
    assert agent.code == 3
    assert home.result["verdict"] == "PRECONDITION"


def test_a_wrong_configuration_is_a_sentence(run_agent: Run, home: Home) -> None:
    """It is judged before anything is started."""
    agent = run_agent("--config", home.config(chunk_mb="20.5"), module=MODULE)
    assert agent.code == 2
    assert agent.err.startswith("BAD_INPUT: chunk_mb: 20.5")
    assert os.listdir(home.state) == []
