"""The chunk directory: made, marked and locked by one agent, filled with a ring of chunks, and removed.

Nothing here follows a symbolic link or names a path: everything goes through the descriptor of the directory, so that
whoever renames or replaces it afterwards cannot lead the agent elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import stat
from typing import Any, Callable, Dict, List, Optional

from fury_agent.verdict import FuryError, Verdict

MARKER = ".fury.json"
_CHUNK = re.compile(r"chunk-[0-9]+\.dat", re.ASCII)
_NO_FOLLOW = os.O_NOFOLLOW | os.O_CLOEXEC
_ALLOCATION_STEP = 1 << 30
_CLAIM_ATTEMPTS = 20


def megabytes(size: int) -> str:
    """A size for people: megabytes, or gigabytes from 10 GB on."""
    return f"{size / 1e9:.1f} GB" if size >= 10_000_000_000 else f"{size / 1e6:.0f} MB"


class ChunkDirectory:
    """`<base>/fury-<agent>`: `claim` makes or takes it over, `allocate` the ring, `remove` leaves nothing of it.

    A unit may have mounted it at `mounted_at` for this process, which then may not see `base`. For people `path` stays what
    it is, and `remove` leaves the empty directory to whoever made and mounted it.
    """

    def __init__(self, base: str, *, agent: str, run_id: str, mounted_at: Optional[str] = None) -> None:
        self.agent = agent
        self.run_id = run_id
        self.base = base
        self.path = os.path.join(base, f"fury-{agent}")
        self.seen_at = mounted_at or self.path
        """Where this process finds it."""
        self.storage = mounted_at or base
        """A path on its file system that is there before it is claimed."""
        self._mounted = mounted_at is not None
        self._name = os.path.basename(self.seen_at)
        self._base: Optional[int] = None
        self._directory: Optional[int] = None
        self._marker: Optional[int] = None
        self._made = False

    @property
    def claimed(self) -> bool:
        """Whether this process holds the marker's lock."""
        return self._marker is not None

    def claim(self) -> None:
        """Makes and marks the directory, or takes over the empty or dead one that is there, emptied of its chunks.

        Raises FuryError (PRECONDITION) where it is another's: not a directory, in use, or with foreign files in it.
        """
        try:
            for _ in range(_CLAIM_ATTEMPTS):  # an agent that is just leaving may remove what we have just opened
                self._base = self._open_base()
                with contextlib.suppress(FileExistsError):
                    os.mkdir(self._name, 0o700, dir_fd=self._base)
                    self._made = True
                if self._take():
                    self._mark()
                    return
                self._release()
            raise self._refusal("is being made and removed by another run; try again or use another name")
        except OSError as error:
            if self._made:
                self.remove()
            self._release()
            raise self._refusal(f"cannot be prepared ({_reason(error)}); give a directory this user can use") from error
        except FuryError:
            self._release()
            raise

    def inspect(self) -> None:
        """Raises as `claim` would, and changes nothing."""
        try:
            self._base = self._open_base()
            with contextlib.suppress(FileNotFoundError):
                self._take(make_marker=False)
        except OSError as error:
            raise self._refusal(f"cannot be used ({_reason(error)}); give a directory this user can use") from error
        finally:
            self._release()

    def free_bytes(self) -> int:
        """Bytes that this user may still write to the file system."""
        status = os.statvfs(self.storage) if self._directory is None else os.fstatvfs(self._directory)
        return status.f_bavail * status.f_frsize

    def require_space(self, *, needed: int, floor: int) -> None:
        """Raises FuryError (PRECONDITION) unless `needed` more bytes leave `floor` bytes free."""
        free = self.free_bytes()
        if free < needed + floor:
            raise FuryError(
                Verdict.PRECONDITION,
                f"{self.base} has {megabytes(free)} ({free} bytes) free, but {needed + floor} bytes are needed: "
                f"{megabytes(needed)} for the ring of chunks and a floor of {megabytes(floor)} that stays free; "
                "free some space, or lower chunk_mb, keep or free_floor_mb",
            )

    def allocate(self, *, slots: int, size: int, floor: int, stopped: Callable[[], bool], reserve: bool = True) -> bool:
        """Makes the ring: `slots` files whose `size` bytes are reserved. False when `stopped` said so meanwhile.

        Without `reserve` there is only a look whether they have room. Raises FuryError (PRECONDITION) where space, quota or
        a limit forbids it; what was made is then removed again.
        """
        self.require_space(needed=slots * size, floor=floor)
        slot = 0
        try:
            while reserve and slot < slots:
                if not self._make_slot(slot, size, stopped):
                    return False
                slot += 1
        except OSError as error:
            free = self.free_bytes()
            self.remove_chunks()
            raise FuryError(
                Verdict.PRECONDITION,
                f"{self.slot_path(slot)} cannot be made ({_reason(error)}): the ring needs {slots * size} bytes and "
                f"{free} are free for this user; free some space, or lower chunk_mb or keep",
            ) from error
        if self.free_bytes() < floor:  # somebody else was as quick as we were
            self.remove_chunks()
            self.require_space(needed=slots * size, floor=floor)
        self.settle()
        return True

    def slot_name(self, slot: int) -> str:
        """The file of a slot of the ring."""
        return f"chunk-{slot}.dat"

    def open_slot(self, slot: int, flags: int = 0, *, new: bool = False) -> int:
        """A descriptor for writing over the file of this slot of the ring, or into a `new` one in its place."""
        if new:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.slot_name(slot), dir_fd=self._directory)
            flags |= os.O_CREAT | os.O_EXCL
        return os.open(self.slot_name(slot), os.O_WRONLY | _NO_FOLLOW | flags, 0o600, dir_fd=self._directory)

    def open_back(self, slot: int) -> int:
        """A descriptor for reading a slot past the page cache: with O_DIRECT, or after dropping what is cached of it."""
        name, flags = self.slot_name(slot), os.O_RDONLY | _NO_FOLLOW
        try:
            descriptor = os.open(name, flags | os.O_DIRECT, dir_fd=self._directory)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            descriptor = os.open(name, flags, dir_fd=self._directory)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return descriptor

    def open_cached(self, slot: int) -> int:
        """A descriptor for asking the kernel about a slot."""
        return os.open(self.slot_name(slot), os.O_RDONLY | _NO_FOLLOW, dir_fd=self._directory)

    def settle(self) -> None:
        """Makes the names of new files durable."""
        os.fsync(self._open_directory())

    def free_beside(self, slot: int, size: int) -> int:
        """What would be free if the file of this slot, which may not be there yet, had `size` bytes."""
        allocated = 0
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(self.slot_name(slot), dir_fd=self._directory, follow_symlinks=False)
            allocated = min(found.st_blocks * 512, size)
        return self.free_bytes() - (size - allocated)

    def slot_path(self, slot: int) -> str:
        """The path of a slot, for messages."""
        return f"{self.path}/{self.slot_name(slot)}"

    def remove_chunks(self) -> None:
        """Removes every chunk, and nothing else."""
        directory = self._open_directory()
        for entry in os.listdir(directory):
            if _CHUNK.fullmatch(entry):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry, dir_fd=directory)

    def remove(self) -> Optional[str]:
        """Removes the chunks, the marker and the directory of a claimed directory.

        Returns None when nothing is left, else what is left and why, as part of a sentence.
        """
        if self._base is None or self._directory is None or self._marker is None:
            return None
        try:
            self.remove_chunks()
            foreign = self._foreign()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(MARKER, dir_fd=self._directory)
            if foreign:
                return f"{self.path} is left: it holds {_listed(foreign)}, which Fury did not make"
            if self._is_in_place():
                if not self._mounted:
                    self._remove_directory()
            elif os.fstat(self._directory).st_nlink > 0:
                return f"the chunk directory was moved away from {self.path} and is left there, emptied"
        except OSError as error:
            return f"{self.path} is left: {_reason(error)}"
        finally:
            self._release()
        return None

    def _remove_directory(self) -> None:
        try:
            os.rmdir(self._name, dir_fd=self._base)
        except PermissionError:
            # Root made it for us where we can't make any; empty as it is now, it is root's to remove again.
            if self._made:
                raise

    def _open_base(self) -> int:
        """For use as a dir_fd only: it may be a directory that this user passes through and can't list."""
        return os.open(os.path.dirname(self.seen_at), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def _take(self, *, make_marker: bool = True) -> bool:
        """Opens the directory and its marker and locks it. False when it vanished meanwhile: try again."""
        try:
            self._directory = os.open(self._name, os.O_RDONLY | os.O_DIRECTORY | _NO_FOLLOW, dir_fd=self._base)
        except FileNotFoundError:
            return not make_marker
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise self._refusal("is no directory of Fury's; remove it or use another name or directory") from None
            raise
        entries = os.listdir(self._directory)
        if MARKER not in entries and entries:
            raise self._refusal(
                f"was not made by Fury: it holds {_listed(entries)} and no {MARKER}; use another name or directory"
            )
        flags = os.O_RDWR | os.O_NONBLOCK | _NO_FOLLOW | (os.O_CREAT if make_marker else 0)
        try:
            self._marker = os.open(MARKER, flags, 0o600, dir_fd=self._directory)
        except FileNotFoundError:
            return not make_marker  # removed between mkdir and here
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise self._refusal(f"was not made by Fury: its {MARKER} is a symbolic link") from None
            raise
        if not stat.S_ISREG(os.fstat(self._marker).st_mode):
            raise self._refusal(f"was not made by Fury: its {MARKER} is not a file")
        try:
            fcntl.flock(self._marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            run = self._read_marker().get("run_id")
            owner = f"run {run}" if isinstance(run, str) else "another run"
            raise self._refusal(
                f"is in use by {owner}; wait for its end, or give this agent another name or directory"
            ) from None
        if make_marker and not (self._is_in_place() and self._marker_in_place()):
            return False
        self._check_contents()
        return True

    def _check_contents(self) -> None:
        foreign = self._foreign()
        if os.fstat(self._open_marker()).st_size == 0:
            # Died between making and filling the marker; chunks are only made after that.
            others = [entry for entry in os.listdir(self._open_directory()) if entry != MARKER]
            if others:
                raise self._refusal(f"was not made by Fury: it holds {_listed(others)} and an empty {MARKER}")
        elif self._read_marker().get("fury") != 1:
            raise self._refusal(
                f"was not made by Fury: its {MARKER} says something else; use another name or directory"
            )
        if foreign:
            raise self._refusal(f"holds {_listed(foreign)}, which Fury did not make; move it away or use another name")

    def _mark(self) -> None:
        self.remove_chunks()
        text = json.dumps({"fury": 1, "agent": self.agent, "run_id": self.run_id}) + "\n"
        marker = self._open_marker()
        os.ftruncate(marker, 0)
        os.pwrite(marker, text.encode(), 0)
        os.fsync(marker)

    def _make_slot(self, slot: int, size: int, stopped: Callable[[], bool]) -> bool:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW
        descriptor = os.open(self.slot_name(slot), flags, 0o600, dir_fd=self._directory)
        try:
            for start in range(0, size, _ALLOCATION_STEP):
                if stopped():
                    return False
                self._reserve(descriptor, start, min(_ALLOCATION_STEP, size - start))
        finally:
            os.close(descriptor)
        return True

    def _reserve(self, descriptor: int, start: int, size: int) -> None:
        try:
            os.posix_fallocate(descriptor, start, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
            os.ftruncate(descriptor, start + size)  # no reservation here: ENOSPC is then met while writing

    def _read_marker(self) -> Dict[str, Any]:
        try:
            values = json.loads(os.pread(self._open_marker(), 65_536, 0).decode("utf-8"))
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}

    def _foreign(self) -> List[str]:
        entries = os.listdir(self._open_directory())
        return [entry for entry in entries if entry != MARKER and not _CHUNK.fullmatch(entry)]

    def _is_in_place(self) -> bool:
        try:
            found = os.stat(self._name, dir_fd=self._base, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(found, os.fstat(self._open_directory()))

    def _marker_in_place(self) -> bool:
        try:
            found = os.stat(MARKER, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(found, os.fstat(self._open_marker()))

    def _open_directory(self) -> int:
        if self._directory is None:
            raise RuntimeError("the chunk directory is not open")
        return self._directory

    def _open_marker(self) -> int:
        if self._marker is None:
            raise RuntimeError("the marker is not open")
        return self._marker

    def _refusal(self, what: str) -> FuryError:
        return FuryError(Verdict.PRECONDITION, f"{self.path} {what}")

    def _release(self) -> None:
        for descriptor in (self._marker, self._directory, self._base):
            if descriptor is not None:
                os.close(descriptor)
        self._marker = self._directory = self._base = None


def remove_dead(base: str, *, agent: str) -> Optional[str]:
    """Removes what a dead agent of this name left below `base`; None when nothing is left, else what and why."""
    directory = ChunkDirectory(base, agent=agent, run_id="cleanup")
    if not os.path.lexists(directory.path):
        return None
    try:
        directory.claim()
    except FuryError as error:
        return error.message
    return directory.remove()


def _listed(entries: List[str]) -> str:
    shown = sorted(entries)[:3]
    more = len(entries) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _reason(error: OSError) -> str:
    name = errno.errorcode.get(error.errno or 0, "unknown error")
    return f"{name}: {error.strerror}"
