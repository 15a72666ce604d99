"""The run's authority and secrets, and the one directory of them that outlives a run."""

from __future__ import annotations

import datetime
import ipaddress
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from fury_controller import trust
from tests.secured import Secured


@pytest.fixture
def secured(tmp_path: Path) -> Secured:
    """The credentials of a run of two agents."""
    return Secured(tmp_path / "home", "r1", ["a", "b"], addresses=["10.0.0.1", "collector.example", "::1"])


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_certificates_are_for_their_addresses_and_this_run_only(secured: Secured) -> None:
    """Signed by the authority, for servers only, from an hour ago to an hour after the run."""
    root = x509.load_pem_x509_certificate(secured.authority.encode())
    made = certificate(secured.collector / "tls.pem")
    made.verify_directly_issued_by(root)
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["collector.example"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("::1")]
    assert list(made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH
    ]
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    now = datetime.datetime.now(datetime.timezone.utc)
    for one in (root, made):
        assert datetime.timedelta(minutes=59) < now - one.not_valid_before_utc < datetime.timedelta(minutes=62)
        assert datetime.timedelta(minutes=69) < one.not_valid_after_utc - now < datetime.timedelta(minutes=71)
    agents = certificate(secured.agents["a"] / "metrics.pem")
    assert trust.AGENT in agents.extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    ).value.get_values_for_type(x509.DNSName)
    assert isinstance(agents.public_key(), ec.EllipticCurvePublicKey)
    assert agents.public_key() != made.public_key()


def test_each_agent_of_each_run_has_a_token_of_its_own(tmp_path: Path, secured: Secured) -> None:
    """256 bits, the same whichever process of the run is asked."""
    other = Secured(tmp_path / "other", "r2", ["a", "b"])
    tokens = {each.token(name) for each in (secured, other) for name in ("a", "b")}
    assert len(tokens) == 4
    assert {len(token) for token in tokens} == {43}
    assert secured.token("a") == trust.agent_files(secured.plan, "a")["token"]


def test_the_authoritys_key_is_nowhere(secured: Secured) -> None:
    """The only private keys on the disk are the two that were given away."""
    found = [path.name for path in sorted(secured.home.rglob("*")) if path.is_file() and "PRIVATE" in path.read_text()]
    assert found == ["metrics.pem", "metrics.pem", "tls.pem"]
    root = x509.load_pem_x509_certificate(secured.authority.encode())
    for path in secured.home.rglob("*.pem"):
        if "PRIVATE" in path.read_text():
            assert certificate(path).public_key() != root.public_key()


def test_the_read_password_is_made_once_and_kept(tmp_path: Path) -> None:
    """Prometheus' configuration names its file: it is the same for all runs, for this user only."""
    directory = tmp_path / "new" / "credentials"
    Secured(tmp_path / "x", "r0", ["a"])
    trust.prepare(directory, trust.authority("r1", seconds=1))
    first = trust.password(directory)
    trust.prepare(directory, trust.authority("r2", seconds=1))
    assert trust.password(directory) == first
    assert (directory / "read-password").stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700


def test_authorities_of_runs_that_may_still_go_on_are_kept_beside_each_other(tmp_path: Path, secured: Secured) -> None:
    """Two runs at once can both be scraped; those that are over are dropped."""
    directory = tmp_path / "home" / "credentials"
    over = trust.authority("over", seconds=-2 * trust.EARLY_S)
    trust.prepare(directory, over)
    trust.prepare(directory, trust.authority("r2", seconds=60))
    subjects = [
        one.subject.rfc4514_string() for one in x509.load_pem_x509_certificates((directory / "ca.pem").read_bytes())
    ]
    assert subjects == ["CN=Fury run r1", "CN=Fury run r2"]


@pytest.mark.parametrize(
    ("mode", "text", "told"),
    [
        (0o644, "x" * 43, "is open to others; chmod go="),
        (0o600, "short", "holds 5 characters; 20 to 200 without blanks are allowed"),
        (0o600, "with a blank in the middle of it", "without blanks are allowed"),
        (0o600, "ä" * 30, "it is not plain text"),
    ],
)
def test_a_password_that_protects_nothing_is_refused(tmp_path: Path, mode: int, text: str, told: str) -> None:
    """In one sentence that names the file."""
    directory = tmp_path / "credentials"
    directory.mkdir(mode=0o700)
    path = directory / "read-password"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(trust.NotPossible, match=told) as error:
        trust.prepare(directory, "")
    assert str(path) in str(error.value)


def test_a_directory_that_is_open_to_others_is_refused(tmp_path: Path) -> None:
    """The files in it could be exchanged."""
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(trust.NotPossible, match="chmod go="):
        trust.prepare(tmp_path / "open", "")


def test_without_the_callback_there_are_no_secrets(tmp_path: Path) -> None:
    """A run without them is refused, not done without."""
    told = subprocess.run(
        [sys.executable, "-c", "from fury_controller import trust\n"
         "try: trust.control_token('r')\nexcept trust.NotPossible as error: print(error)"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True, env={**os.environ},
    )  # fmt: skip
    assert "callback plugin was not loaded" in told.stdout
