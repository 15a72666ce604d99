"""A file system in user space that passes everything on to a directory, slows writes down or refuses direct I/O.

`python -m tests.agent.slow_disk SOURCE TARGET [options]` mounts SOURCE at TARGET, prints `mounted` and serves it until it is
unmounted. It needs root, and nothing but Python: it speaks the kernel's own protocol (include/uapi/linux/fuse.h) over
/dev/fuse, as far as the agent makes use of it.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import struct
import time
from pathlib import Path
from typing import Callable, Dict, Tuple

_IN = struct.Struct("=IIQQ16x")  # length, operation, number, node; then who asks
_OUT = struct.Struct("=IiQ")  # length, error, number
_ATTRIBUTES = struct.Struct("=6Q10I")
_ENTRY = struct.Struct("=4QII")
_MAX_WRITE = 1 << 20
_BIG_WRITES, _MAX_PAGES = 1 << 5, 1 << 22
_MODE, _SIZE = 1, 8  # of what SETATTR may set
_ROOT = 1
_NO_ANSWER = (2, 36, 42)  # FORGET, INTERRUPT, BATCH_FORGET


class SlowDisk:
    """From `slow_after_s` after its first write on, it holds one write every `every_s` up for `delay_s`."""

    def __init__(self, source: Path, *, direct: bool, slow_after_s: float, every_s: float, delay_s: float) -> None:
        self.source = source
        self._direct = direct
        self._slow_after_s, self._every_s, self._delay_s = slow_after_s, every_s, delay_s
        self._next_stall_s = float("inf")
        self._wrote = False
        self._paths: Dict[int, Path] = {_ROOT: source}
        self._nodes: Dict[Path, int] = {source: _ROOT}
        self._last_node = _ROOT
        self._operations: Dict[int, Callable[[int, bytes], bytes]] = {
            1: self._lookup,
            3: self._getattr,
            4: self._setattr,
            9: self._mkdir,
            10: self._unlink,
            11: self._rmdir,
            14: self._open,
            15: self._read,
            16: self._write,
            17: self._statfs,
            18: self._release,
            20: self._fsync,
            25: self._nothing,
            26: self._init,
            27: self._open,
            28: self._readdir,
            29: self._release,
            30: self._fsync,
            34: self._nothing,
            35: self._create,
            38: self._nothing,
            43: self._fallocate,
        }

    def serve(self, kernel: int) -> None:
        """Answers the kernel until it is unmounted."""
        while True:
            try:
                request = os.read(kernel, _MAX_WRITE + 4096)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                raise
            _, operation, number, node = _IN.unpack_from(request)
            if operation in _NO_ANSWER:
                continue
            answer, failed = b"", 0
            try:
                answer = self._operations.get(operation, _unknown)(node, request[_IN.size :])
            except OSError as error:
                failed = -(error.errno or errno.EIO)
            try:
                os.write(kernel, _OUT.pack(_OUT.size + len(answer), failed, number) + answer)
            except FileNotFoundError:  # whoever asked was killed meanwhile
                continue

    def _init(self, node: int, body: bytes) -> bytes:
        flags = _BIG_WRITES | _MAX_PAGES
        return struct.pack("=IIIIHHIIHHI28x", 7, 31, _MAX_WRITE, flags, 16, 12, _MAX_WRITE, 1, _MAX_WRITE // 4096, 0, 0)

    def _lookup(self, node: int, body: bytes) -> bytes:
        return self._entry(self._below(node, body))

    def _getattr(self, node: int, body: bytes) -> bytes:
        return struct.pack("=QII", 0, 0, 0) + _attributes(self._paths[node])

    def _setattr(self, node: int, body: bytes) -> bytes:
        what, size, mode = struct.unpack_from("=I12xQ44xI", body)
        if what & _SIZE:
            os.truncate(self._paths[node], size)
        if what & _MODE:
            os.chmod(self._paths[node], mode)
        return self._getattr(node, body)

    def _mkdir(self, node: int, body: bytes) -> bytes:
        (mode,) = struct.unpack_from("=I", body)
        path = self._below(node, body[8:])
        path.mkdir(mode)
        return self._entry(path)

    def _unlink(self, node: int, body: bytes) -> bytes:
        path = self._below(node, body)
        path.unlink()
        self._nodes.pop(path, None)
        return b""

    def _rmdir(self, node: int, body: bytes) -> bytes:
        path = self._below(node, body)
        path.rmdir()
        self._nodes.pop(path, None)
        return b""

    def _open(self, node: int, body: bytes) -> bytes:
        (flags,) = struct.unpack_from("=I", body)
        return self._opened(self._paths[node], flags)

    def _create(self, node: int, body: bytes) -> bytes:
        flags, mode = struct.unpack_from("=II", body)
        path = self._below(node, body[16:])
        opened = self._opened(path, flags | os.O_CREAT, mode)
        return self._entry(path) + opened

    def _opened(self, path: Path, flags: int, mode: int = 0) -> bytes:
        if flags & os.O_DIRECT and not self._direct:
            raise OSError(errno.EINVAL, "no direct I/O here")
        descriptor = os.open(path, flags & ~(os.O_DIRECT | os.O_NOFOLLOW), mode)
        return struct.pack("=QII", descriptor, 0, 0)

    def _read(self, node: int, body: bytes) -> bytes:
        descriptor, offset, size = struct.unpack_from("=QQI", body)
        return os.pread(descriptor, size, offset)

    def _write(self, node: int, body: bytes) -> bytes:
        self._stall(time.monotonic())
        descriptor, offset, size = struct.unpack_from("=QQI", body)
        return struct.pack("=II", os.pwrite(descriptor, memoryview(body)[40 : 40 + size], offset), 0)

    def _stall(self, now: float) -> None:
        if not self._wrote:
            self._wrote = True
            self._next_stall_s = now + self._slow_after_s
        if now >= self._next_stall_s:
            self._next_stall_s = now + self._every_s
            time.sleep(self._delay_s)

    def _statfs(self, node: int, body: bytes) -> bytes:
        found = os.statvfs(self.source)
        counts = (found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree)
        return struct.pack("=5Q3I28x", *counts, found.f_bsize, found.f_namemax, found.f_frsize)

    def _fsync(self, node: int, body: bytes) -> bytes:
        os.fsync(struct.unpack_from("=Q", body)[0])
        return b""

    def _release(self, node: int, body: bytes) -> bytes:
        os.close(struct.unpack_from("=Q", body)[0])
        return b""

    def _fallocate(self, node: int, body: bytes) -> bytes:
        descriptor, offset, length = struct.unpack_from("=3Q", body)
        os.posix_fallocate(descriptor, offset, length)
        return b""

    def _readdir(self, node: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("=QQI", body)
        answer = b""
        for number, name in enumerate([".", "..", *sorted(os.listdir(self._paths[node]))]):
            text = os.fsencode(name)
            entry = struct.pack("=QQII", number + 1, number + 1, len(text), 0) + text + b"\0" * (-len(text) % 8)
            if number >= offset and len(answer) + len(entry) <= size:
                answer += entry
        return answer

    def _nothing(self, node: int, body: bytes) -> bytes:
        return b""

    def _below(self, node: int, name: bytes) -> Path:
        return self._paths[node] / os.fsdecode(name.rstrip(b"\0"))

    def _entry(self, path: Path) -> bytes:
        attributes = _attributes(path)
        if path not in self._nodes:
            self._last_node += 1
            self._nodes[path] = self._last_node
            self._paths[self._last_node] = path
        return _ENTRY.pack(self._nodes[path], 0, 0, 0, 0, 0) + attributes


def _attributes(path: Path) -> bytes:
    found = os.lstat(path)
    times = (int(found.st_atime), int(found.st_mtime), int(found.st_ctime))
    owner: Tuple[int, ...] = (found.st_mode, found.st_nlink, found.st_uid, found.st_gid, 0, 4096, 0)
    return _ATTRIBUTES.pack(found.st_ino, found.st_size, found.st_blocks, *times, 0, 0, 0, *owner)


def _unknown(node: int, body: bytes) -> bytes:
    raise OSError(errno.ENOSYS, "not served here")


def main() -> None:
    """Mounts and serves until unmounted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--no-direct", action="store_true")
    parser.add_argument("--slow-after", type=float, default=float("inf"))
    parser.add_argument("--every", type=float, default=1.0)
    parser.add_argument("--delay", type=float, default=0.0)
    given = parser.parse_args()
    disk = SlowDisk(
        given.source,
        direct=not given.no_direct,
        slow_after_s=given.slow_after,
        every_s=given.every,
        delay_s=given.delay,
    )
    kernel = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={kernel},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"slow_disk", os.fsencode(given.target), b"fuse", ctypes.c_ulong(0), options.encode()) != 0:
        raise SystemExit(f"cannot mount: {os.strerror(ctypes.get_errno())}")
    print("mounted", flush=True)
    disk.serve(kernel)


if __name__ == "__main__":
    main()
