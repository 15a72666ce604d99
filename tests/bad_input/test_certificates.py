"""A collector that shows a certificate which is not the run's: the agent says so, sends nothing, and writes nothing."""

from __future__ import annotations

import datetime
import ipaddress
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fury_agent.agent import check as check_agent
from fury_agent.channel import Channel, Trouble
from fury_agent.config import make_config
from fury_agent.credentials import read_badge
from fury_agent.verdict import FuryError, Verdict
from tests.bad_input import check
from tests.collector.conftest import EPOCH, NAMES, ROOT, RUN, Process, plan, ready
from tests.secured import Secured

HOUR = 3600
UNBELIEVED = "its certificate is not to be believed: "


@dataclass(frozen=True)
class Made:
    """A certificate with its key and what it may be wrong in; times in seconds from now."""

    begins: float = -HOUR
    ends: float = HOUR
    address: Optional[str] = "127.0.0.1"
    authority: bool = False
    server: bool = True

    def sign(self, issuer: Optional[Pair] = None) -> Pair:
        """It, signed by another or by itself."""
        key = ec.generate_private_key(ec.SECP256R1())
        by = issuer or Pair(key, None)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Fury authority" if self.authority else "127.0.0.1")])
        now = datetime.datetime.now(datetime.timezone.utc)
        usage = ExtendedKeyUsageOID.SERVER_AUTH if self.server else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(by.certificate.subject if by.certificate is not None else name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(seconds=self.begins))
            .not_valid_after(now + datetime.timedelta(seconds=self.ends))
            .add_extension(x509.BasicConstraints(ca=self.authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.key.public_key()), critical=False)
        )
        if not self.authority:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if self.address is not None and not self.authority:
            try:
                alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(self.address))
            except ValueError:
                alternative = x509.DNSName(self.address)
            builder = builder.add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        return Pair(key, builder.sign(by.key, hashes.SHA256()))


@dataclass(frozen=True)
class Pair:
    """A key, and its certificate once there is one."""

    key: ec.EllipticCurvePrivateKey
    certificate: Optional[x509.Certificate]

    @property
    def pem(self) -> str:
        """The certificate."""
        assert self.certificate is not None
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def key_pem(self) -> str:
        """The key."""
        plain = serialization.NoEncryption()
        return self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain).decode()


AUTHORITY, LEAF = Made(authority=True), Made()
# The run's authority, what signs the collector's certificate (None: itself; "run": that authority), that certificate.
SHOWN: dict[str, tuple[Made, Optional[str], Made, list[str]]] = {
    "expired": (AUTHORITY, "run", replace(LEAF, ends=-60), ["certificate has expired"]),
    "not yet valid": (AUTHORITY, "run", replace(LEAF, begins=HOUR / 2), ["certificate is not yet valid"]),
    "of an authority that has expired": (replace(AUTHORITY, ends=-60), "run", LEAF, ["certificate has expired"]),
    "of another authority": (AUTHORITY, "other", LEAF, ["unable to get local issuer", "certificate"]),
    "of itself": (AUTHORITY, None, LEAF, ["certificate"]),
    "for another address": (AUTHORITY, "run", replace(LEAF, address="10.0.0.1"), ["IP address mismatch", "127.0.0.1"]),
    "for a name": (AUTHORITY, "run", replace(LEAF, address="localhost"), ["IP address mismatch", "127.0.0.1"]),
    "for everything": (AUTHORITY, "run", replace(LEAF, address="*"), ["IP address mismatch", "127.0.0.1"]),
    "for no name but its subject's": (AUTHORITY, "run", replace(LEAF, address=None), ["mismatch", "127.0.0.1"]),
    "for clients": (AUTHORITY, "run", replace(LEAF, server=False), ["certificate", "purpose"]),
}
# What lies in an agent's credentials directory instead of what the run put there.
OWN: dict[str, tuple[str, Optional[bytes], list[str]]] = {
    "no authority": ("ca.pem", None, ["No such file"]),
    "an empty authority": ("ca.pem", b"", ["it is not what the run put there"]),
    "an authority of noise": ("ca.pem", b"\0\xff" * 100, ["it is not what the run put there"]),
    "an authority cut off": ("ca.pem", b"-----BEGIN CERTIFICATE-----\nMIIB", ["it is not what the run put there"]),
    "no token": ("token", None, ["No such file"]),
    "an empty token": ("token", b"", ["it is not what the run put there"]),
    "a short token": ("token", b"secret", ["it is not what the run put there"]),
    "a token beyond ASCII": ("token", b"\xff" * 43, ["it is not what the run put there"]),
    "a token of two lines": ("token", b"A" * 43 + b"\nX-Other: 1", ["it is not what the run put there"]),
    "a token of a megabyte": ("token", b"A" * 1_000_000, ["it is not what the run put there"]),
    "no readers": ("readers", None, ["No such file"]),
    "readers in the clear": ("readers", b"password", ["it is not what the run put there"]),
    "no certificate for metrics": ("metrics.pem", None, ["No such file"]),
    "a certificate of noise": ("metrics.pem", b"\0\xff" * 100, ["it is not what the run put there"]),
}


def serving(home: Path, case: str) -> tuple[Process, Secured]:
    """A real collector that shows the certificate of ``case`` to agents that believe the run's authority."""
    authority, signer, leaf, _ = SHOWN[case]
    run = authority.sign()
    issuer = {"run": run, "other": AUTHORITY.sign(), None: None}[signer]
    secured = Secured(home / "secured", RUN, NAMES)
    made = leaf.sign(issuer)
    (secured.collector / "tls.pem").write_text(made.key_pem + made.pem)
    (secured.agents["alecto"] / "ca.pem").write_text(run.pem)
    return Process(home, plan(), "--stay", secured=secured), secured


@pytest.mark.parametrize("case", SHOWN)
def test_a_collector_that_is_not_the_runs_is_told_nothing(case: str, tmp_path: Path) -> None:
    """The sentence says what is wrong with its certificate; no byte of the token has left, no row is stored."""
    process, secured = serving(tmp_path, case)
    try:
        badge = read_badge(str(secured.agents["alecto"]))
        channel = Channel(process.url, run_id=RUN, agent="alecto", epoch=EPOCH, badge=badge, timeout_s=5)
        with pytest.raises(Trouble) as caught:
            channel.ready({key: value for key, value in ready().items() if key not in ("v", "epoch")})
        check.one_sentence(str(caught.value), [UNBELIEVED, *SHOWN[case][3]])
        assert not check.rows(tmp_path / "fury.db")["epochs"]
        assert "alecto is ready" not in process.output.read_text()
    finally:
        assert process.end() == 0
    assert "Traceback" not in process.output.read_text()


def test_an_agent_ends_with_that_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    """PRECONDITION, what is wrong and at which collector; its directory is as it was."""
    process, secured = serving(tmp_path, "expired")
    (tmp_path / "disk").mkdir()
    try:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "fury_agent", "alecto", "--chunk-mb", "1", "--seconds", "1", "--run-id", RUN),
                *("--directory", str(tmp_path / "disk"), "--collector-url", process.url, "--allow-few-rollovers"),
                *("--credentials-directory", str(secured.agents["alecto"]), "--barrier-seconds", "1"),
                *("--drain-seconds", "1"),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        process.end()
    assert done.returncode == Verdict.PRECONDITION.exit_code, done.stdout + done.stderr
    told = [line for line in (done.stdout + done.stderr).splitlines() if "did not answer within 1 s" in line]
    check.one_sentence(told[-1], [process.url, UNBELIEVED + "certificate has expired"])
    assert "Traceback" not in done.stdout + done.stderr
    assert secured.token("alecto") not in done.stdout + done.stderr
    assert not list((tmp_path / "disk").iterdir())
    assert not check.rows(tmp_path / "fury.db")["epochs"]


@pytest.mark.parametrize("case", OWN)
def test_credentials_that_the_run_did_not_make_are_one_sentence(case: str, tmp_path: Path) -> None:
    """The file and what to do, nothing of what is in it; before anything is made."""
    name, content, says = OWN[case]
    directory = Secured(tmp_path / "secured", RUN, NAMES).agents["alecto"]
    (directory / name).unlink()
    if content is not None:
        (directory / name).write_bytes(content)
    values = {"name": "alecto", "chunk_mb": 1, "seconds": 1, "directory": str(tmp_path), "run_id": RUN}
    before = check.contents(tmp_path)
    with pytest.raises(FuryError) as caught:
        check_agent(
            make_config({**values, "collector_url": "https://127.0.0.1:1", "credentials_directory": str(directory)})
        )
    assert caught.value.verdict is Verdict.PRECONDITION
    check.one_sentence(
        caught.value.message,
        [f"credentials_directory: {directory / name}", "give the directory that the run made for this agent", *says],
    )
    assert not re.search("secret|password|A{43}", caught.value.message.replace(str(directory), ""))
    assert check.contents(tmp_path) == before
