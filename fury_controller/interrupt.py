"""Whether the user asked the run to stop: one byte that the ansible-playbook process shares with those it forks, and no file."""

from __future__ import annotations

import mmap

_shared = mmap.mmap(-1, 1)


def ask() -> None:
    """Ask the run to stop; may be called from a signal's handler."""
    _shared[0] = 1


def asked() -> bool:
    """True once any of the processes has asked."""
    return bool(_shared[0])
