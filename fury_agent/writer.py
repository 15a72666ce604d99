"""The one thread that writes: chunk after chunk into a ring of files, timed, durable, and to its own deadline.

It waits for nothing but the disk: what it has to tell goes through callables that only note it.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import mmap
import os
import threading
import time
from array import array
from typing import Callable, List, Optional, Tuple

from fury_agent.histogram import Histogram
from fury_agent.verdict import DiskError

BLOCK_UNIT = 4096
_POOL_BYTES = 4 << 20
_WORDS = BLOCK_UNIT // 8
_SPIN_S = 0.001
_NAP_S = 0.05
_CALIBRATION_BYTES = 64_000_000
_CALIBRATION_S = 1.0
_CALIBRATION_CHUNK = 0xFFFFFFFF
_FIRST_PROBE_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Ring:
    """What the writer needs of the chunk directory: how to open a slot, its path, and how much space is free."""

    slots: int
    chunk_bytes: int
    open_slot: Callable[[int], int]
    slot_path: Callable[[int], str]
    free_bytes: Callable[[], int]
    free_floor_bytes: int


@dataclasses.dataclass(frozen=True)
class Rollover:
    """A chunk that is full, durable and closed. `seconds` run from its first write to the return of its fsync."""

    chunk: int
    bytes: int
    seconds: float
    fsync_seconds: float
    write_p50_s: float
    write_p99_s: float
    write_max_s: float


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far the writer is, at one instant. `durable_bytes` counts only what an fsync has confirmed."""

    started_s: Optional[float]
    ended_s: Optional[float]
    handed_bytes: int
    durable_bytes: int
    tail_bytes: int
    rollovers: int
    write_latency: Histogram
    fsync_latency: Histogram

    @property
    def seconds(self) -> float:
        """Seconds from the first write to the return of the last fsync (to now while it is writing)."""
        if self.started_s is None:
            return 0.0
        return (time.monotonic() if self.ended_s is None else self.ended_s) - self.started_s


class BlockPool:
    """Incompressible data: random bytes made once, in which every 4 KiB get a stamp that no other block ever has.

    The stamp is two native 64-bit words: a hash of run, agent and epoch, then chunk << 32 | number of the 4 KiB in
    the chunk. Stamping a MiB costs about 10 µs, fresh random bytes would cost 4 ms.
    """

    def __init__(self, *, block_bytes: int, identity: str) -> None:
        per_pool = max(1, _POOL_BYTES // block_bytes)
        self._memory = mmap.mmap(-1, per_pool * block_bytes)  # page-aligned
        for start in range(0, len(self._memory), _POOL_BYTES):
            end = min(start + _POOL_BYTES, len(self._memory))
            self._memory[start:end] = os.urandom(end - start)
        view = memoryview(self._memory)
        words = view.cast("Q")
        digest = hashlib.blake2b(identity.encode(), digest_size=8).digest()
        units = per_pool * block_bytes // BLOCK_UNIT
        words[0::_WORDS] = array("Q", [int.from_bytes(digest, "little")] * units)
        per_block = block_bytes // BLOCK_UNIT
        self.blocks: List[Tuple[memoryview, memoryview]] = [
            (
                view[number * block_bytes : (number + 1) * block_bytes],
                words[number * per_block * _WORDS + 1 : (number + 1) * per_block * _WORDS : _WORDS],
            )
            for number in range(per_pool)
        ]
        self.units_per_block = per_block


class Writer:
    """Writes to a ring of slots until its deadline, in a thread of its own; any other may ask for its `progress`."""

    def __init__(
        self,
        ring: Ring,
        *,
        block_bytes: int,
        identity: str,
        on_start: Callable[[float], None],
        on_rollover: Callable[[Rollover], None],
        on_end: Callable[[], None],
    ) -> None:
        self._ring = ring
        self._block_bytes = min(block_bytes, ring.chunk_bytes)
        self._pool = BlockPool(block_bytes=self._block_bytes, identity=identity)
        self._on_start = on_start
        self._on_rollover = on_rollover
        self._on_end = on_end
        self._thread: Optional[threading.Thread] = None
        self._lock = threading.Lock()  # taken once per chunk by the writer, for the histograms only
        self._write_latency = Histogram()
        self._chunk_latency = Histogram()
        self._fsync_latency = Histogram()
        self._started_s: Optional[float] = None
        self._ended_s: Optional[float] = None
        self._handed_bytes = 0
        self._durable_bytes = 0
        self._tail_bytes = 0
        self._rollovers = 0
        self._stop = False
        self.doing = ("nothing", "")
        self.failure: Optional[BaseException] = None
        self.unknown_bytes = 0
        self.floor_reached: Optional[int] = None
        self.stopped_s: Optional[float] = None

    def calibrate(self, *, stopped: Callable[[], bool]) -> float:
        """Bytes per second that this disk makes durable, from writes into the ring's first slot.

        Probes grow fourfold and the last one is the estimate: small probes measure the fsync more than the disk.
        At most min(chunk, 64 MB) each and about a second in all. Raises DiskError.
        """
        limit = min(self._ring.chunk_bytes, _CALIBRATION_BYTES)
        size = min(_FIRST_PROBE_BYTES, limit)
        began = time.monotonic()
        descriptor = self._open(0, chunk=None)
        try:
            while True:
                probe_began = time.monotonic()
                self._probe(descriptor, size)
                now = time.monotonic()
                rate = size / max(now - probe_began, 1e-9)
                larger = min(size * 4, limit)
                if size >= limit or stopped() or now - began + larger / rate > _CALIBRATION_S:
                    return rate
                size = larger
        finally:
            os.close(descriptor)

    def start(self, *, start_s: float, runtime_s: float) -> None:
        """Begins to write at the instant `start_s` of time.monotonic() and ends `runtime_s` later."""
        self._thread = threading.Thread(
            target=self._run, args=(start_s, start_s + runtime_s), name="writer", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Asks the writer to end after the block it is writing. Safe in a signal handler."""
        self._stop = True

    def join(self, timeout_s: float) -> bool:
        """Waits for the writer's end; False when it is still in a call of the disk's after `timeout_s`."""
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def progress(self) -> Progress:
        """How far the writer is."""
        with self._lock:
            write_latency = self._write_latency.copy()
            write_latency.merge(self._chunk_latency.copy())
        return Progress(
            started_s=self._started_s,
            ended_s=self._ended_s,
            handed_bytes=self._handed_bytes,
            durable_bytes=self._durable_bytes,
            tail_bytes=self._tail_bytes,
            rollovers=self._rollovers,
            write_latency=write_latency,
            fsync_latency=self._fsync_latency.copy(),
        )

    def _run(self, start_s: float, deadline_s: float) -> None:
        try:
            self._wait_until(start_s)
            chunk = 0
            while not self._must_end(deadline_s, time.monotonic()):
                free = self._free_bytes(chunk)
                if free < self._ring.free_floor_bytes:
                    self.floor_reached = free
                    return
                if not self._write_chunk(chunk, deadline_s):
                    return
                chunk += 1
        except BaseException as error:  # noqa: BLE001 - the agent reports whatever ended its writer
            self.failure = error
        finally:
            if self._started_s is not None and self._ended_s is None:
                self._ended_s = time.monotonic()
            self.doing = ("nothing", "")
            self._on_end()

    def _must_end(self, deadline_s: float, now_s: float) -> bool:
        if now_s >= deadline_s:
            return True
        if self._stop and self.stopped_s is None:
            self.stopped_s = now_s
        return self._stop

    def _wait_until(self, start_s: float) -> None:
        while not self._stop:
            left = start_s - time.monotonic()
            if left <= 0:
                return
            if left > _SPIN_S:
                time.sleep(min(left - _SPIN_S, _NAP_S))  # short naps, so that a stop is seen

    def _write_chunk(self, chunk: int, deadline_s: float) -> bool:
        """Fills one chunk and makes it durable. False when it was cut short; what it holds then is the tail."""
        slot = chunk % self._ring.slots
        descriptor = self._open(slot, chunk=chunk)
        try:
            if self._started_s is None:
                self._started_s = time.monotonic()
                self._on_start(self._started_s)
            began = time.monotonic()
            written = self._fill(descriptor, slot, chunk, deadline_s)
            if not written:
                self._close_quietly(descriptor)
                return False
            self.doing = ("fsync", self._ring.slot_path(slot))
            fsync_began = time.monotonic()
            try:
                os.fsync(descriptor)
            except OSError as error:
                raise self._disk_error("fsync", slot, error, chunk=chunk, offset=written) from error
            ended = time.monotonic()
        except BaseException:
            self._close_quietly(descriptor)
            raise
        try:
            os.close(descriptor)
        except OSError as error:
            raise self._disk_error("close", slot, error, chunk=chunk, offset=written) from error
        self._fsync_latency.add(ended - fsync_began)
        latency = self._chunk_latency
        with self._lock:
            self._write_latency.merge(latency)
            self._chunk_latency = Histogram()
        if written < self._ring.chunk_bytes:
            self._tail_bytes = written
            self._durable_bytes += written
            return False
        self._durable_bytes += written
        self._rollovers += 1
        self._on_rollover(
            Rollover(
                chunk=chunk,
                bytes=written,
                seconds=ended - began,
                fsync_seconds=ended - fsync_began,
                write_p50_s=latency.percentile(0.5) or 0.0,
                write_p99_s=latency.percentile(0.99) or 0.0,
                write_max_s=latency.maximum or 0.0,
            )
        )
        return True

    def _fill(self, descriptor: int, slot: int, chunk: int, deadline_s: float) -> int:
        """Writes blocks until the chunk is full, the deadline has passed or a stop is asked; returns the bytes."""
        # The hot loop: local names, no allocation but the stamps of one block, one clock call per block and side.
        clock, pwrite, record = time.monotonic, os.pwrite, self._chunk_latency.add
        blocks, units, block_bytes = self._pool.blocks, self._pool.units_per_block, self._block_bytes
        chunk_bytes = self._ring.chunk_bytes
        stamp = chunk << 32
        offset = turn = 0
        handed = self._handed_bytes
        self.doing = ("pwrite", self._ring.slot_path(slot))
        try:
            while offset < chunk_bytes:
                data, stamps = blocks[turn]
                turn = (turn + 1) % len(blocks)
                stamps[:] = array("Q", range(stamp, stamp + units))
                stamp += units
                if chunk_bytes - offset < block_bytes:
                    data = data[: chunk_bytes - offset]
                before = clock()
                if (before >= deadline_s or self._stop) and self._must_end(deadline_s, before):
                    break
                written = pwrite(descriptor, data, offset)
                if written != len(data):
                    written = self._finish_short_write(descriptor, data, offset, written)
                record(clock() - before)
                offset += written
                self._handed_bytes = handed + offset
        except OSError as error:
            raise self._disk_error("pwrite", slot, error, chunk=chunk, offset=offset) from error
        return offset

    def _finish_short_write(self, descriptor: int, data: memoryview, offset: int, written: int) -> int:
        while written < len(data):
            more = os.pwrite(descriptor, data[written:], offset + written)
            if more <= 0:
                raise OSError(errno.EIO, "the file takes no more bytes")
            written += more
        return written

    def _probe(self, descriptor: int, size: int) -> None:
        offset = 0
        units = self._pool.units_per_block
        stamp = _CALIBRATION_CHUNK << 32
        operation = "pwrite"
        try:
            while offset < size:
                data, stamps = self._pool.blocks[(offset // self._block_bytes) % len(self._pool.blocks)]
                stamps[:] = array("Q", range(stamp, stamp + units))
                stamp += units
                data = data[: size - offset]
                self._finish_short_write(descriptor, data, offset, 0)
                offset += len(data)
            operation = "fsync"
            os.fsync(descriptor)
        except OSError as error:
            raise self._disk_error(operation, 0, error, chunk=None, offset=offset) from error

    def _free_bytes(self, chunk: int) -> int:
        self.doing = ("statvfs", self._ring.slot_path(chunk % self._ring.slots))
        try:
            return self._ring.free_bytes()
        except OSError as error:
            slot = chunk % self._ring.slots
            raise self._disk_error("statvfs", slot, error, chunk=chunk, offset=0) from error

    def _open(self, slot: int, *, chunk: Optional[int]) -> int:
        self.doing = ("open", self._ring.slot_path(slot))
        try:
            return self._ring.open_slot(slot)
        except OSError as error:
            raise self._disk_error("open", slot, error, chunk=chunk, offset=0) from error

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
            self.unknown_bytes = self._handed_bytes - self._durable_bytes
            unknown = f"{self.unknown_bytes} bytes written since the last good fsync are unknown; "
        return DiskError(
            f"{operation} of {which} at byte {offset} of {path} failed with {name} ({error.strerror}); "
            f"{unknown}look at the kernel's log and the space on this disk",
            operation=operation,
            path=path,
            error=error,
        )
