"""Strings that mean harm go through the whole chain as strings: database, page, terminal, report, CSV, JSON, XML."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests import browser
from tests.bad_input import check
from tests.collector.conftest import CHUNK, EPOCH, NAMES, ROOT, RUN, Process, chromium, event, plan, ready

__all__ = ["chromium"]

NASTY = (
    "<script>window.pwned=1</script><img src=x onerror='window.pwned=1'>",
    "'; drop table agents; --",
    '" onmouseover="window.pwned=1" x="',
    "{{ 7 * 7 }}{% raw %}${7*7}%n%s\\u003cb\\u003e",
    "\x1b[2J\x1b]0;pwned\x07PASS: 3 of 3\x9b31m",
    "\u202egnp.exe\u2066\u200b\ufeff",
    '=HYPERLINK("http://198.51.100.1","x"),\r\n@SUM(1)',
    "</textarea></title></style>]]>--><!--",
)
ALL = " ".join(NASTY)[:500]


def words(text: str) -> list[dict[str, Any]]:
    """An agent's whole life with `text` wherever it may say something."""
    return [
        event(0, "start", host=text[:255], facts={text[:64]: text, "cpu_model": text}),
        *(event(n, "rollover", chunk=n - 1) for n in (1, 2, 3)),
        event(4, "error", message=text, operation=text[:64], path=text),
        event(
            5,
            "final",
            verdict="DISK_ERROR",
            reason=text,
            written_bytes=3 * CHUNK,
            rollovers=3,
            errors=1,
            notes=[text, *NASTY],
            honesty={"io_used": text, "steady": True, text[:64]: text},
        ),
    ]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A run of whose three agents one says nothing but such strings, planned on a host of such a name."""
    home = tmp_path_factory.mktemp("strings")
    document = plan()
    document["parameters"] = {"directory": ALL, "note": list(NASTY)}
    document["agents"][0] |= {"host": ALL[:255], "directory": "/" + ALL}
    process = Process(home, document, "--stay")
    for name in NAMES:
        says = {"host": ALL[:255], "agent_version": NASTY[0][:64]} if name == "alecto" else {}
        path = f"/api/v1/runs/{RUN}/agents/{name}/ready"
        assert process.request("POST", path, ready(EPOCH, **says))[0] == 200
    before = check.rows(home / "fury.db")
    assert process.push("alecto", *words(ALL))[0] == 200
    after = check.rows(home / "fury.db")
    assert {table for table in after if after[table] != before[table]} <= {
        *("epochs", "events", "rollovers", "samples", "messages", "transitions")
    }
    assert after["agents"] == 3
    yield process
    assert process.end() == 0


def export(told: Process, output: Path) -> str:
    """What `export` prints."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "fury_collector", "export", RUN, "--output", str(output)),
            *("--database", str(told.directory / "fury.db")),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def harmless(text: str) -> None:
    """Nothing in a terminal's text moves the cursor, colours, hides or turns what stands there."""
    found = {letter for letter in text if unicodedata.category(letter) in ("Cc", "Cf")} - {"\n"}
    assert not found, ascii(text)


def test_the_live_page_shows_them_as_text(chromium: browser.Chromium, told: Process) -> None:
    """Nothing of it runs, nothing of it becomes an element; it can be read."""
    with chromium.page(width=1280, height=900) as page:
        page.open(f"http://127.0.0.1:{told.port}/")
        for _ in range(100):
            if "drop table" in page.evaluate("document.getElementById('messages').textContent"):
                break
            chromium.wait(0.1)
        text = page.evaluate("document.body.textContent")
        assert "<script>window.pwned=1</script>" in text
        assert "'; drop table agents; --" in text
        assert page.evaluate("typeof window.pwned") == "undefined"
        assert page.evaluate("document.querySelectorAll('main script, main img, [onerror], [onmouseover]').length") == 0
        assert page.complaints == []


def test_the_report_shows_them_as_text(chromium: browser.Chromium, told: Process, tmp_path: Path) -> None:
    """The same as a file, without a server's policy to help."""
    harmless(export(told, tmp_path))
    with chromium.page(width=1280, height=900) as page:
        page.offline()
        page.open((tmp_path / "report.html").as_uri())
        assert "'; drop table agents; --" in page.evaluate("document.body.textContent")
        assert page.evaluate("typeof window.pwned") == "undefined"
        assert page.evaluate("document.querySelectorAll('body img, [onerror], [onmouseover]').length") == 0
        assert page.complaints == []
        assert page.requests == [(tmp_path / "report.html").as_uri()]


def test_files_hold_them_as_values(told: Process, tmp_path: Path) -> None:
    """Each file is still one of its kind, with as many rows and cells as ever."""
    export(told, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    [alecto] = [agent for agent in summary["agents"] if agent["name"] == "alecto"]
    assert "'; drop table agents; --" in alecto["reason"]
    cases = ElementTree.parse(tmp_path / "junit.xml").getroot().findall("testcase")
    assert [case.get("name") for case in cases] == list(NAMES)
    with (tmp_path / "rollovers.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    assert len(lines) == 1 + 3
    assert len({len(line) for line in lines}) == 1
    assert not [cell for line in lines for cell in line if cell.startswith(("=", "+", "@"))]
    assert len((tmp_path / "samples.csv").read_text().splitlines()) == 1


def test_what_machines_read_stays_what_it_is(told: Process) -> None:
    """State, page's figures, service discovery and metrics."""
    status, state = told.request("GET", f"/api/v1/runs/{RUN}")
    assert status == 200
    for message in state["messages"]:
        check.one_sentence(message["text"], [])
        harmless(message["text"])
    assert "'; drop table agents; --" in next(one["reason"] for one in state["agents"] if one["name"] == "alecto")
    status, live = told.request("GET", "/api/v1/live?text=%27%3B+drop+table")
    assert status == 200
    assert [row["name"] for row in live["agents"]["rows"]] == ["alecto"]
    assert [target["labels"]["agent"] for target in told.request("GET", "/api/v1/targets")[1]] == list(NAMES[1:])
    _, raw = told.request("GET", "/metrics")
    assert b"drop table" not in raw


def test_its_own_words_are_lines(told: Process) -> None:
    """What the collector prints, on whatever terminal."""
    said = told.output.read_text()
    assert "'; drop table agents; --" in said
    harmless(said)


def test_an_agent_cannot_send_prometheus_elsewhere(told: Process) -> None:
    """Its metrics are at an address, not at a name or a path."""
    for elsewhere in ("example.org", "10.0.0.1:80/x?", "10.0.0.1\n", ""):
        status, answer = told.request(
            "POST", f"/api/v1/runs/{RUN}/agents/megaera/ready", ready(EPOCH, metrics_address=elsewhere)
        )
        assert (status, answer["field"]) == (400, "metrics_address")
        check.one_sentence(answer["error"], ["metrics_address must be an IP address"])
