"""The writers: durable bytes only, their own deadline and rate, and the first failure is final."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

import pytest

from fury_agent.chunks import ChunkDirectory
from fury_agent.verdict import Corruption, DiskError, Verdict
from fury_agent.writer import Ring, Rollover, Work, Writer

CHUNK = 40 * 4096
_OF_WORK = {field.name for field in dataclasses.fields(Work)}


class Run:
    """Writers over real files in a directory, and what they told."""

    def __init__(self, directory: Path, **more: Any) -> None:
        self.rollovers: List[Rollover] = []
        self.starts: List[float] = []
        self.ends: List[float] = []
        self.ended = threading.Event()
        ring: Dict[str, Any] = {
            "chunk_bytes": CHUNK,
            "open_slot": lambda slot: os.open(directory / f"chunk-{slot}.dat", os.O_WRONLY | os.O_CREAT, 0o600),
            "open_back": lambda slot: os.open(directory / f"chunk-{slot}.dat", os.O_RDONLY),
            "settle": None,
            "slot_path": lambda slot: str(directory / f"chunk-{slot}.dat"),
            "free_bytes": lambda slot: 10**12,
            "free_floor_bytes": 0,
        }
        work: Dict[str, Any] = {"block_bytes": 3 * 4096, "identity": "r/alecto/0", "seed": "r/alecto/0"}
        for name, value in more.items():
            (work if name in _OF_WORK else ring)[name] = value
        self.on_rollover: Callable[[Rollover], None] = lambda rollover: None
        self.writer = Writer(
            Ring(**ring),
            Work(**work),
            on_start=self.starts.append,
            on_rollover=self._on_rollover,
            on_end=self._on_end,
        )

    def _on_rollover(self, rollover: Rollover) -> None:
        self.rollovers.append(rollover)
        self.on_rollover(rollover)

    def _on_end(self) -> None:
        self.ends.append(time.monotonic())
        self.ended.set()

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


def stamp(unit: bytes) -> Tuple[int, int]:
    """The chunk and the number in it that 4 KiB of a block of three say they are."""
    place, block = (int.from_bytes(unit[at : at + 8], sys.byteorder) for at in (0, 8))
    return block >> 32, (block & 0xFFFFFFFF) * 3 + (place & 0xFFFF)


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
    run = Run(tmp_path, chunk_bytes=1 << 40, free_bytes=lambda slot: 1 << 50)
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
    run = Run(tmp_path, keep=3)
    run.on_rollover = lambda rollover: seen.extend(units(tmp_path / f"chunk-{rollover.chunk % 3}.dat"))
    run.for_seconds(0.2)
    assert len(seen) > 100
    assert len(set(seen)) == len(seen)
    data = b"".join(seen[:40])
    assert len(zlib.compress(data, 9)) > 0.99 * len(data)


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

    stamps: List[Tuple[int, int]] = []

    def read(rollover: Rollover) -> None:
        stamps.extend(stamp(unit) for unit in units(tmp_path / f"chunk-{rollover.chunk % 2}.dat"))

    run = Run(tmp_path)
    run.on_rollover = read
    monkeypatch.setattr(os, "pwrite", short)
    run.for_seconds(0.1)
    assert run.writer.failure is None
    assert stamps[:80] == [(chunk, number) for chunk in range(2) for number in range(40)]


def test_the_floor_of_free_space_stops_it_before_the_next_chunk(tmp_path: Path) -> None:
    """When something else fills the file system the writer stops on its own, with what is free."""
    answers = [1000, 1000, 999]
    run = Run(tmp_path, free_bytes=lambda slot: answers.pop(0), free_floor_bytes=1000).for_seconds(5)
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
    Run(tmp_path, verify=True, jobs=2).for_seconds(0.1)
    Run(tmp_path, open_slot=lambda slot: os.open("/dev/full", os.O_WRONLY)).for_seconds(1)
    Run(tmp_path, verify=True, open_back=lambda slot: os.open("/dev/null", os.O_RDONLY)).for_seconds(1)
    Run(tmp_path, open_slot=lambda slot: os.open("/dev/null", os.O_WRONLY)).for_seconds(1)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("jobs", [1, 3])
def test_progress_is_consistent_while_it_writes(tmp_path: Path, jobs: int) -> None:
    """Asked at any moment from another thread, counts only grow and durable bytes never exceed handed ones."""
    run = Run(tmp_path, block_bytes=4096, jobs=jobs)
    run.writer.start(start_s=time.monotonic(), runtime_s=0.3)
    last: Optional[int] = 0
    while not run.ended.is_set():
        progress = run.writer.progress()
        assert progress.durable_bytes <= run.writer.progress().handed_bytes
        assert last is not None
        assert progress.write_latency.count >= last
        last = progress.write_latency.count
    assert last


def test_each_job_has_chunks_and_slots_of_its_own(tmp_path: Path) -> None:
    """Job j of 3 writes the chunks j, j + 3, … into its own two slots; the sums are those of all, the start is told once."""
    opened: Dict[str, List[int]] = {}
    told: Dict[str, List[int]] = {}
    written: List[Set[Tuple[int, int]]] = []

    def open_slot(slot: int) -> int:
        opened.setdefault(threading.current_thread().name, []).append(slot)
        return os.open(tmp_path / f"chunk-{slot}.dat", os.O_WRONLY | os.O_CREAT, 0o600)

    run = Run(tmp_path, open_slot=open_slot, jobs=3)

    def note(rollover: Rollover) -> None:
        thread = threading.current_thread().name
        told.setdefault(thread, []).append(rollover.chunk)
        file = units(tmp_path / f"chunk-{opened[thread][-1]}.dat")
        written.append({stamp(unit) for unit in file} ^ {(rollover.chunk, number) for number in range(40)})

    run.on_rollover = note
    run.for_seconds(0.3)
    progress = run.writer.progress()
    assert run.writer.failure is None
    chunks = sorted(told.values())
    assert [some[0] for some in chunks] == [0, 1, 2]
    assert all(some == list(range(job, job + 3 * len(some), 3)) for job, some in enumerate(chunks))
    assert min(len(some) for some in chunks) > 2
    in_turn = [
        [number % 2 + 2 * job for number in range(len(slots))] for job, slots in enumerate(sorted(opened.values()))
    ]
    assert sorted(opened.values()) == in_turn
    assert not any(written)
    assert progress.rollovers == progress.all_rollovers == len(run.rollovers)
    assert progress.durable_bytes == progress.handed_bytes == len(run.rollovers) * CHUNK + progress.tail_bytes
    assert progress.written_bytes == progress.durable_bytes
    assert len(run.starts) == len(run.ends) == 1
    assert run.starts == [progress.started_s]


def test_the_first_job_that_fails_ends_all(tmp_path: Path) -> None:
    """Its failure is the one that counts; what the others had made durable still does, and the end is told once."""
    opened: List[int] = []

    def open_slot(slot: int) -> int:
        opened.append(slot)
        full = slot in (2, 3) and len([one for one in opened if one in (2, 3)]) == 3
        return os.open("/dev/full" if full else tmp_path / f"chunk-{slot}.dat", os.O_WRONLY | os.O_CREAT, 0o600)

    run = Run(tmp_path, open_slot=open_slot, jobs=3)
    run.writer.start(start_s=time.monotonic(), runtime_s=60)
    assert run.ended.wait(10)
    assert run.writer.join(1)
    progress = run.writer.progress()
    assert "pwrite of chunk 7 at byte 0 of" in run.failure.message
    assert "ENOSPC" in run.failure.message
    assert [rollover.chunk for rollover in run.rollovers if rollover.chunk % 3 == 1] == [1, 4]
    assert progress.durable_bytes == len(run.rollovers) * CHUNK + progress.tail_bytes
    assert run.writer.unknown_bytes == progress.handed_bytes - progress.durable_bytes == 0
    assert len(run.ends) == 1


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_ramp_is_written_and_does_not_count(memory: Path, jobs: int) -> None:
    """written = Σ(bytes − ramp_bytes) + tail, a chunk over the ramp's end counts in part, latencies and seconds leave it out."""
    chunk_s = 0.2  # by its rate, so that the ramp's 0.3 s end in the middle of each job's second chunk
    run = Run(
        memory, block_bytes=4096, ramp_s=0.3, rate_bytes_s=CHUNK / chunk_s * jobs, jobs=jobs, verify=True
    ).for_seconds(0.9)
    progress = run.writer.progress()
    assert run.writer.failure is None
    by_chunk = {rollover.chunk: rollover.ramp_bytes for rollover in run.rollovers}
    assert all(by_chunk[chunk] == CHUNK for chunk in range(jobs))
    straddling = [by_chunk[chunk] / CHUNK for chunk in range(jobs, 2 * jobs)]
    assert straddling == pytest.approx([0.5] * jobs, abs=0.25)
    assert not any(by_chunk[chunk] for chunk in by_chunk if chunk >= 2 * jobs)
    counted = sum(rollover.bytes - rollover.ramp_bytes for rollover in run.rollovers)
    assert progress.written_bytes == counted + progress.tail_bytes
    assert progress.ramp_bytes == sum(by_chunk.values())
    assert progress.durable_bytes == progress.handed_bytes == progress.written_bytes + progress.ramp_bytes
    assert progress.tail_bytes > 0
    assert progress.rollovers == progress.all_rollovers - jobs == len(run.rollovers) - jobs > 0
    assert progress.write_latency.count == progress.written_bytes // 4096
    assert progress.fsync_latency.count == progress.rollovers + jobs
    assert progress.read_bytes == progress.rollovers * CHUNK + progress.tail_bytes  # the second chunk was read after it
    assert progress.read_latency.count == progress.read_bytes // 4096
    assert 0.59 <= progress.seconds < 0.9


def test_a_run_that_ends_in_its_ramp_has_no_figures(tmp_path: Path) -> None:
    """Everything is written and durable, and nothing of it counts."""
    run = Run(tmp_path, ramp_s=60.0)
    run.writer.start(start_s=time.monotonic(), runtime_s=61)
    while len(run.rollovers) < 3:
        time.sleep(0.001)
    run.writer.stop()
    assert run.writer.join(10)
    progress = run.writer.progress()
    assert progress.durable_bytes == progress.handed_bytes == progress.ramp_bytes >= 3 * CHUNK
    assert (progress.written_bytes, progress.tail_bytes, progress.rollovers, progress.seconds) == (0, 0, 0, 0.0)
    assert progress.write_latency.count == progress.fsync_latency.count == 0


@pytest.mark.parametrize("rate", [20e6, 200e6])
def test_a_rate_is_kept_within_2_percent_and_smoothly(memory: Path, rate: float) -> None:
    """With one job and with four: all together write what the rate says, and no second sees more than 1.3 times that."""
    runs: List[Run] = []
    for jobs in (1, 4):
        (memory / str(jobs)).mkdir()
        runs.append(
            Run(memory / str(jobs), jobs=jobs, rate_bytes_s=rate, block_bytes=16 * 4096, chunk_bytes=512 * 4096)
        )
    start_s = time.monotonic()
    for run in runs:
        run.writer.start(start_s=start_s, runtime_s=3.0)
    seen: List[List[Tuple[float, int]]] = [[] for _ in runs]
    while not all(run.ended.is_set() for run in runs):
        for run, points in zip(runs, seen):
            points.append((time.monotonic(), run.writer.progress().handed_bytes))
        time.sleep(0.02)
    for run, points in zip(runs, seen):
        assert run.writer.failure is None
        assert run.writer.progress().written_bytes == pytest.approx(3.0 * rate, rel=0.02)
        seconds = [
            later - size
            for at_s, size in points
            for later in [max(size_then for then_s, size_then in points if then_s <= at_s + 1)]
        ]
        assert max(seconds) <= 1.3 * rate


def test_a_rate_does_not_hold_up_a_stop(tmp_path: Path) -> None:
    """A writer that waits for its rate sees a stop at once."""
    run = Run(tmp_path, rate_bytes_s=1000.0, block_bytes=CHUNK)
    run.writer.start(start_s=time.monotonic(), runtime_s=60)
    while not run.rollovers:
        time.sleep(0.001)
    asked_s = time.monotonic()
    run.writer.stop()
    assert run.writer.join(10)
    assert time.monotonic() - asked_s < 1
    assert run.writer.generator_ratio is not None
    assert run.writer.generator_ratio < 0.5  # waiting is not work


def test_new_files_are_new_and_never_more_than_the_ring(tmp_path: Path) -> None:
    """Each chunk is a new inode in its slot's place: two jobs that keep two never have more than four files."""
    chunks = ChunkDirectory(str(tmp_path), agent="alecto", run_id="r")
    chunks.claim()
    settled: List[float] = []
    inodes: List[int] = []
    counts: List[int] = []

    def settle() -> None:
        chunks.settle()
        settled.append(time.monotonic())

    run = Run(
        tmp_path,
        open_slot=lambda slot: chunks.open_slot(slot, new=True),
        settle=settle,
        jobs=2,
        slot_path=chunks.slot_path,
    )
    with contextlib.ExitStack() as held:  # an inode that is open is not given to another file

        def note(rollover: Rollover) -> None:
            slot = 2 * (rollover.chunk % 2) + rollover.chunk // 2 % 2
            file = held.enter_context(open(chunks.slot_path(slot), "rb"))
            inodes.append(os.fstat(file.fileno()).st_ino)
            counts.append(len(list((tmp_path / "fury-alecto").glob("chunk-*.dat"))))
            if len(inodes) >= 20:
                run.writer.stop()

        run.on_rollover = note
        run.for_seconds(10)
        assert len(set(inodes)) == len(inodes) >= 20
    assert max(counts) == 4
    assert len(settled) >= len(inodes)
    assert run.writer.failure is None
    assert chunks.remove() is None


def test_read_back_is_every_byte_that_is_durable(tmp_path: Path) -> None:
    """Each chunk and the tail are read and timed once, in reads of a block each; what is as written is no failure."""
    run = Run(tmp_path, verify=True, jobs=2).for_seconds(0.2)
    progress = run.writer.progress()
    assert run.writer.failure is None
    assert progress.read_bytes == progress.written_bytes == progress.durable_bytes
    assert progress.read_latency.count == progress.write_latency.count
    assert all(rollover.read_seconds is not None and rollover.read_seconds > 0 for rollover in run.rollovers)


def test_nothing_is_read_back_unasked(tmp_path: Path) -> None:
    """Without verify no chunk is opened for reading."""
    run = Run(tmp_path, open_back=lambda slot: os.open(tmp_path / "missing", os.O_RDONLY)).for_seconds(0.1)
    assert run.writer.failure is None
    assert run.writer.progress().read_bytes == 0
    assert {rollover.read_seconds for rollover in run.rollovers} == {None}


def test_a_changed_byte_is_found_and_ends_it(tmp_path: Path) -> None:
    """Chunk, file, byte, block, what was written and what is read: and nothing is written after that."""
    place = 17 * 4096 + 2345  # in the block of 3 × 4 KiB number 5
    expected: List[bytes] = []
    reads: List[int] = []

    def open_back(slot: int) -> int:
        reads.append(slot)
        descriptor = os.open(tmp_path / f"chunk-{slot}.dat", os.O_RDWR)
        if len(reads) == 3:
            expected.append(os.pread(descriptor, 16, place))
            os.pwrite(descriptor, bytes([expected[0][0] ^ 0x40]), place)
        return descriptor

    run = Run(tmp_path, verify=True, open_back=open_back).for_seconds(5)
    failure = run.writer.failure
    assert isinstance(failure, Corruption)
    assert (failure.verdict, failure.path) == (Verdict.DATA_CORRUPTION, f"{tmp_path}/chunk-0.dat")
    changed = bytes([expected[0][0] ^ 0x40]) + expected[0][1:]
    assert f"chunk 2 in {tmp_path}/chunk-0.dat is not what was written: at byte {place} " in failure.message
    assert "(block 5 of 12288 bytes)" in failure.message
    assert f"{expected[0].hex()} was written and {changed.hex()} is read back; 1 of these" in failure.message
    assert reads == [0, 1, 0]
    progress = run.writer.progress()
    assert progress.handed_bytes == progress.durable_bytes == 3 * CHUNK
    assert progress.read_bytes == 2 * CHUNK + 5 * 12288
    assert run.writer.unknown_bytes == 0


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: os.truncate(path, 5000), r"pread of chunk 0 .* EIO \(the file ends after 5000 of 163840 bytes\)"),
        (os.unlink, r"pread of chunk 0 at byte 0 .* ENOENT"),
    ],
)
def test_a_chunk_that_cannot_be_read_back_is_a_disk_error(
    tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    """A file that is short or gone is not corrupt data: the call and its error are named."""

    def open_back(slot: int) -> int:
        spoil(tmp_path / f"chunk-{slot}.dat")
        return os.open(tmp_path / f"chunk-{slot}.dat", os.O_RDONLY)

    run = Run(tmp_path, verify=True, open_back=open_back).for_seconds(5)
    assert run.failure.operation == "pread"
    assert re.search(says, run.failure.message)


def test_a_stop_ends_reading_back(tmp_path: Path) -> None:
    """Whoever stops it does not wait for a chunk to be read; what was compared until then counts."""

    def open_back(slot: int) -> int:
        run.writer.stop()
        return os.open(tmp_path / f"chunk-{slot}.dat", os.O_RDONLY)

    run = Run(tmp_path, verify=True, open_back=open_back)
    run.for_seconds(5)
    assert run.writer.failure is None
    assert run.writer.progress().read_bytes == 0
    assert run.writer.progress().durable_bytes == CHUNK


def test_nothing_is_said_of_a_run_before_it_begins_nor_of_a_short_one(tmp_path: Path) -> None:
    """No seconds and no bytes, and no judgement on how steady it was."""
    run = Run(tmp_path)
    assert run.writer.steadiness() is None
    progress = run.writer.progress()
    assert (progress.started_s, progress.seconds, progress.handed_bytes) == (None, 0.0, 0)
    assert run.for_seconds(0.1).writer.steadiness() is None
