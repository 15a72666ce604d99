"""Storage that gives back something else than was written: changed under a real file system, found while it writes."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import re
import shutil
import struct
import sys
import time
from pathlib import Path
from typing import Callable, List, Optional

import pytest

from tests.agent.conftest import AgentProcess, ext4_image
from tests.agent.peer import Peer

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mkfs.ext4") is None, reason="needs root and mkfs.ext4 to make file systems"
)
UNIT = 4096
CHUNK = 4883 * UNIT  # of 20 MB
BLOCK = 1 << 20
LAST = CHUNK // UNIT - 1
_FIBMAP = 1


@dataclasses.dataclass
class Change:
    """What was done to the disk: `offset` is that of the first changed byte in chunk `chunk`, which is now `origin`."""

    chunk: int
    offset: int
    expected: bytes
    found: bytes
    differing: int
    origin: str

    @classmethod
    def of(cls, number: int, expected: bytes, found: bytes) -> Change:
        """What is to be told of 4 KiB of that number that were `expected` and now are `found`."""
        places = [place for place in range(UNIT) if expected[place] != found[place]]
        at = places[0]
        return cls(
            chunk=chunk_of(expected),
            offset=number * UNIT + at,
            expected=expected[at : at + 16],
            found=found[at : at + 16],
            differing=len(places),
            origin=f"the 4 KiB number {word(found, 0) & 0xFFFF} of block {word(found, 1) & 0xFFFFFFFF} "
            f"of chunk {chunk_of(found)}",
        )


def word(unit: bytes, number: int) -> int:
    return int.from_bytes(unit[8 * number : 8 * number + 8], sys.byteorder)


def chunk_of(unit: bytes) -> int:
    return word(unit, 1) >> 32


class Backing:
    """The file under the file system, at the place where the last 4 KiB of a chunk lie."""

    def __init__(self, image: Path, file: Path) -> None:
        with file.open("rb") as chunk:
            self.places = {unit: self._place(chunk.fileno(), unit) for unit in range(LAST - 8, LAST + 1)}
        self.descriptor = os.open(image, os.O_RDWR)

    @staticmethod
    def _place(descriptor: int, unit: int) -> int:
        (block,) = struct.unpack("i", fcntl.ioctl(descriptor, _FIBMAP, struct.pack("i", unit)))
        assert block > 0, "these 4 KiB lie nowhere yet"
        return int(block) * UNIT

    def read(self, unit: int) -> bytes:
        return os.pread(self.descriptor, UNIT, self.places[unit])

    def write(self, unit: int, data: bytes, at: int = 0) -> None:
        os.pwrite(self.descriptor, data, self.places[unit] + at)

    def chunk(self, unit: int) -> int:
        """The chunk that these 4 KiB say they are of."""
        return chunk_of(os.pread(self.descriptor, 32, self.places[unit]))


def flip(disk: Backing, before: List[bytes]) -> Change:
    """One bit in the middle of the last 4 KiB."""
    whole, at = disk.read(LAST), 1234
    spoilt = bytes([whole[at] ^ 4])
    disk.write(LAST, spoilt, at)
    return Change.of(LAST, whole, whole[:at] + spoilt + whole[at + 1 :])


def swap(disk: Backing, before: List[bytes]) -> Change:
    """The last two 4 KiB change places."""
    first, second = disk.read(LAST - 1), disk.read(LAST)
    disk.write(LAST - 1, second)
    disk.write(LAST, first)
    return Change.of(LAST - 1, first, second)


def restore(disk: Backing, before: List[bytes]) -> Change:
    """The last nine 4 KiB are again what an earlier chunk had there: a write that never got to the disk."""
    first = min(disk.places)
    now = disk.read(first)
    for unit, old in zip(sorted(disk.places), before):
        disk.write(unit, old)
    return Change.of(first, now, before[0])


def change_when_written(disk: Backing, spoil: Callable[[Backing, List[bytes]], Change], agent: AgentProcess) -> Change:
    """Spoils the end of a chunk as soon as all of it is there, before it is read; again with the next until it is seen."""
    deadline = time.monotonic() + 20
    done: Optional[Change] = None
    while time.monotonic() < deadline:
        known = disk.chunk(LAST)
        before = [disk.read(unit) for unit in sorted(disk.places)]
        whole = {chunk_of(unit) for unit in before} == {known}
        while disk.chunk(LAST) == known or len({disk.chunk(unit) for unit in disk.places}) > 1:
            if agent.process.poll() is not None:
                assert done is not None, "it ended before anything was changed"
                return done
            assert time.monotonic() < deadline, "no change was seen"
        if whole:
            done = spoil(disk, before)
    raise AssertionError("no change was seen")


def arguments(disk: Path, *more: str) -> List[str]:
    return [
        *("alecto", "--chunk-mb", "20", "--seconds", "30", "--directory", str(disk), "--free-floor-mb", "0"),
        *("--keep", "1", "--verify", "readback", "--json", *more),
    ]


def run_on_changed_disk(
    agent: AgentProcess, image: Path, disk: Path, spoil: Callable[[Backing, List[bytes]], Change]
) -> Change:
    """What was done to the disk that ended the agent."""
    agent.wait_for("rollover 1:")
    backing = Backing(image, disk / "fury-alecto" / "chunk-0.dat")
    try:
        done = change_when_written(backing, spoil, agent)
    finally:
        os.close(backing.descriptor)
    agent.finish()
    return done


@pytest.mark.parametrize("io", ["direct", "buffered"])
@pytest.mark.parametrize("spoil", [flip, swap, restore])
def test_data_changed_under_the_file_system_is_found(
    memory: Path,
    mount: Callable[..., Path],
    start_agent: Callable[..., AgentProcess],
    io: str,
    spoil: Callable[[Backing, List[bytes]], Change],
) -> None:
    """DATA_CORRUPTION with file, byte, block, what was written, what is read and what it is; then it cleans up."""
    disk = mount("disk", "-o", "loop", ext4_image(memory / "image", 100_000_000, "-b", "4096"))
    agent = start_agent(*arguments(disk, "--io", io))
    done = run_on_changed_disk(agent, memory / "image", disk, spoil)
    assert agent.code == 5, agent.out + agent.err
    assert agent.lines[-2] == (
        f"DATA_CORRUPTION: alecto: chunk {done.chunk} in {disk}/fury-alecto/chunk-0.dat is not what was written: "
        f"at byte {done.offset} (block {done.offset // BLOCK} of {BLOCK} bytes) {done.expected.hex()} was written and "
        f"{done.found.hex()} is read back; {done.differing} of these 4096 bytes differ, and they say that they are "
        f"{done.origin}; do not trust this storage before that is explained"
    )
    assert agent.summary["verdict"] == "DATA_CORRUPTION"
    assert agent.summary["cleanup"] == "confirmed"
    assert agent.summary["rollovers"] >= done.chunk
    assert agent.summary["read_bytes"] == done.chunk * CHUNK + done.offset // BLOCK * BLOCK
    assert not re.search("all as written|Traceback", agent.out + agent.err)
    assert [path.name for path in disk.iterdir()] == ["lost+found"]


def test_the_collector_is_told_of_it(
    memory: Path, mount: Callable[..., Path], start_agent: Callable[..., AgentProcess], peer: Peer
) -> None:
    """An error event with the file and the sentence, no call that failed, and the verdict in the final."""
    disk = mount("disk", "-o", "loop", ext4_image(memory / "image", 100_000_000, "-b", "4096"))
    agent = start_agent(*arguments(disk, "--collector-url", peer.url, "--plain-http"))
    done = run_on_changed_disk(agent, memory / "image", disk, flip)
    assert agent.code == 5, agent.out + agent.err
    (error,) = [event for event in peer.stored.values() if event["kind"] == "error"]
    (final,) = [event for event in peer.stored.values() if event["kind"] == "final"]
    assert (error["operation"], error["errno"]) == ("compare", None)
    assert error["path"] == f"{disk}/fury-alecto/chunk-0.dat"
    assert f"{done.expected.hex()} was written and {done.found.hex()} is read back" in error["message"]
    assert (final["verdict"], final["reason"], final["errors"]) == ("DATA_CORRUPTION", error["message"], 1)
