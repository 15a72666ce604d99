"""The agent run by hand: every line as a person reads it, every way it ends, and nothing left behind."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Callable, List

import pytest

from tests.agent.conftest import ROOT, AgentProcess

Run = Callable[..., AgentProcess]
SUMMARY_KEYS = {
    *("name", "host", "verdict", "reason", "epochs", "events_issued", "events_stored", "written_bytes", "rollovers"),
    *("seconds", "throughput_bytes_per_second", "write_latency_seconds", "fsync_latency_seconds"),
    *(
        "device_written_bytes",
        "cleanup",
        "ramp_bytes",
        "read_bytes",
        "read_latency_seconds",
        "honesty",
        "notes",
        "facts",
    ),
}


def arguments(directory: Path, *more: str, seconds: int = 1) -> List[str]:
    return ["alecto", "--chunk-mb", "1", "--seconds", str(seconds), "--directory", str(directory), *more]


def test_a_run_says_what_it_does_and_ends_with_its_verdict(run_agent: Run, tmp_path: Path) -> None:
    """What is written where and how long, rollovers, statistics, and PASS as the last line with exit code 0."""
    agent = run_agent(*arguments(tmp_path))
    assert agent.code == 0, agent.out + agent.err
    assert f"alecto is writing 1 MB chunks to {tmp_path}/fury-alecto for 1 second" in agent.lines
    assert any(line.startswith("rollover 1: 1 MB in ") for line in agent.lines)
    assert any(line.startswith("rollovers 2-") for line in agent.lines)
    assert "statistics of alecto" in agent.lines
    assert any(re.match("note: (writes ended in the page cache|the directory is memory)", line) for line in agent.lines)
    assert re.fullmatch(
        r"PASS: alecto wrote \S+ [GM]B in 1\.\d s \(\S+ [GM]B/s\), \d+ rollovers, nothing left behind", agent.lines[-1]
    )
    assert agent.err == ""
    assert "\r" not in agent.out
    assert list(tmp_path.iterdir()) == []


def test_json_is_the_agents_object_of_summary_json(run_agent: Run, tmp_path: Path) -> None:
    """The last line holds every key of the contract, and its figures agree with each other."""
    home = tmp_path / "home"
    home.mkdir()
    agent = run_agent(*arguments(tmp_path, "--json", "--state-directory", str(home)))
    summary = agent.summary
    assert set(summary) >= SUMMARY_KEYS
    assert (summary["verdict"], summary["cleanup"], summary["events_stored"]) == ("PASS", "confirmed", 0)
    assert summary["written_bytes"] >= summary["rollovers"] * 1_003_520 > 0
    assert summary["written_bytes"] < (summary["rollovers"] + 1) * 1_003_520
    assert summary["throughput_bytes_per_second"] == pytest.approx(summary["written_bytes"] / summary["seconds"])
    assert set(summary["write_latency_seconds"]) == {"p50", "p95", "p99", "p999", "max"}
    assert json.loads((home / "result.json").read_text()) == summary
    assert [path.name for path in home.iterdir()] == ["result.json"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_it_with_statistics(start_agent: Run, tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C, kill and a closed terminal: statistics, INCOMPLETE with how far it came, code 6, nothing left."""
    agent = start_agent(*arguments(tmp_path, seconds=60))
    agent.wait_for("rollover 1:")
    agent.process.send_signal(number)
    agent.finish()
    assert agent.code == 6
    assert re.fullmatch(rf"INCOMPLETE: alecto: stopped by {number.name} after \d+\.\d of 60 s", agent.lines[-1])
    assert "statistics of alecto" in agent.lines
    assert agent.err == ""
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_goes_away_does_not_fail_the_run(start_agent: Run, tmp_path: Path) -> None:
    """`| head` closes the pipe: the run goes on silently to its verdict and cleans up."""
    agent = start_agent(*arguments(tmp_path, seconds=2))
    agent.wait_for("rollover 1:")
    assert agent.process.stdout is not None
    agent.process.stdout.close()
    assert agent.process.wait(20) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_gets_a_live_line(tmp_path: Path) -> None:
    """On a TTY the line with elapsed time, rate and rollovers is rewritten in place."""
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "fury_agent", *arguments(tmp_path, seconds=2)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    said = b""
    while True:
        try:
            more = os.read(controller, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if not more:
            break
        said += more
    os.close(controller)
    assert process.wait(10) == 0
    assert re.search(rb"\ralecto: 1 of 2 s, \S+ [GM]B/s, \d+ rollovers", said)
    assert said.rstrip().splitlines()[-1].startswith(b"PASS: ")


def test_metrics_are_served_while_it_writes(start_agent: Run, tmp_path: Path) -> None:
    """The line says where; the port is closed afterwards."""
    agent = start_agent(*arguments(tmp_path, seconds=2))
    url = agent.wait_for("metrics: ").split()[1]
    agent.wait_for("rollover 1:")
    with urllib.request.urlopen(url, timeout=5) as answer:
        text = answer.read().decode()
    assert re.search(r"^fury_rollovers_total [1-9]", text, re.MULTILINE)
    assert f'directory="{tmp_path}/fury-alecto"' in text
    assert agent.finish().code == 0
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=5)


def test_a_killed_agents_directory_is_taken_over_by_the_next(start_agent: Run, run_agent: Run, tmp_path: Path) -> None:
    """kill -9 leaves chunks and a marker nobody holds; the next run of that name removes them."""
    agent = start_agent(*arguments(tmp_path, seconds=60))
    agent.wait_for("rollover 1:")
    agent.process.kill()
    agent.finish()
    assert (tmp_path / "fury-alecto" / "chunk-0.dat").exists()
    assert run_agent(*arguments(tmp_path)).code == 0
    assert list(tmp_path.iterdir()) == []


def test_two_agents_of_one_name_never_share_a_directory(start_agent: Run, run_agent: Run, tmp_path: Path) -> None:
    """The second is refused with the run that holds it, the first goes on."""
    first = start_agent(*arguments(tmp_path, "--run-id", "first", seconds=3))
    first.wait_for("rollover 1:")
    second = run_agent(*arguments(tmp_path))
    assert second.code == 3
    assert "is in use by run first" in second.lines[-1]
    assert first.finish().code == 0
    assert list(tmp_path.iterdir()) == []


def test_time_that_cannot_hold_two_rollovers_is_refused_with_what_would_do(run_agent: Run, tmp_path: Path) -> None:
    """The sentence names the rate and the minutes or chunk size that would do; the option overrides."""
    large = ["alecto", "--chunk-mb", "20000", "--keep", "1", "--seconds", "1", "--directory", str(tmp_path)]
    agent = run_agent(*large)
    assert agent.code == 3
    assert re.search(
        r"PRECONDITION: alecto: 1 s at the \S+ [GM]B/s .* hold 0\.\d+ rollovers of 20000 MB chunks and 2 are needed; "
        r"give minutes=\d+ or more, or give chunk_mb=\d+ or less, or set allow_few_rollovers",
        agent.lines[-1],
    )
    assert list(tmp_path.iterdir()) == []
    allowed = run_agent(*large, "--allow-few-rollovers", "--json")
    assert allowed.code == 0, allowed.out
    assert allowed.summary["rollovers"] == 0
    assert allowed.summary["written_bytes"] > 0
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_refused_before_anything_is_written(run_agent: Run, tmp_path: Path) -> None:
    """Needed and free bytes are named."""
    agent = run_agent(*arguments(tmp_path, "--free-floor-mb", "1000000000"))
    assert agent.code == 3
    assert "bytes are needed" in agent.lines[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_metrics_port_in_use_is_refused(run_agent: Run, tmp_path: Path) -> None:
    """A precondition, in one sentence, with nothing left."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        agent = run_agent(*arguments(tmp_path, "--metrics-port", str(taken.getsockname()[1])))
    assert agent.code == 3
    assert "is in use" in agent.lines[-1]
    assert list(tmp_path.iterdir()) == []


def test_check_changes_nothing(run_agent: Run, tmp_path: Path) -> None:
    """--check judges settings, directory and space, and neither makes nor removes anything."""
    agent = run_agent(*arguments(tmp_path, "--check"))
    assert (agent.code, agent.err) == (0, "")
    assert agent.lines == [f"alecto can write 1 MB chunks to {tmp_path}; nothing was changed"]
    (tmp_path / "fury-alecto").mkdir()
    (tmp_path / "fury-alecto" / "mine").touch()
    refused = run_agent(*arguments(tmp_path, "--check"))
    assert refused.code == 3
    assert "mine" in refused.err
    assert (tmp_path / "fury-alecto" / "mine").exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "--help lists all options"),
        ("alecto", "chunk_mb is missing"),
        ("alecto --chunk-mb 20.5 --minutes 1 --directory /var/tmp", "chunk_mb: 20.5 is not allowed"),
        ("alecto --chunk-mb 20 --minutes 0 --directory /var/tmp", "minutes: 0 is not allowed"),
        ("alecto --chunk-mb 20 --minutes 1 --directory /proc", "directory: /proc is not allowed"),
        ("alecto --chunk-mb 20 --minutes 1 --directory /no/such", "/no/such does not exist"),
        ("alecto --chunk-mbs 20", "did you mean --chunk-mb?"),
        ("--config /no/such.json", "cannot be read"),
        ("../x --chunk-mb 20 --minutes 1 --directory /var/tmp", "name: ../x is not allowed"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(run_agent: Run, line: str, says: str) -> None:
    """No traceback, no usage wall: what is wrong and what to do."""
    agent = run_agent(*line.split())
    assert agent.code == 2
    said = (agent.err + agent.out).strip().splitlines()
    assert said[-1].startswith("BAD_INPUT: ")
    assert says in said[-1]
    assert "Traceback" not in agent.err + agent.out
    assert len(said) <= 3


def test_version_and_help_are_there(run_agent: Run) -> None:
    """Both end with 0; --help names every option."""
    assert run_agent("--version").out == "fury_agent 0.1.0\n"
    agent = run_agent("--help")
    assert agent.code == 0
    assert "--free-floor-mb" in agent.out


def test_a_directory_that_the_terminal_can_not_show_is_no_obstacle(
    run_agent: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Letters beyond ASCII where the locale has only that."""
    odd = tmp_path / "größe 目录"
    odd.mkdir()
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    agent = run_agent(*arguments(odd))
    assert agent.code == 0, agent.out + agent.err
    assert "gr\\xf6\\xdfe \\u76ee\\u5f55" in agent.out
    assert list(odd.iterdir()) == []


def test_a_directory_that_is_no_text_is_refused(run_agent: Run, tmp_path: Path) -> None:
    """It could stand in no result, no metric and no unit; nothing is made in it."""
    odd = tmp_path / os.fsdecode(b"\xff\xfe dir")
    odd.mkdir()
    agent = run_agent(*arguments(odd))
    assert agent.code == 2
    assert "an absolute path (UTF-8, at most 3900 bytes, no control characters)" in agent.err
    assert list(odd.iterdir()) == []


def test_a_chunk_removed_under_it_ends_it_as_a_disk_error(start_agent: Run, tmp_path: Path) -> None:
    """The sentence names the call, the chunk and the file; what is left of its directory goes."""
    agent = start_agent(*arguments(tmp_path, seconds=60))
    agent.wait_for("rollover 1:")
    (tmp_path / "fury-alecto" / "chunk-0.dat").unlink()
    agent.finish()
    assert agent.code == 4
    assert re.match(r"DISK_ERROR: alecto: open of chunk \d+ .*chunk-0\.dat failed with ENOENT", agent.lines[-1])
    assert list(tmp_path.iterdir()) == []


def test_its_memory_stays_small(start_agent: Run, tmp_path: Path) -> None:
    """At 20 MB chunks the agent stays under the promised 48 MiB."""
    agent = start_agent("alecto", "--chunk-mb", "20", "--seconds", "2", "--directory", str(tmp_path))
    agent.wait_for("rollover 1:")
    time.sleep(1)
    status = Path(f"/proc/{agent.process.pid}/status").read_text()
    peak_kib = int(status.split("VmHWM:")[1].split()[0])
    assert agent.finish().code == 0
    assert peak_kib <= 48 * 1024
