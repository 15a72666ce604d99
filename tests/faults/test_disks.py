"""Disks fill up, lie and turn read-only under an agent, one way on each host, all in one run."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.stress import Stress, judge, left
from tests.hosts.lab import DISK, Fleet, Host, HostSpec

pytestmark = pytest.mark.hosts

SECONDS = 20
CHUNK_MB = 30
"""A ring of two is more than the 40 MB that lie behind the disk of `writeback`; one chunk, the calibration's, is not."""
NAMES = ("full", "writeback", "readonly", "healthy")


def disk_of(host: Host) -> Path:
    """The host's own disk as this machine sees it."""
    assert host.disk is not None
    return host.disk


def device_of(host: Host) -> str:
    """The loop device of the host's disk."""
    command = ["losetup", "--noheadings", "--output", "NAME", "--associated", str(host.directory / "backing/image")]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def fill(host: Host) -> None:
    """Somebody else takes every byte that is free."""
    descriptor = os.open(disk_of(host) / "filler", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with contextlib.suppress(OSError):
            while True:
                os.write(descriptor, b"\0" * 1_000_000)
    finally:
        os.close(descriptor)


def turn_read_only(host: Host) -> None:
    """ext4 meets an error and goes read-only; by hand one can't do that to a file system that is written to."""
    subprocess.run(["mount", "-o", "remount,errors=remount-ro", str(disk_of(host))], check=True)
    Path("/sys/fs/ext4", Path(device_of(host)).name, "trigger_fs_error").write_text("fury's test")


def mend(host: Host) -> None:
    """What an administrator does: host off, a larger disk behind it, a check of the file system, host on."""
    host.power_off()
    subprocess.run(["umount", str(disk_of(host))], check=True)
    if host.spec.backing_mb:
        room = f"remount,size={host.spec.disk_mb + 50}m"
        subprocess.run(["mount", "-o", room, str(host.directory / "backing")], check=True)
    checked = subprocess.run(["e2fsck", "-f", "-y", device_of(host)], check=False, capture_output=True, text=True)
    assert checked.returncode in (0, 1), checked.stdout  # 1: what was wrong has been corrected
    subprocess.run(["mount", "-t", "ext4", device_of(host), str(disk_of(host))], check=True)
    host.start()
    host.wait_ready()


@pytest.fixture(scope="module")
def run(lab: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stress]:
    """One run: the disk of `writeback` breaks by itself, 5 s after the start one is filled up and one turns read-only."""
    specs = [
        HostSpec("full", "bookworm", disk_mb=300),
        HostSpec("writeback", "trixie", disk_mb=200, backing_mb=40),
        HostSpec("readonly", "bullseye", disk_mb=300),
        HostSpec("healthy", "bookworm", disk_mb=300),
    ]
    variables = {"seconds": SECONDS, "chunk_mb": CHUNK_MB, "directory": DISK}
    with Fleet(specs) as fleet:
        stress = Stress(fleet, tmp_path_factory.mktemp("disks"), variables)
        stress.start()
        try:
            stress.await_output(r"^started: ")
            time.sleep(5)
            fill(fleet.host("full"))
            turn_read_only(fleet.host("readonly"))
            stress.finish()
            yield stress
        finally:
            stress.kill()
            stress.teardown()


def test_a_disk_that_fills_up_ends_its_agent_at_the_floor(run: Stress) -> None:
    """It ends before the disk refuses a write, says how much is free and has to be, and takes its own chunks away."""
    agent = run.agent("full")
    assert (agent["verdict"], agent["cleanup"]) == ("INCOMPLETE", "confirmed"), run.output
    assert re.search(r"B are free in \S+ and 10 MB have to stay free", agent["reason"]), agent["reason"]
    assert left(run.fleet.host("full")) == []
    on_disk = sorted(path.name for path in disk_of(run.fleet.host("full")).iterdir())
    assert on_disk == ["filler", "lost+found"]


def test_a_write_back_error_is_final_and_told_with_its_place(run: Stress) -> None:
    """A disk that takes 200 MB and holds 40: what no fsync has confirmed does not count, and none is asked twice."""
    agent = run.agent("writeback")
    assert agent["verdict"] == "DISK_ERROR", run.output
    place = (
        r"(fsync|pwrite) of chunk \d+ at byte \d+ of \S+/fury-writeback/chunk-\d\.dat failed with (ENOSPC|EIO|EROFS)"
    )
    assert re.search(place, agent["reason"]), agent["reason"]
    assert re.search(r"[1-9]\d* bytes written since the last good fsync are unknown", agent["reason"])
    assert agent["rollovers"] <= 1
    assert agent["epochs"] == 1


def test_a_disk_that_turns_read_only_is_told_with_its_place(run: Stress) -> None:
    """EROFS (or EIO, if a write was under way), after whole rollovers that count."""
    agent = run.agent("readonly")
    assert agent["verdict"] == "DISK_ERROR", run.output
    place = r"\w+ of chunk \d+ at byte \d+ of \S+/fury-readonly/chunk-\d\.dat failed with (EROFS|EIO)"
    assert re.search(place, agent["reason"]), agent["reason"]
    assert agent["rollovers"] > 0


def test_the_others_are_not_touched(run: Stress) -> None:
    """The healthy host writes to its end, its results are whole, and nothing is left there."""
    agent = run.agent("healthy")
    assert (agent["verdict"], agent["cleanup"]) == ("PASS", "confirmed"), run.output
    assert agent["events_stored"] == agent["events_issued"]
    assert agent["seconds"] >= SECONDS - 0.5
    host = run.fleet.host("healthy")
    assert left(host) == []
    assert [path.name for path in disk_of(host).iterdir()] == ["lost+found"]


def test_the_runs_verdict_is_the_disks(run: Stress) -> None:
    """DISK_ERROR weighs more than INCOMPLETE; both of its hosts are named in the last line, and the exit code is not 0."""
    assert run.process is not None
    assert run.process.returncode != 0
    assert run.verdict().startswith("DISK_ERROR: "), run.verdict()
    assert "writeback" in run.verdict() or "readonly" in run.verdict()


def test_the_oracle_finds_nothing(run: Stress) -> None:
    """Acknowledged ⊆ stored ⊆ issued, nothing twice, the summary is the sum of what is stored: a bad disk loses no event."""
    counts = judge(run)
    assert counts["doubled"] == 0
    assert counts["issued"] == counts["stored"]


def test_what_could_not_be_removed_is_named(run: Stress) -> None:
    """A host of which something is left is unconfirmed, and never passes for clean."""
    for name in NAMES:
        clean = left(run.fleet.host(name)) == []
        assert run.agent(name)["cleanup"] == ("confirmed" if clean else "unconfirmed"), (name, run.output)


def test_mended_disks_are_cleaned_and_can_be_used_again(run: Stress, tmp_path: Path) -> None:
    """Once the disks are whole teardown.yml leaves nothing, and a run passes."""
    fleet = run.fleet
    (disk_of(fleet.host("full")) / "filler").unlink()
    for name in ("writeback", "readonly"):
        mend(fleet.host(name))
    done = run.teardown()
    assert done.returncode == 0, done.stdout + done.stderr
    for host in fleet.hosts:
        assert left(host) == []
    again = Stress(fleet, tmp_path, {**run.variables, "seconds": 3})
    again.start()
    assert again.finish() == 0, again.output
    judge(again)
    for host in fleet.hosts:
        assert left(host) == []


def test_too_little_room_is_refused_before_anything_is_changed(lab: None, stress: Callable[..., Stress]) -> None:
    """The sentence has the needed and the free bytes; not even an account was made."""
    with Fleet([HostSpec("small", "bookworm", disk_mb=60)]) as fleet:
        host = fleet.host("small")
        before = (host.root / "etc/passwd").read_bytes()
        run = stress(fleet, seconds=5, chunk_mb=CHUNK_MB, directory=DISK)
        assert run.finish(90) != 0
        assert run.verdict().startswith("PRECONDITION: "), run.output
        assert re.search(r"\d+ bytes free, \d+ are needed", run.output), run.output
        assert left(host) == []
        assert (host.root / "etc/passwd").read_bytes() == before
        assert [path.name for path in disk_of(host).iterdir()] == ["lost+found"]
