"""Fury's writer against Debian's fio on the same file work, in turns: throughput, and CPU seconds per GB.

    python -m bench.write_path [--seconds 5] [--rounds 5] [--only 'direct 1 MiB'] [--directory /var/tmp]
    python -m bench.write_path --calls      the proof that the work is the same: every call of both, by strace

A round is Fury, fio as it is, and fio --refill_buffers, which of them first changes from round to round; each configuration
has rounds of its own. A ratio is that of two runs of one round. Needs Debian's fio, and strace for --calls.

The same on both sides, as --calls shows call by call: per job two preallocated files of exactly the same size, written over in
turn from front to back; `open` without O_CREAT and O_TRUNC (O_DIRECT with direct), `pwrite` of the same size at the same offsets,
`fsync` when the file is full, `close`, the next. Jobs are threads of one process. Both start on new files that posix_fallocate
has reserved and of which the first 64 MB of the first have been written (Fury does that when it calibrates; for fio it is done
here), write for the same time, fsync what they have begun, and remove their files. fio leaves the page cache alone as Fury does
(invalidate=0, fadvise_hint=0). Before each run as much memory as the files take is touched and freed again, and before the
first round both run once uncounted: in a virtual machine memory that was never used before costs more than what is done with it.
The page cache of four jobs with blocks of 20 MiB takes 5.9 GB: give that configuration so many --seconds that this is little.

Not the same: fio opens O_RDWR, Fury O_WRONLY|O_NOFOLLOW|O_CLOEXEC. Fury asks for the free space before each chunk (stat,
fstatfs). fio issues one more fsync of a clean file each second chunk (about 70 µs, 0.1 % of its time with 108 MB files at
3 GB/s; it has no other way to fsync full files but fsync_on_close, which costs it two opens and four fsyncs more in that
place), lstats each file, and opens and fsyncs the other one at its end. Each has its own way to come by the memory it writes
from. Fury's start, calibration, metrics server, samples and result, and fio's start are in the CPU figures; what a start costs
is a row of its own. Making fio's files is not in fio's CPU, removing them is.

Data: Fury's is always unique in every 4 KiB, from a pool of 2 MiB. fio as it is fills its buffer of one block once and then
alters a few bytes in each 512 (scramble_buffers); with --refill_buffers it makes new data for each write.

Throughput is bytes made durable / seconds from the first write until the last fsync has returned: Fury's `written_bytes` and
`seconds`, fio's io_bytes and runtime of the group. CPU seconds are user and system of the process and all its children; the GB
are those that the kernel charged them with (ru_oublock), calibration included.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import mmap
import os
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.table import report

ROOT = Path(__file__).resolve().parents[1]
KEEP = 2
UNIT = 4096
CALIBRATION_BYTES = 64_000_000
CHUNK_MB = {1: 108, 20: 734}
"""By MiB of a block: the least whole megabytes that blocks fill exactly, at least 100 (103 × 1 MiB, 35 × 20 MiB)."""
SPARE_BYTES = 256 << 20
SETTLE_S = 0.5
"""Pause after a run's files are removed, for the discards of the file system."""
SIDES = ("Fury", "fio", "fio unique")


@dataclass(frozen=True)
class Case:
    """One configuration of both sides."""

    io: str
    block_mib: int
    jobs: int
    chunk_mb: int

    @property
    def label(self) -> str:
        """What it is called in the table."""
        return f"{self.io} {self.block_mib} MiB {self.jobs} {'jobs' if self.jobs > 1 else 'job'}"

    @property
    def block_bytes(self) -> int:
        """Bytes of one write call."""
        return self.block_mib << 20

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a file: megabytes rounded up to 4 KiB, as Fury does."""
        return -(-self.chunk_mb * 1_000_000 // UNIT) * UNIT

    @property
    def ring_bytes(self) -> int:
        """Bytes of all files."""
        return KEEP * self.jobs * self.chunk_bytes


@dataclass(frozen=True)
class Run:
    """What one run of one side did."""

    bytes: int
    seconds: float
    cpu_s: float
    charged_bytes: int

    @property
    def rate_mb_s(self) -> float:
        """Megabytes made durable per second."""
        return self.bytes / self.seconds / 1e6

    @property
    def cpu_s_per_gb(self) -> float:
        """CPU seconds of the whole process per 10^9 bytes."""
        return self.cpu_s / (self.charged_bytes / 1e9)


def fury(case: Case, directory: Path, *, seconds: int, more: Sequence[str] = ()) -> list[str]:
    """The command of Fury's side."""
    argv = [sys.executable, "-m", "fury_agent", "bench", "--chunk-mb", str(case.chunk_mb), "--seconds", str(seconds)]
    argv += ["--directory", str(directory), "--keep", str(KEEP), "--io", case.io, "--jobs", str(case.jobs)]
    return [*argv, "--block-kb", str(case.block_mib << 10), "--allow-few-rollovers", "--json", *more]


def fio(case: Case, directory: Path, *, seconds: int, more: Sequence[str] = ()) -> list[str]:
    """The command of fio's side; makes its files."""
    for job in range(case.jobs):
        for slot in range(KEEP):
            descriptor = os.open(directory / f"chunk.{job}.{slot}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, case.chunk_bytes)
                if not job and not slot:
                    os.pwrite(descriptor, os.urandom(1 << 20) * (CALIBRATION_BYTES >> 20), 0)
                    os.fsync(descriptor)
                    if case.io == "direct":
                        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
    options = {
        "name": "bench",
        "ioengine": "psync",
        "rw": "write",
        "bs": case.block_bytes,
        "direct": int(case.io == "direct"),
        "numjobs": case.jobs,
        "directory": directory,
        "filename_format": "chunk.$jobnum.$filenum",
        "nrfiles": KEEP,
        "openfiles": 1,
        "file_service_type": "sequential",
        "filesize": case.chunk_bytes,
        "size": KEEP * case.chunk_bytes,
        "allow_file_create": 0,
        "fallocate": "none",
        "invalidate": 0,
        "fadvise_hint": 0,
        "fsync": case.chunk_bytes // case.block_bytes,
        "end_fsync": 1,
        "runtime": seconds,
        "unlink": 1,
        "eta": "never",
        "output-format": "json",
    }
    switches = ["--thread", "--group_reporting", "--time_based"]
    return ["fio", *(f"--{key}={value}" for key, value in options.items()), *switches, *more]


def command(side: str, case: Case, directory: Path, *, seconds: int, more: Sequence[str] = ()) -> list[str]:
    """The command of a side in a fresh directory."""
    if side == "Fury":
        return fury(case, directory, seconds=seconds, more=more)
    unique = ("--refill_buffers",) if side == "fio unique" else ()
    return fio(case, directory, seconds=seconds, more=(*unique, *more))


def warm(size: int) -> None:
    """Take so much memory and let go of it, so that the next to need it does not pay for the host's giving it."""
    mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()


@contextlib.contextmanager
def fresh(base: Path, case: Case) -> Iterator[Path]:
    """A new directory below `base` and memory for what a case writes; removed with all in it, its discards waited for."""
    try:
        with tempfile.TemporaryDirectory(prefix="fury-write-path-", dir=base) as name:
            os.sync()
            warm(case.ring_bytes + SPARE_BYTES)
            yield Path(name)
    finally:
        os.sync()
        time.sleep(SETTLE_S)


def output(argv: Sequence[str], *, timeout_s: float) -> str:
    """What a command prints. Whatever ends this ends the command and its children too."""
    with subprocess.Popen(
        argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            out, errors = process.communicate(timeout=timeout_s)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        sys.exit(f"{' '.join(argv)} ended with {process.returncode}:\n{out}{errors}")
    return out


def measured(side: str, case: Case, base: Path, *, seconds: int, more: Sequence[str] = ()) -> Run:
    """One run of one side, with `more` options of its own."""
    with fresh(base, case) as directory:
        argv = command(side, case, directory, seconds=seconds, more=more)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        out = output(argv, timeout_s=seconds * 5 + 120)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    charged = (after.ru_oublock - before.ru_oublock) * 512
    if side == "Fury":
        result: dict[str, Any] = json.loads(out.splitlines()[-1])
        return Run(result["written_bytes"], result["seconds"], cpu_s, charged)
    write = json.loads(out[out.index("{") :])["jobs"][0]["write"]
    return Run(write["io_bytes"], write["runtime"] / 1000, cpu_s, charged)


CALL = re.compile(
    r"^(?P<thread>\d+) +(?P<call>\w+)\((?P<head>[^\"]*)(?:\"(?P<text>[^\"]*)\"(?:\.\.\.)?, )?(?P<tail>[^\n]*)"
)


def calls(side: str, case: Case, base: Path, *, seconds: int) -> collections.Counter[str]:
    """How often each sequence of calls from an open of a chunk to its close was made, named call by call."""
    sequences: collections.Counter[str] = collections.Counter()
    with fresh(base, case) as directory:
        log = directory / "calls"
        argv = command(side, case, directory, seconds=seconds)
        trace = ["strace", "-f", "-y", "-s", "0", "-e", "signal=none", "-e", "trace=%desc,%file", "-o", str(log)]
        output([*trace, *argv], timeout_s=seconds * 20 + 120)
        open_ones: dict[str, list[str]] = {}
        position: dict[str, int] = {}
        for line in log.read_text().splitlines():
            found = CALL.match(line)
            if found is None:
                continue
            thread, call, head, tail = found["thread"], found["call"], found["head"], found["tail"]
            if call == "openat":
                flags = re.search(r"O_[A-Z_|]+", tail)
                if flags is None or "O_DIRECTORY" in flags[0]:
                    continue
                if "chunk" in (found["text"] or ""):  # -s 0 shortens data, not paths
                    open_ones[thread], position[thread] = [f"open({flags[0]})"], 0
                continue
            if not re.match(r"\d+<[^>]*/chunk[^>]*>", head + tail):
                continue
            sequence = open_ones.get(thread)
            if sequence is None:
                continue
            if call == "pwrite64":
                size, offset = (int(number) for number in re.findall(r"\d+", tail)[:2])
                sequence.append(f"pwrite({size})" if offset == position[thread] else f"pwrite({size} at {offset})")
                position[thread] = offset + size
            elif call == "close":
                del open_ones[thread]
                sequences[" ".join(folded([*sequence, "close"]))] += 1
            else:
                sequence.append(call)
    return sequences


def folded(names: Sequence[str]) -> list[str]:
    """The names with repeats of one as a factor before it."""
    result: list[str] = []
    for name in names:
        times, _, last = result[-1].rpartition("×") if result else ("", "", "")
        if last == name:
            result[-1] = f"{int(times or 1) + 1}×{name}"
        else:
            result.append(name)
    return result


def compare_calls(cases: Sequence[Case], base: Path) -> int:
    """Print the sequences of calls of both sides; 1 where that of most full chunks is not the same but for open's flags."""
    different = 0
    for case in cases:
        usual = []
        for side in SIDES[:2]:
            sequences = calls(side, case, base, seconds=4)
            print(f"{case.label}, {side}:")
            for sequence, count in sequences.most_common():
                print(f"  {count:6} {sequence}")
            blocks = f" {case.chunk_bytes // case.block_bytes}×pwrite({case.block_bytes}) "
            usual.append(next((sequence for sequence, _ in sequences.most_common() if blocks in sequence), side))
        ours, theirs = (re.sub(r"\b(O_RDWR|O_WRONLY)\b|\|(O_NOFOLLOW|O_CLOEXEC)", "", sequence) for sequence in usual)
        different += ours != theirs
        print(f"{case.label}: {'the same' if ours == theirs else f'NOT THE SAME: {ours} / {theirs}'}")
    return int(different > 0)


def judge(case: Case, ratios: Mapping[str, Sequence[float]]) -> list[str]:
    """A line for each target: throughput never below fio's, CPU at most fio's, and half of fio's with unique data."""
    lines = []
    targets: list[tuple[str, str, Callable[[Sequence[float]], bool]]] = [
        ("rate, Fury / fio", "≥ 1, none < 0.97", lambda r: statistics.median(r) >= 1 and min(r) >= 0.97),
        ("rate, Fury / fio unique", "≥ 1, none < 0.97", lambda r: statistics.median(r) >= 1 and min(r) >= 0.97),
        ("CPU, Fury / fio", "≤ 1", lambda r: statistics.median(r) <= 1),
        ("CPU, Fury / fio unique", "≤ 0.5", lambda r: statistics.median(r) <= 0.5),
    ]
    for what, wanted, reached in targets:
        values = ratios[what]
        verdict = "PASS" if reached(values) else "miss"
        spread = f"{statistics.median(values):.3f} ({min(values):.3f}–{max(values):.3f})"
        lines.append(f"{verdict}  {case.label:22} {what:24} {spread:22} wanted {wanted}")
    return lines


def compare(cases: Sequence[Case], base: Path, *, seconds: int, rounds: int) -> None:
    """Measure all cases and print the table and the verdicts."""
    rows: dict[str, list[float]] = {}
    lines: list[str] = []
    for side, slowly in (("Fury", ("--rate-mb-s", "1")), ("fio", ("--rate=1m",))):
        rows[f"{side}, CPU s of a start"] = [
            measured(side, cases[0], base, seconds=1, more=slowly).cpu_s for _ in range(rounds)
        ]
    for case in cases:
        for side in SIDES[:2]:  # not counted: the first to use so much memory pays for it
            measured(side, case, base, seconds=seconds)
        done: dict[str, list[Run]] = {side: [] for side in SIDES}
        for number in range(rounds):
            for turn in range(len(SIDES)):
                side = SIDES[(number + turn) % len(SIDES)]
                done[side].append(measured(side, case, base, seconds=seconds))
        ratios: dict[str, list[float]] = {}
        for side in SIDES[1:]:
            pairs = list(zip(done["Fury"], done[side], strict=True))
            ratios[f"rate, Fury / {side}"] = [ours.rate_mb_s / theirs.rate_mb_s for ours, theirs in pairs]
            ratios[f"CPU, Fury / {side}"] = [ours.cpu_s_per_gb / theirs.cpu_s_per_gb for ours, theirs in pairs]
        for side, runs in done.items():
            rows[f"{case.label}: MB/s, {side}"] = [run.rate_mb_s for run in runs]
            rows[f"{case.label}: CPU s/GB, {side}"] = [run.cpu_s_per_gb for run in runs]
        rows |= {f"{case.label}: {what}": values for what, values in ratios.items()}
        lines += judge(case, ratios)
        print("\n".join(lines[-4:]), flush=True)
    notes = {
        "fio": output(["fio", "--version"], timeout_s=10).strip(),
        "seconds of a run": seconds,
        "bytes of a file": {case.block_mib: case.chunk_bytes for case in cases},
        "load average": os.getloadavg(),
        "verdicts": lines,
    }
    print()
    report("write_path", rows, notes={key: value for key, value in notes.items() if key != "verdicts"})
    print("\n".join(lines))


def main() -> None:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=5, help="of writing in each run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", metavar="PATTERN", help="only configurations whose name matches")
    parser.add_argument(
        "--chunk-mb", type=int, help="instead of 108 MB for blocks of 1 MiB and 734 MB for those of 20 MiB"
    )
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--calls", action="store_true", help="show that both sides make the same calls")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    for program in ("fio", "strace") if options.calls else ("fio",):
        if shutil.which(program) is None:
            sys.exit(f"{program} is missing; on Debian: apt install {program}")
    cases = [
        Case(io, block_mib, jobs, options.chunk_mb or CHUNK_MB[block_mib])
        for io in ("buffered", "direct")
        for block_mib in (1, 20)
        for jobs in (1, 4)
    ]
    cases = [c for c in cases if c.chunk_bytes % c.block_bytes == 0 and re.search(options.only, c.label)]
    if not cases:
        sys.exit("no configuration is left; --only has to match a name and the blocks have to fill a chunk")
    if options.calls:
        sys.exit(compare_calls(cases, options.directory))
    compare(cases, options.directory, seconds=options.seconds, rounds=options.rounds)


if __name__ == "__main__":
    main()
