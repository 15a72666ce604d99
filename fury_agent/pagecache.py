"""Whether a file's writes really go past the page cache: what of it lies there, and whether it takes direct I/O.

Both ask the kernel through libc and neither reads nor changes the file. Nothing here raises for what can't be known.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import mmap
import os
import stat
import struct
from typing import Optional

_WINDOW_BYTES = 256 << 20  # mapped at a time; the answer takes a byte a page
_RESIDENT = bytes(value & 1 for value in range(256))  # the other bits of mincore's answer are reserved
_MAP_FAILED = ctypes.c_void_p(-1).value

# include/uapi/linux/stat.h and fcntl.h, the same on every architecture
_AT_EMPTY_PATH = 0x1000
_STATX_DIOALIGN = 0x2000
_STATX_BYTES = 256
_STX_MASK = struct.Struct("=I")  # at 0
_STX_DIO = struct.Struct("=II")  # stx_dio_mem_align and stx_dio_offset_align, at 0x98
_STX_DIO_AT = 0x98


@dataclasses.dataclass(frozen=True)
class DirectIO:
    """Whether a file takes O_DIRECT, None where the kernel doesn't tell; then alignments in bytes, None if unknown.

    `memory_alignment` is that of the buffer's address, `offset_alignment` that of file offset and length.
    """

    supported: Optional[bool]
    memory_alignment: Optional[int] = None
    offset_alignment: Optional[int] = None


def resident_bytes(fd: int) -> Optional[int]:
    """How many bytes of a regular file lie in the page cache, counted in whole pages; None if it can't be known.

    `fd` must be open for reading. Since Linux 5.2 mincore(2) calls every page of a file resident that the caller
    neither owns nor may write to: that is None here. A page of which only some blocks were ever written or read doesn't
    count. It takes about 20 ms for each GB of the file.
    """
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not _may_know(fd, status):
            return None
        pages = 0
        for offset in range(0, status.st_size, _WINDOW_BYTES):
            found = _resident_pages(fd, offset, min(_WINDOW_BYTES, status.st_size - offset))
            if found is None:
                return None
            pages += found
    except (OSError, AttributeError):  # a libc without mincore
        return None
    return min(pages * mmap.PAGESIZE, status.st_size)


def direct_io(fd: int) -> DirectIO:
    """What statx(2) says of direct I/O on this file (STATX_DIOALIGN, Linux 6.1).

    Unknown with an older kernel, with a libc without statx (glibc before 2.28), and on file systems that don't report
    it (tmpfs), which may open with O_DIRECT all the same. So do those that say no: ext4 with data=journal writes
    through the cache then.
    """
    answer = ctypes.create_string_buffer(_STATX_BYTES)
    try:
        statx = _libc().statx
    except (OSError, AttributeError):
        return DirectIO(None)
    arguments = (ctypes.c_int(fd), b"", ctypes.c_int(_AT_EMPTY_PATH), ctypes.c_uint(_STATX_DIOALIGN), answer)
    if statx(*arguments) != 0 or not _STX_MASK.unpack_from(answer, 0)[0] & _STATX_DIOALIGN:
        return DirectIO(None)
    memory_alignment, offset_alignment = _STX_DIO.unpack_from(answer, _STX_DIO_AT)
    if not offset_alignment:
        return DirectIO(False)
    return DirectIO(True, memory_alignment, offset_alignment)


def _resident_pages(fd: int, offset: int, size: int) -> Optional[int]:
    """Of one window. Python's own mmap gives no address of a mapping that can't be written to."""
    libc = _libc()
    address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, offset)
    if address in (None, _MAP_FAILED):
        return None
    try:
        count = -(-size // mmap.PAGESIZE)
        answer = ctypes.create_string_buffer(count)
        if libc.mincore(address, size, answer) != 0:
            return None
        return answer.raw.translate(_RESIDENT).count(1)
    finally:
        libc.munmap(address, size)


def _may_know(fd: int, status: os.stat_result) -> bool:
    effective = os.access in os.supports_effective_ids
    return status.st_uid == os.geteuid() or os.access(f"/proc/self/fd/{fd}", os.W_OK, effective_ids=effective)


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    address, size = ctypes.c_void_p, ctypes.c_size_t
    # off_t has 64 bits wherever long has; elsewhere mmap takes a long
    libc.mmap.argtypes = [address, size, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.mmap.restype = address
    libc.mincore.argtypes = [address, size, ctypes.c_char_p]
    libc.munmap.argtypes = [address, size]
    return libc
