"""Who believes whom in a run: its own certificate authority, and a secret for each that takes part.

All of it comes from one seed and one key in the memory of the ansible-playbook process, which the processes that it forks for
its tasks inherit. Nothing of them is ever on a disk of the controller, and with the process they are gone, however it ends:
the authority can sign nothing after its run. Only what people and Prometheus read with outlives a run: the read password,
and the authorities' certificates to recognise collectors by, both in the credentials directory.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import fcntl
import hashlib
import hmac
import ipaddress
import json
import os
import secrets
import ssl
import stat
import sys
import tempfile
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

READER = "fury"
"""The user name that goes with the read password."""
AGENT = "fury-agent"
"""A DNS name in every agent's certificate: at which address Prometheus meets an agent is not known beforehand."""
EARLY_S = 3600
"""For how long before the run certificates are valid: by so much a host's clock may be behind."""
PASSWORD_FILE = "read-password"
AUTHORITIES_FILE = "ca.pem"
_SHORTEST, _LONGEST = 20, 200


class NotPossible(Exception):
    """What the credentials directory lacks, in one sentence that says what to do."""


@dataclass(frozen=True)
class _Root:
    seed: bytes
    key: ec.EllipticCurvePrivateKey


_root: _Root | None = None


def begin() -> None:
    """Make the seed and the authority's key; to be called once, before any process is forked for a task."""
    global _root
    _root = _Root(secrets.token_bytes(32), ec.generate_private_key(ec.SECP256R1()))


def begun() -> bool:
    """Whether this process, or the one it was forked from, has called ``begin``."""
    return _root is not None


def authority(run_id: str, *, seconds: float) -> str:
    """The certificate of the run's authority as PEM, valid from an hour ago until an hour after ``seconds``."""
    root = _known()
    now = datetime.datetime.now(datetime.timezone.utc)
    name = _name(f"Fury run {run_id}")
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(root.key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(seconds=EARLY_S))
        .not_valid_after(now + datetime.timedelta(seconds=seconds + EARLY_S))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(root.key.public_key()), critical=False)
        .sign(root.key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM).decode()


def agent_files(plan: Mapping[str, Any], name: str) -> dict[str, str]:
    """What agent ``name`` is given: file name to content (fury_agent.credentials)."""
    agent = plan["agents"][name]
    return {
        "ca.pem": plan["authority"],
        "token": _secret(plan["run_id"], "agent", name),
        "metrics.pem": _signed(plan["authority"], f"Fury agent {name}", [AGENT, *agent["addresses"]]),
        "readers": _digest(password(Path(plan["credentials"]))),
    }


def collector_files(plan: Mapping[str, Any]) -> dict[str, str]:
    """What the run's collector is given: file name to content (fury_collector.access)."""
    run_id = plan["run_id"]
    access = {
        "control": _digest(control_token(run_id)),
        "readers": _digest(password(Path(plan["credentials"]))),
        "agents": {name: _digest(_secret(run_id, "agent", name)) for name in plan["agents"]},
    }
    return {
        "tls.pem": _signed(plan["authority"], "Fury collector", plan["collector"]["addresses"]),
        "access.json": json.dumps(access),
    }


def control_token(run_id: str) -> str:
    """What the controller shows the run's collector to stop the run."""
    return _secret(run_id, "control", "")


def opener(authority_pem: str, token: str) -> urllib.request.OpenerDirector:
    """Opens the collector's URLs: believes this authority only, shows ``token``, and goes through no proxy."""
    # Not create_default_context, which would have the session's secrets written to $SSLKEYLOGFILE.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=authority_pem)
    made = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    made.addheaders = [("Authorization", f"Bearer {token}")]
    return made


def prepare(directory: Path, authority_pem: str) -> None:
    """Make the credentials directory if need be, see to its password, and put the authority's certificate into its file."""
    try:
        if not directory.exists():
            directory.mkdir(mode=0o700, parents=True)
        _private(directory)
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(directory / PASSWORD_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(secrets.token_urlsafe(32) + "\n")
        password(directory)
        with _locked(directory):  # two runs may start at once
            _write(directory / AUTHORITIES_FILE, "".join([*_living(directory / AUTHORITIES_FILE), authority_pem]))
    except OSError as error:
        raise NotPossible(
            f"fury_credentials: {error.filename or directory}: {error.strerror}; "
            "name a directory of yours, for example -e fury_credentials=/home/me/fury"
        ) from None


def main() -> None:
    """Prepare ``credentials/`` before the first run: a Prometheus that starts without a certificate there never scrapes."""
    directory = Path(__file__).parents[1] / "credentials"
    try:
        begin()
        if not (directory / AUTHORITIES_FILE).exists():
            prepare(directory, authority("none yet", seconds=0))  # a run's own takes its place
        else:
            password(directory)
    except NotPossible as error:
        sys.exit(f"credentials: {error}")
    print(f"{directory}: user {READER}, password in {PASSWORD_FILE}, the runs' authorities in {AUTHORITIES_FILE}")


def password(directory: Path) -> str:
    """The read password in a credentials directory. Raises NotPossible."""
    path = directory / PASSWORD_FILE
    try:
        _private(path)
        found = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not plain text"
        raise NotPossible(f"{path} cannot be read ({reason}); remove it, and the next run makes another") from None
    if not _SHORTEST <= len(found) <= _LONGEST or not found.isprintable() or " " in found:
        raise NotPossible(
            f"{path} holds {len(found)} characters; {_SHORTEST} to {_LONGEST} without blanks are allowed: remove it, and the "
            "next run makes another"
        )
    return found


# -- internals


def _known() -> _Root:
    if _root is None:
        raise NotPossible(
            "the run has no secrets: Fury's callback plugin was not loaded; call ansible-playbook in Fury's own directory, "
            "where its ansible.cfg is"
        )
    return _root


def _secret(run_id: str, kind: str, name: str) -> str:
    """256 bits for one purpose, always the same within this process."""
    made = hmac.new(_known().seed, "\0".join((run_id, kind, name)).encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(made).decode().rstrip("=")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _signed(authority_pem: str, common_name: str, addresses: Iterable[str]) -> str:
    """A new key and its certificate for a TLS server at ``addresses``, as long valid as the authority, as PEM."""
    root = _known()
    parent = x509.load_pem_x509_certificate(authority_pem.encode())
    key = ec.generate_private_key(ec.SECP256R1())
    made = (
        x509.CertificateBuilder()
        .subject_name(_name(common_name))
        .issuer_name(parent.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(parent.not_valid_before_utc)
        .not_valid_after(parent.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general(one) for one in dict.fromkeys(addresses)]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root.key.public_key()), critical=False)
        .sign(root.key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return (secret + made.public_bytes(serialization.Encoding.PEM)).decode()


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])  # RFC 5280's ub-common-name


def _general(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        return x509.DNSName(address)


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates, key_cert_sign=sign_certificates, crl_sign=False, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _living(path: Path) -> list[str]:
    """The certificates in ``path`` whose runs may still go on; what can't be read is left out."""
    now = datetime.datetime.now(datetime.timezone.utc)
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError):
        return []
    return [one.public_bytes(serialization.Encoding.PEM).decode() for one in found if one.not_valid_after_utc > now]


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _private(path: Path) -> None:
    found = path.lstat()
    if stat.S_IMODE(found.st_mode) & 0o077 or found.st_uid != os.geteuid() or stat.S_ISLNK(found.st_mode):
        raise NotPossible(
            f"{path} (mode {stat.S_IMODE(found.st_mode):04o}, of user {found.st_uid}) is open to others; "
            f"chmod go= {path}, and let it be your own"
        )


def _write(path: Path, text: str) -> None:
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
    os.replace(draft, path)


if __name__ == "__main__":
    main()
