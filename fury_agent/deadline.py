"""When writing has to end, kept where a new process of the same agent finds it after a crash of the old one."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from typing import Optional

from fury_agent.verdict import FuryError, Verdict

_NAME = "deadline.json"


@dataclasses.dataclass(frozen=True)
class Deadline:
    """`ends_s` on time.monotonic() of this boot; `processes` have started to write, this one included."""

    ends_s: float
    processes: int = 1


def load(directory: str, *, run_id: str) -> Optional[Deadline]:
    """What an earlier process of this run has left; None if there was none.

    Raises FuryError (INCOMPLETE) if that was before the host's last boot: its stress is not taken up again.
    """
    try:
        with open(os.path.join(directory, _NAME), encoding="utf-8") as file:
            found = json.load(file)
        if found["run_id"] != run_id:
            return None
        deadline = Deadline(float(found["ends_s"]), int(found["processes"]))
        boot_id = found["boot_id"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if boot_id != _boot_id():
        raise FuryError(
            Verdict.INCOMPLETE, "this host was started anew in the middle of the run, which is not taken up again"
        )
    return deadline


def save(directory: str, deadline: Deadline, *, run_id: str) -> None:
    """Leaves the deadline in a directory, whole or not at all. Raises OSError.

    Not synced: a crash of the process does not lose it, and after one of the host nobody may go by it.
    """
    path = os.path.join(directory, _NAME)
    temporary = f"{path}.new"
    values = {"run_id": run_id, "boot_id": _boot_id(), **dataclasses.asdict(deadline)}
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(values, file)
    os.replace(temporary, path)


def forget(directory: str) -> None:
    """Removes what was left: whoever starts after this starts a run from its beginning."""
    for name in (_NAME, f"{_NAME}.new"):
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(directory, name))


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
