"""The one tree of errors: each message says what failed and what to do."""

from __future__ import annotations

from typing import Optional


class CollectorError(Exception):
    """Something the caller can act on; `exit_code` is the command's, `status` the HTTP answer's."""

    exit_code = 1
    status = 500

    def __init__(self, message: str, *, field: Optional[str] = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class BadInput(CollectorError):
    """A value is outside what docs/protocol.md allows; nothing was stored."""

    exit_code = 2
    status = 400


class Unauthorized(CollectorError):
    """Whoever asks has not shown that they may; `scheme` is how that is done (RFC 9110, 11.6.1)."""

    status = 401

    def __init__(self, message: str, scheme: str) -> None:
        super().__init__(message)
        self.scheme = scheme


class TooMany(CollectorError):
    """One agent asks too often; it is to try again later."""

    status = 429


class Unknown(CollectorError):
    """The run or the agent is not one of this collector's."""

    exit_code = 2
    status = 404


class Conflict(CollectorError):
    """What was sent contradicts what is stored already; nothing was stored."""

    status = 409


class NotJson(CollectorError):
    """The request's media type or encoding is not plain JSON."""

    status = 415


class Unavailable(CollectorError):
    """The database did not take it now; the sender is to try again."""

    exit_code = 3
    status = 503


class Precondition(CollectorError):
    """This machine or this database does not allow what was asked: a port in use, a newer schema."""

    exit_code = 3


class Damaged(CollectorError):
    """A journal could not be read whole; what was readable is stored."""

    exit_code = 6
