"""How an agent may end, and the one error class of this package.

`verdict` and `histogram` are the vocabulary of the package: values without side effects that every module may import.
"""

from __future__ import annotations

import enum
from typing import Optional


class Verdict(str, enum.Enum):
    """How an agent ended; each value has an exit code of its own."""

    PASS = "PASS"
    SLO_MISSED = "SLO_MISSED"
    BAD_INPUT = "BAD_INPUT"
    PRECONDITION = "PRECONDITION"
    DISK_ERROR = "DISK_ERROR"
    DATA_CORRUPTION = "DATA_CORRUPTION"
    INCOMPLETE = "INCOMPLETE"
    CLEANUP_UNCONFIRMED = "CLEANUP_UNCONFIRMED"

    @property
    def exit_code(self) -> int:
        """The exit code of a process that ends with this verdict."""
        return EXIT_CODES[self]


EXIT_CODES = {
    Verdict.PASS: 0,
    Verdict.BAD_INPUT: 2,
    Verdict.PRECONDITION: 3,
    Verdict.DISK_ERROR: 4,
    Verdict.DATA_CORRUPTION: 5,
    Verdict.INCOMPLETE: 6,
    Verdict.CLEANUP_UNCONFIRMED: 7,
    Verdict.SLO_MISSED: 8,
}


class FuryError(Exception):
    """Ends the agent with `verdict`; the message is one sentence that says what failed and what to do."""

    def __init__(self, verdict: Verdict, message: str) -> None:
        super().__init__(message)
        self.verdict = verdict
        self.message = message


class StorageError(FuryError):
    """The storage failed or lied, in `operation` on `path`; `errno` is None where no call failed."""

    def __init__(
        self, verdict: Verdict, message: str, *, operation: str, path: str, errno: Optional[int] = None
    ) -> None:
        super().__init__(verdict, message)
        self.operation = operation
        self.path = path
        self.errno = errno


class DiskError(StorageError):
    """A write, fsync, open or close of a chunk failed; never retried, because what it left on the disk is unknown."""

    def __init__(self, message: str, *, operation: str, path: str, error: OSError) -> None:
        super().__init__(Verdict.DISK_ERROR, message, operation=operation, path=path, errno=error.errno or 0)


class Corruption(StorageError):
    """What was read back is not what was written."""

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(Verdict.DATA_CORRUPTION, message, operation="compare", path=path)
