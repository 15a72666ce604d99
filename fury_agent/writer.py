"""The threads that write: each job fills chunk after chunk in a ring of its own, timed, durable, to one common deadline.

They wait for nothing but the disk, and for their rate where one is set: what they have to tell goes through callables that only
note it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import threading
import time
from typing import Callable, Iterator, Optional, Tuple

from fury_agent.data import Data, pages
from fury_agent.histogram import Histogram
from fury_agent.steady import Series, Steadiness, steadiness
from fury_agent.verdict import Corruption, DiskError

_SPIN_S = 0.001
_NAP_S = 0.05
_DEBT_S = 5.0
_CALIBRATION_BYTES = 64_000_000
_CALIBRATION_S = 1.0
_FIRST_PROBE_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Ring:
    """What a job needs of the chunk directory: slots to open for writing and for reading, paths, and how much is free.

    `settle` makes the name of a new file durable after its fsync; `open_back` opens for reading past the page cache;
    `free_bytes` is what would be free if the slot's chunk were full.
    """

    chunk_bytes: int
    open_slot: Callable[[int], int]
    open_back: Callable[[int], int]
    settle: Optional[Callable[[], None]]
    slot_path: Callable[[int], str]
    free_bytes: Callable[[int], int]
    free_floor_bytes: int


@dataclasses.dataclass(frozen=True)
class Work:
    """What is to be written and how: bytes, seconds, bytes per second."""

    block_bytes: int
    jobs: int = 1
    keep: int = 2
    verify: bool = False
    grace_s: float = 30.0  # how long the last chunks may be read back when the time to write is over
    rate_bytes_s: Optional[float] = None
    ramp_s: float = 0.0
    identity: str = ""
    seed: str = ""
    compress_percent: int = 0
    dedupe_percent: int = 0


@dataclasses.dataclass(frozen=True)
class Rollover:
    """A chunk that is full, durable and closed. `seconds` run from its first write to the return of its fsync."""

    chunk: int
    bytes: int
    ramp_bytes: int
    seconds: float
    fsync_seconds: float
    read_seconds: Optional[float]
    write_p50_s: float
    write_p99_s: float
    write_max_s: float


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far the writers are, at one instant. Latencies, `rollovers` and `tail_bytes` leave the ramp out.

    `handed_bytes`, `durable_bytes` (what an fsync has confirmed) and `all_rollovers` include it.
    """

    started_s: Optional[float] = None
    ended_s: Optional[float] = None
    ramp_ends_s: float = 0.0
    handed_bytes: int = 0
    durable_bytes: int = 0
    ramp_bytes: int = 0
    tail_bytes: int = 0
    read_bytes: int = 0
    rollovers: int = 0
    all_rollovers: int = 0
    write_latency: Histogram = dataclasses.field(default_factory=Histogram)
    fsync_latency: Histogram = dataclasses.field(default_factory=Histogram)
    read_latency: Histogram = dataclasses.field(default_factory=Histogram)

    @property
    def written_bytes(self) -> int:
        """Durable bytes that count: those written after the ramp."""
        return self.durable_bytes - self.ramp_bytes

    @property
    def seconds(self) -> float:
        """Seconds that count: from the first write or the end of the ramp until all is durable (to now while it writes)."""
        if self.started_s is None:
            return 0.0
        end_s = time.monotonic() if self.ended_s is None else self.ended_s
        return max(0.0, end_s - max(self.started_s, self.ramp_ends_s))


class Writer:
    """Writes until its deadline, in one thread for each job; any other may ask for its `progress`."""

    def __init__(
        self,
        ring: Ring,
        work: Work,
        *,
        on_start: Callable[[float], None],
        on_rollover: Callable[[Rollover], None],
        on_end: Callable[[], None],
    ) -> None:
        self.ring = ring
        self.work = work
        self._on_start = on_start
        self._on_rollover = on_rollover
        self._on_end = on_end
        self._lock = threading.Lock()  # taken a few times per chunk, never per block
        self._jobs = [_Job(self, number) for number in range(work.jobs)]
        self._left = work.jobs
        self._series = Series()
        self._started_s: Optional[float] = None
        self._ended_s: Optional[float] = None
        self._user_s = 0.0
        self.ramp_ends_s = 0.0
        self.stopping = False
        self.failure: Optional[BaseException] = None
        self.probed_bytes = 0
        self.unknown_bytes = 0
        self.floor_reached: Optional[int] = None
        self.stopped_s: Optional[float] = None

    def calibrate(self, *, stopped: Callable[[], bool]) -> float:
        """Bytes per second that this disk makes durable, from writes of one job into the ring's first slot.

        Probes grow fourfold and the last one is the estimate: small probes measure the fsync more than the disk.
        At most min(chunk, 64 MB) each and about a second in all. Raises DiskError.
        """
        limit = min(self.ring.chunk_bytes, _CALIBRATION_BYTES)
        size = min(_FIRST_PROBE_BYTES, limit)
        began = time.monotonic()
        job = self._jobs[0]
        descriptor = job.open(0, chunk=None)
        try:
            while True:
                probe_began = time.monotonic()
                job.probe(descriptor, size)
                self.probed_bytes = size
                now = time.monotonic()
                rate = size / max(now - probe_began, 1e-9)
                larger = min(size * 4, limit)
                if size >= limit or stopped() or now - began + larger / rate > _CALIBRATION_S:
                    return rate
                size = larger
        finally:
            os.close(descriptor)

    def start(self, *, start_s: float, runtime_s: float, ramp_s: Optional[float] = None) -> None:
        """Begins to write at the instant `start_s` of time.monotonic(), ends `runtime_s` later; `ramp_s` of it don't count."""
        self.ramp_ends_s = start_s + (self.work.ramp_s if ramp_s is None else ramp_s)
        for job in self._jobs:
            job.start(start_s=start_s, deadline_s=start_s + runtime_s)

    def stop(self) -> None:
        """Asks every job to end after the block it is writing. Safe in a signal handler."""
        self.stopping = True

    def join(self, timeout_s: float) -> bool:
        """Waits for the writers' end; False when one is still in a call of the disk's after `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        return all(job.join(max(0.0, deadline_s - time.monotonic())) for job in self._jobs)

    @property
    def doing(self) -> Tuple[str, str]:
        """Operation and path of a job that has not ended."""
        return next((job.doing for job in self._jobs if job.doing[0] != "nothing"), ("nothing", ""))

    @property
    def generator_ratio(self) -> Optional[float]:
        """How much of the time went into making data and counting, and not into calls of the disk or waiting for a rate.

        That is the busiest job's share, or the process' user time where that is more: jobs that wait for their one
        interpreter do so within what they take for the call's time.
        """
        if self._ended_s is None or self._started_s is None or self._ended_s <= self._started_s:
            return None
        interpreter = self._user_s / (self._ended_s - self._started_s)
        return max([interpreter, *(job.busy_ratio for job in self._jobs if job.busy_ratio is not None)])

    def steadiness(self) -> Optional[Steadiness]:
        """Whether the last third of what counts was steady; None while nothing can be said."""
        progress = self.progress()
        if progress.started_s is None or progress.ended_s is None:
            return None
        with self._lock:
            return steadiness(self._series, max(progress.started_s, progress.ramp_ends_s), progress.ended_s)

    def progress(self) -> Progress:
        """How far the writers are."""
        writes, fsyncs, reads = Histogram(), Histogram(), Histogram()
        with self._lock:
            for job in self._jobs:
                for histogram in (job.write_latency, job.chunk_latency):
                    writes.merge(histogram.copy())
                fsyncs.merge(job.fsync_latency.copy())
                reads.merge(job.read_latency.copy())
            return Progress(
                started_s=self._started_s,
                ended_s=self._ended_s,
                ramp_ends_s=self.ramp_ends_s,
                handed_bytes=sum(job.handed_bytes for job in self._jobs),
                durable_bytes=sum(job.durable_bytes for job in self._jobs),
                ramp_bytes=sum(job.ramp_bytes for job in self._jobs),
                tail_bytes=sum(job.tail_bytes for job in self._jobs),
                read_bytes=sum(job.read_bytes for job in self._jobs),
                rollovers=sum(job.rollovers for job in self._jobs),
                all_rollovers=sum(job.all_rollovers for job in self._jobs),
                write_latency=writes,
                fsync_latency=fsyncs,
                read_latency=reads,
            )

    # What the jobs tell, each in its own thread

    def job_started(self, instant_s: float) -> None:
        """A job is about to write for the first time."""
        with self._lock:
            first = self._started_s is None
            if first:
                self._started_s = instant_s
                self._user_s = -os.times().user
        if first:
            self._on_start(instant_s)

    def job_ended(self, failure: Optional[BaseException]) -> None:
        """A job writes no more; the first failure is the one that counts, and ends the others."""
        if failure is not None:
            self.stopping = True
        with self._lock:
            if self.failure is None:
                self.failure = failure
            self._left -= 1
            last = self._left == 0
            if last and self._started_s is not None:
                self._user_s += os.times().user
                durable_s = max(job.durable_s for job in self._jobs)
                self._ended_s = durable_s if durable_s and self.failure is None else time.monotonic()
        if last:
            progress = self.progress()
            if isinstance(self.failure, DiskError):
                self.unknown_bytes = progress.handed_bytes - progress.durable_bytes
            self._on_end()

    def must_end(self, deadline_s: float, now_s: float) -> bool:
        """Whether a job has to end now."""
        if now_s >= deadline_s:
            return True
        if self.stopping and self.stopped_s is None:
            self.stopped_s = now_s
        return self.stopping

    def rolled_over(self, rollover: Rollover) -> None:
        """A chunk of a job's is full and durable."""
        self._on_rollover(rollover)

    @contextlib.contextmanager
    def accounting(self, *, began_s: float, ended_s: float, size: int) -> Iterator[None]:
        """What a job does while it counts bytes that have become durable: nobody else reads or changes figures meanwhile."""
        with self._lock:
            self._series.add(began_s, ended_s, size)
            yield


class _Job:
    """One writer with a ring of its own: chunks `number`, `number` + jobs, … go into its `keep` slots in turn."""

    def __init__(self, writer: Writer, number: int) -> None:
        self._writer = writer
        self._ring = writer.ring
        work = self._work = writer.work
        self._number = number
        self._block_bytes = min(work.block_bytes, writer.ring.chunk_bytes)
        self._data = Data(
            block_bytes=self._block_bytes,
            chunk_bytes=writer.ring.chunk_bytes,
            identity=work.identity,
            seed=work.seed,
            job=number,
            jobs=work.jobs,
            compress_percent=work.compress_percent,
            dedupe_percent=work.dedupe_percent,
        )
        self._back = pages(self._block_bytes) if work.verify else None
        self._rate = None if work.rate_bytes_s is None else work.rate_bytes_s / work.jobs
        self._thread: Optional[threading.Thread] = None
        self._start_s = self._deadline_s = 0.0
        self._io_s = 0.0  # in calls of the disk
        self._paced_s = 0.0  # waiting for the rate
        self._in_ramp = False
        self._ramp_latency = Histogram()
        self.write_latency = Histogram()
        self.chunk_latency = Histogram()
        self.fsync_latency = Histogram()
        self.read_latency = Histogram()
        self.handed_bytes = 0
        self.durable_bytes = 0
        self.ramp_bytes = 0
        self.tail_bytes = 0
        self.read_bytes = 0
        self.rollovers = 0
        self.all_rollovers = 0
        self.durable_s = 0.0  # when its last fsync returned
        self.doing = ("nothing", "")
        self.busy_ratio: Optional[float] = None

    def start(self, *, start_s: float, deadline_s: float) -> None:
        """Begins at `start_s`, in a thread of its own."""
        self._start_s, self._deadline_s = start_s, deadline_s
        self._in_ramp = self._writer.ramp_ends_s > start_s
        self._thread = threading.Thread(target=self._run, name=f"writer-{self._number}", daemon=True)
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Whether its thread has ended within `timeout_s`."""
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        writer = self._writer
        failure: Optional[BaseException] = None
        began_s = self._start_s
        try:
            self._wait_until(self._start_s)
            began_s = time.monotonic()
            chunk = self._number
            while not writer.must_end(self._deadline_s, time.monotonic()):
                free = self._free_bytes(chunk)
                if free < self._ring.free_floor_bytes:
                    writer.floor_reached = free
                    writer.stopping = True
                    break
                if not self._write_chunk(chunk):
                    break
                chunk += self._work.jobs
        except BaseException as error:  # noqa: BLE001 - the agent reports whatever ended a writer
            failure = error
        finally:
            lasted_s = time.monotonic() - began_s
            if lasted_s > 0:
                self.busy_ratio = max(0.0, 1 - (self._io_s + self._paced_s) / lasted_s)
            self.doing = ("nothing", "")
            writer.job_ended(failure)

    def _wait_until(self, instant_s: float) -> None:
        while not self._writer.stopping:
            left = instant_s - time.monotonic()
            if left <= 0:
                return
            if left > _SPIN_S:
                time.sleep(min(left - _SPIN_S, _NAP_S))  # short naps, so that a stop is seen

    def _write_chunk(self, chunk: int) -> bool:
        """Fills one chunk, makes it durable and reads it back. False when it was cut short; what it holds is the tail."""
        slot = self._slot(chunk)
        opened = time.monotonic()
        descriptor = self.open(slot, chunk=chunk)
        try:
            began = time.monotonic()
            self._io_s += began - opened
            if chunk == self._number:
                self._writer.job_started(began)
            written, in_ramp = self._fill(descriptor, slot, chunk)
            if not written:
                self._close_quietly(descriptor)
                return False
            fsync_began, ended = self._fsync(descriptor, slot, chunk, written)
        except BaseException:
            self._close_quietly(descriptor)
            raise
        try:
            os.close(descriptor)
        except OSError as error:
            raise self._disk_error("close", slot, error, chunk=chunk, offset=written) from error
        self._io_s += time.monotonic() - fsync_began
        full = written == self._ring.chunk_bytes
        latency = self.chunk_latency if written > in_ramp else self._ramp_latency
        with self._writer.accounting(began_s=began, ended_s=ended, size=written):
            if written > in_ramp:
                self.fsync_latency.add(ended - fsync_began)
                self.write_latency.merge(latency)
                self.chunk_latency = Histogram()
            self.durable_bytes += written
            self.durable_s = ended
            self.ramp_bytes += in_ramp
            self.all_rollovers += full
            self.rollovers += full and written > in_ramp
            if not full:
                self.tail_bytes = written - in_ramp
        read_s = self._read_back(slot, chunk, written) if self._back is not None else None
        if full:
            self._writer.rolled_over(
                Rollover(
                    chunk=chunk,
                    bytes=written,
                    ramp_bytes=in_ramp,
                    seconds=ended - began,
                    fsync_seconds=ended - fsync_began,
                    read_seconds=read_s,
                    write_p50_s=latency.percentile(0.5) or 0.0,
                    write_p99_s=latency.percentile(0.99) or 0.0,
                    write_max_s=latency.maximum or 0.0,
                )
            )
        return full

    def _fill(self, descriptor: int, slot: int, chunk: int) -> Tuple[int, int]:
        """Writes blocks until the chunk is full, the deadline has passed or a stop is asked.

        Returns its bytes, and how many of them were written in the ramp.
        """
        # The hot loop: local names, no allocation but the stamps of one block, one clock call per block and side.
        clock, pwrite, record, block = time.monotonic, os.pwrite, self.chunk_latency.add, self._data.block
        chunk_bytes, block_bytes, writer = self._ring.chunk_bytes, self._block_bytes, self._writer
        limit_s = writer.ramp_ends_s if self._in_ramp else self._deadline_s
        if self._in_ramp:
            self._ramp_latency = Histogram()
            record = self._ramp_latency.add
        offset = index = in_ramp = 0
        spent = 0.0
        handed = self.handed_bytes
        rate = self._rate
        self.doing = ("pwrite", self._ring.slot_path(slot))
        try:
            while offset < chunk_bytes:
                data = block(chunk, index)
                index += 1
                if chunk_bytes - offset < block_bytes:
                    data = data[: chunk_bytes - offset]
                if rate is not None:
                    self._pace(rate)
                before = clock()
                if before >= limit_s or writer.stopping:
                    if self._in_ramp and before >= limit_s:
                        self._in_ramp = False
                        in_ramp, limit_s, record = offset, self._deadline_s, self.chunk_latency.add
                    if writer.must_end(self._deadline_s, before):
                        break
                written = pwrite(descriptor, data, offset)
                if written != len(data):
                    written = self._finish_short_write(descriptor, data, offset, written)
                took = clock() - before
                record(took)
                spent += took
                offset += written
                self.handed_bytes = handed + offset
        except OSError as error:
            raise self._disk_error("pwrite", slot, error, chunk=chunk, offset=offset) from error
        finally:
            self._io_s += spent
        return offset, offset if self._in_ramp else in_ramp

    def _pace(self, rate: float) -> None:
        """Returns when the next block is due; of what was missed at most five seconds' worth is made up for."""
        began = now = time.monotonic()
        due = self._start_s + self.handed_bytes / rate
        if now - due > _DEBT_S:
            self._start_s += now - due - _DEBT_S
        while now < due and not self._writer.stopping and now < self._deadline_s:
            time.sleep(min(due - now, _NAP_S))
            now = time.monotonic()
        self._paced_s += now - began

    def _fsync(self, descriptor: int, slot: int, chunk: int, written: int) -> Tuple[float, float]:
        """When it began and ended."""
        self.doing = ("fsync", self._ring.slot_path(slot))
        began = time.monotonic()
        try:
            os.fsync(descriptor)
            if self._ring.settle is not None:
                self._ring.settle()
        except OSError as error:
            raise self._disk_error("fsync", slot, error, chunk=chunk, offset=written) from error
        return began, time.monotonic()

    def _read_back(self, slot: int, chunk: int, size: int) -> float:
        """Compares the chunk with what was written; returns the seconds spent reading. Raises Corruption and DiskError."""
        assert self._back is not None
        path = self._ring.slot_path(slot)
        self.doing = ("pread", path)
        latency = Histogram() if self._in_ramp else self.read_latency
        clock, offset, index, spent = time.monotonic, 0, 0, 0.0
        opened = clock()
        try:
            descriptor = self._ring.open_back(slot)
            try:
                self._io_s += clock() - opened
                while offset < size and not self._hurried(clock()):
                    back = self._back[: min(self._block_bytes, size - offset)]
                    before = clock()
                    got = os.preadv(descriptor, [back], offset)
                    while 0 < got < len(back):
                        more = os.preadv(descriptor, [back[got:]], offset + got)
                        if more <= 0:
                            break
                        got += more
                    took = clock() - before
                    spent += took
                    latency.add(took)
                    if got != len(back):
                        raise OSError(errno.EIO, f"the file ends after {offset + got} of {size} bytes")
                    found = self._data.differs(chunk, index, back)
                    if found is not None:
                        raise Corruption(
                            f"chunk {chunk} in {path} is not what was written: at byte {offset + found.offset} "
                            f"(block {index} of {self._block_bytes} bytes) {found.expected.hex()} was written and "
                            f"{found.found.hex()} is read back; {found.differing} of these 4096 bytes differ, and they "
                            f"say that they are {found.origin}; do not trust this storage before that is explained",
                            path=path,
                        )
                    offset += got
                    index += 1
                    if not self._in_ramp:
                        self.read_bytes += got
            finally:
                self._io_s += spent
                self._close_quietly(descriptor)
        except OSError as error:
            raise self._disk_error("pread", slot, error, chunk=chunk, offset=offset) from error
        return spent

    def _hurried(self, now_s: float) -> bool:
        """A stop ends reading back at once, the deadline only after a while: a last chunk may be large."""
        return self._writer.stopping or now_s > self._deadline_s + self._work.grace_s

    def _finish_short_write(self, descriptor: int, data: memoryview, offset: int, written: int) -> int:
        while written < len(data):
            more = os.pwrite(descriptor, data[written:], offset + written)
            if more <= 0:
                raise OSError(errno.EIO, "the file takes no more bytes")
            written += more
        return written

    def probe(self, descriptor: int, size: int) -> None:
        """Writes `size` bytes and makes them durable. Raises DiskError."""
        offset = index = 0
        operation = "pwrite"
        try:
            while offset < size:
                data = self._data.calibration_block(index)[: size - offset]
                self._finish_short_write(descriptor, data, offset, 0)
                offset += len(data)
                index += 1
            operation = "fsync"
            os.fsync(descriptor)
        except OSError as error:
            raise self._disk_error(operation, 0, error, chunk=None, offset=offset) from error

    def open(self, slot: int, *, chunk: Optional[int]) -> int:
        """A descriptor for writing over a slot. Raises DiskError."""
        self.doing = ("open", self._ring.slot_path(slot))
        try:
            return self._ring.open_slot(slot)
        except OSError as error:
            raise self._disk_error("open", slot, error, chunk=chunk, offset=0) from error

    def _slot(self, chunk: int) -> int:
        return self._number * self._work.keep + chunk // self._work.jobs % self._work.keep

    def _free_bytes(self, chunk: int) -> int:
        slot = self._slot(chunk)
        self.doing = ("statvfs", self._ring.slot_path(slot))
        try:
            return self._ring.free_bytes(slot)
        except OSError as error:
            raise self._disk_error("statvfs", slot, error, chunk=chunk, offset=0) from error

    def _close_quietly(self, descriptor: int) -> None:
        try:
            os.close(descriptor)
        except OSError:  # the first failure is the one that counts
            return

    def _disk_error(self, operation: str, slot: int, error: OSError, *, chunk: Optional[int], offset: int) -> DiskError:
        path = self._ring.slot_path(slot)
        name = errno.errorcode.get(error.errno or 0, "unknown error")
        which = "the calibration" if chunk is None else f"chunk {chunk}"
        unknown = ""
        if chunk is not None:
            unknown = f"{self.handed_bytes - self.durable_bytes} bytes written since the last good fsync are unknown; "
        return DiskError(
            f"{operation} of {which} at byte {offset} of {path} failed with {name} ({error.strerror}); "
            f"{unknown}look at the kernel's log and the space on this disk",
            operation=operation,
            path=path,
            error=error,
        )
