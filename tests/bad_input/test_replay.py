"""Whoever has listened in on a whole run can do nothing with it: neither in another run, nor in that one once it is over."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.bad_input import check
from tests.collector.conftest import ROOT, Process, plan
from tests.secured import Secured

FIRST, SECOND = "20261124T030405Z-first", "20261124T040506Z-second"
# An agent as it is, of which every request is written down as it leaves for the TLS beneath.
RECORDED = """
import http.client, json, sys
leave = http.client.HTTPConnection.request
def request(self, method, url, body, headers):
    with open(sys.argv[1], "a") as record:
        record.write(json.dumps([method, url, body.decode(), headers]) + "\\n")
    leave(self, method, url, body, headers)
http.client.HTTPConnection.request = request
from fury_agent.__main__ import main
sys.exit(main(sys.argv[2:]))
"""


def collector(home: Path, run_id: str) -> Process:
    """A run's own collector."""
    home.mkdir()
    secured = Secured(home / "secured", run_id, ["alecto"])
    return Process(home, plan(("alecto",), run_id=run_id, seconds=2), "--stay", secured=secured)


def replayed(requests: list[list[Any]], target: Process, *, run_id: str) -> set[tuple[int, str]]:
    """Send all of them again, for the run `run_id`: the different statuses and sentences that come back."""
    told = set()
    for method, path, body, headers in requests:
        status, answer = target.request(
            method, path.replace(FIRST, run_id), json.loads(body), shown=headers["Authorization"]
        )
        told.add((status, str(answer.get("error"))))
    return told


def test_a_replay_of_a_run_changes_nothing(tmp_path: Path) -> None:
    """Token included: 401 for every request, and no row, with the other run's id as well as with its own."""
    first, second = collector(tmp_path / "first", FIRST), collector(tmp_path / "second", SECOND)
    try:
        assert first.secured is not None
        (tmp_path / "disk").mkdir()
        done = subprocess.run(
            [
                *(sys.executable, "-c", RECORDED, str(tmp_path / "record"), "alecto", "--run-id", FIRST),
                *("--chunk-mb", "1", "--seconds", "2", "--rate-mb-s", "20", "--directory", str(tmp_path / "disk")),
                *("--collector-url", first.url, "--credentials-directory", str(first.secured.agents["alecto"])),
                *("--heartbeat-seconds", "1", "--sample-seconds", "1"),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        requests = [json.loads(line) for line in (tmp_path / "record").read_text().splitlines()]
        kinds = {event["kind"] for request in requests for event in json.loads(request[2]).get("events", [])}
        assert kinds >= {"start", "rollover", "heartbeat", "sample", "final"}

        before = check.contents(tmp_path / "second")["fury.db"]
        for run_id in (FIRST, SECOND):
            [(status, sentence)] = replayed(requests, second, run_id=run_id)
            assert status == 401
            check.one_sentence(sentence, ["not the token of that agent in this run"])
        assert check.contents(tmp_path / "second")["fury.db"] == before

        deadline = time.monotonic() + 30  # its last answers have their time
        while "the run is over" not in str(told := replayed(requests[-1:], first, run_id=FIRST)):
            assert time.monotonic() < deadline, told
            time.sleep(0.5)
        before = check.contents(tmp_path / "first")["fury.db"]
        assert replayed(requests, first, run_id=FIRST) == {(401, "the run is over, and its tokens with it")}
        assert check.contents(tmp_path / "first")["fury.db"] == before
    finally:
        ends = [first.end(), second.end()]
    assert ends == [0, 0]
    print(f"{len(requests)} requests of a run replayed")
