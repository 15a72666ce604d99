"""What the kernel tells about the page cache and direct I/O, of real files."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Iterator

import pytest

from fury_agent.machine import block_device
from fury_agent.pagecache import DirectIO, direct_io, resident_bytes

MIB = 1 << 20


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def forget(fd: int) -> None:
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def test_what_was_written_through_the_cache_lies_in_it(fd: int) -> None:
    """All of it, to the last byte of a page that is not full."""
    os.pwrite(fd, b"x" * (3 * MIB + 5), 0)
    assert resident_bytes(fd) == 3 * MIB + 5


def test_what_the_kernel_has_dropped_is_not_counted_nor_read(fd: int, tmp_path: Path) -> None:
    """Asking brings nothing back: the second answer is the first."""
    if block_device(str(tmp_path)) is None:
        pytest.skip("this file system is in memory or elsewhere")
    os.pwrite(fd, b"x" * (4 * MIB), 0)
    forget(fd)
    assert [resident_bytes(fd), resident_bytes(fd)] == [0, 0]
    os.pwrite(fd, b"y" * MIB, 2 * MIB)
    assert resident_bytes(fd) == MIB


def test_a_file_of_many_windows_is_counted_to_its_end(fd: int) -> None:
    """256 MiB are looked at at a time; the holes between are no pages."""
    os.ftruncate(fd, 700 * MIB)
    for offset in (0, 255 * MIB + MIB // 2, 699 * MIB):
        os.pwrite(fd, b"x" * MIB, offset)
    assert resident_bytes(fd) == 3 * MIB


def test_an_empty_file_has_nothing_in_the_cache(fd: int) -> None:
    """Zero is known."""
    assert resident_bytes(fd) == 0


def test_what_is_no_readable_file_is_unknown(fd: int, tmp_path: Path) -> None:
    """A pipe, a directory, a file opened for writing only, a closed descriptor."""
    reading, writing = os.pipe()
    directory = os.open(tmp_path, os.O_RDONLY)
    os.write(fd, b"x")
    only_writing = os.open(tmp_path / "file", os.O_WRONLY)
    assert [resident_bytes(each) for each in (reading, writing, directory, only_writing)] == [None] * 4
    for each in (reading, writing, directory, only_writing):
        os.close(each)
    assert resident_bytes(only_writing) is None
    assert direct_io(only_writing) == DirectIO(None)


def test_a_file_of_somebody_else_is_unknown() -> None:
    """The kernel would call all of it resident."""
    other = os.open("/etc/passwd", os.O_RDONLY)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65_534)
        assert resident_bytes(other) is None
    finally:
        if root:
            os.seteuid(0)
        os.close(other)


def test_direct_io_works_as_it_was_told(fd: int, tmp_path: Path) -> None:
    """Where it is supported, a write with the alignments told succeeds and leaves nothing in the cache; else not."""
    told = direct_io(fd)
    if told.supported is None:
        pytest.skip("nothing is told of this file system")
    buffer = mmap.mmap(-1, told.offset_alignment or mmap.PAGESIZE)  # begins with a page
    direct = -1
    try:
        direct = os.open(tmp_path / "file", os.O_WRONLY | os.O_DIRECT)
        went_past = os.pwrite(direct, buffer, len(buffer)) == len(buffer) and resident_bytes(fd) == 0
    except OSError:
        went_past = False
    finally:
        if direct >= 0:
            os.close(direct)
    assert told.supported == went_past
    assert (told.memory_alignment is None, told.offset_alignment is None) == (not went_past, not went_past)
    assert (told.memory_alignment or 0) <= mmap.PAGESIZE


def test_a_file_system_that_tells_nothing_is_unknown() -> None:
    """Not the same as one that refuses; /proc tells of no file."""
    with open("/proc/self/stat", "rb") as file:
        assert direct_io(file.fileno()) == DirectIO(None)
