"""What the host and the storage under a directory are, and the kernel's own counts of what was written.

Everything comes from /proc, /sys and two system calls, without privileges. A container or a hardened service may hide
any of it: what can't be known is left out or None, and nothing here raises. `root` is put in front of every path that is
read, but not of the one that is asked about: a tree of files can stand in for /proc and /sys.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import re
import shlex
import stat
from typing import Dict, List, Optional, Tuple, Union

Fact = Union[str, int, float, bool, None]

_SECTOR_BYTES = 512  # of `size` and `stat` in sysfs, whatever the device's own blocks are
_TEXT_LIMIT = 1000
_READ_LIMIT = 1 << 22  # mountinfo of a host with ten thousand containers
_NODE_LIMIT = 64  # devices under one: beyond it some are not told
_ESCAPE = re.compile(r"\\([01][0-7]{2})", re.ASCII)
_NETWORK = re.compile(
    r"nfs4?|cifs|smb3|smbfs|9p|ceph|lustre|afs|beegfs|pvfs2|glusterfs|fuse\.(glusterfs|sshfs|ceph|s3fs)"
)
_NOT_TOLD = re.compile(r"(user|username|name|pass|password|secret|domain)=")
_DM_KINDS = {"LVM": "lvm", "CRYPT": "crypt", "mpath": "multipath"}  # of the part of dm/uuid before its first dash


@dataclasses.dataclass(frozen=True)
class Mount:
    """One line of /proc/self/mountinfo (proc_pid_mountinfo(5)); `device` is (major, minor), escapes are decoded.

    `root` is the directory of the file system that is seen at the mount point.
    """

    device: Tuple[int, int]
    root: str
    mount_point: str
    options: str
    file_system: str
    source: str
    super_options: str


def parse_mounts(text: str) -> List[Mount]:
    """The mounts of a mountinfo text in its order, without the lines that are none."""
    mounts = []
    for line in text.split("\n"):  # only that ends one: a mount point may hold any other white space unescaped
        words = line.split(" ")  # an empty source is an empty word
        with contextlib.suppress(ValueError, IndexError):
            dash = words.index("-", 6)
            major, minor = words[2].split(":")
            mounts.append(
                Mount(
                    device=(int(major), int(minor)),
                    root=_decoded(words[3]),
                    mount_point=_decoded(words[4]),
                    options=words[5],
                    file_system=words[dash + 1],
                    source=_decoded(words[dash + 2]),
                    super_options=words[dash + 3],
                )
            )
    return mounts


def mount_of(mounts: List[Mount], path: str, device: Tuple[int, int]) -> Optional[Mount]:
    """The mount that holds `path`, an absolute path without symbolic links, whose st_dev is `device`; or None.

    It is the one with the longest mount point, and of two at one place the later one, which covers the other. The
    device tells which is hidden below a later mount further up. Only where no mount has it (a Btrfs subvolume's files
    have a device of their own) the path alone decides.
    """
    above = [mount for mount in mounts if _is_below(path, mount.mount_point)]
    held = [mount for mount in above if mount.device == device] or above
    return max(enumerate(held), key=lambda item: (len(item[1].mount_point), item[0]))[1] if held else None


def shown_at(mounts: List[Mount], path: str, mount: Mount) -> Optional[Mount]:
    """The mount in which users see at `path` what is mounted elsewhere, for this process alone, as `mount`; or None."""
    same = [
        other
        for other in mounts
        if other.device == mount.device
        and _is_below(path, other.mount_point)
        and os.path.normpath(os.path.join(other.root, os.path.relpath(path, other.mount_point))) == mount.root
    ]
    return max(same, key=lambda other: len(other.mount_point), default=None)


@dataclasses.dataclass(frozen=True)
class BlockDevice:
    """The block device under a file system; `name` is the kernel's, such as `vda1` or `dm-0`."""

    name: str
    directory: str  # its own in sysfs

    def written_bytes(self) -> Optional[int]:
        """Bytes written to it since boot, by whomever; None where that is hidden or the device is gone.

        Sectors written, the seventh number of its `stat` (the kernel's Documentation/block/stat.rst), times 512.
        """
        words = (_read(os.path.join(self.directory, "stat")) or "").split()
        return int(words[6]) * _SECTOR_BYTES if len(words) > 6 and words[6].isdecimal() else None


def block_device(path: str, *, root: str = "/") -> Optional[BlockDevice]:
    """The block device under the file system that `path` is on; None where there is none or it is hidden.

    Of a file system on several devices (Btrfs) it is the one that was named to mount it.
    """
    device = _device_of(path)
    return (
        None if device is None else _block_device(device, mount_of(_mounts(root), os.path.realpath(path), device), root)
    )


def process_written_bytes(*, root: str = "/") -> Optional[int]:
    """Bytes that this process has caused to be sent to storage, by the kernel's own count; None where it hides it."""
    for line in (_read(_below(root, "proc/self/io")) or "").splitlines():
        name, _, value = line.partition(":")
        if name == "write_bytes" and value.strip().isdecimal():
            return int(value)
    return None


def facts(path: str, *, known_as: Optional[str] = None, root: str = "/") -> Dict[str, Fact]:
    """What a reader of the figures wants to know of this host and of the storage that `path` is on.

    Where a directory is mounted at `path` for this process alone, the mount point told is that of `known_as`, the path by
    which users know it.

    At most 100 flat keys; texts have at most 1000 characters; no serial numbers, addresses or user names. What is
    unknown is left out.
    """
    found: Dict[str, Fact] = dict(_host_facts(root))
    device = _device_of(path)
    if device is not None:
        mounts = _mounts(root)
        mount = mount_of(mounts, os.path.realpath(path), device)
        found.update(_file_system_facts(path, mount))
        usual = shown_at(mounts, known_as, mount) if known_as is not None and mount is not None else None
        if usual is not None:
            found["mount_point"] = usual.mount_point
        block = _block_device(device, mount, root)
        if block is not None:
            found.update(_device_facts(block))
    return {key: _text(value) if isinstance(value, str) else value for key, value in found.items() if value is not None}


def cpu_model(cpuinfo: str) -> Optional[str]:
    """The CPU's name in a /proc/cpuinfo text; on ARM, which knows no names, its implementer and part numbers."""
    fields = _fields(cpuinfo)
    if fields.get("model name"):
        return fields["model name"]
    if "CPU implementer" in fields and "CPU part" in fields:
        return f"implementer {fields['CPU implementer']}, part {fields['CPU part']}"
    return None


def _host_facts(root: str) -> Dict[str, Fact]:
    system = os.uname()
    cpuinfo = _read(_below(root, "proc/cpuinfo")) or ""
    total = _fields(_read(_below(root, "proc/meminfo")) or "").get("MemTotal", "").split()
    return {
        "kernel": system.release,
        "machine": system.machine,
        "python": platform.python_version(),
        "os": _os_name(root),
        "machine_model": _machine_model(root, _fields(cpuinfo)),
        "cpus": os.cpu_count() or 0,
        "cpu_model": cpu_model(cpuinfo),
        "memory_total_bytes": int(total[0]) * 1024 if total and total[0].isdecimal() else None,
    }


def _os_name(root: str) -> Optional[str]:
    text = _read(_below(root, "etc/os-release")) or _read(_below(root, "usr/lib/os-release")) or ""
    for line in text.splitlines():
        name, _, value = line.partition("=")
        if name == "PRETTY_NAME":
            with contextlib.suppress(ValueError):  # an open quotation mark
                return " ".join(shlex.split(value)) or None
    return None


def _machine_model(root: str, cpuinfo: Dict[str, str]) -> Optional[str]:
    """The machine as its firmware names it, or `virtual machine` where only the CPU tells that there is a hypervisor."""
    names = [_read(_below(root, "sys/class/dmi/id", name)) for name in ("sys_vendor", "product_name")]
    model = " ".join(name for name in names if name) or _read(_below(root, "proc/device-tree/model"))
    if not model and "hypervisor" in cpuinfo.get("flags", "").split():
        return "virtual machine"
    return model or None


def _file_system_facts(path: str, mount: Optional[Mount]) -> Dict[str, Fact]:
    found: Dict[str, Fact] = {}
    if mount is not None:
        found["file_system"] = mount.file_system
        found["device"] = mount.source
        found["mount_point"] = mount.mount_point
        found["mount_options"] = _all_options(mount)
        if _NETWORK.fullmatch(mount.file_system):
            found["network_server"] = mount.source
    with contextlib.suppress(OSError):
        space = os.statvfs(path)
        found["total_bytes"] = space.f_blocks * space.f_frsize
        found["free_bytes"] = space.f_bavail * space.f_frsize
    return found


def _all_options(mount: Mount) -> str:
    """The mount's own options, then those of the file system that it doesn't have: `ro` of either counts."""
    options = mount.options.split(",")
    options += [option for option in mount.super_options.split(",") if option not in (*options, "rw", "")]
    return ",".join(option for option in options if not _NOT_TOLD.match(option))


def _device_facts(block: BlockDevice) -> Dict[str, Fact]:
    """Limits and cache mode are those of the device itself, which inherits them from what it is built on.

    Model and scheduler are those of the disks at the bottom: a device built on others has none of its own.
    """
    queue = os.path.join(_disk(block.directory), "queue")
    disks = _disks(block.directory)
    size = _number(os.path.join(block.directory, "size"))
    rotational = _number(os.path.join(queue, "rotational"))
    return {
        "device_name": block.name,
        "device_parents": _lineage(block.directory),
        "device_model": _distinct([_read(os.path.join(disk, "device/model")) for disk in disks]),
        "device_size_bytes": None if size is None else size * _SECTOR_BYTES,
        "device_rotational": None if rotational is None else rotational != 0,
        "device_scheduler": _distinct([_chosen(_read(os.path.join(disk, "queue/scheduler"))) for disk in disks]),
        "device_write_cache": _read(os.path.join(queue, "write_cache")),
        "device_logical_block_bytes": _number(os.path.join(queue, "logical_block_size")),
        "device_physical_block_bytes": _number(os.path.join(queue, "physical_block_size")),
        "device_max_kb": _number(os.path.join(queue, "max_sectors_kb")),
    }


def _lineage(directory: str) -> str:
    """What a device is built on, down to its disks: `dm-0 (lvm vg-data) > md0 (raid1) > sda2 > sda, sdb2 > sdb`."""
    nodes = _NODE_LIMIT

    def describe(directory: str) -> str:
        nonlocal nodes
        nodes -= 1
        parts = [describe(below) for below in _built_on(directory) if nodes > 0]
        return _label(directory) + (" > " + ", ".join(parts) if parts else "")

    return describe(directory)


def _label(directory: str) -> str:
    name = os.path.basename(directory)
    mapped = _read(os.path.join(directory, "dm/name"))
    if mapped:
        prefix = (_read(os.path.join(directory, "dm/uuid")) or "").partition("-")[0]
        return f"{name} ({_DM_KINDS[prefix]} {mapped})" if prefix in _DM_KINDS else f"{name} ({mapped})"
    detail = _read(os.path.join(directory, "md/level")) or _read(os.path.join(directory, "loop/backing_file"))
    return f"{name} ({detail})" if detail else name


def _disks(directory: str) -> List[str]:
    """The directories of the disks at the bottom of a device, each once."""
    level, disks = [directory], []
    for _ in range(_NODE_LIMIT):
        above, level = level, []
        for one in above:
            below = _built_on(one)
            level += below
            disks += [] if below else [one]
        level = list(dict.fromkeys(level))[:_NODE_LIMIT]
    return list(dict.fromkeys(disks))[:_NODE_LIMIT]


def _built_on(directory: str) -> List[str]:
    """A partition's disk, or the devices that a mapping or an array consists of."""
    if _is_partition(directory):
        return [os.path.dirname(directory)]
    slaves = os.path.join(directory, "slaves")
    try:
        return [os.path.realpath(os.path.join(slaves, name)) for name in sorted(os.listdir(slaves))]
    except OSError:
        return []


def _disk(directory: str) -> str:
    return os.path.dirname(directory) if _is_partition(directory) else directory


def _is_partition(directory: str) -> bool:
    return os.path.exists(os.path.join(directory, "partition"))


def _device_of(path: str) -> Optional[Tuple[int, int]]:
    try:
        device = os.stat(path).st_dev
    except (OSError, ValueError):
        return None
    return os.major(device), os.minor(device)


def _mounts(root: str) -> List[Mount]:
    return parse_mounts(_read(_below(root, "proc/self/mountinfo")) or "")


def _block_device(device: Tuple[int, int], mount: Optional[Mount], root: str) -> Optional[BlockDevice]:
    """By the number that files have, or where that stands for no device (major 0: Btrfs) by the mount's source."""
    if device[0] != 0:
        return _in_sysfs(_below(root, "sys/dev/block", f"{device[0]}:{device[1]}"))
    if mount is None or not mount.source.startswith("/dev/"):
        return None
    node = _below(root, mount.source)
    with contextlib.suppress(OSError, ValueError):
        found = os.stat(node)
        if stat.S_ISBLK(found.st_mode):
            return _in_sysfs(_below(root, "sys/dev/block", f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"))
    return _named(os.path.basename(os.path.realpath(node)), root)  # no /dev in here


def _named(name: str, root: str) -> Optional[BlockDevice]:
    """The device of this name in /dev or in /dev/mapper, as sysfs alone tells."""
    devices = _below(root, "sys/class/block")
    found = _in_sysfs(os.path.join(devices, name))
    with contextlib.suppress(OSError):
        for other in os.listdir(devices) if found is None else ():
            if _read(os.path.join(devices, other, "dm/name")) == name:
                return _in_sysfs(os.path.join(devices, other))
    return found


def _in_sysfs(link: str) -> Optional[BlockDevice]:
    directory = os.path.realpath(link)
    return BlockDevice(os.path.basename(directory), directory) if os.path.isdir(directory) else None


def _below(root: str, *parts: str) -> str:
    return os.path.join(root, *(part.lstrip("/") for part in parts))


def _is_below(path: str, mount_point: str) -> bool:
    return path == mount_point or path.startswith(mount_point.rstrip("/") + "/")


def _decoded(word: str) -> str:
    return _ESCAPE.sub(lambda escape: chr(int(escape.group(1), 8)), word)


def _chosen(scheduler: Optional[str]) -> Optional[str]:
    """`mq-deadline` of `none [mq-deadline] kyber`; a lone word, without brackets in old kernels, is the one."""
    chosen = re.search(r"\[([^]]+)\]", scheduler or "")
    return chosen.group(1) if chosen else scheduler


def _distinct(values: List[Optional[str]]) -> Optional[str]:
    return ", ".join(dict.fromkeys(value for value in values if value)) or None


def _fields(text: str) -> Dict[str, str]:
    """The first value of each `name : value` line, as /proc/cpuinfo and /proc/meminfo have them."""
    fields: Dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    return fields


def _number(path: str) -> Optional[int]:
    text = _read(path) or ""
    return int(text) if text.isdecimal() else None


def _read(path: str) -> Optional[str]:
    """A small file's text without the white space and NULs around it; None where it can't be read or is empty."""
    try:
        with open(path, "rb") as file:
            content = file.read(_READ_LIMIT)
    except (OSError, ValueError):
        return None
    return os.fsdecode(content).strip("\0 \t\r\n") or None


def _text(value: str) -> str:
    """Fit for JSON: a byte that is no UTF-8 is shown as an escape."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8")[:_TEXT_LIMIT]
