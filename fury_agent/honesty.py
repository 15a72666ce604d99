"""Whether the figures may be believed: what the kernel counted, where the bytes went, and what was the limit.

Nothing here touches the writers' path: the kernel is asked before the first write and after the last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from typing import Any, Callable, Iterator, List, Mapping, Optional

from fury_agent import machine, pagecache
from fury_agent.steady import Steadiness

_CLOSE = 0.02
_BUSY = 0.20
_CACHED = 0.10
_LOOKED_AT_BYTES = 64 << 30


@dataclasses.dataclass(frozen=True)
class Honesty:
    """The checks of docs/protocol.md, each None where it could not be found out; ratios are shares of one."""

    io_used: Optional[str] = None
    io_confirmed_by: Optional[str] = None
    handed_bytes: Optional[int] = None
    process_written_bytes: Optional[int] = None
    process_bytes_ratio: Optional[float] = None
    block_device: Optional[str] = None
    block_device_written_bytes: Optional[int] = None
    block_device_bytes_ratio: Optional[float] = None
    other_device_bytes: Optional[int] = None
    page_cache_ratio: Optional[float] = None
    generator_ratio: Optional[float] = None
    steady: Optional[bool] = None
    steady_slope_ratio: Optional[float] = None
    steady_spread_ratio: Optional[float] = None
    steady_seconds: Optional[float] = None


class Watch:
    """Looks at the kernel's counters around the writing, and at the page cache before and after it.

    path: the chunk directory; open_slot: a descriptor for asking about a slot of the ring.
    """

    def __init__(self, path: str, *, io: str, slots: int, open_slot: Callable[[int], int]) -> None:
        self._io = io
        self._slots = slots
        self._open_slot = open_slot
        self._device = machine.block_device(path)
        self._process_before: Optional[int] = None
        self._device_before: Optional[int] = None
        self._known = Honesty(io_used=io)
        self.offset_alignment: Optional[int] = None

    def confirm(self, *, probed_bytes: int) -> Honesty:
        """How the `probed_bytes` that slot 0 has just seen really went: `io_used` is `buffered` where direct was not."""
        used, by = self._io, None
        if self._io == "direct":
            with self._slot(0) as descriptor:
                if descriptor is not None:
                    told = pagecache.direct_io(descriptor)
                    self.offset_alignment = told.offset_alignment
                    resident = pagecache.resident_bytes(descriptor)
                    cached = None if resident is None else resident > _CACHED * probed_bytes
                    if told.supported is False or cached:
                        used = "buffered"
                    by = "statx" if told.supported is not None else None if cached is None else "page cache"
        self._known = Honesty(io_used=used, io_confirmed_by=by)
        return self._known

    def begin(self) -> None:
        """Notes the kernel's counters just before the first write."""
        self._process_before, self._device_before = machine.process_written_bytes(), self._device_bytes()

    def end(self, *, handed_bytes: int, generator_ratio: Optional[float], steadiness: Optional[Steadiness]) -> Honesty:
        """All checks, once the last byte is durable and before the rings are removed."""
        process = _since(self._process_before, machine.process_written_bytes())
        device = _since(self._device_before, self._device_bytes())
        other = None if process is None or device is None else max(0, device - process)
        return dataclasses.replace(
            self._known,
            handed_bytes=handed_bytes,
            process_written_bytes=process,
            process_bytes_ratio=_ratio(process, handed_bytes),
            block_device=None if self._device is None else self._device.name,
            block_device_written_bytes=device,
            block_device_bytes_ratio=_ratio(device, handed_bytes),
            other_device_bytes=other,
            page_cache_ratio=self._cached_ratio(),
            generator_ratio=generator_ratio,
            steady=None if steadiness is None else steadiness.steady,
            steady_slope_ratio=None if steadiness is None else steadiness.slope_ratio,
            steady_spread_ratio=None if steadiness is None else steadiness.spread_ratio,
            steady_seconds=None if steadiness is None else steadiness.seconds,
        )

    def _device_bytes(self) -> Optional[int]:
        return None if self._device is None else self._device.written_bytes()

    def _cached_ratio(self) -> Optional[float]:
        """Share of the rings that lies in the page cache, of at most their first 64 GiB."""
        size = resident = 0
        for slot in range(self._slots):
            if size >= _LOOKED_AT_BYTES:
                break
            with self._slot(slot) as descriptor:
                if descriptor is None:
                    continue
                found = pagecache.resident_bytes(descriptor)
                if found is None:
                    return None
                resident += found
                size += os.fstat(descriptor).st_size
        return min(1.0, resident / size) if size else None

    @contextlib.contextmanager
    def _slot(self, slot: int) -> Iterator[Optional[int]]:
        try:
            descriptor = self._open_slot(slot)
        except OSError:
            yield None
            return
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def notes(honesty: Honesty, facts: Mapping[str, Any]) -> List[str]:
    """What bites: a sentence for each thing that a reader of the figures has to know. facts: those of `machine.facts`."""
    told = []
    system = facts.get("file_system")
    if system in ("tmpfs", "ramfs"):
        told.append("the directory is memory, not a disk; the figures say nothing about storage")
    elif honesty.io_used == "buffered":
        told.append("writes ended in the page cache; what the storage takes shows in the fsyncs and in the rate")
    if facts.get("network_server"):
        told.append(f"{system} is a network file system: the figures are also those of the network and of its server")
    elif str(system).startswith("fuse."):
        told.append(f"{system} is a file system in user space: its program decides where the bytes go, and when")
    ratio = honesty.process_bytes_ratio
    if ratio is not None and abs(ratio - 1) > _CLOSE:
        told.append(
            f"the kernel charged the agent with {ratio:.2f} times the bytes that it wrote: {_why_charged(ratio, facts)}"
        )
    told += _device_notes(honesty, facts)
    if honesty.generator_ratio is not None and honesty.generator_ratio > _BUSY:
        told.append(
            f"the agent was a limit itself: {honesty.generator_ratio:.0%} of a writer's time went neither into calls of "
            "the disk nor into waiting; larger blocks or more jobs help"
        )
    if honesty.steady is False:
        told.append(
            f"not steady in the last {honesty.steady_seconds or 0:.0f} s: the rate went "
            f"{'up' if (honesty.steady_slope_ratio or 0) > 0 else 'down'} by {abs(honesty.steady_slope_ratio or 0):.0%} "
            f"and varied by {honesty.steady_spread_ratio or 0:.0%}; write for longer, or with ramp_seconds"
        )
    return told


def _device_notes(honesty: Honesty, facts: Mapping[str, Any]) -> List[str]:
    ratio, device = honesty.block_device_bytes_ratio, honesty.block_device
    if ratio is None:
        return []
    if ratio < 1 - _CLOSE:
        return [
            f"{device} wrote {ratio:.2f} times the bytes that the agent wrote: something before it compresses, "
            "merges or keeps them"
        ]
    other, process = honesty.other_device_bytes, honesty.process_written_bytes
    if other is not None and process and other / process > _CLOSE:
        return [
            f"{device} wrote {1 + other / process:.2f} times what this agent gave it: other processes, other agents, "
            "the journal or metadata"
        ]
    return []


def _why_charged(ratio: float, facts: Mapping[str, Any]) -> str:
    if ratio < 1 and facts.get("network_server"):
        return "a network file system does not count them"
    if ratio < 1:
        return "blocks were written over before they got to the disk, or this file system does not count them"
    return "a layer such as a loop device or a file system in user space writes them again"


def _since(before: Optional[int], after: Optional[int]) -> Optional[int]:
    return None if before is None or after is None else after - before


def _ratio(counted: Optional[int], handed_bytes: int) -> Optional[float]:
    return counted / handed_bytes if counted is not None and handed_bytes else None
