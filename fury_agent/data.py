"""What is written: random data made once, and a stamp in each 4 KiB by which it is unique and says what it is.

A block is a slice of a pool of random bytes. Before each write every 4 KiB of it get a stamp, so that no 4096 bytes are ever
written twice, at whatever offset (of 16 bytes) an array compares, and what is read back says which run, agent, process, chunk
and place it was written for. Fresh random bytes for each block would cost ten to fifty times the CPU (bench/data_cost.py).
The random bytes themselves come again after 2 MiB: no compressor that looks back less than that finds anything.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import random
from array import array
from typing import List, NamedTuple, Optional, Tuple

UNIT = 4096
"""Bytes that have a stamp of their own."""

_WORD = 8
POOL_BYTES = 2 << 20
"""What a job's blocks take in memory at least."""

_PIECE_BYTES = 1 << 18  # at a time, so that making the pool takes no memory beside it
_PLACE_BITS = 16  # a block has at most 16,384 times 4 KiB
_REPEATED = 0xFFFFFFFE
_CALIBRATION = 0xFFFFFFFF


class Found(NamedTuple):
    """The first place where what was read back differs.

    offset: in bytes from the block's start; expected, found: up to 16 bytes from there; differing: how many bytes of its
    4 KiB differ; origin: what these say that they are.
    """

    offset: int
    expected: bytes
    found: bytes
    differing: int
    origin: str


class Data:
    """The blocks of one job. `block` returns the next one to write or to expect, in memory that the next call changes.

    Two native 64-bit words at the start of each 4 KiB are its stamp: a hash of run, agent and epoch << 16 | number of the 4 KiB
    in its block, and chunk << 32 | number of the block in the chunk. `compress_percent` of each 4 KiB, its end, are zeros;
    `dedupe_percent` of the blocks, evenly spread, are repeats of one of a few.
    """

    def __init__(
        self,
        *,
        block_bytes: int,
        chunk_bytes: int,
        identity: str,
        seed: str,
        job: int = 0,
        jobs: int = 1,
        compress_percent: int = 0,
        dedupe_percent: int = 0,
    ) -> None:
        self.block_bytes = block_bytes
        self._jobs = jobs
        self._dedupe_percent = dedupe_percent
        self._per_chunk = -(-chunk_bytes // block_bytes)
        self._slices = -(-POOL_BYTES // block_bytes)
        size = self._slices * block_bytes
        memory = pages(size)
        source = random.Random(f"{seed}/{job}")
        for start in range(0, size, _PIECE_BYTES):
            end = min(start + _PIECE_BYTES, size)
            memory[start:end] = source.randbytes(end - start)
        zeros = UNIT * compress_percent // 100
        if zeros:
            blank = bytes(zeros)
            for end in range(UNIT, size + 1, UNIT):
                memory[end - zeros : end] = blank
        words = memory.cast("Q")
        digest = hashlib.blake2b(identity.encode(), digest_size=_WORD).digest()
        self._identity = int.from_bytes(digest, "little") >> _PLACE_BITS
        self._units = block_bytes // UNIT
        first = self._identity << _PLACE_BITS
        words[0 :: UNIT // _WORD] = array("Q", range(first, first + self._units)) * self._slices
        per_slice = block_bytes // _WORD
        self._blocks: List[Tuple[memoryview, memoryview]] = []
        for number in range(self._slices):
            stamps = words[number * per_slice + 1 : (number + 1) * per_slice : UNIT // _WORD]
            self._blocks.append((memory[number * block_bytes : (number + 1) * block_bytes], stamps))
        self._scratch: Optional[bytearray] = None

    def block(self, chunk: int, index: int) -> memoryview:
        """The `index`-th block of a chunk (the last one of a chunk may be used in part)."""
        return self._block(chunk, index, chunk // self._jobs * self._per_chunk + index)

    def calibration_block(self, index: int) -> memoryview:
        """A block to try the disk with."""
        return self._block(_CALIBRATION, index, _CALIBRATION * self._per_chunk + index)

    def _block(self, chunk: int, index: int, number: int) -> memoryview:
        data, stamps = self._blocks[number % self._slices]
        percent = self._dedupe_percent
        if percent and (number + 1) * percent // 100 > number * percent // 100:
            chunk = _REPEATED
            index = 0
        stamps[:] = array("Q", (chunk << 32 | index,)) * self._units
        return data

    def differs(self, chunk: int, index: int, found: memoryview) -> Optional[Found]:
        """Where the `index`-th block of a chunk as it was `found` on the disk is not what was written; None where nowhere."""
        size = len(found)
        expected = self.block(chunk, index)[:size]
        if self._scratch is None or len(self._scratch) != size:
            self._scratch = bytearray(size)
        self._scratch[:] = found
        if self._scratch == expected:  # a bytearray compares by memcmp, two views byte by byte
            return None
        for unit in range(0, size, UNIT):
            wanted, got = bytes(expected[unit : unit + UNIT]), bytes(found[unit : unit + UNIT])
            if wanted != got:
                places = [place for place in range(len(wanted)) if wanted[place] != got[place]]
                at = places[0]
                return Found(unit + at, wanted[at : at + 16], got[at : at + 16], len(places), self._origin(got))
        raise AssertionError("two blocks differ and none of their parts does")

    def _origin(self, unit: bytes) -> str:
        """What 4 KiB say of themselves."""
        words = memoryview(unit).cast("Q")
        if not any(words):
            return "zeros"
        if words[0] >> _PLACE_BITS != self._identity:
            return "no block of this process"
        chunk, index = words[1] >> 32, words[1] & 0xFFFFFFFF
        if chunk == _REPEATED:
            return "of a repeated block"
        if chunk == _CALIBRATION:
            return "of the calibration"
        return f"the 4 KiB number {words[0] & 0xFFFF} of block {index} of chunk {chunk}"


def pages(size: int) -> memoryview:
    """`size` bytes of memory aligned to pages, as O_DIRECT wants it, in huge pages where the kernel has them.

    With those it costs a third of the CPU to hand a large block to the disk (bench/write_path.py).
    """
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)
