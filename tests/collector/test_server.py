"""The real process: its life, its last words, kill -9, and clients that mean no good."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fury_collector.db import Database
from fury_collector.server import listen

from .conftest import NAMES, ROOT, RUN, Process, event, life, plan

Serve = Callable[..., Process]


def test_a_run_from_ready_to_the_last_receipt(serve: Serve, tmp_path: Path) -> None:
    """The process tells the run in plain words, prints the statistics, ends by itself and leaves one file."""
    collector = serve(plan(seconds=4))
    assert set(json.loads(collector.state_file.read_text())) == {"pid", "host", "port", "run_id", "url"}
    for name in NAMES:
        status, answer = collector.ready(name)
        assert status == 200
    assert answer["state"] == "start"
    time.sleep(answer["start_in_s"] + 0.1)
    for name in NAMES:
        assert collector.push(name, *life()) == (200, {"stored": 7, "duplicates": 0, "receipt": True, "command": None})
    ended = time.monotonic()
    assert collector.popen.wait(20) == 0
    assert 2 < time.monotonic() - ended < 10
    assert not collector.state_file.exists()
    assert not list(tmp_path.glob("fury.db-*"))
    told = collector.output.read_text()
    for sentence in (
        "alecto is ready on host1",
        "3 of 3 agents ready: common start in 1.5 s",
        "alecto started writing 20 MB chunks on host1",
        "9 rollovers in the last",
        "megaera stopped after 60.0 s: 0.06 GB, 3 rollovers, PASS",
        "the run has finished: 3 agents delivered everything",
        "agent      host",
        "fleet",
    ):
        assert sentence in told
    assert told.splitlines()[-1].startswith("PASS: 3 of 3 agents finished")
    assert "Traceback" not in told


def test_an_aborted_run_ends_by_itself(serve: Serve) -> None:
    """A barrier that times out names the missing and the process ends."""
    collector = serve(plan(), "--barrier-seconds", "1")
    assert collector.popen.wait(20) == 0
    told = collector.output.read_text()
    assert "the run is aborted: not all agents were ready within 1 s; never ready: alecto, megaera, tisiphone" in told
    assert told.splitlines()[-1].startswith("INCOMPLETE: 0 of 3 agents finished")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_statistics(serve: Serve, number: int) -> None:
    """What is stored so far is reported, nothing is left."""
    collector = serve(plan(), "--stay")
    collector.push("alecto", event(0, "start"))
    collector.popen.send_signal(number)
    assert collector.popen.wait(20) == 0
    assert "INCOMPLETE: 0 of 3 agents finished" in collector.output.read_text()
    assert not collector.state_file.exists()


def test_close_ends_it_at_once_and_stay_keeps_it(serve: Serve) -> None:
    """`close` is the controller's word; with --stay only a signal ends it."""
    collector = serve()
    began = time.monotonic()
    assert collector.request("POST", f"/api/v1/runs/{RUN}/close", {})[0] == 200
    assert collector.popen.wait(20) == 0
    assert time.monotonic() - began < 5
    staying = serve(plan(), "--stay")
    staying.request("POST", f"/api/v1/runs/{RUN}/close", {})
    time.sleep(1.5)
    assert staying.popen.poll() is None
    assert staying.end() == 0


def test_a_port_in_use_is_told_in_one_sentence(serve: Serve, tmp_path: Path) -> None:
    """Exit code 3, the port, and what to do."""
    collector = serve()
    command = [sys.executable, "-m", "fury_collector", "serve", "--plan", str(tmp_path / "plan.json")]
    command += ["--port", str(collector.port), "--database", str(tmp_path / "second.db")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 3
    assert f"port {collector.port} on 127.0.0.1 is in use" in result.stderr
    assert "--port" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "second.db").exists()


def test_an_answer_is_not_held_back_by_nagle() -> None:
    """pywsgi sends an answer in two parts: without TCP_NODELAY every push took 40 ms longer."""
    listener = listen("127.0.0.1", 0)
    with socket.create_connection(listener.getsockname()[:2]):
        accepted, _ = listener.accept()
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        accepted.close()
    listener.close()


def test_whatever_was_acknowledged_before_kill_9_is_there_afterwards(serve: Serve, tmp_path: Path) -> None:
    """Five times in mid-ingest: acknowledged ⊆ stored ⊆ sent, and the retries are stored once."""
    chance = random.Random(20261124)
    acknowledged: dict[str, set[int]] = {name: set() for name in NAMES}
    sent: dict[str, int] = dict.fromkeys(NAMES, 0)
    document = plan()
    for round_ in range(5):
        collector = serve(document, "--stay")

        def push(name: str, port: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            first = max(acknowledged[name], default=-1) + 1
            while True:
                words = [event(seq, "rollover") for seq in range(first, first + 10)]
                sent[name] = max(sent[name], first + 10)
                body = json.dumps({"v": 1, "epoch": "0" * 16, "events": words})
                try:
                    connection.request(
                        "POST", f"/api/v1/runs/{RUN}/agents/{name}/events", body, {"Content-Type": "application/json"}
                    )
                    response = connection.getresponse()
                    answer = json.loads(response.read())
                except (OSError, http.client.HTTPException, ValueError):
                    return
                assert response.status == 200, answer
                assert answer["stored"] + answer["duplicates"] == 10
                acknowledged[name] |= set(range(first, first + 10))
                first += 10

        threads = [threading.Thread(target=push, args=(name, collector.port)) for name in NAMES]
        for thread in threads:
            thread.start()
        time.sleep(0.3 + chance.random() / 2)
        collector.kill()
        for thread in threads:
            thread.join(20)
        assert all(acknowledged[name] for name in NAMES), f"nothing was stored in round {round_}"
    database = Database(tmp_path / "fury.db", create=False)
    stored: dict[str, list[int]] = {name: [] for name in NAMES}
    for row in database.rollovers(database.read_run(RUN).id):
        stored[row["agent"]].append(row["seq"])
    database.close()
    for name in NAMES:
        assert len(set(stored[name])) == len(stored[name])
        assert acknowledged[name] <= set(stored[name])
        assert set(stored[name]) <= set(range(sent[name]))


def test_the_start_instant_survives_kill_9(serve: Serve) -> None:
    """Who was told to start was told an instant that is on disk."""
    collector = serve(plan(("alecto",)))
    _, answer = collector.ready("alecto")
    instant = answer["collector_mono_s"] + answer["start_in_s"]
    collector.kill()
    again = serve(plan(("alecto",)))
    _, answer = again.ready("alecto")
    assert answer["state"] == "start"
    assert answer["collector_mono_s"] + answer["start_in_s"] == pytest.approx(instant, abs=0.001)
    assert f"took up run {RUN} again (starting)" in again.output.read_text()


def test_idle_slow_and_rude_clients_hold_nobody_up(serve: Serve) -> None:
    """With 150 idle, half-sent and dribbling connections a normal push is answered within a second."""
    collector = serve(plan(), "--stay")
    rude: list[socket.socket] = []
    head = f"POST /api/v1/runs/{RUN}/agents/alecto/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    try:
        for number in range(150):
            one = socket.create_connection(("127.0.0.1", collector.port))
            if number % 3 == 1:
                one.sendall(head.encode())
            elif number % 3 == 2:
                one.sendall(f"{head}Content-Length: 1000000\r\n\r\n{{".encode())
            rude.append(one)
        for seq in range(5):
            began = time.monotonic()
            assert collector.push("alecto", event(seq, "rollover"))[0] == 200
            assert time.monotonic() - began < 1
    finally:
        for one in rude:
            one.close()
    assert collector.push("alecto", event(5, "rollover"))[0] == 200
    assert collector.end() == 0
    assert "Traceback" not in collector.output.read_text()


RUDE = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"POST /api/v1/runs/x/stop HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /api/v1/runs/x/stop HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n",
)


def test_what_is_not_http_is_dropped_quietly(serve: Serve) -> None:
    """A TLS hello, broken framing and endless lines end that connection and nothing else."""
    collector = serve(plan(), "--stay")
    for raw in RUDE:
        with socket.create_connection(("127.0.0.1", collector.port), timeout=10) as rude:
            rude.sendall(raw)
            answer = rude.recv(1000)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
        assert collector.request("GET", "/healthz")[0] == 200
    assert collector.end() == 0
    assert "Traceback" not in collector.output.read_text()


def test_a_client_that_dribbles_is_cut_off_when_its_time_is_up(serve: Serve) -> None:
    """Each step of a connection has its time: waiting, headers, body; with a second for each all are cut in two."""
    short = "import fury_collector.server as s; s.IDLE_S = s.HEAD_S = s.REQUEST_S = 1.0"
    collector = serve(plan(), "--stay", before=short)
    head = b"POST /api/v1/runs/x/stop HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    for sent in (b"", head, head + b"Content-Length: 100\r\n\r\n{"):
        with socket.create_connection(("127.0.0.1", collector.port), timeout=10) as slow:
            slow.sendall(sent)
            began = time.monotonic()
            with contextlib.suppress(ConnectionError):
                while time.monotonic() - began < 8:
                    slow.sendall(b"a" if sent else b"")
                    slow.settimeout(0.3)
                    with contextlib.suppress(TimeoutError):
                        if not slow.recv(1000):
                            break
            assert 0.5 < time.monotonic() - began < 5
    assert collector.request("GET", "/healthz")[0] == 200
    assert collector.end() == 0
    assert "Traceback" not in collector.output.read_text()


def test_descriptors_do_not_grow_with_connections(serve: Serve) -> None:
    """Three hundred connections, each gone after its push, leave no descriptor behind."""
    collector = serve(plan(), "--stay")

    def descriptors() -> int:
        return len(list(Path(f"/proc/{collector.popen.pid}/fd").iterdir()))

    def one(seq: int) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", collector.port, timeout=20)
        body = json.dumps({"v": 1, "epoch": "0" * 16, "events": [event(seq, "rollover")]})
        path = f"/api/v1/runs/{RUN}/agents/alecto/events"
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer

    for seq in range(20):
        assert one(seq)["stored"] == 1
    before = descriptors()
    for seq in range(20, 320):
        assert one(seq)["stored"] == 1
    assert descriptors() <= before + 3
