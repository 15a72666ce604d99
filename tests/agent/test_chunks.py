"""The chunk directory: nothing foreign is touched, nothing of Fury's is left."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Callable

import pytest

from fury_agent.chunks import MARKER, ChunkDirectory, remove_dead
from fury_agent.pagecache import resident_bytes
from fury_agent.verdict import FuryError, Verdict


def directory(base: Path, run_id: str = "r1") -> ChunkDirectory:
    return ChunkDirectory(str(base), agent="alecto", run_id=run_id)


def never() -> bool:
    return False


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(FuryError) as caught:
        action()
    assert caught.value.verdict is Verdict.PRECONDITION
    return caught.value.message


def test_it_is_made_marked_and_removed(tmp_path: Path) -> None:
    """A claimed directory holds the marker of docs/protocol.md, private to its user; after remove nothing is left."""
    chunks = directory(tmp_path)
    chunks.claim()
    made = tmp_path / "fury-alecto"
    assert json.loads((made / MARKER).read_text()) == {"fury": 1, "agent": "alecto", "run_id": "r1"}
    assert made.stat().st_mode & 0o777 == 0o700
    assert chunks.allocate(slots=3, size=8192, floor=0, stopped=never)
    assert sorted(path.name for path in made.iterdir()) == [MARKER, "chunk-0.dat", "chunk-1.dat", "chunk-2.dat"]
    assert all(path.stat().st_blocks * 512 >= 8192 for path in made.glob("chunk-*"))
    assert chunks.remove() is None
    assert list(tmp_path.iterdir()) == []
    assert chunks.remove() is None


def test_a_directory_in_use_is_refused_with_the_other_runs_id(tmp_path: Path) -> None:
    """The lock, not the marker's presence, says that a run lives; its chunks are not touched."""
    first = directory(tmp_path, "r1")
    first.claim()
    first.allocate(slots=1, size=4096, floor=0, stopped=never)
    second = directory(tmp_path, "r2")
    assert "is in use by run r1" in refused(second.claim)
    assert "is in use by run r1" in refused(second.inspect)
    assert "is in use by run r1" in (remove_dead(str(tmp_path), agent="alecto") or "")
    assert (tmp_path / "fury-alecto" / "chunk-0.dat").exists()
    assert first.remove() is None


def test_a_dead_runs_directory_is_emptied_and_reused(tmp_path: Path) -> None:
    """A marker without a lock is a dead run's: its chunks go, whatever their number."""
    made = tmp_path / "fury-alecto"
    made.mkdir()
    (made / MARKER).write_text('{"fury": 1, "agent": "alecto", "run_id": "dead"}')
    (made / "chunk-77.dat").write_bytes(b"x")
    chunks = directory(tmp_path)
    chunks.inspect()
    assert (made / "chunk-77.dat").exists()
    chunks.claim()
    assert [path.name for path in made.iterdir()] == [MARKER]
    assert json.loads((made / MARKER).read_text())["run_id"] == "r1"
    assert chunks.remove() is None


@pytest.mark.parametrize("marker", [None, "", "{}", '{"fury": 2}', "not json", '["fury"]'])
def test_a_directory_fury_did_not_make_is_refused_untouched(tmp_path: Path, marker: str) -> None:
    """Without a valid marker its files are somebody's, even when they are called like chunks."""
    made = tmp_path / "fury-alecto"
    made.mkdir()
    (made / "chunk-0.dat").write_bytes(b"precious")
    if marker is not None:
        (made / MARKER).write_text(marker)
    before = sorted(path.name for path in made.iterdir())
    for action in (directory(tmp_path).inspect, directory(tmp_path).claim):
        assert "was not made by Fury" in refused(action)
    assert remove_dead(str(tmp_path), agent="alecto") is not None
    assert sorted(path.name for path in made.iterdir()) == before
    assert (made / "chunk-0.dat").read_bytes() == b"precious"


def test_foreign_files_beside_a_dead_runs_chunks_are_refused(tmp_path: Path) -> None:
    """What Fury did not make is named, so that a person can move it away."""
    made = tmp_path / "fury-alecto"
    made.mkdir()
    (made / MARKER).write_text('{"fury": 1}')
    (made / "notes.txt").write_text("mine")
    assert "notes.txt" in refused(directory(tmp_path).claim)
    assert (made / "notes.txt").read_text() == "mine"


def test_an_empty_directory_may_be_taken(tmp_path: Path) -> None:
    """One prepared for the agent (by an administrator) is used, and removed at the end like its own."""
    (tmp_path / "fury-alecto").mkdir()
    chunks = directory(tmp_path)
    chunks.claim()
    assert chunks.remove() is None
    assert list(tmp_path.iterdir()) == []


def test_no_symbolic_link_is_followed(tmp_path: Path) -> None:
    """Neither the directory, nor the marker, nor a chunk may lead elsewhere."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "chunk-0.dat").write_bytes(b"precious")
    base = tmp_path / "base"
    base.mkdir()
    (base / "fury-alecto").symlink_to(victim)
    assert "is no directory of Fury's" in refused(directory(base).claim)
    assert remove_dead(str(base), agent="alecto") is not None
    (base / "fury-alecto").unlink()
    (base / "fury-alecto").mkdir()
    (base / "fury-alecto" / MARKER).symlink_to(victim / "chunk-0.dat")
    assert "symbolic link" in refused(directory(base).claim)
    (base / "fury-alecto" / MARKER).unlink()
    (base / "fury-alecto" / MARKER).write_text('{"fury": 1}')
    (base / "fury-alecto" / "chunk-0.dat").symlink_to(victim / "chunk-0.dat")
    chunks = directory(base)
    chunks.claim()  # the link is removed as the entry it is
    chunks.allocate(slots=1, size=4096, floor=0, stopped=never)
    (base / "fury-alecto" / "chunk-0.dat").unlink()
    (base / "fury-alecto" / "chunk-0.dat").symlink_to(victim / "chunk-0.dat")
    with pytest.raises(OSError, match="symbolic"):
        chunks.open_slot(0)
    assert chunks.remove() is None
    assert (victim / "chunk-0.dat").read_bytes() == b"precious"


def test_a_marker_that_is_a_pipe_does_not_hang_it(tmp_path: Path) -> None:
    """A FIFO would block whoever opens it; it is refused."""
    (tmp_path / "fury-alecto").mkdir()
    os.mkfifo(tmp_path / "fury-alecto" / MARKER)
    assert "is not a file" in refused(directory(tmp_path).claim)


def test_what_appears_in_it_later_stays_and_is_named(tmp_path: Path) -> None:
    """At the end only Fury's own goes; the directory then stays for the sake of the rest."""
    chunks = directory(tmp_path)
    chunks.claim()
    (tmp_path / "fury-alecto" / "notes.txt").write_text("mine")
    assert "notes.txt, which Fury did not make" in (chunks.remove() or "")
    assert [path.name for path in (tmp_path / "fury-alecto").iterdir()] == ["notes.txt"]


def test_a_directory_removed_under_it_is_no_trouble(tmp_path: Path) -> None:
    """There is nothing left to remove then."""
    chunks = directory(tmp_path)
    chunks.claim()
    (tmp_path / "fury-alecto" / MARKER).unlink()
    (tmp_path / "fury-alecto").rmdir()
    assert chunks.remove() is None


def test_a_directory_moved_away_is_emptied_where_it_is(tmp_path: Path) -> None:
    """A new directory in its old place is somebody else's."""
    chunks = directory(tmp_path)
    chunks.claim()
    chunks.allocate(slots=1, size=4096, floor=0, stopped=never)
    (tmp_path / "fury-alecto").rename(tmp_path / "moved")
    (tmp_path / "fury-alecto").mkdir()
    assert "moved away" in (chunks.remove() or "")
    assert list((tmp_path / "moved").iterdir()) == []
    assert (tmp_path / "fury-alecto").exists()


def test_too_little_space_is_refused_with_both_figures(tmp_path: Path) -> None:
    """The sentence names what is needed and what is free, and nothing is allocated."""
    chunks = directory(tmp_path)
    chunks.claim()
    free = chunks.free_bytes()
    message = refused(lambda: chunks.allocate(slots=2, size=free, floor=0, stopped=never))
    assert f"{2 * free} bytes are needed" in message
    assert "free_floor_mb" in message
    assert "a floor of" in refused(lambda: chunks.allocate(slots=1, size=4096, floor=2 * free, stopped=never))
    assert chunks.remove() is None


def test_a_stop_is_seen_while_it_allocates(tmp_path: Path) -> None:
    """Allocation can take long on some file systems; a signal ends it."""
    chunks = directory(tmp_path)
    chunks.claim()
    assert not chunks.allocate(slots=2, size=4096, floor=0, stopped=lambda: True)
    assert chunks.remove() is None
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_agent_left_is_removed_by_the_supervisor(tmp_path: Path) -> None:
    """The same code empties it once the lock is free; nothing there is fine too."""
    assert remove_dead(str(tmp_path), agent="alecto") is None
    made = tmp_path / "fury-alecto"
    made.mkdir()
    with (made / MARKER).open("w") as marker:
        marker.write('{"fury": 1, "run_id": "dead"}')
        marker.flush()
        (made / "chunk-0.dat").touch()
        fcntl.flock(marker, fcntl.LOCK_EX)
        assert remove_dead(str(tmp_path), agent="alecto") is not None
        assert (made / "chunk-0.dat").exists()
    assert remove_dead(str(tmp_path), agent="alecto") is None
    assert list(tmp_path.iterdir()) == []


def test_a_new_file_takes_the_slots_place(tmp_path: Path) -> None:
    """The old one is unlinked, whatever it is; the new one is private, empty and another inode, with the flags asked for."""
    chunks = directory(tmp_path)
    chunks.claim()
    path = tmp_path / "fury-alecto" / "chunk-0.dat"
    path.write_bytes(b"old")
    with path.open("rb") as held:
        descriptor = chunks.open_slot(0, os.O_SYNC, new=True)
        assert os.fstat(descriptor).st_ino != os.fstat(held.fileno()).st_ino
        assert os.fstat(held.fileno()).st_nlink == 0
        assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_SYNC == os.O_SYNC
        os.close(descriptor)
    assert (path.stat().st_size, path.stat().st_mode & 0o777) == (0, 0o600)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    path.unlink()
    path.symlink_to(victim)
    os.close(chunks.open_slot(0, new=True))
    assert not path.is_symlink()
    assert victim.read_bytes() == b"precious"
    assert chunks.remove() is None


def test_a_ring_of_new_files_is_only_looked_at_for_room(tmp_path: Path) -> None:
    """Nothing is made before the first chunk, and too little space is refused all the same."""
    chunks = directory(tmp_path)
    chunks.claim()
    assert chunks.allocate(slots=4, size=8192, floor=0, stopped=never, reserve=False)
    assert [path.name for path in (tmp_path / "fury-alecto").iterdir()] == [MARKER]
    free = chunks.free_bytes()
    message = refused(lambda: chunks.allocate(slots=2, size=free, floor=0, stopped=never, reserve=False))
    assert "bytes are needed" in message
    assert chunks.remove() is None


def test_what_is_free_counts_what_a_chunk_still_needs(tmp_path: Path) -> None:
    """All of it for a file that isn't there, nothing for one that has its blocks, the rest for one in between."""
    chunks = directory(tmp_path)
    chunks.claim()
    size = 64 << 20
    near = 16 << 20  # others write to this file system too
    assert chunks.free_beside(0, size) == pytest.approx(chunks.free_bytes() - size, abs=near)
    path = tmp_path / "fury-alecto" / "chunk-0.dat"
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
        assert chunks.free_beside(0, size) == pytest.approx(chunks.free_bytes(), abs=near)
        assert chunks.free_beside(0, 2 * size) == pytest.approx(chunks.free_bytes() - size, abs=near)
        os.posix_fallocate(file.fileno(), 0, 2 * size)
        assert chunks.free_beside(0, size) == pytest.approx(chunks.free_bytes(), abs=near)
    assert chunks.remove() is None


@pytest.mark.parametrize("direct", [True, False])
def test_reading_back_goes_past_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: bool) -> None:
    """With O_DIRECT; where that is refused, what is cached of the chunk is dropped before."""
    chunks = directory(tmp_path)
    chunks.claim()
    path = tmp_path / "fury-alecto" / "chunk-0.dat"
    with path.open("wb") as file:
        file.write(os.urandom(1 << 20))
        file.flush()
        os.fsync(file.fileno())
    whole = os.open

    def refuse(path: str, flags: int, *arguments: int, **more: int) -> int:
        if flags & os.O_DIRECT and not direct:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return whole(path, flags, *arguments, **more)

    monkeypatch.setattr(os, "open", refuse)
    descriptor = chunks.open_back(0)
    if not direct:
        assert not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT
    assert resident_bytes(descriptor) in (0, None)
    os.close(descriptor)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        chunks.open_back(0)
    assert chunks.remove() is None


def test_no_slot_opens_a_link_for_reading_either(tmp_path: Path) -> None:
    """Whoever can put a link in a chunk's place learns nothing of the file behind it."""
    chunks = directory(tmp_path)
    chunks.claim()
    (tmp_path / "fury-alecto" / "chunk-0.dat").symlink_to("/etc/hostname")
    for action in (chunks.open_back, chunks.open_cached):
        with pytest.raises(OSError, match="symbolic"):
            action(0)
    assert chunks.remove() is None


def test_a_directory_mounted_elsewhere_is_used_there_and_named_as_users_know_it(tmp_path: Path) -> None:
    """Its own place need not be seen; what was mounted is emptied and left to whoever made it."""
    place = tmp_path / "home/chunks"
    place.mkdir(parents=True)
    place.parent.chmod(0o711)
    chunks = ChunkDirectory("/not/seen", agent="alecto", run_id="r1", mounted_at=str(place))
    chunks.inspect()
    chunks.claim()
    assert chunks.allocate(slots=2, size=4096, floor=0, stopped=never)
    assert sorted(os.listdir(place)) == [MARKER, "chunk-0.dat", "chunk-1.dat"]
    assert chunks.slot_path(1) == "/not/seen/fury-alecto/chunk-1.dat"
    assert chunks.remove() is None
    assert list(place.parent.iterdir()) == [place]
    assert list(place.iterdir()) == []
