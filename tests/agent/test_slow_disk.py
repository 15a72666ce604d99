"""A disk that is only slow, and one that takes no direct I/O: file systems of the tests' own in user space."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Iterator, List, Tuple

import pytest

from tests.agent.conftest import ROOT, AgentProcess

Run = Callable[..., AgentProcess]
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/dev/fuse", os.W_OK), reason="needs root and /dev/fuse to make a file system"
)


@pytest.fixture
def slow_disk(tmp_path: Path, memory: Path) -> Iterator[Callable[..., Path]]:
    """Mounts slow disks that keep their files in memory, and takes them away again."""
    served: List[Tuple[Path, subprocess.Popen[str]]] = []

    def do(name: str, *options: str) -> Path:
        source, target = memory / name, tmp_path / name
        source.mkdir()
        target.mkdir()
        command = [sys.executable, "-m", "tests.agent.slow_disk", str(source), str(target), *options]
        server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        served.append((target, server))
        assert server.stdout is not None
        said = server.stdout.readline()
        if said.startswith("cannot mount"):
            pytest.skip(said.strip())
        assert said == "mounted\n"
        return target

    yield do
    for target, server in served:
        if os.path.ismount(target):
            subprocess.run(["umount", "--lazy", str(target)], check=True)
        try:
            server.communicate(timeout=10)
        finally:
            server.kill()


def arguments(name: str, directory: Path, *more: str) -> List[str]:
    return [name, "--chunk-mb", "1", "--free-floor-mb", "0", "--directory", str(directory), "--json", *more]


def test_long_stalls_show_in_the_latency_and_as_unsteady_and_are_no_error(
    start_agent: Run, slow_disk: Callable[..., Path]
) -> None:
    """Writes that take 1.2 s again and again in the last third: p99.9, max and `steady` say so, and the verdict is PASS.

    The same disk without stalls, at the same time and rate, is steady.
    """
    quiet = slow_disk("quiet")
    stalling = slow_disk("stalling", "--slow-after", "7.3", "--every", "1.5", "--delay", "1.2")
    paced = ("--seconds", "10", "--rate-mb-s", "40")
    good, bad = (start_agent(*arguments(disk.name, disk, *paced)) for disk in (quiet, stalling))
    for agent in (good, bad):
        assert agent.finish().code == 0, agent.out + agent.err
    honesty = bad.summary["honesty"]
    assert bad.summary["verdict"] == "PASS"
    assert bad.summary["write_latency_seconds"]["p999"] == pytest.approx(1.2, rel=0.1)
    assert 1.2 <= bad.summary["write_latency_seconds"]["max"] < 1.5
    assert bad.summary["write_latency_seconds"]["p50"] < 0.05
    assert honesty["steady"] is False
    assert honesty["steady_spread_ratio"] > 0.2
    assert 3.2 < honesty["steady_seconds"] < 4.2  # a third of 10 s, or a bit more where a stall meets the end
    assert any(re.match("not steady in the last [34] s: the rate went ", note) for note in bad.summary["notes"])
    assert good.summary["honesty"]["steady"] is True
    assert good.summary["write_latency_seconds"]["max"] < 0.5
    assert not any("steady" in note for note in good.summary["notes"])
    assert list(quiet.iterdir()) == list(stalling.iterdir()) == []


def test_a_stall_at_the_deadline_is_waited_for(start_agent: Run, slow_disk: Callable[..., Path]) -> None:
    """What was written before it counts once it is durable; the seconds include the wait."""
    disk = slow_disk("stalling", "--slow-after", "0.8", "--every", "60", "--delay", "1.5")
    began = time.monotonic()
    agent = start_agent(*arguments("alecto", disk, "--seconds", "1")).finish()
    assert agent.code == 0, agent.out + agent.err
    assert 1.5 < agent.summary["seconds"] < time.monotonic() - began
    assert agent.summary["write_latency_seconds"]["max"] >= 1.5


@pytest.mark.parametrize("files", ["reuse", "new"])
def test_a_file_system_without_direct_io_is_a_precondition(
    run_agent: Run, slow_disk: Callable[..., Path], files: str
) -> None:
    """EINVAL for O_DIRECT is no disk error: the sentence says what is not to be had there and what else would do."""
    disk = slow_disk("plain", "--no-direct")
    agent = run_agent(*arguments("alecto", disk, "--seconds", "1", "--io", "direct", "--files", files))
    assert agent.code == 3, agent.out + agent.err
    assert agent.lines[-2] == (
        f"PRECONDITION: alecto: io: direct is asked for, and the file system of {disk} (fuse) refused it; "
        "give io=buffered or io=sync, or a directory on another file system"
    )
    assert "DISK_ERROR" not in agent.out
    assert list(disk.iterdir()) == []


def test_reading_back_works_without_direct_io(run_agent: Run, slow_disk: Callable[..., Path]) -> None:
    """What is cached is dropped then, and everything is read and compared all the same."""
    disk = slow_disk("plain", "--no-direct")
    agent = run_agent(*arguments("alecto", disk, "--seconds", "1", "--verify", "readback"))
    assert agent.code == 0, agent.out + agent.err
    assert agent.summary["read_bytes"] == agent.summary["written_bytes"] > 0
    assert list(disk.iterdir()) == []
