"""What the run gave the agent: whom it believes, whom it lets read, and how it says what is wrong with it."""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Iterator

import pytest
from prometheus_client import CollectorRegistry

from fury_agent import agent, config
from fury_agent.channel import Channel, Trouble
from fury_agent.metrics import MetricsServer
from fury_agent.verdict import FuryError, Verdict
from fury_controller import trust
from tests.agent.peer import Peer
from tests.secured import Secured

REPO = Path(__file__).parents[2]


def alien() -> str:
    """The certificate of the authority of another controller, with a key that this process does not know."""
    script = "from fury_controller import trust; trust.begin(); print(trust.authority('r1', seconds=60))"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def secured(tmp_path: Path) -> Secured:
    """The credentials of a run with one agent."""
    return Secured(tmp_path / "home", "r1", ["alecto"])


@pytest.fixture
def peer(secured: Secured) -> Iterator[Peer]:
    """A collector's stand-in with the run's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(secured.collector / "tls.pem")
    made = Peer(context)
    yield made
    made.close()


def told(tmp_path: Path, url: str = "https://127.0.0.1:1", **more: Any) -> config.Config:
    return config.make_config(
        {
            "name": "alecto",
            "run_id": "r1",
            "chunk_mb": 1,
            "seconds": 1,
            "directory": str(tmp_path),
            "collector_url": url,
            **more,
        }
    )


def channel(tmp_path: Path, url: str, where: Path, **more: Any) -> Channel:
    badge = agent.badge(told(tmp_path, url, credentials_directory=str(where)))
    return Channel(url, run_id="r1", agent="alecto", epoch="00000000000000aa", badge=badge, **more)


def test_it_shows_its_token_over_tls_and_keeps_the_connection(tmp_path: Path, peer: Peer, secured: Secured) -> None:
    """One handshake for all that it sends."""
    made = channel(tmp_path, peer.url, secured.agents["alecto"])
    made.ready({})
    made.send([b'{"seq":0,"kind":"start"}'])
    made.send([b'{"seq":1,"kind":"start"}'])
    made.close()
    assert peer.connections == 1
    assert set(peer.authorizations) == {f"Bearer {secured.token('alecto')}"}


def test_the_environment_can_not_have_the_sessions_secrets_written_down(
    tmp_path: Path, peer: Peer, secured: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL's SSLKEYLOGFILE is for debugging other programs."""
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    made = channel(tmp_path, peer.url, secured.agents["alecto"])
    made.ready({})
    made.close()
    trust.opener(secured.authority, "x" * 43)
    assert not (tmp_path / "keys").exists()


def test_it_believes_no_other_authority_and_no_other_name(tmp_path: Path, peer: Peer, secured: Secured) -> None:
    """A collector of another run, or one whose certificate is for somewhere else, is sent nothing."""
    other = tmp_path / "other"
    shutil.copytree(secured.agents["alecto"], other)
    (other / "ca.pem").write_text(alien())
    for where, url in (
        (other, peer.url),
        (secured.agents["alecto"], peer.url.replace("127.0.0.1", "localhost")),
    ):
        with pytest.raises(Trouble, match="its certificate is not to be believed: "):
            channel(tmp_path, url, where).ready({})
    assert not peer.asks


def test_a_call_over_tls_ends_in_its_time_however_the_other_side_dribbles(tmp_path: Path, secured: Secured) -> None:
    """Silent before the handshake, in mid-handshake, and a byte at a time afterwards."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(secured.collector / "tls.pem")
    over = threading.Event()

    def dribble(listener: socket.socket, greet: bool) -> None:
        connection, _ = listener.accept()
        with connection:
            if not greet:
                over.wait(10)
                return
            with context.wrap_socket(connection, server_side=True) as secure:
                secure.recv(65536)
                for _ in range(100):
                    if over.wait(0.1):
                        return
                    secure.send(b"H")

    for greet in (False, True):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=dribble, args=(listener, greet), daemon=True)
            thread.start()
            url = f"https://127.0.0.1:{listener.getsockname()[1]}"
            made = channel(tmp_path, url, secured.agents["alecto"], timeout_s=1.0)
            began = time.monotonic()
            with pytest.raises(Trouble, match="timed out"):
                made.ready({})
            assert time.monotonic() - began < 2.5
            made.close()
            over.set()
            thread.join(5)
            over.clear()


@pytest.mark.parametrize("name", ["ca.pem", "token", "metrics.pem", "readers"])
@pytest.mark.parametrize("damage", ["missing", "empty", "other"])
def test_what_is_missing_or_damaged_is_told_before_anything_is_written(
    tmp_path: Path, secured: Secured, name: str, damage: str
) -> None:
    """One sentence with the file's name; PRECONDITION."""
    where = secured.agents["alecto"]
    (where / name).unlink()
    if damage != "missing":
        (where / name).write_text("" if damage == "empty" else "x \n y")
    settings = told(tmp_path, credentials_directory=str(where))
    with pytest.raises(FuryError, match=name.replace(".", r"\.")) as error:
        (agent.badge if name in ("ca.pem", "token") else agent.guard)(settings)
    assert error.value.verdict is Verdict.PRECONDITION
    assert "give the directory that the run made for this agent" in error.value.message


@pytest.mark.parametrize(
    ("url", "more", "sentence"),
    [
        ("http://127.0.0.1:9475", {}, "is not allowed without plain_http"),
        ("http://10.0.0.1:9475", {"plain_http": True}, "is not allowed with plain_http; only loopback is"),
        ("http://collector.example:9475", {"plain_http": True}, "only loopback is"),
        ("https://127.0.0.1:9475", {"plain_http": True}, "plain_http is given with https"),
    ],
)
def test_nothing_leaves_this_host_without_tls(tmp_path: Path, url: str, more: Any, sentence: str) -> None:
    """Plain HTTP is for debugging on loopback, and has to be asked for."""
    with pytest.raises(FuryError, match=sentence):
        told(tmp_path, url, **more)


def test_without_credentials_there_is_no_way_to_a_collector_nor_metrics_for_others(tmp_path: Path) -> None:
    """Both are told as what was given wrong."""
    with pytest.raises(FuryError, match="credentials_directory is missing") as error:
        agent.badge(told(tmp_path))
    assert error.value.verdict is Verdict.BAD_INPUT
    with pytest.raises(FuryError, match=r"metrics_address: 0\.0\.0\.0 is not allowed without credentials_directory"):
        agent.guard(told(tmp_path, "http://127.0.0.1:1", plain_http=True, metrics_address="0.0.0.0"))


def test_nothing_is_sent_to_a_collector_that_can_not_be_known(tmp_path: Path) -> None:
    """Not even that the agent failed, and above all not without TLS."""
    heard: list[bytes] = []

    def listen(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            heard.append(listener.accept()[0].recv(100))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=listen, args=(listener,), daemon=True).start()
        argv = [sys.executable, "-m", "fury_agent", "alecto", "--chunk-mb", "1", "--seconds", "2"]
        argv += ["--directory", str(tmp_path), "--collector-url", f"https://127.0.0.1:{listener.getsockname()[1]}"]
        done = subprocess.run(argv, cwd=REPO, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "credentials_directory is missing" in done.stderr + done.stdout
        assert heard == []


def scrape(server: MetricsServer, secured: Secured, shown: Any) -> http.client.HTTPResponse:
    connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=10, context=secured.context)
    connection.request("GET", "/metrics", headers={} if shown is None else {"Authorization": shown})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer


def test_metrics_are_read_over_tls_with_the_read_credential_only(tmp_path: Path, secured: Secured) -> None:
    """The agent's own token reads nothing; nor does plain HTTP get an answer."""
    guard = agent.guard(told(tmp_path, credentials_directory=str(secured.agents["alecto"])))
    server = MetricsServer(CollectorRegistry(), address="127.0.0.1", port=0, guard=guard)
    wrong = base64.b64encode(b"fury:" + b"x" * 43).decode()
    user = base64.b64encode(f"root:{secured.password}".encode()).decode()
    try:
        assert server.url.startswith("https://")
        for shown in (None, "", "Basic", "Basic !", f"Basic {wrong}", f"Basic {user}", secured.bearer("alecto")):
            answer = scrape(server, secured, shown)
            assert (answer.status, answer.getheader("WWW-Authenticate")) == (401, 'Basic realm="fury"'), shown
        assert scrape(server, secured, secured.reader).status == 200
        plain = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        plain.request("GET", "/metrics")
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            plain.getresponse()
        silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(10)]
        began = time.monotonic()
        assert scrape(server, secured, secured.reader).status == 200
        assert time.monotonic() - began < 1, "silent clients hold nobody up"
        for each in silent:
            each.close()
    finally:
        server.close()


def test_the_hosts_environment_gives_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an agent is known by comes from a directory that its configuration names, and from nowhere else."""
    monkeypatch.setitem(os.environ, "CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(FuryError, match="credentials_directory is missing"):
        agent.badge(told(tmp_path))
