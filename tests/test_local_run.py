"""`ansible-playbook run.yml` with the default inventory, as a user without root and without systemd."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

REPO = Path(__file__).parents[1]
PLAYBOOK = str(Path(sys.executable).with_name("ansible-playbook"))
PORT = 19475  # not the default: a developer's own run may be going on


@dataclass
class Here:
    """A user's place for runs on this machine: a home, a chunk directory, results, nothing shared with anyone."""

    directory: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def argv(self, playbook: str, *more: str) -> list[str]:
        """The command line; as root in a user namespace of its own, where the user is none."""
        without_root = ["unshare", "--user", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []
        options = ["-e", f"fury_results={self.directory}/results", "-e", f"fury_collector_port={PORT}"]
        options += ["-e", f"directory={self.directory}/chunks"]
        if playbook == "teardown.yml":
            options = ["-e", f"fury_collector_port={PORT}"]
        return [*without_root, PLAYBOOK, playbook, *options, *more]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "HOME": str(self.directory / "home"), "XDG_STATE_HOME": "", "XDG_RUNTIME_DIR": ""}

    def play(self, playbook: str, *more: str) -> subprocess.CompletedProcess[str]:
        """Run a playbook to its end."""
        return subprocess.run(
            self.argv(playbook, *more),
            cwd=REPO,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def start(self, playbook: str, *more: str) -> subprocess.Popen[str]:
        """Start a playbook whose output goes to the file ``output``."""
        with (self.directory / "output").open("w") as output:
            process = subprocess.Popen(
                self.argv(playbook, *more),
                cwd=REPO,
                env=self.environment(),
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.started.append(process)
        return process

    def output_until(self, pattern: str, *, timeout_s: float = 60) -> str:
        """What a started playbook has printed once ``pattern`` is in it."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            text = (self.directory / "output").read_text()
            if re.search(pattern, text, re.M):
                return text
            time.sleep(0.2)
        raise AssertionError(f"{pattern!r} did not appear in: {text}")

    def summary(self) -> dict[str, Any]:
        """summary.json of the newest run."""
        loaded: dict[str, Any] = json.loads((self.directory / "results/latest/summary.json").read_text())
        return loaded

    def processes(self) -> list[str]:
        """Command lines of this place's processes that still run."""
        return [
            " ".join(p.info["cmdline"])
            for p in psutil.process_iter(["cmdline"])
            if p.info["cmdline"] and any(str(self.directory) in word for word in p.info["cmdline"])
        ]

    def left(self) -> list[str]:
        """What a run must not leave: files in the home but Ansible's own, chunks, processes."""
        files = [
            str(p)
            for p in (self.directory / "home").rglob("*")
            if ".ansible" not in p.parts and p.name not in (".local", "state")
        ]
        return files + [str(p) for p in (self.directory / "chunks").rglob("*")] + self.processes()


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    """A place that is cleaned up by teardown.yml, however the test ends."""
    for name in ("home", "chunks"):
        (tmp_path / name).mkdir()
    place = Here(tmp_path)
    yield place
    for process in place.started:
        if process.poll() is None:
            process.kill()
    done = place.play("teardown.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def check(summary: dict[str, Any], chunks_mb: Sequence[int]) -> None:
    """A passed run of the default inventory with these chunk sizes."""
    assert summary["verdict"] == "PASS"
    assert [agent["name"] for agent in summary["agents"]] == ["alecto", "megaera", "tisiphone"]
    for agent, chunk_mb in zip(summary["agents"], chunks_mb, strict=True):
        chunk_bytes = -(-chunk_mb * 1_000_000 // 4096) * 4096
        tail = agent["written_bytes"] - agent["rollovers"] * chunk_bytes
        assert agent["rollovers"] >= 2
        assert 0 <= tail < chunk_bytes


def test_it_passes_without_root_and_without_systemd_and_leaves_nothing(here: Here) -> None:
    """The inventory's own chunk sizes hold where none is given; the last line is the verdict; nothing is left."""
    done = here.play("run.yml", "-e", "seconds=6")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("PASS: 3 of 3 agents finished")
    assert done.stderr == ""
    check(here.summary(), (10, 20, 30))
    assert here.left() == []


def test_an_extra_var_overrides_the_inventory(here: Here) -> None:
    """-e chunk_mb=5 makes all chunks 5 MB."""
    assert here.play("run.yml", "-e", "seconds=4", "-e", "chunk_mb=5").returncode == 0
    check(here.summary(), (5, 5, 5))


def test_a_limited_run_is_a_run_of_those_agents(here: Here) -> None:
    """--limit chooses agents, and the controller's own part goes on."""
    done = here.play("run.yml", "-e", "seconds=4", "--limit", "megaera")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [agent["name"] for agent in here.summary()["agents"]] == ["megaera"]


def test_check_mode_looks_and_touches_nothing(here: Here) -> None:
    """--check ends well and leaves neither homes nor results."""
    done = here.play("run.yml", "-e", "seconds=4", "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert here.left() == []
    assert not (here.directory / "results").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_gathers_and_cleans(here: Here, number: signal.Signals) -> None:
    """The run is INCOMPLETE, its results are there, and nothing is left; SIGTERM does the same."""
    process = here.start("run.yml", "-e", "seconds=300")
    here.output_until(r"^started: ")
    time.sleep(2)
    process.send_signal(number)
    assert process.wait(60) != 0
    output = (here.directory / "output").read_text()
    assert output.splitlines()[-1].startswith("INCOMPLETE: "), output
    assert "interrupted by the user" in output
    assert "Traceback" not in output
    assert here.summary()["fleet"]["written_bytes"] > 0
    assert here.left() == []


def test_a_reader_that_goes_away_does_not_hold_the_run_up(here: Here) -> None:
    """`… | head -1` gets its line, and the hosts are cleaned all the same."""
    argv = here.argv("run.yml", "-e", "seconds=3")
    process = subprocess.Popen(argv, cwd=REPO, env=here.environment(), stdout=subprocess.PIPE, text=True)
    here.started.append(process)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("run ")
    process.stdout.close()
    assert process.wait(60) == 0
    assert here.left() == []


def test_teardown_cleans_after_a_killed_controller(here: Here) -> None:
    """kill -9 of ansible-playbook leaves a running fleet; teardown.yml ends it at once, and has nothing to do a second time."""
    process = here.start("run.yml", "-e", "seconds=300")
    here.output_until(r"^started: ")
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    process.kill()
    process.wait(10)
    assert len(here.processes()) >= 3
    done = here.play("teardown.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert here.left() == []
    again = here.play("teardown.yml")
    assert (again.returncode, again.stdout) == (0, "nothing of Fury was there\n")


def test_a_second_run_at_the_same_time_is_refused_with_the_firsts_name(here: Here) -> None:
    """Two runs on one machine would measure each other; the second says which run is in its way and changes nothing."""
    here.start("run.yml", "-e", "seconds=300")
    output = here.output_until(r"^started: ")
    first = re.search(r"^run (\S+):", output, re.M)
    done = here.play("run.yml", "-e", "seconds=4", "-e", f"fury_collector_port={PORT + 1}")
    assert done.returncode != 0
    assert first is not None
    assert first.group(1) in done.stderr
    assert "teardown.yml" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_of_two_runs_at_the_same_instant_one_passes_and_the_other_says_which(here: Here) -> None:
    """Neither takes away what the other has just put there."""
    both = [
        subprocess.Popen(
            here.argv("run.yml", "-e", "seconds=3"),
            cwd=REPO,
            env=here.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    here.started += both
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert sorted(process.returncode == 0 for process in both) == [False, True], outputs
    passed, refused = sorted(outputs, key=lambda output: "PASS: 3 of 3" not in output)
    first = re.search(r"^run (\S+):", passed, re.M)
    assert first is not None
    assert first.group(1) in refused, refused
    assert here.left() == []


def test_a_duration_too_short_for_two_rollovers_is_refused_with_what_would_do(here: Here) -> None:
    """The two-rollover rule: PRECONDITION names the rate it saw and the minutes or chunk size that would do."""
    done = here.play("run.yml", "-e", "seconds=1", "-e", "chunk_mb=5000", "-e", "keep=1", "--limit", "alecto")
    assert done.returncode != 0
    last = done.stdout.splitlines()[-1]
    assert last.startswith("PRECONDITION: "), done.stdout
    assert re.search(r"\d+ [MG]B/s", last), last
    assert "chunk" in last
    assert here.left() == []
