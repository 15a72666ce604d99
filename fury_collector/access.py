"""Who may do what here: each agent append to its own record, readers read, the controller end the run. Nobody else anything.

The collector holds digests only (SHA-256 of secrets of 256 bits, which no table of guesses covers), in two files that the
controller wrote: tls.pem, the key and certificate it serves with, and access.json, an object of hexadecimal digests:
control, readers, and agents by name.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Optional

from fury_collector.errors import Precondition, TooMany, Unauthorized

READER = "fury"  # the user name that goes with the readers' password
REQUESTS_PER_S = 100.0  # of one agent; it needs two or three
BURST = 300.0

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Access:
    """The secrets of one run; `now` is a monotonic clock."""

    def __init__(self, control: str, readers: str, agents: dict[str, str], *, now: Callable[[], float]) -> None:
        self._control, self._readers, self._agents = control, readers, agents
        self._now = now
        self._budgets: dict[str, tuple[float, float]] = {}

    @classmethod
    def read(cls, directory: Path, *, now: Callable[[], float]) -> Access:
        """The access.json in `directory`; Precondition if it is not what the controller wrote."""
        path = directory / "access.json"
        try:
            found = json.loads(path.read_bytes())
            control, readers, agents = found["control"], found["readers"], found["agents"]
            digests = [control, readers, *agents.values()]
            if not all(isinstance(one, str) and _DIGEST.fullmatch(one) for one in digests):
                raise ValueError
        except OSError as error:
            raise Precondition(refusal(path, error.strerror or str(error))) from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise Precondition(refusal(path, "it is not what the run put there")) from None
        return cls(control, readers, agents, now=now)

    def admit_agent(self, name: str, authorization: Optional[str], *, revoked: bool) -> None:
        """Unauthorized unless this is the token of agent `name`, which a run that is over does not take any more."""
        right = _is(_bearer(authorization), self._agents.get(name, "0" * 64))
        if not right or name not in self._agents:
            raise Unauthorized(
                "this is not the token of that agent in this run: each run gives each agent its own", "Bearer"
            )
        if revoked:
            raise Unauthorized("the run is over, and its tokens with it", "Bearer")
        self._spend(name)

    def admit_reader(self, authorization: Optional[str]) -> None:
        """Unauthorized unless this is the readers' name and password, or the controller."""
        user, password = _basic(authorization)
        right = _is(password, self._readers) and user == READER.encode()
        if not right and not _is(_bearer(authorization), self._control):
            raise Unauthorized("reading needs the run's read credential (HTTP basic, user fury)", "Basic")

    def admit_controller(self, authorization: Optional[str]) -> None:
        """Unauthorized unless this is the controller of the run."""
        if not _is(_bearer(authorization), self._control):
            raise Unauthorized("only the run's controller may do this", "Bearer")

    def _spend(self, name: str) -> None:
        now = self._now()
        left, at = self._budgets.get(name, (BURST, now))
        left = min(BURST, left + (now - at) * REQUESTS_PER_S)
        self._budgets[name] = (max(0.0, left - 1), now)
        if left < 1:
            raise TooMany(
                f"{name} asks more than {REQUESTS_PER_S:.0f} times a second: send more events at once, less often"
            )


def refusal(path: Path, why: str) -> str:
    """The sentence for a file of credentials that cannot be used."""
    return (
        f"credentials-directory: {path} cannot be used ({why}); give the directory that the run made for this collector"
    )


def _is(secret: bytes, digest: str) -> bool:
    return hmac.compare_digest(hashlib.sha256(secret).hexdigest(), digest)


def _bearer(authorization: Optional[str]) -> bytes:
    scheme, _, word = (authorization or "").partition(" ")
    return word.strip().encode("utf-8", "replace") if scheme.lower() == "bearer" else b""


def _basic(authorization: Optional[str]) -> tuple[bytes, bytes]:
    scheme, _, word = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return b"", b""
    try:
        user, _, password = base64.b64decode(word.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return b"", b""
    return user, password
