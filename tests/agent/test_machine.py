"""The facts of a host and its storage, read from trees of files that stand in for /proc and /sys."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Dict

import pytest

from fury_agent.machine import (
    Mount,
    block_device,
    cpu_model,
    facts,
    mount_of,
    parse_mounts,
    process_written_bytes,
)

STAT = "  1 2 3 4 5 6 2000 8 0 10 11\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    return data


def number(path: Path) -> str:
    """The device of a real file, for devices that don't exist; on tmpfs, where it is none, they are found by name."""
    device = path.stat().st_dev
    return f"{os.major(device)}:{os.minor(device)}"


def write(root: Path, files: Dict[str, str]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(content))


def device(root: Path, at: str, number: str, files: Dict[str, str]) -> Path:
    """A block device at /sys/devices/<at>, with the links that lead to it."""
    directory = root / "sys/devices" / at
    directory.mkdir(parents=True)
    write(directory, files)
    for link in (root / "sys/dev/block" / number, root / "sys/class/block" / directory.name):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(directory, link.parent))
    return directory


def built_on(above: Path, *below: Path) -> None:
    slaves = above / "slaves"
    slaves.mkdir()
    for one in below:
        (slaves / one.name).symlink_to(os.path.relpath(one, slaves))


def mountinfo(root: Path, *lines: str) -> None:
    write(root, {"proc/self/mountinfo": "".join(line + "\n" for line in lines)})


def mounted(mount_point: str, device: str = "8:1", source: str = "/dev/sda1") -> str:
    return f"30 1 {device} / {mount_point} rw,relatime shared:1 - ext4 {source} rw"


# --- mounts ------------------------------------------------------------------------------------------------------


def test_a_line_of_mountinfo_is_understood() -> None:
    """Any number of optional fields stands before the dash, the file system and its options after it."""
    for optional in ("", "shared:1 ", "shared:1 master:2 "):
        line = f"36 35 259:2 /root /mnt rw,noatime {optional}- ext3 /dev/nvme0n1p2 rw,errors=continue"
        assert parse_mounts(line) == [
            Mount((259, 2), "/root", "/mnt", "rw,noatime", "ext3", "/dev/nvme0n1p2", "rw,errors=continue")
        ]


def test_blanks_in_a_mount_point_are_decoded() -> None:
    """The kernel writes blank, tab, newline and backslash in octal; everything else is itself, a line separator too."""
    assert parse_mounts(mounted("/my\\040\\134040\\011disk"))[0].mount_point == "/my \\040\tdisk"
    assert parse_mounts(mounted("/grün\u2028"))[0].mount_point == "/grün\u2028"


def test_an_empty_source_and_broken_lines_do_no_harm() -> None:
    """`mount -t tmpfs '' /x` leaves two blanks in a row; what is no mount is passed over."""
    text = "x\n\n36 35 8:1 / /mnt rw\n36 35 a:b / /m rw - ext4 s rw\n36 35 0:5 / /x rw - tmpfs  rw,size=4k\n"
    assert [(mount.source, mount.super_options) for mount in parse_mounts(text)] == [("", "rw,size=4k")]


def test_the_longest_mount_point_above_a_path_holds_it() -> None:
    """`/data` is not above `/data2`, and a bind mount of the same device further away isn't it either."""
    mounts = parse_mounts(
        "\n".join(mounted(point) for point in ("/", "/data/a", "/data", "/data/ab", "/other/long/one"))
    )
    assert [mount_of(mounts, path, (8, 1)) for path in ("/data/a/x", "/data/a", "/data2", "/data/abc")] == [
        mounts[1],
        mounts[1],
        mounts[0],
        mounts[2],
    ]


def test_a_later_mount_covers_an_earlier_one() -> None:
    """At the same place the last counts; further up it hides what was mounted below, as the device tells."""
    mounts = parse_mounts(
        "\n".join(
            (mounted("/a"), mounted("/a", source="/dev/new"), mounted("/a/b", "8:2"), mounted("/a", "8:3", "/dev/top"))
        )
    )
    assert mount_of(mounts, "/a/x", (8, 1)) == mounts[1]
    assert mount_of(mounts, "/a/b/c", (8, 2)) == mounts[2]
    assert mount_of(mounts, "/a/b/c", (8, 3)) == mounts[3]


def test_a_file_system_whose_files_have_another_device_is_found_by_its_path() -> None:
    """Btrfs gives each subvolume a device that mountinfo doesn't know."""
    mounts = parse_mounts("\n".join((mounted("/"), mounted("/srv", "0:40"))))
    assert mount_of(mounts, "/srv/x", (0, 51)) == mounts[1]
    assert mount_of([], "/srv/x", (0, 51)) is None


# --- devices -----------------------------------------------------------------------------------------------------


def test_lvm_on_raid_on_partitions_is_followed_down_to_the_disks(root: Path, data: Path) -> None:
    """Cache mode and limits are the volume's own, models and schedulers those of the disks."""
    disks = []
    for name, minor in (("sda", 0), ("sdb", 16)):
        at = f"pci0000:00/{name}host/block/{name}"
        disk = device(root, at, f"8:{minor}", {"queue/scheduler": "none [mq-deadline] kyber\n"})
        write(disk, {"device/model": "EXOS 7E8        \n", "device/serial": "ZA123456\n", "queue/rotational": "1\n"})
        disks.append(device(root, f"{at}/{name}2", f"8:{minor + 2}", {"partition": "2\n"}))
    raid = device(root, "virtual/block/md0", "9:0", {"md/level": "raid1\n", "queue/scheduler": "none\n"})
    built_on(raid, *disks)
    volume = device(
        root,
        "virtual/block/dm-0",
        number(data),
        {
            "dm/name": "vg-data\n",
            "dm/uuid": "LVM-Pb2xFzXk\n",
            "size": "4096\n",
            "queue/rotational": "1\n",
            "queue/scheduler": "none\n",
            "queue/write_cache": "write back\n",
            "queue/logical_block_size": "512\n",
            "queue/physical_block_size": "4096\n",
            "queue/max_sectors_kb": "1280\n",
        },
    )
    built_on(volume, raid)
    mountinfo(root, mounted("/", "8:99"), mounted(str(data), number(data), "/dev/mapper/vg-data"))
    write(root, {"dev/dm-0": "", "dev/mapper/control": ""})
    (root / "dev/mapper/vg-data").symlink_to("../dm-0")
    found = facts(str(data / "."), root=str(root))
    assert {key: value for key, value in found.items() if key.startswith("device")} == {
        "device": "/dev/mapper/vg-data",
        "device_name": "dm-0",
        "device_parents": "dm-0 (lvm vg-data) > md0 (raid1) > sda2 > sda, sdb2 > sdb",
        "device_model": "EXOS 7E8",
        "device_size_bytes": 4096 * 512,
        "device_rotational": True,
        "device_scheduler": "mq-deadline",
        "device_write_cache": "write back",
        "device_logical_block_bytes": 512,
        "device_physical_block_bytes": 4096,
        "device_max_kb": 1280,
    }
    assert (found["mount_point"], found["file_system"]) == (str(data), "ext4")
    assert "ZA123456" not in json.dumps(found)


def test_a_partition_has_its_disks_queue_and_its_own_size_and_count(root: Path, data: Path) -> None:
    """An NVMe partition: `stat` and `size` are its own, the queue and the model are its disk's."""
    at = "pci0000:00/nvme/nvme0/nvme0n1"
    queue = {
        "queue/rotational": "0\n",
        "queue/scheduler": "[none] mq-deadline\n",
        "queue/write_cache": "write through\n",
    }
    device(root, at, "259:0", {**queue, "device/model": "Micron_7450\n", "size": "9000\n", "stat": STAT})
    partition = device(root, f"{at}/nvme0n1p2", number(data), {"partition": "2\n", "size": "100\n", "stat": STAT})
    mountinfo(root, mounted(str(data), number(data), "/dev/nvme0n1p2"))
    found = facts(str(data), root=str(root))
    assert found["device_parents"] == "nvme0n1p2 > nvme0n1"
    assert (found["device_model"], found["device_size_bytes"]) == ("Micron_7450", 51_200)
    assert (found["device_rotational"], found["device_scheduler"]) == (False, "none")
    assert found["device_write_cache"] == "write through"
    block = block_device(str(data), root=str(root))
    assert block is not None
    assert (block.name, block.written_bytes()) == ("nvme0n1p2", 2000 * 512)
    (partition / "stat").write_text("1 2 3\n")
    assert block.written_bytes() is None
    (partition / "stat").unlink()
    assert block.written_bytes() is None


def test_an_encrypted_loop_device_is_named_with_its_file(root: Path, data: Path) -> None:
    """What lies under a loop device is a file: its figures are those of another file system as well."""
    loop = device(root, "virtual/block/loop3", "7:3", {"loop/backing_file": "/srv/disk.img\n"})
    mapped = {"dm/name": "secret", "dm/uuid": "CRYPT-LUKS2-1-secret"}
    built_on(device(root, "virtual/block/dm-7", number(data), mapped), loop)
    mountinfo(root, mounted(str(data), number(data), "/dev/dm-7"))
    assert facts(str(data), root=str(root))["device_parents"] == "dm-7 (crypt secret) > loop3 (/srv/disk.img)"


def test_a_network_file_system_has_a_server_and_no_device(root: Path) -> None:
    """/proc is one without a device number here, so what mountinfo says about it decides."""
    line = f"50 1 {number(Path('/proc'))} / /proc rw,noatime - nfs4 10.0.0.7:/export/fury rw,vers=4.2,rsize=1048576"
    mountinfo(root, line)
    found = facts("/proc", root=str(root))
    assert found["network_server"] == found["device"] == "10.0.0.7:/export/fury"
    assert found["mount_options"] == "rw,noatime,vers=4.2,rsize=1048576"
    assert not any(key.startswith("device_") for key in found)
    assert block_device("/proc", root=str(root)) is None


def test_the_device_of_a_file_system_without_a_number_is_its_source(root: Path) -> None:
    """Btrfs: by the kernel's name where there is no /dev, through a link such as LVM's where there is one."""
    mountinfo(root, f"50 1 {number(Path('/proc'))} / /proc rw - btrfs /dev/mapper/vg-pool rw,subvol=/fury")
    device(root, "virtual/block/dm-4", "253:4", {"stat": STAT})
    assert block_device("/proc", root=str(root)) is None
    write(root, {"dev/dm-4": ""})
    (root / "dev/mapper").mkdir()
    (root / "dev/mapper/vg-pool").symlink_to("../dm-4")
    block = block_device("/proc", root=str(root))
    assert block is not None
    assert block.name == "dm-4"
    (root / "proc/self/mountinfo").write_text("50 1 0:1 / /proc rw - btrfs /dev/dm-4 rw\n")
    (root / "dev/dm-4").unlink()
    assert block_device("/proc", root=str(root)) == block


def test_a_mapped_device_is_found_by_its_name_where_dev_is_hidden(root: Path) -> None:
    """PrivateDevices= takes /dev/mapper away with its links; sysfs knows the name as well."""
    device(root, "virtual/block/dm-3", "253:3", {"dm/name": "other\n", "stat": "0 " * 11})
    device(root, "virtual/block/dm-4", "253:4", {"dm/name": "vg-pool\n", "stat": "0 0 0 0 0 0 8 0 0 0 0"})
    mountinfo(root, f"50 1 {number(Path('/proc'))} / /proc rw - btrfs /dev/mapper/vg-pool rw,subvol=/fury")
    found = block_device("/proc", root=str(root))
    assert found is not None
    assert (found.name, found.written_bytes()) == ("dm-4", 8 * 512)


def test_what_a_unit_has_mounted_elsewhere_is_told_where_users_see_it(root: Path, data: Path) -> None:
    """Also where the unit hides that place, or has put something of the same file system over it."""
    here = number(data)
    mountinfo(
        root,
        f"20 1 {here} / / ro,relatime - ext4 /dev/sda1 rw",
        f"21 20 {here} /tmp/private /tmp ro,relatime - ext4 /dev/sda1 rw",
        "22 20 8:9 / /mnt ro,relatime - ext4 /dev/sdb1 rw",
        f"23 20 {here} /tmp/a/fury-x {data} rw,relatime - ext4 /dev/sda1 rw",
    )
    told = facts(str(data), known_as="/tmp/a/fury-x", root=str(root))
    assert (told["mount_point"], told["mount_options"]) == ("/", "rw,relatime")
    assert facts(str(data), known_as="/nowhere/fury-x", root=str(root))["mount_point"] == str(data)


def test_a_block_special_file_tells_the_device_by_its_number(root: Path) -> None:
    """Its name may be anybody's."""
    real = next((path for path in Path("/dev").iterdir() if stat.S_ISBLK(path.lstat().st_mode)), None)
    if real is None:
        pytest.skip("there is no block special file here")
    held = real.stat().st_rdev
    device(root, "virtual/block/xvda", f"{os.major(held)}:{os.minor(held)}", {})
    (root / "dev").mkdir()
    (root / "dev/root").symlink_to(real)
    mountinfo(root, f"50 1 {number(Path('/proc'))} / /proc rw - btrfs /dev/root rw")
    block = block_device("/proc", root=str(root))
    assert block is not None
    assert block.name == "xvda"


def test_a_tower_of_devices_has_an_end(root: Path, data: Path) -> None:
    """However they are stacked: levels and devices are bounded, and the disks of a wide array are all told."""
    disks = [device(root, f"virtual/block/sd{index}", f"8:{index}", {}) for index in range(40)]
    below = device(root, "virtual/block/md0", "9:0", {})
    built_on(below, *disks)
    assert facts_of(root, data, below).count("sd") == 40
    for index in range(1, 30):
        above = device(root, f"virtual/block/md{index}", f"9:{index}", {})
        twin = device(root, f"virtual/block/twin{index}", f"10:{index}", {})
        built_on(above, below)
        built_on(twin, above, below)
        below = twin
    assert len(facts_of(root, data, below)) <= 1000


def facts_of(root: Path, data: Path, directory: Path) -> str:
    link = root / "sys/dev/block" / number(data)
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(directory, link.parent))
    mountinfo(root, mounted(str(data), number(data), f"/dev/{directory.name}"))
    return str(facts(str(data), root=str(root))["device_parents"])


# --- the host ----------------------------------------------------------------------------------------------------


def test_the_host_is_described(root: Path, data: Path) -> None:
    """From os-release, the firmware, /proc/cpuinfo and /proc/meminfo."""
    write(
        root,
        {
            "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
            "sys/class/dmi/id/sys_vendor": "Dell Inc.\n",
            "sys/class/dmi/id/product_name": "PowerEdge R650\n",
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: fpu\n\nmodel name\t: other\n",
            "proc/meminfo": "MemTotal:       16000000 kB\nMemFree:         1 kB\n",
        },
    )
    found = facts(str(data), root=str(root))
    assert found["os"] == "Debian GNU/Linux 12 (bookworm)"
    assert found["machine_model"] == "Dell Inc. PowerEdge R650"
    assert found["cpu_model"] == "Intel(R) Xeon(R)"
    assert found["memory_total_bytes"] == 16_384_000_000
    assert found["kernel"] == os.uname().release
    space = os.statvfs(data)
    assert found["total_bytes"] == space.f_blocks * space.f_frsize


def test_a_machine_without_firmware_names_is_named_by_what_there_is(root: Path, data: Path) -> None:
    """A device tree names boards; a CPU that runs under a hypervisor says so."""
    write(root, {"proc/cpuinfo": "flags\t: fpu hypervisor sse\n"})
    assert facts(str(data), root=str(root))["machine_model"] == "virtual machine"
    write(root, {"proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0"})
    assert facts(str(data), root=str(root))["machine_model"] == "Raspberry Pi 4 Model B Rev 1.4"


def test_an_arm_cpu_is_named_by_its_numbers() -> None:
    """The kernel gives no name there."""
    assert cpu_model("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n") == "implementer 0x41, part 0xd0c"
    assert cpu_model("") is None


def test_options_say_read_only_and_no_user(root: Path) -> None:
    """The mount's come first, then the file system's own; a user's name is nobody's business."""
    proc = number(Path("/proc"))
    mountinfo(root, f"50 1 {proc} / /proc rw,nosuid - cifs //nas/fury ro,nosuid,username=otto,domain=HOME,vers=3.1.1")
    found = facts("/proc", root=str(root))
    assert found["mount_options"] == "rw,nosuid,ro,vers=3.1.1"
    assert found["network_server"] == "//nas/fury"


def test_the_kernels_count_of_this_process_is_read(root: Path) -> None:
    """Of /proc/self/io the bytes sent to storage, not those that a write call took."""
    write(root, {"proc/self/io": "rchar: 1\nwchar: 2\nread_bytes: 5\nwrite_bytes: 4096\ncancelled_write_bytes: 7\n"})
    assert process_written_bytes(root=str(root)) == 4096
    write(root, {"proc/self/io": "write_bytes: \n"})
    assert process_written_bytes(root=str(root)) is None


# --- whatever is missing -----------------------------------------------------------------------------------------


def test_where_everything_is_hidden_the_rest_is_told(root: Path, data: Path) -> None:
    """No /proc, no /sys, no path: fewer facts, never an exception, never a null."""
    found = facts(str(data), root=str(root))
    assert set(found) == {"kernel", "machine", "python", "cpus", "total_bytes", "free_bytes"}
    assert set(facts(str(data / "gone"), root=str(root))) == {"kernel", "machine", "python", "cpus"}
    assert block_device(str(data / "gone"), root=str(root)) is None
    assert block_device(str(data), root=str(root)) is None
    assert process_written_bytes(root=str(root)) is None


def test_nonsense_in_every_file_does_no_harm(root: Path, data: Path) -> None:
    """Bytes that are no text, empty files and directories in their place; the facts are JSON all the same."""
    mountinfo(root, f"1 1 {number(data)} / {data} rw - ext4 /dev/\udcff{'x' * 5000}/../\udcff rw")
    at = device(
        root, "virtual/block/\udcff", number(data), {"queue/scheduler": "\0", "size": "-1", "stat": "a b c d e f g"}
    )
    write(root, {"proc/cpuinfo": "model name: \udcff\udcfe\n", "proc/meminfo": "MemTotal: x kB\n"})
    write(root, {"etc/os-release": "PRETTY_NAME='\n", "sys/class/dmi/id/product_name": "\n"})
    (at / "queue/rotational").mkdir()
    found = facts(str(data), root=str(root))
    assert json.loads(json.dumps(found).encode("utf-8")) == found
    assert found["device"] == "/dev/\\udcff" + "x" * (1000 - len("/dev/\\udcff"))
    assert found["device_name"] == "\\udcff"
    assert not {"os", "memory_total_bytes", "device_size_bytes", "device_rotational", "device_scheduler"} & set(found)
    block = block_device(str(data), root=str(root))
    assert block is not None
    assert block.written_bytes() is None


def test_the_facts_of_this_very_host_keep_within_their_bounds(tmp_path: Path) -> None:
    """Flat, at most 100, texts of at most 1000 characters, and the kernel's counts only grow."""
    found = facts(str(tmp_path))
    assert {"kernel", "machine", "python", "cpus", "file_system", "mount_point", "free_bytes"} <= set(found)
    assert len(found) <= 100
    for key, value in found.items():
        assert len(key) <= 64
        assert isinstance(value, (str, int, float))
        assert len(str(value)) <= 1000
    before = process_written_bytes()
    (tmp_path / "x").write_bytes(b"x" * 8192)
    after = process_written_bytes()
    assert before is None or (after is not None and after >= before)
