"""What the run gave this agent so that nobody else gets in: read from files, never from arguments or the environment.

ca.pem      the run's authority, the only one that the agent believes
token       by which the collector knows this agent of this run
metrics.pem the key and certificate with which /metrics is served
readers     SHA-256 of the password with which Prometheus reads /metrics, in hexadecimal
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import hashlib
import hmac
import os
import re
import ssl
from typing import Iterator, Optional

from fury_agent.verdict import FuryError, Verdict

READER = "fury"
"""The user name that goes with the password."""

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43,200}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True)
class Badge:
    """How the agent knows the collector, and the collector the agent."""

    context: ssl.SSLContext
    token: str


@dataclasses.dataclass(frozen=True)
class Guard:
    """Who may read /metrics, and the TLS by which that is done."""

    context: ssl.SSLContext
    digest: bytes

    def admits(self, authorization: Optional[str]) -> bool:
        """Whether an Authorization header carries the readers' name and password (RFC 7617); takes the same time for all."""
        scheme, _, word = (authorization or "").partition(" ")
        try:
            user, _, password = base64.b64decode(word.strip(), validate=True).partition(b":")
        except (binascii.Error, ValueError):
            return False
        right = hmac.compare_digest(hashlib.sha256(password).hexdigest().encode(), self.digest)
        return right and scheme.lower() == "basic" and user == READER.encode()


def read_badge(where: str) -> Badge:
    """What the agent shows the collector, from directory `where`. Raises FuryError (PRECONDITION)."""
    token = _read(where, "token", _TOKEN)
    # Not create_default_context, which would have the session's secrets written to $SSLKEYLOGFILE.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with _in_words(where, "ca.pem"):
        context.load_verify_locations(os.path.join(where, "ca.pem"))
    return Badge(context, token)


def read_guard(where: str) -> Guard:
    """What guards /metrics, from directory `where`. Raises FuryError (PRECONDITION)."""
    digest = _read(where, "readers", _DIGEST)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with _in_words(where, "metrics.pem"):
        context.load_cert_chain(os.path.join(where, "metrics.pem"))
    return Guard(context, digest.encode())


def _read(where: str, name: str, form: re.Pattern[str]) -> str:
    with _in_words(where, name), open(os.path.join(where, name), encoding="ascii") as file:
        text = file.read(1000).strip()
        if not form.fullmatch(text):
            raise ValueError
    return text


@contextlib.contextmanager
def _in_words(where: str, name: str) -> Iterator[None]:
    path = os.path.join(where, name)
    try:
        yield
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        reason = "it is not what the run put there"
        if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.strerror:
            reason = error.strerror
        raise FuryError(
            Verdict.PRECONDITION,
            f"credentials_directory: {path} cannot be used ({reason}); give the directory that the run made for this agent",
        ) from None
