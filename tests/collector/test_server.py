"""The real process: its life, its last words, kill -9, and clients that mean no good."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Optional

import pytest

from fury_collector.db import Database
from fury_collector.server import listen
from fury_collector.stores import Where

from .conftest import EPOCH, NAMES, ROOT, RUN, Process, database_options, event, life, over_both_stores, plan

Serve = Callable[..., Process]


@over_both_stores
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
        "3 of 3 agents ready: common start in 0.8 s",
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
    command = [sys.executable, "-m", "fury_collector", "serve", "--plain-http", "--plan", str(tmp_path / "plan.json")]
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


NURSERY = """
import json, os, sys
import fury_collector.server
from fury_collector.__main__ import main
output = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = ["fury_collector", *json.loads(line)]
        main()
        os._exit(0)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


class Nursery:
    """Starts collectors by forking one that has loaded everything: a start costs what a start does, not Python's."""

    def __init__(self, directory: Path) -> None:
        self.output = directory / "nursery.txt"
        self.popen = subprocess.Popen(
            [sys.executable, "-c", NURSERY, str(self.output)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def start(self, *arguments: object) -> int:
        """The pid of a new collector."""
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self.popen.stdin.write(json.dumps([str(argument) for argument in arguments]) + "\n")
        self.popen.stdin.flush()
        return int(self.popen.stdout.readline())

    def end(self, pid: int, number: signal.Signals) -> int:
        """Send the collector a signal and wait for its end: the wait status."""
        assert self.popen.stdout is not None
        os.kill(pid, number)
        return int(self.popen.stdout.readline())

    def close(self) -> None:
        self.popen.kill()  # whatever it started has been ended
        self.popen.communicate()


class Sender(threading.Thread):
    """An agent that pushes ten rollovers at a time until it is told to stop, each until it is acknowledged."""

    def __init__(self, name: str, port: int) -> None:
        super().__init__(daemon=True)
        self.agent, self.port = name, port
        self.stopped = threading.Event()
        self.acknowledged = self.sent = self.refused = 0
        self.broken: list[str] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        while not self.stopped.is_set():
            words = [event(seq, "rollover") for seq in range(self.acknowledged, self.acknowledged + 10)]
            self.sent = self.acknowledged + 10
            body = json.dumps({"v": 1, "epoch": EPOCH, "events": words})
            path = f"/api/v1/runs/{RUN}/agents/{self.agent}/events"
            try:
                connection.request("POST", path, body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                answer = json.loads(response.read())
            except (OSError, http.client.HTTPException, ValueError):
                connection.close()
                time.sleep(0.005)
                continue
            if response.status == 503:
                self.refused += 1
                time.sleep(0.005)
                continue
            if response.status != 200 or answer["stored"] + answer["duplicates"] != 10:
                self.broken.append(f"{response.status} {answer}")
                return
            self.acknowledged += 10
        connection.close()


@over_both_stores
def test_whatever_was_acknowledged_before_kill_9_is_there_afterwards(where: Where, tmp_path: Path) -> None:
    """Fifty times in mid-commit, at once again on the same port: acknowledged ⊆ stored ⊆ sent, nothing twice."""
    chance = random.Random(20261124)
    (tmp_path / "plan.json").write_text(json.dumps(plan()))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = (
        "serve",
        "--plain-http",
        "--plan",
        tmp_path / "plan.json",
        *database_options(where),
        "--port",
        port,
        "--stay",
    )
    nursery = Nursery(tmp_path)
    senders = [Sender(name, port) for name in NAMES]
    try:
        for sender in senders:
            sender.start()
        for kill in range(50):
            pid = nursery.start(*command)
            before = [sender.acknowledged for sender in senders]
            deadline = time.monotonic() + 20
            while any(sender.acknowledged == was for sender, was in zip(senders, before)):
                assert not any(sender.broken for sender in senders), [sender.broken for sender in senders]
                assert time.monotonic() < deadline, f"nothing got through before kill {kill}\n" + _tail(nursery.output)
                time.sleep(0.002)
            time.sleep(chance.random() * 0.03)
            assert nursery.end(pid, signal.SIGKILL) == signal.SIGKILL
        for sender in senders:
            sender.stopped.set()
            sender.join(30)
        assert_stored(where, senders)
        pid = nursery.start(*command)
        last = Process.__new__(Process)
        last.run_id, last.port, last._connection, last.secured = RUN, port, None, None
        for sender in senders:
            words = [event(seq, "rollover") for seq in range(sender.acknowledged, sender.acknowledged + 10)]
            final = event(sender.acknowledged + 10, "final", rollovers=sender.acknowledged + 10)
            assert _patiently(lambda s=sender, w=[*words, final]: last.push(s.agent, *w))[1]["receipt"] is True  # type: ignore[misc]
        assert nursery.end(pid, signal.SIGTERM) == 0
    finally:
        for sender in senders:
            sender.stopped.set()
        nursery.close()
    assert "Traceback" not in nursery.output.read_text()


def assert_stored(where: Where, senders: list[Sender]) -> None:
    """acknowledged ⊆ stored ⊆ sent, nothing twice."""
    database = Database(where, create=False, read_only=True)
    stored: dict[str, list[int]] = {sender.agent: [] for sender in senders}
    for row in database.rollovers(database.read_run(RUN).id):
        stored[row["agent"]].append(row["seq"])
    database.close()
    for sender in senders:
        seqs = stored[sender.agent]
        assert len(set(seqs)) == len(seqs)
        assert set(range(sender.acknowledged)) <= set(seqs) <= set(range(sender.sent))


def _tail(path: Path) -> str:
    return path.read_text()[-2000:]


def _patiently(ask: Callable[[], tuple[int, Any]]) -> tuple[int, Any]:
    """The answer of a collector that is just starting."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return ask()
        except (OSError, http.client.HTTPException):
            assert time.monotonic() < deadline
            time.sleep(0.02)


@over_both_stores
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


def test_a_collector_with_64_descriptors_answers_10_000_messages(serve: Serve, tmp_path: Path) -> None:
    """A hundred clients that keep their connections, ten messages a push: the idle ones are shut for those that push."""
    few = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))"
    collector = serve(plan(), "--stay", before=few)
    answered: list[bytes] = []
    most: list[int] = []

    path = f"/api/v1/runs/{RUN}/agents/alecto/events"

    def client(number: int) -> None:
        kept: list[Optional[socket.socket]] = [None] * 10
        for push in range(100):
            first = number * 1000 + push * 10
            words = [event(seq, "heartbeat") for seq in range(first, first + 10)]
            body = json.dumps({"v": 1, "epoch": EPOCH, "events": words})
            request = (
                f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n{body}"
            ).encode()
            for _ in range(50):
                one = kept[push % 10] or socket.create_connection(("127.0.0.1", collector.port), timeout=30)
                kept[push % 10] = one
                answer = b""
                with contextlib.suppress(OSError):
                    one.sendall(request)
                    while not answer.endswith(b"}") and (part := one.recv(1000)):
                        answer += part
                if answer:
                    answered.append(answer[:15])
                    break
                one.close()  # shut for another one: an agent sends again
                kept[push % 10] = None
        for left in kept:
            if left is not None:
                left.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        most.append(len(list(Path(f"/proc/{collector.popen.pid}/fd").iterdir())))
        time.sleep(0.2)
    assert answered == [b"HTTP/1.1 200 OK"] * 1_000
    assert max(most) < 64
    assert _patiently(lambda: collector.request("GET", "/healthz"))[0] == 200
    assert collector.end() == 0
    database = Database(tmp_path / "fury.db", create=False)
    assert database.read_run(RUN).agents[0].epochs[0].stored == 10_000
    database.close()
    told = collector.output.read_text()
    assert "Traceback" not in told
    assert "Too many open files" not in told


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB; ask for it before `serve`, whose collectors have to be gone before it can be."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    where = tmp_path / "small"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "fury-test", str(where)], check=True)
    yield where
    subprocess.run(["umount", str(where)], check=True)


def test_a_full_disk_under_the_database_costs_nothing_but_time(small_disk: Path, serve: Serve) -> None:
    """Senders are told to come again, the collector lives, and with room again it takes everything, once."""
    collector = serve(plan(), "--stay", "--database", str(small_disk / "fury.db"))
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_000_000))
    big = [[event(seq, "error", message="x" * 4000) for seq in range(n, n + 20)] for n in range(0, 400, 20)]
    taken = 0
    while (status := collector.push("alecto", *big[taken])[0]) == 200:
        taken += 1
        assert taken < len(big), "2 MB took it all"
    assert status == 503
    connection = http.client.HTTPConnection("127.0.0.1", collector.port, timeout=30)
    body = json.dumps({"v": 1, "epoch": EPOCH, "events": big[taken]})
    path = f"/api/v1/runs/{RUN}/agents/alecto/events"
    for _ in range(3):
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 503
        assert answer.headers["Retry-After"] == "1"
        assert "disk is full" in json.loads(answer.read())["error"]
        time.sleep(0.6)
    assert collector.request("GET", "/healthz")[0] == 200
    _, state = collector.request("GET", f"/api/v1/runs/{RUN}")
    assert any("pushes are refused for now" in message["text"] for message in state["messages"])
    ballast.unlink()
    for events in big[taken : taken + 5]:
        assert collector.push("alecto", *events) == (
            200,
            {"stored": 20, "duplicates": 0, "receipt": False, "command": None},
        )
    connection.close()
    assert collector.end() == 0
    assert "Traceback" not in collector.output.read_text()
    database = Database(small_disk / "fury.db", create=False)
    run = database.read_run(RUN)
    database.close()
    assert run.agents[0].epochs[0].stored == 20 * (taken + 5)
    assert [message.n for message in run.messages] == list(range(run.next_message))
    assert any("pushes are refused for now" in message.text for message in run.messages)


def test_a_damaged_database_is_refused_before_anything_is_served(tmp_path: Path) -> None:
    """One sentence with its name, exit code 3, and the file stays as it is."""
    (tmp_path / "plan.json").write_text(json.dumps(plan()))
    path = tmp_path / "fury.db"
    Database(path).close()
    raw = path.read_bytes()
    path.write_bytes(raw[:8192] + b"\xff" * 4096 + raw[12288:])
    command = [
        sys.executable,
        "-m",
        "fury_collector",
        "serve",
        "--plain-http",
        "--plan",
        str(tmp_path / "plan.json"),
        "--port",
        "0",
    ]
    result = subprocess.run(
        [*command, "--database", str(path)], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert result.returncode == 3
    assert f"{path} is damaged" in result.stderr
    assert len(result.stderr.splitlines()) == 1
