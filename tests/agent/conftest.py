"""What the agent's tests share: the agent as a real process, and a collector's stand-in that misbehaves on command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest

from tests.agent.peer import Peer

ROOT = Path(__file__).parents[2]


class AgentProcess:
    """A started agent; `finish` waits for it and gives what it said."""

    def __init__(self, arguments: List[str], module: str = "fury_agent") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self.out = self.err = ""

    def wait_for(self, text: str) -> str:
        """Reads the agent's lines up to the one that holds `text`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.out += line
            if text in line:
                return line
        raise AssertionError(f"{text!r} never came:\n{self.out}\n{self.process.communicate()[1]}")

    def finish(self, timeout: float = 30) -> AgentProcess:
        """Waits for its end."""
        out, self.err = self.process.communicate(timeout=timeout)
        self.out += out
        return self

    @property
    def code(self) -> int:
        """Its exit code."""
        return int(self.process.returncode)

    @property
    def lines(self) -> List[str]:
        """The lines of its standard output."""
        return self.out.splitlines()

    @property
    def summary(self) -> Dict[str, Any]:
        """The JSON object in its last line."""
        value: Dict[str, Any] = json.loads(self.lines[-1])
        return value


@pytest.fixture
def start_agent() -> Iterator[Callable[..., AgentProcess]]:
    """Starts agents (or another module of theirs) and ends those that a failed test left running."""
    started: List[AgentProcess] = []

    def start(*arguments: str, module: str = "fury_agent") -> AgentProcess:
        started.append(AgentProcess(list(arguments), module))
        return started[-1]

    yield start
    for agent in started:
        if agent.process.poll() is None:
            agent.process.kill()
            agent.process.communicate()


@pytest.fixture
def run_agent(start_agent: Callable[..., AgentProcess]) -> Callable[..., AgentProcess]:
    """Runs an agent to its end."""
    return lambda *arguments, **more: start_agent(*arguments, **more).finish()


@pytest.fixture
def peer() -> Iterator[Peer]:
    """A listening stand-in for the collector."""
    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where this system has one, for what no disk should disturb; else one like any other."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts file systems below tmp_path and unmounts them in reverse order.

    A test asks for this before `start_agent`, so that its agents are ended first.
    """
    mounted: List[Path] = []

    def do(name: str, *arguments: str) -> Path:
        target = tmp_path / name
        target.mkdir()
        made = subprocess.run(["mount", *arguments, str(target)], capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip(f"this system lets nobody mount: {made.stderr.strip()}")
        mounted.append(target)
        return target

    yield do
    for target in reversed(mounted):
        deadline = time.monotonic() + 10
        while subprocess.run(["umount", str(target)], check=time.monotonic() > deadline).returncode:
            time.sleep(0.1)  # the loop device lets go of its image a moment after its own file system is gone


def ext4_image(path: Path, size: int, *options: str) -> str:
    """Makes a file system in a file, to be mounted with `-o loop`."""
    with path.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", *options, str(path)], check=True)
    return str(path)
