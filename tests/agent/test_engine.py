"""The write engine's settings, each in a run by hand: what the kernel and the files show while it writes, and its figures."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Dict, List, Set

import pytest

from tests.agent.conftest import AgentProcess

Run = Callable[..., AgentProcess]
CHUNK = 1_003_520  # of 1 MB
CALIBRATION = 0xFFFFFFFF  # as a chunk's number


def arguments(directory: Path, *more: str, seconds: int = 1) -> List[str]:
    return ["alecto", "--chunk-mb", "1", "--seconds", str(seconds), "--directory", str(directory), "--json", *more]


def chunks(directory: Path) -> List[Path]:
    return sorted((directory / "fury-alecto").glob("chunk-*.dat"), key=lambda path: int(path.stem[6:]))


def chunk_of(unit: bytes) -> int:
    """The chunk that 4 KiB say they are of."""
    return int.from_bytes(unit[8:16], sys.byteorder) >> 32


def await_full_rings(directory: Path, slots: int) -> None:
    """Returns when every slot has seen a chunk to its end."""
    deadline = time.monotonic() + 20
    full: Set[str] = set()
    while len(full) < slots:
        assert time.monotonic() < deadline, f"only {sorted(full)} were ever full"
        for path in chunks(directory):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
                stamp = file.read(32)
                full |= {path.name} if any(stamp) and chunk_of(stamp) != CALIBRATION else set()


def open_flags(agent: AgentProcess, *, polls: int = 2000) -> Set[int]:
    """The flags of the descriptors through which the agent writes to its chunks."""
    found: Set[int] = set()
    base = Path(f"/proc/{agent.process.pid}")
    for _ in range(polls):
        for link in (base / "fd").iterdir():
            try:
                if "/chunk-" in os.readlink(link):
                    flags = int((base / "fdinfo" / link.name).read_text().split("flags:")[1].split()[0], 8)
                    found |= {flags} if flags & os.O_ACCMODE == os.O_WRONLY else set()
            except FileNotFoundError:  # closed meanwhile
                continue
        if found:
            return found
    raise AssertionError("no chunk was ever open")


@pytest.mark.parametrize(("io", "flag"), [("buffered", 0), ("direct", os.O_DIRECT), ("sync", os.O_SYNC)])
@pytest.mark.parametrize("files", ["reuse", "new"])
def test_chunks_are_opened_as_io_says(start_agent: Run, tmp_path: Path, io: str, flag: int, files: str) -> None:
    """O_DIRECT, O_SYNC or neither, as the kernel shows the open files; the line says so where it isn't buffered."""
    agent = start_agent(*arguments(tmp_path, "--io", io, "--files", files, "--keep", "3", seconds=60))
    line = agent.wait_for("alecto is writing")
    flags = open_flags(agent)
    agent.process.send_signal(signal.SIGTERM)
    assert agent.finish().code == 6, agent.out + agent.err
    assert {one & (os.O_DIRECT | os.O_SYNC) for one in flags} == {flag}
    manner = [*([io] if flag else []), *(["new files"] if files == "new" else [])]
    assert line.endswith(f"for 1 minute{' (' + ', '.join(manner) + ')' if manner else ''}\n")
    assert agent.summary["honesty"]["io_used"] == io
    assert list(tmp_path.iterdir()) == []


def test_everything_at_once(start_agent: Run, tmp_path: Path) -> None:
    """Four jobs, paced, in new files, read back after a ramp: said in one line, all that counts read, nothing left."""
    agent = start_agent(
        *arguments(tmp_path, "--io", "direct", "--jobs", "4", "--rate-mb-s", "40", "--files", "new", seconds=2),
        *("--verify", "readback", "--ramp-seconds", "1", "--keep", "3", "--block-kb", "64", "--dedupe-percent", "30"),
        *("--compress-percent", "50", "--seed", "7"),
    )
    began = time.monotonic()
    line = agent.wait_for("alecto is writing")
    assert (
        "for 3 seconds (direct, 4 jobs, at most 40 MB/s, new files, reading back, the first 1 s do not count)" in line
    )
    await_full_rings(tmp_path, 12)
    assert 8 <= len(chunks(tmp_path)) <= 12  # each job may just be between its old file and the new one
    agent.finish()
    assert time.monotonic() - began > 2.9
    assert agent.code == 0, agent.out + agent.err
    summary = agent.summary
    assert summary["seconds"] == pytest.approx(2, abs=0.3)
    assert 1e6 < summary["throughput_bytes_per_second"] < 1.1 * 40e6  # a slow disk may hold it up
    assert 1e6 < summary["ramp_bytes"] < 1.1 * 40e6
    assert summary["honesty"]["handed_bytes"] == summary["written_bytes"] + summary["ramp_bytes"]
    assert summary["read_bytes"] >= summary["written_bytes"]
    assert all(summary[f"{what}_latency_seconds"]["p50"] > 0 for what in ("write", "fsync", "read"))
    assert any(line.startswith("  written ") and " MB in the ramp" in line for line in agent.lines)
    assert any(line.startswith("  read back ") for line in agent.lines)
    assert list(tmp_path.iterdir()) == []


def test_the_chunks_of_each_job_lie_in_its_own_slots(start_agent: Run, tmp_path: Path) -> None:
    """Three jobs that keep two have six files, and each file holds chunks of its job only."""
    agent = start_agent(*arguments(tmp_path, "--jobs", "3", seconds=60))
    await_full_rings(tmp_path, 6)
    seen: Dict[str, int] = {}
    for path in chunks(tmp_path):
        seen[path.name] = chunk_of(path.read_bytes()[:32]) % 3
    agent.process.send_signal(signal.SIGTERM)
    assert agent.finish().code == 6
    assert seen == {f"chunk-{slot}.dat": slot // 2 for slot in range(6)}
    assert re.fullmatch(r"INCOMPLETE: alecto: stopped by SIGTERM after \d+\.\d of 60 s", agent.lines[-2])
    assert list(tmp_path.iterdir()) == []


def test_the_ramp_is_left_out_of_the_figures(run_agent: Run, tmp_path: Path) -> None:
    """The seconds are those asked for, the kernel's count is of both, and the rate is of what counts."""
    agent = run_agent(*arguments(tmp_path, "--ramp-seconds", "1", "--rate-mb-s", "20", "--block-kb", "64", seconds=1))
    assert agent.code == 0, agent.out + agent.err
    summary = agent.summary
    assert summary["seconds"] == pytest.approx(1, abs=0.2)
    assert 1e6 < summary["ramp_bytes"] < 1.1 * 20e6  # a slow disk may hold it up
    assert 1e6 < summary["written_bytes"] < 1.1 * 20e6
    assert abs(summary["written_bytes"] - summary["rollovers"] * CHUNK) < CHUNK
    assert summary["honesty"]["handed_bytes"] == summary["ramp_bytes"] + summary["written_bytes"]
    assert summary["throughput_bytes_per_second"] == pytest.approx(summary["written_bytes"] / summary["seconds"])


def test_a_stop_in_the_ramp_has_nothing_to_show(start_agent: Run, tmp_path: Path) -> None:
    """INCOMPLETE with no bytes that count, and its chunks are removed like any."""
    agent = start_agent(*arguments(tmp_path, "--ramp-seconds", "60", seconds=1))
    agent.wait_for("rollover 1:")
    agent.process.send_signal(signal.SIGTERM)
    assert agent.finish().code == 6
    assert re.fullmatch(r"INCOMPLETE: alecto: stopped by SIGTERM after \d+\.\d of 61 s", agent.lines[-2])
    assert (agent.summary["written_bytes"], agent.summary["rollovers"]) == (0, 0)
    assert agent.summary["ramp_bytes"] > 0
    assert list(tmp_path.iterdir()) == []


def test_new_files_replace_the_old(start_agent: Run, tmp_path: Path) -> None:
    """Never more than the ring's, and a slot's file is soon another one."""
    agent = start_agent(*arguments(tmp_path, "--files", "new", "--keep", "2", "--rate-mb-s", "50", seconds=60))
    await_full_rings(tmp_path, 2)
    counts: Set[int] = set()
    before = inode = 0
    with contextlib.ExitStack() as held:  # what is open keeps its inode from being given to another file
        deadline = time.monotonic() + 10
        while inode == before and time.monotonic() < deadline:
            counts.add(len(chunks(tmp_path)))
            with contextlib.suppress(FileNotFoundError):
                file = held.enter_context((tmp_path / "fury-alecto" / "chunk-0.dat").open("rb"))
                inode = os.fstat(file.fileno()).st_ino
                before = before or inode
    agent.process.send_signal(signal.SIGTERM)
    assert agent.finish().code == 6
    assert inode != before
    assert max(counts) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("zstd") is None, reason="needs zstd (tests/packages.txt)")
@pytest.mark.parametrize(("percent", "low", "high"), [(0, 0.99, 1.01), (50, 0.47, 0.53), (90, 0.07, 0.13)])
def test_zstd_makes_of_a_chunk_what_compress_percent_says(
    start_agent: Run, tmp_path: Path, percent: int, low: float, high: float
) -> None:
    """A chunk as it lies on the disk, by the program that people would try it with."""
    agent = start_agent(
        *("alecto", "--chunk-mb", "20", "--seconds", "60", "--directory", str(tmp_path), "--json"),
        *("--compress-percent", str(percent)),
    )
    await_full_rings(tmp_path, 2)
    size = chunks(tmp_path)[0].stat().st_size
    packed = subprocess.run(["zstd", "-q", "-c", str(chunks(tmp_path)[0])], stdout=subprocess.PIPE, check=True).stdout
    agent.process.send_signal(signal.SIGTERM)
    agent.finish()
    assert size == 20_000_768
    assert low <= len(packed) / size <= high


def test_the_seed_makes_the_random_data_the_same(start_agent: Run, tmp_path: Path) -> None:
    """Two runs with one seed write the same but for stamps; no two without one do."""

    def first_sector(*more: str) -> bytes:
        agent = start_agent(*arguments(tmp_path, *more, seconds=60), "--chunk-mb", "20")
        agent.wait_for("rollover 1:")
        data = chunks(tmp_path)[0].read_bytes()[:512]
        agent.process.send_signal(signal.SIGTERM)
        assert agent.finish().code == 6
        return data

    seeded, again = first_sector("--seed", "7"), first_sector("--seed", "7")
    other, another = first_sector(), first_sector()
    assert seeded[32:] == again[32:]
    assert seeded[:8] != again[:8]
    assert len({seeded[32:], other[32:], another[32:]}) == 3


def test_time_and_rate_have_to_hold_two_rollovers_of_each_job(run_agent: Run, tmp_path: Path) -> None:
    """The sentence names the rate that limits and what would do."""
    agent = run_agent(*arguments(tmp_path, "--jobs", "4", "--rate-mb-s", "2", seconds=2))
    assert agent.code == 3
    assert re.match(
        r"PRECONDITION: alecto: 2 s at the 2 MB/s of rate_mb_s hold \S+ rollovers of 1 MB chunks and 8 are needed; "
        r"give minutes=1 or more, or set allow_few_rollovers",
        agent.lines[-2],
    ), agent.lines[-2]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("files", ["reuse", "new"])
def test_the_rings_of_all_jobs_have_to_fit(run_agent: Run, tmp_path: Path, files: str) -> None:
    """64 jobs that keep 1000 chunks of 1 TB: said in bytes before anything is made, by --check too."""
    huge = arguments(tmp_path, "--jobs", "64", "--keep", "1000", "--chunk-mb", "1000000", "--files", files)
    for more, where in (((), "out"), (("--check",), "err")):
        agent = run_agent(*huge, *more)
        assert agent.code == 3
        assert re.search(
            r"bytes free, but 64000000\d+ bytes are needed", getattr(agent, where).replace(") free", " free")
        )
        assert list(tmp_path.iterdir()) == []


def test_a_killed_agents_rings_are_taken_over_by_the_next(start_agent: Run, run_agent: Run, tmp_path: Path) -> None:
    """However many slots they had."""
    agent = start_agent(*arguments(tmp_path, "--jobs", "8", "--keep", "3", "--files", "new", seconds=60))
    await_full_rings(tmp_path, 24)
    agent.process.kill()
    agent.finish()
    assert 16 <= len(chunks(tmp_path)) <= 24  # each job may just be between its old file and the new one
    assert run_agent(*arguments(tmp_path)).code == 0
    assert list(tmp_path.iterdir()) == []


def test_its_memory_stays_small_with_many_jobs(start_agent: Run, tmp_path: Path) -> None:
    """Each job's random data and the block to read back into are all that a job adds: at most 7 MiB."""
    agent = start_agent(*arguments(tmp_path, "--jobs", "8", "--verify", "readback", seconds=60))
    await_full_rings(tmp_path, 16)
    status = Path(f"/proc/{agent.process.pid}/status").read_text()
    agent.process.send_signal(signal.SIGTERM)
    assert agent.finish().code == 6
    assert int(status.split("VmHWM:")[1].split()[0]) < (48 + 8 * 7) * 1024


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("io", "O_DIRECT", "io: O_DIRECT is not allowed; buffered, direct or sync is (for example --io direct)"),
        ("files", "fresh", "files: fresh is not allowed; reuse or new is (for example --files new)"),
        ("verify", "yes", "verify: yes is not allowed; none or readback is (for example --verify readback)"),
        ("jobs", "0", "jobs: 0 is not allowed; a whole number of writers from 1 to 64 is (for example --jobs 4)"),
        ("rate-mb-s", "0", "rate_mb_s: 0 is not allowed; a whole number of megabytes a second from 1 to 1000000 is"),
        ("compress-percent", "101", "compress_percent: 101 is not allowed; a whole number of percent from 0 to 100 is"),
        ("seed", "-1", "seed: -1 is not allowed; a whole number from 0 to 4294967295 is (for example --seed 42)"),
    ],
)
def test_a_setting_that_is_none_is_bad_input(
    run_agent: Run, tmp_path: Path, option: str, value: str, says: str
) -> None:
    """One sentence with what is allowed, and code 2."""
    agent = run_agent(*arguments(tmp_path), f"--{option}={value}")
    assert agent.code == 2
    assert says in agent.err + agent.out
