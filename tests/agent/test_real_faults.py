"""Disks that are small, lie, hang or may not be written to: real file systems, so these need root."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Callable, List

import pytest

from fury_agent.chunks import ChunkDirectory
from fury_agent.config import check_directory
from tests.agent.conftest import AgentProcess, ext4_image

Run = Callable[..., AgentProcess]
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mkfs.ext4") is None, reason="needs root and mkfs.ext4 to make file systems"
)


@pytest.fixture
def tmpfs(mount: Callable[..., Path]) -> Path:
    """A file system of 40 MB in memory."""
    return mount("tmpfs", "-t", "tmpfs", "-o", "size=40m", "tmpfs")


def arguments(directory: Path, *more: str) -> List[str]:
    return [
        *("alecto", "--chunk-mb", "20", "--seconds", "5", "--directory", str(directory), "--free-floor-mb", "0"),
        *("--metrics-port", "0", *more),
    ]


def test_a_full_file_system_is_refused_before_the_first_byte(run_agent: Run, tmpfs: Path) -> None:
    """Two chunks of 20 MB do not fit into 40 MB once something else lies there."""
    (tmpfs / "other").write_bytes(b"x" * 5_000_000)
    agent = run_agent(*arguments(tmpfs))
    assert agent.code == 3
    assert "bytes are needed" in agent.lines[-1]
    assert [path.name for path in tmpfs.iterdir()] == ["other"]


def test_a_disk_that_fills_up_meanwhile_stops_it_at_the_floor(start_agent: Run, tmpfs: Path) -> None:
    """Somebody else's file takes the space below the floor: it stops before the next chunk and frees its own."""
    agent = start_agent(*arguments(tmpfs, "--chunk-mb", "2", "--free-floor-mb", "20", "--seconds", "60"))
    agent.wait_for("rollover 1:")
    (tmpfs / "other").write_bytes(b"x" * 25_000_000)
    agent.finish()
    assert agent.code == 6
    assert re.search(r"stopped after \d+\.\d of 60 s: \S+ MB are free .* and 20 MB have to stay free", agent.lines[-1])
    assert [path.name for path in tmpfs.iterdir()] == ["other"]


def test_a_write_back_error_ends_it_at_the_first_fsync(run_agent: Run, mount: Callable[..., Path], tmpfs: Path) -> None:
    """A disk that takes 200 MB of writes and holds 40: only what an fsync confirmed counts, and none is asked twice."""
    image = ext4_image(tmpfs / "image", 200_000_000)
    disk = mount("disk", "-o", "loop", image)
    agent = run_agent(*arguments(disk, "--keep", "4", "--json"))
    assert agent.code == 4, agent.out
    assert re.search(
        r"DISK_ERROR: alecto: (fsync|pwrite) of chunk \d+ at byte \d+ .* (ENOSPC|EIO|EROFS)", agent.lines[-2]
    )
    assert agent.summary["rollovers"] <= 2
    assert agent.summary["written_bytes"] == agent.summary["rollovers"] * 20_000_768
    assert agent.summary["unknown_bytes"] > 0
    assert f"{agent.summary['unknown_bytes']} bytes written since the last good fsync are unknown" in agent.lines[-2]
    assert agent.summary["cleanup"] in ("confirmed", "unconfirmed")
    assert "Traceback" not in agent.out + agent.err


def test_a_disk_that_turns_read_only_ends_it_and_says_what_is_left(
    start_agent: Run, mount: Callable[..., Path], tmp_path: Path
) -> None:
    """ext4 met an error and went read-only, as its errors=remount-ro asks: EROFS, and the chunks cannot be removed."""
    image = ext4_image(tmp_path / "image", 200_000_000)
    disk = mount("disk", "-o", "loop,errors=remount-ro", image)
    device = subprocess.run(["findmnt", "-no", "SOURCE", str(disk)], capture_output=True, text=True, check=True)
    trigger = Path("/sys/fs/ext4") / Path(device.stdout.strip()).name / "trigger_fs_error"
    if not trigger.exists():
        pytest.skip("this kernel cannot be asked for an error of ext4")
    agent = start_agent(*arguments(disk, "--seconds", "60", "--json"))
    agent.wait_for("rollover 1:")
    trigger.write_text("fury's test")
    agent.finish()
    assert agent.code == 4, agent.out
    assert re.search(
        r"DISK_ERROR: alecto: \w+ of chunk \d+ at byte \d+ of \S+ failed with (EROFS|EIO)", agent.lines[-2]
    )
    assert "is left: EROFS" in agent.out
    assert agent.summary["cleanup"] == "unconfirmed"
    assert agent.summary["unknown_bytes"] >= 0
    assert f"{agent.summary['unknown_bytes']} bytes written since the last good fsync" in agent.lines[-2]


def test_a_read_only_file_system_is_a_precondition(run_agent: Run, mount: Callable[..., Path]) -> None:
    """Said before anything is tried."""
    disk = mount("read-only", "-t", "tmpfs", "-o", "ro", "tmpfs")
    agent = run_agent(*arguments(disk))
    assert agent.code == 3
    assert "cannot be written to" in agent.lines[-1]


def test_a_disk_that_hangs_is_reported_and_not_waited_for(
    start_agent: Run, mount: Callable[..., Path], tmp_path: Path
) -> None:
    """A frozen file system holds the writer in the kernel: after the drain's time it is named, with what is left."""
    disk = mount("disk", "-o", "loop", ext4_image(tmp_path / "image", 200_000_000))
    agent = start_agent(*arguments(disk, "--seconds", "2", "--drain-seconds", "1", "--json"))
    agent.wait_for("rollover 1:")
    subprocess.run(["fsfreeze", "-f", str(disk)], check=True)
    try:
        agent.wait_for("DISK_ERROR: ")
    finally:
        subprocess.run(["fsfreeze", "-u", str(disk)], check=True)  # the kernel lets go of the process only now
    agent.finish()
    assert agent.code == 4
    assert re.search(r"DISK_ERROR: alecto: \w+ of \S+ has not returned for \d+ s", agent.lines[-2])
    assert agent.summary["cleanup"] == "unconfirmed"
    assert (disk / "fury-alecto").exists()


def test_a_directory_that_root_made_for_its_user_is_enough() -> None:
    """A user who may write nowhere else writes in the directory prepared for it and leaves that empty."""
    nobody = 65534
    with tempfile.TemporaryDirectory(dir="/var/tmp") as base:
        os.chmod(base, 0o755)
        own = Path(base) / "fury-alecto"
        own.mkdir(mode=0o700)
        os.chown(own, nobody, nobody)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setgid(nobody)
                os.setuid(nobody)
                chunks = ChunkDirectory(check_directory(base, child=own.name), agent="alecto", run_id="r")
                chunks.claim()
                made = chunks.allocate(slots=1, size=4096, floor=0, stopped=lambda: False)
                code = 0 if made and chunks.remove() is None else 2
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert list(own.iterdir()) == []
