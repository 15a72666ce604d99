"""The writer: durable bytes only, unique data, its own deadline, and the first failure is final."""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any, Callable, List, Optional

import pytest

from fury_agent.verdict import DiskError, Verdict
from fury_agent.writer import BlockPool, Ring, Rollover, Writer

CHUNK = 40 * 4096


class Run:
    """A writer over real files in a directory, and what it told."""

    def __init__(self, directory: Path, **more: Any) -> None:
        self.rollovers: List[Rollover] = []
        self.starts: List[float] = []
        self.ended = threading.Event()
        options = {
            "slots": 2,
            "chunk_bytes": CHUNK,
            "open_slot": lambda slot: os.open(directory / f"chunk-{slot}.dat", os.O_WRONLY | os.O_CREAT, 0o600),
            "slot_path": lambda slot: str(directory / f"chunk-{slot}.dat"),
            "free_bytes": lambda: 10**12,
            "free_floor_bytes": 0,
        }
        block_bytes = more.pop("block_bytes", 3 * 4096)
        self.on_rollover: Callable[[Rollover], None] = lambda rollover: None
        self.writer = Writer(
            Ring(**{**options, **more}),
            block_bytes=block_bytes,
            identity="r/alecto/0",
            on_start=self.starts.append,
            on_rollover=self._on_rollover,
            on_end=self.ended.set,
        )

    def _on_rollover(self, rollover: Rollover) -> None:
        self.rollovers.append(rollover)
        self.on_rollover(rollover)

    def for_seconds(self, seconds: float) -> Run:
        self.writer.start(start_s=time.monotonic(), runtime_s=seconds)
        assert self.ended.wait(10)
        assert self.writer.join(1)
        return self

    @property
    def failure(self) -> DiskError:
        assert isinstance(self.writer.failure, DiskError)
        assert self.writer.failure.verdict is Verdict.DISK_ERROR
        return self.writer.failure


def units(path: Path) -> List[bytes]:
    data = path.read_bytes()
    return [data[start : start + 4096] for start in range(0, len(data), 4096)]


def test_every_byte_it_counts_is_durable_and_accounted_for(tmp_path: Path) -> None:
    """written = rollovers + tail, each rollover is a whole chunk, and they are numbered from 0 without a gap."""
    run = Run(tmp_path).for_seconds(0.3)
    progress = run.writer.progress()
    assert run.writer.failure is None
    assert progress.rollovers == len(run.rollovers) > 2
    assert [rollover.chunk for rollover in run.rollovers] == list(range(progress.rollovers))
    assert {rollover.bytes for rollover in run.rollovers} == {CHUNK}
    assert progress.durable_bytes == progress.handed_bytes == progress.rollovers * CHUNK + progress.tail_bytes
    blocks_per_chunk = -(-CHUNK // (3 * 4096))
    assert progress.write_latency.count >= progress.rollovers * blocks_per_chunk
    assert progress.fsync_latency.count == progress.rollovers + (progress.tail_bytes > 0)
    assert all(r.write_p50_s <= r.write_p99_s <= r.write_max_s <= r.seconds for r in run.rollovers)
    assert run.starts == [progress.started_s]


def test_it_ends_at_its_own_deadline(tmp_path: Path) -> None:
    """It ends between two blocks once its time is over, and its seconds include the last fsync."""
    run = Run(tmp_path).for_seconds(0.3)
    assert 0.29 <= run.writer.progress().seconds < 1.0
    assert run.writer.stopped_s is None


def test_a_stop_ends_it_with_a_durable_tail(tmp_path: Path) -> None:
    """A stop in the middle of a chunk leaves a counted tail."""
    run = Run(tmp_path, chunk_bytes=1 << 40, free_bytes=lambda: 1 << 50)
    run.writer.start(start_s=time.monotonic(), runtime_s=60)
    while run.writer.progress().handed_bytes < 1 << 20:
        time.sleep(0.001)
    run.writer.stop()
    assert run.writer.join(10)
    progress = run.writer.progress()
    assert run.writer.stopped_s is not None
    assert progress.rollovers == 0
    assert progress.tail_bytes == progress.durable_bytes == progress.handed_bytes >= 1 << 20


def test_it_starts_at_the_instant_it_is_told(tmp_path: Path) -> None:
    """The first write comes no earlier, and here within 50 ms."""
    run = Run(tmp_path)
    start_s = time.monotonic() + 0.2
    run.writer.start(start_s=start_s, runtime_s=0.05)
    assert run.ended.wait(10)
    assert 0 <= run.starts[0] - start_s < 0.05


def test_no_4_kib_is_written_twice_and_none_compresses(tmp_path: Path) -> None:
    """Neither deduplication nor compression can make a disk look faster: over slots, chunks and pool positions."""
    seen: List[bytes] = []
    run = Run(tmp_path, slots=3)
    run.on_rollover = lambda rollover: seen.extend(units(tmp_path / f"chunk-{rollover.chunk % 3}.dat"))
    run.for_seconds(0.2)
    assert len(seen) > 100
    assert len(set(seen)) == len(seen)
    data = b"".join(seen[:40])
    assert len(zlib.compress(data, 9)) > 0.99 * len(data)


def test_two_agents_never_write_the_same(tmp_path: Path) -> None:
    """The stamp tells run, agent and epoch apart."""
    first, second = (BlockPool(block_bytes=4096, identity=name) for name in ("r/a/0", "r/b/0"))
    assert bytes(first.blocks[0][0][:8]) != bytes(second.blocks[0][0][:8])


def test_the_ring_is_reused_in_place(tmp_path: Path) -> None:
    """No more files than slots, and none is ever truncated."""
    sizes: List[int] = []
    run = Run(tmp_path)
    run.on_rollover = lambda rollover: sizes.extend(path.stat().st_size for path in tmp_path.iterdir())
    run.for_seconds(0.2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chunk-0.dat", "chunk-1.dat"]
    assert set(sizes) == {CHUNK}


def test_a_full_disk_is_the_first_and_last_failure(tmp_path: Path) -> None:
    """ENOSPC is named with file, chunk, offset and call; nothing of that chunk counts, nothing is tried again."""
    opened: List[int] = []

    def open_slot(slot: int) -> int:
        opened.append(slot)
        return os.open("/dev/full" if len(opened) == 3 else tmp_path / f"{slot}", os.O_WRONLY | os.O_CREAT, 0o600)

    run = Run(tmp_path, open_slot=open_slot).for_seconds(5)
    assert run.failure.operation == "pwrite"
    assert "pwrite of chunk 2 at byte 0 of" in run.failure.message
    assert "ENOSPC" in run.failure.message
    assert run.writer.progress().durable_bytes == 2 * CHUNK
    assert opened == [0, 1, 0]


def test_a_failed_fsync_is_final(tmp_path: Path) -> None:
    """What no fsync has confirmed does not count, and it is never asked again (/dev/null takes writes, no fsync)."""
    run = Run(tmp_path, open_slot=lambda slot: os.open("/dev/null", os.O_WRONLY)).for_seconds(5)
    assert run.failure.operation == "fsync"
    assert "EINVAL" in run.failure.message
    progress = run.writer.progress()
    assert (progress.durable_bytes, progress.rollovers, progress.handed_bytes) == (0, 0, CHUNK)


@pytest.mark.parametrize("operation", ["pwrite", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_the_first_failure_is_the_last_and_says_what_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, number: int
) -> None:
    """File, chunk, offset, call and errno are named; what was written since the last good fsync counts as unknown."""
    calls: List[int] = []
    whole = getattr(os, operation)

    def fail(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == (9 if operation == "pwrite" else 3):  # in the third chunk: CHUNK is 3 blocks and a bit
            raise OSError(number, os.strerror(number))
        assert len(calls) < 9, "tried again"
        return whole(*arguments)

    monkeypatch.setattr(os, operation, fail)
    run = Run(tmp_path, block_bytes=CHUNK // 3 // 4096 * 4096 + 4096).for_seconds(5)
    failure, progress = run.failure, run.writer.progress()
    assert (failure.operation, failure.errno) == (operation, number)
    assert failure.path.endswith("chunk-0.dat")
    unknown = progress.handed_bytes - 2 * CHUNK
    assert run.writer.unknown_bytes == unknown
    offset = unknown if operation == "pwrite" else CHUNK
    assert 0 < unknown <= CHUNK
    assert f"{operation} of chunk 2 at byte {offset} of" in failure.message
    assert errno.errorcode[number] in failure.message
    assert f"{unknown} bytes written since the last good fsync are unknown" in failure.message
    assert progress.durable_bytes == 2 * CHUNK
    assert len(calls) == (9 if operation == "pwrite" else 3)


def test_a_vanished_chunk_is_an_error(tmp_path: Path) -> None:
    """Somebody who removes a chunk ends the run with the path in the sentence."""
    run = Run(tmp_path, open_slot=lambda slot: os.open(tmp_path / "gone", os.O_WRONLY)).for_seconds(5)
    assert run.failure.operation == "open"
    assert "ENOENT" in run.failure.message


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that takes less than asked for is asked again for the rest, and the data is whole."""
    whole = os.pwrite

    def short(descriptor: int, data: Any, offset: int) -> int:
        return whole(descriptor, data[: min(len(data), 1000)], offset)

    stamps: List[int] = []

    def read(rollover: Rollover) -> None:
        blocks = units(tmp_path / f"chunk-{rollover.chunk % 2}.dat")
        stamps.extend(int.from_bytes(block[8:16], sys.byteorder) - (rollover.chunk << 32) for block in blocks)

    run = Run(tmp_path)
    run.on_rollover = read
    monkeypatch.setattr(os, "pwrite", short)
    run.for_seconds(0.1)
    assert run.writer.failure is None
    assert stamps[:40] == list(range(40))


def test_the_floor_of_free_space_stops_it_before_the_next_chunk(tmp_path: Path) -> None:
    """When something else fills the file system the writer stops on its own, with what is free."""
    answers = [1000, 1000, 999]
    run = Run(tmp_path, free_bytes=lambda: answers.pop(0), free_floor_bytes=1000).for_seconds(5)
    assert run.writer.floor_reached == 999
    assert run.writer.failure is None
    assert run.writer.progress().rollovers == 2


@pytest.mark.parametrize("block_bytes", [4096, 3 * 4096, CHUNK, 1 << 20])
def test_any_block_size_fills_a_chunk(tmp_path: Path, block_bytes: int) -> None:
    """Blocks that do not divide the chunk, equal it or exceed it give the same chunk."""
    run = Run(tmp_path, block_bytes=block_bytes).for_seconds(0.05)
    assert run.writer.failure is None
    assert run.rollovers[0].bytes == CHUNK
    assert (tmp_path / "chunk-0.dat").stat().st_size == CHUNK


def test_the_calibration_is_bounded(tmp_path: Path) -> None:
    """It writes no further than one chunk of the first slot, and gives a rate."""
    run = Run(tmp_path)
    assert run.writer.calibrate(stopped=lambda: False) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["chunk-0.dat"]
    assert (tmp_path / "chunk-0.dat").stat().st_size <= CHUNK
    assert run.writer.progress().handed_bytes == 0


def test_a_failing_calibration_is_a_disk_error(tmp_path: Path) -> None:
    """The first writes are writes like any other."""
    run = Run(tmp_path, open_slot=lambda slot: os.open("/dev/full", os.O_WRONLY))
    with pytest.raises(DiskError, match=r"pwrite of the calibration .* ENOSPC"):
        run.writer.calibrate(stopped=lambda: False)


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    """Each way a chunk ends closes its file."""
    before = len(os.listdir("/proc/self/fd"))
    Run(tmp_path).for_seconds(0.1)
    Run(tmp_path, open_slot=lambda slot: os.open("/dev/full", os.O_WRONLY)).for_seconds(1)
    Run(tmp_path, open_slot=lambda slot: os.open("/dev/null", os.O_WRONLY)).for_seconds(1)
    assert len(os.listdir("/proc/self/fd")) == before


def test_progress_is_consistent_while_it_writes(tmp_path: Path) -> None:
    """Asked at any moment from another thread, counts only grow and durable bytes never exceed handed ones."""
    run = Run(tmp_path, block_bytes=4096)
    run.writer.start(start_s=time.monotonic(), runtime_s=0.3)
    last: Optional[int] = 0
    while not run.ended.is_set():
        progress = run.writer.progress()
        assert progress.durable_bytes <= run.writer.progress().handed_bytes
        assert last is not None
        assert progress.write_latency.count >= last
        last = progress.write_latency.count
    assert last
