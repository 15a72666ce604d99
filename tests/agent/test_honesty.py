"""Whether the figures may be believed: the kernel's counts in real runs, and what is said where something bites."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest

from fury_agent.honesty import Honesty, Watch, notes
from tests.agent.conftest import AgentProcess, ext4_image

Run = Callable[..., AgentProcess]
MIB = 1 << 20
needs_file_systems = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mkfs.ext4") is None, reason="needs root and mkfs.ext4 to make file systems"
)


def arguments(directory: Path, *more: str, seconds: int = 1) -> List[str]:
    return [
        *(
            "alecto",
            "--chunk-mb",
            "5",
            "--seconds",
            str(seconds),
            "--directory",
            str(directory),
            "--free-floor-mb",
            "0",
        ),
        *("--json", *more),
    ]


GOOD: Dict[str, Any] = {
    "io_used": "direct",
    "process_written_bytes": 1_000_000,
    "process_bytes_ratio": 1.0,
    "block_device": "sdb",
    "block_device_bytes_ratio": 1.01,
    "other_device_bytes": 10_000,
    "generator_ratio": 0.1,
    "steady": True,
}
UNSTEADY = {"steady": False, "steady_seconds": 20.0, "steady_slope_ratio": -0.02, "steady_spread_ratio": 0.5}


@pytest.mark.parametrize(
    ("found", "facts", "says"),
    [
        ({}, {}, []),
        (dict.fromkeys(GOOD), {}, []),
        ({"io_used": "sync"}, {}, []),
        ({"io_used": "buffered"}, {}, ["writes ended in the page cache"]),
        ({"io_used": "buffered"}, {"file_system": "tmpfs"}, ["the directory is memory, not a disk"]),
        ({"process_bytes_ratio": 1.019}, {}, []),
        ({"process_bytes_ratio": 0.981}, {}, []),
        ({"process_bytes_ratio": 1.03}, {}, ["charged the agent with 1.03 times .* a layer such as a loop device"]),
        ({"process_bytes_ratio": 0.97}, {}, ["charged the agent with 0.97 times .* were written over before they got"]),
        (
            {"process_bytes_ratio": 0.0},
            {"file_system": "nfs4", "network_server": "nas:/export"},
            [
                "nfs4 is a network file system",
                "charged the agent with 0.00 times .* a network file system does not count them",
            ],
        ),
        (
            {"block_device_bytes_ratio": 0.97},
            {},
            ["^sdb wrote 0.97 times the bytes that the agent wrote: something before"],
        ),
        ({"other_device_bytes": 21_000}, {}, ["^sdb wrote 1.02 times what this agent gave it: other processes"]),
        ({"block_device_bytes_ratio": None, "other_device_bytes": 900_000}, {}, []),
        ({"generator_ratio": 0.2}, {}, []),
        (
            {"generator_ratio": 0.21},
            {},
            ["the agent was a limit itself: 21% of a writer's time .* larger blocks or more"],
        ),
        ({"steady": None}, {}, []),
        (UNSTEADY, {}, ["^not steady in the last 20 s: the rate went down by 2% and varied by 50%"]),
        ({**UNSTEADY, "steady_slope_ratio": 0.3}, {}, ["the rate went up by 30% and varied by 50%; .* ramp_seconds"]),
        (
            {**UNSTEADY, "io_used": "buffered", "generator_ratio": 0.9, "process_bytes_ratio": 0.5},
            {},
            ["page cache", "charged", "limit itself", "not steady"],
        ),
    ],
)
def test_a_sentence_for_each_thing_that_bites(found: Dict[str, Any], facts: Dict[str, Any], says: List[str]) -> None:
    """And none for what does not, or could not be found out."""
    told = notes(Honesty(**{**GOOD, **found}), facts)
    assert len(told) == len(says), told
    for sentence, pattern in zip(told, says):
        assert re.search(pattern, sentence), sentence


@needs_file_systems
def test_bytes_are_those_the_kernel_counts(memory: Path, mount: Callable[..., Path], start_agent: Run) -> None:
    """Within 2 % of the process' and the device's, each on its own disk."""
    ways = {"buffered": (), "direct": ("--io", "direct"), "sync": ("--io", "sync"), "new": ("--files", "new")}
    agents = {}
    for way, options in ways.items():
        disk = mount(way, "-o", "loop", ext4_image(memory / f"{way}.image", 100_000_000, "-b", "4096"))
        agents[way] = start_agent(*arguments(disk, "--block-kb", "256", *options, seconds=2))
    for way, agent in agents.items():
        assert agent.finish().code == 0, agent.out + agent.err
        honesty = agent.summary["honesty"]
        assert honesty["handed_bytes"] == agent.summary["written_bytes"] > 20e6
        assert honesty["process_bytes_ratio"] == pytest.approx(1, abs=0.02), way
        commits = 0.1 if way == "sync" else 0.02  # each block written with O_SYNC brings a commit of the journal
        assert 0.99 < honesty["block_device_bytes_ratio"] < 1 + commits, way
        assert honesty["process_written_bytes"] == agent.summary["device_written_bytes"]
        assert honesty["other_device_bytes"] < commits * honesty["handed_bytes"]
        assert honesty["block_device"].startswith("loop")
        assert honesty["generator_ratio"] < 0.5
        used = {"new": "buffered"}.get(way, way)
        assert honesty["io_used"] == used
        assert (honesty["page_cache_ratio"] > 0.9) is (used != "direct"), way
        assert any("page cache" in note for note in agent.summary["notes"]) is (used == "buffered")
        assert not any("charged" in note for note in agent.summary["notes"])
        assert (honesty["steady"], honesty["steady_seconds"]) == (None, None)  # it was too short for that
    direct = agents["direct"].summary["honesty"]
    assert (direct["io_used"], direct["io_confirmed_by"]) in (("direct", "statx"), ("direct", "page cache"))


@needs_file_systems
def test_what_others_write_to_the_device_is_told_apart(
    memory: Path, mount: Callable[..., Path], start_agent: Run
) -> None:
    """Another file of 30 MB on the same disk: the device's count has it, the process' has not, and a note says so."""
    disk = mount("disk", "-o", "loop", ext4_image(memory / "image", 100_000_000, "-b", "4096"))
    agent = start_agent(*arguments(disk, "--rate-mb-s", "20", "--io", "direct", seconds=2))
    agent.wait_for("rollover 1:")
    with (disk / "other").open("wb") as file:
        file.write(os.urandom(30 * MIB))
        file.flush()
        os.fsync(file.fileno())
    assert agent.finish().code == 0, agent.out + agent.err
    honesty = agent.summary["honesty"]
    assert honesty["process_bytes_ratio"] == pytest.approx(1, abs=0.02)
    assert honesty["other_device_bytes"] == pytest.approx(30 * MIB, rel=0.1)
    assert any("other processes" in note for note in agent.summary["notes"])


@needs_file_systems
@pytest.mark.parametrize("file_system", ["ext4 with data=journal", "tmpfs"])
def test_direct_io_that_is_none_is_refused(
    memory: Path, mount: Callable[..., Path], run_agent: Run, file_system: str
) -> None:
    """Where O_DIRECT is refused, or taken and ignored, nothing is measured under its name; nothing is left."""
    if file_system == "tmpfs":
        disk = mount("disk", "-t", "tmpfs", "-o", "size=60m", "tmpfs")
    else:
        disk = mount("disk", "-o", "loop,data=journal", ext4_image(memory / "image", 100_000_000, "-b", "4096"))
    agent = run_agent(*arguments(disk, "--io", "direct"))
    assert agent.code == 3, agent.out
    assert re.fullmatch(
        rf"PRECONDITION: alecto: io: direct is asked for, and the file system of {disk} \({file_system.split()[0]}\) "
        r"(refused it|took it and wrote through the page cache all the same); "
        "give io=buffered or io=sync, or a directory on another file system",
        agent.lines[-2],
    )
    assert [path.name for path in disk.iterdir() if path.name != "lost+found"] == []


@pytest.mark.parametrize("size", [1 * MIB, 2000 * MIB])
def test_pages_in_the_cache_give_a_direct_write_away(memory: Path, size: int) -> None:
    """Where statx is silent: all that was tried lies in memory, however small a part of the slot that is."""
    path = memory / "chunk-0.dat"
    with path.open("wb") as file:
        file.write(b"x" * MIB)
        file.truncate(size)
    watch = Watch(str(memory), io="direct", slots=1, open_slot=lambda slot: os.open(path, os.O_RDONLY))
    found = watch.confirm(probed_bytes=MIB)
    assert found.io_used == "buffered"
    assert found.io_confirmed_by in ("page cache", "statx")


def test_what_is_not_to_be_found_out_is_null(tmp_path: Path) -> None:
    """A slot that is gone, or no time to write: no check fails, and no note is made of it."""
    watch = Watch(str(tmp_path), io="direct", slots=2, open_slot=lambda slot: os.open(tmp_path / "gone", os.O_RDONLY))
    assert watch.confirm(probed_bytes=MIB) == Honesty(io_used="direct")
    found = watch.end(handed_bytes=0, generator_ratio=None, steadiness=None)
    assert (found.process_bytes_ratio, found.page_cache_ratio, found.steady, found.generator_ratio) == (None,) * 4
    assert notes(found, {}) == []


@needs_file_systems
@pytest.mark.parametrize("jobs", ["1", "4"])
def test_an_agent_that_is_the_limit_says_so(mount: Callable[..., Path], run_agent: Run, jobs: str) -> None:
    """Blocks of 4 KiB into memory: the share of its own time is high, with 1 MiB it is lower; memory is no disk either.

    Jobs wait for one interpreter: that is no time of the disk's.
    """
    disk = mount("disk", "-t", "tmpfs", "-o", "size=100m", "tmpfs")
    small, large = (run_agent(*arguments(disk, "--jobs", jobs, "--block-kb", block)) for block in ("4", "1024"))
    assert small.summary["honesty"]["generator_ratio"] > 0.3
    assert any(note.startswith("the agent was a limit itself: ") for note in small.summary["notes"])
    assert large.summary["honesty"]["generator_ratio"] < small.summary["honesty"]["generator_ratio"]
    assert "the directory is memory, not a disk; the figures say nothing about storage" in small.summary["notes"]
    assert any(line.startswith("note: the agent was a limit itself") for line in small.lines)
