"""The live page: a bounded answer for any fleet, nothing an agent says becomes markup, and a real browser follows a run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fury_collector import html, live, wire
from fury_collector.run import CURVE_POINTS, CURVE_STEP_S, _Curve
from tests import browser
from tests.agent.conftest import AgentProcess
from tests.secured import Secured

from .conftest import CHUNK, NAMES, ROOT, RUN, Collector, Open, Process, event, histogram, plan

OUTPUT = Path(os.environ.get("FURY_TEST_OUTPUT", ROOT / "tests" / "output"))
NASTY = "<script>alert(1)</script><img src=x onerror=alert(1)>\u202e"


def ask(collector: Collector, query: str = "") -> dict[str, Any]:
    response = collector.client.get(f"/api/v1/live{query}")
    assert response.status_code == 200, response.get_json()
    answer: dict[str, Any] = response.get_json()
    return answer


def rows(collector: Collector, query: str = "") -> list[str]:
    return [row["name"] for row in ask(collector, query)["agents"]["rows"]]


def write(collector: Collector, name: str, *, rate: int, **sample: Any) -> None:
    """Push three seconds of writing at a rate, bytes per second, with a rollover and a sample."""
    collector.push(
        name,
        event(0, "start"),
        event(1, "rollover", bytes=rate, write_p99_s=0.008),
        event(2, "sample", **sample),
        event(3, "heartbeat", written_bytes=3 * rate),
    )


# The answer


def test_it_has_the_run_and_the_newest_figures_of_every_agent(collector: Collector) -> None:
    """Rates over the heartbeats, the mean since the first write, the rest as the newest sample has it."""
    collector.arm_and_start()
    write(collector, "alecto", rate=100_000_000, write_histogram=histogram(*[0.001] * 98, 0.05, 0.05))
    collector.push("megaera", event(0, "start"), event(1, "rollover", write_p99_s=0.008))
    collector.pass_time(3)
    answer = ask(collector)
    assert (answer["run_id"], answer["state"], answer["total_s"]) == (RUN, "running", 60)
    assert answer["elapsed_s"] == collector.state()["elapsed_s"] > 3
    assert answer["fleet"] == collector.state()["fleet"]
    assert answer["health"]["green"] == 3
    assert answer["agents"]["found"] == 3
    alecto, megaera, tisiphone = sorted(answer["agents"]["rows"], key=lambda row: row["name"])
    assert alecto["silent_s"] == pytest.approx(3)
    assert alecto == {
        "name": "alecto",
        "host": "host1",
        "health": "green",
        "phase": "writing",
        "verdict": None,
        "bytes_per_second": 100_000_000,
        "mean_bytes_per_second": 100_000_000,
        "rollovers": 1,
        "write_p99_s": pytest.approx(0.05, rel=0.011),
        "agent_cpu_ratio": 0.1,
        "host_cpu_ratio": 0.5,
        "agent_rss_bytes": 30_000_000,
        "host_memory_ratio": 0.5,
        "disk_free_bytes": 50_000_000_000,
        "silent_s": alecto["silent_s"],
    }
    assert (megaera["write_p99_s"], megaera["disk_free_bytes"]) == (0.008, None)  # there was no sample yet
    assert megaera["mean_bytes_per_second"] == pytest.approx(CHUNK, rel=1e-3)
    assert (tisiphone["bytes_per_second"], tisiphone["mean_bytes_per_second"]) == (None, None)
    assert answer["curve"]["step_s"] == CURVE_STEP_S
    assert answer["curve"]["bytes_per_second"][-1] == pytest.approx(answer["fleet"]["bytes_per_second"], rel=1e-3)
    assert answer["messages"][-1]["text"].startswith("megaera")


def test_the_newest_sample_counts_and_a_finished_agents_last_word(collector: Collector) -> None:
    """A late sample does not take a newer one's place; the mean of who has ended is exact."""
    collector.arm_and_start()
    collector.push("alecto", event(0, "start"), event(2, "sample", disk_free_bytes=2))
    collector.push("alecto", event(1, "sample", disk_free_bytes=1))
    collector.push("alecto", event(3, "final", written_bytes=600, seconds=60.0))
    [row] = ask(collector, "?health=finished")["agents"]["rows"]
    assert (row["disk_free_bytes"], row["mean_bytes_per_second"], row["verdict"]) == (2, 10, "PASS")


def test_a_process_that_took_another_ones_place_starts_from_nothing(collector: Collector) -> None:
    """What the crashed one measured is not what its successor does."""
    collector.arm_and_start()
    write(collector, "alecto", rate=1000)
    again = "fedcba9876543210"
    assert collector.ready("alecto", again, after="0123456789abcdef").status_code == 200
    [row] = ask(collector, "?text=alecto")["agents"]["rows"]
    assert {row[key] for key in ("mean_bytes_per_second", "write_p99_s", "disk_free_bytes")} == {None}


def test_a_collector_that_took_the_run_up_again_knows_the_rates(collector_at: Open) -> None:
    """The curve has a gap for what came before."""
    first = collector_at()
    first.arm_and_start()
    write(first, "alecto", rate=1000)
    first.pass_time(9)
    recorder = first.app.extensions["fury_recorder"]
    recorder.flush().result()
    again = collector_at(clock=first.clock)
    again.push("alecto", event(4, "heartbeat", written_bytes=4000))
    again.pass_time(2)
    [row] = ask(again, "?text=alecto")["agents"]["rows"]
    assert row["mean_bytes_per_second"] == 1000
    values = ask(again)["curve"]["bytes_per_second"]
    assert values[0] is None
    assert values[-1] == 1000


def test_the_worst_come_first(collector_at: Open) -> None:
    """Lost, suspect, late, then who has failed, then the slowest; and any column sorts both ways, unknowns last."""
    names = ("fast", "slow", "lost", "late", "suspect", "failed", "done", "silent")
    collector = collector_at(plan(names))
    for name in names:
        collector.ready(name)
    collector.pass_time(2)
    for name in ("lost", "suspect", "late"):
        write(collector, name, rate=10)
        collector.pass_time(20 if name == "lost" else 12)
    collector.push("failed", event(0, "start"), event(1, "final", verdict="DISK_ERROR", reason="x"))
    collector.push("done", event(0, "start"), event(1, "final"))
    write(collector, "fast", rate=9000, disk_free_bytes=7)
    write(collector, "slow", rate=5000, disk_free_bytes=8)
    collector.ready("silent")
    order = ["lost", "suspect", "late", "failed", "slow", "fast", "silent", "done"]
    assert rows(collector) == order
    assert rows(collector, "?sort=name&direction=descending") == sorted(names, reverse=True)
    assert rows(collector, "?sort=disk_free_bytes&text=s")[:1] == ["fast"]
    assert rows(collector, "?sort=mean_bytes_per_second&direction=descending")[:2] == ["fast", "slow"]
    unknown = {"failed", "done", "silent"}
    for direction in ("ascending", "descending"):
        assert set(rows(collector, f"?sort=disk_free_bytes&direction={direction}")[-3:]) == unknown
    for sort in wire.SORTS:
        assert len(rows(collector, f"?sort={sort}")) == 8


def test_agents_are_found_by_words_and_by_health(collector: Collector) -> None:
    """All words have to be there, in name, host, health, phase or verdict; the total is that of what was found."""
    collector.arm_and_start()
    collector.push("alecto", event(0, "start"), event(1, "final", verdict="DISK_ERROR"))
    assert rows(collector, "?text=HOST1%20disk_error") == ["alecto"]
    assert rows(collector, "?text=nobody") == []
    assert rows(collector, "?health=finished") == ["alecto"]
    assert set(rows(collector, "?health=green&text=meg")) == {"megaera"}
    answer = ask(collector, "?sort=name&limit=1&offset=1")["agents"]
    assert (answer["found"], answer["offset"], [row["name"] for row in answer["rows"]]) == (3, 1, ["megaera"])
    assert rows(collector, "?offset=999") == []


@pytest.mark.parametrize(
    ("query", "field", "words"),
    [
        ("sort=colour", "sort", ('"colour"', "worst")),
        ("direction=up", "direction", ('"up"', "ascending, descending")),
        ("health=ill", "health", ('"ill"', "suspect")),
        ("limit=101", "limit", ('"101"', "1 to 100")),
        ("limit=0", "limit", ('"0"', "1 to 100")),
        ("limit=%D9%A3", "limit", ("1 to 100",)),
        ("offset=-1", "offset", ('"-1"', "0 to 1000000")),
        ("offset=", "offset", ('""', "0 to 1000000")),
        ("text=" + "x" * 101, "text", ("at most 100 characters",)),
        ("text=%00", "text", ("NUL",)),
        ("sort=name&sort=host", "sort", ("twice",)),
        ("%3Cb%3E=1", "<b>", ("sort, direction, text, health, limit, offset",)),
    ],
)
def test_a_bad_parameter_is_named(collector: Collector, query: str, field: str, words: tuple[str, ...]) -> None:
    """One sentence with the field, its value and what is allowed."""
    response = collector.client.get(f"/api/v1/live?{query}")
    assert response.status_code == 400
    answer = response.get_json()
    assert answer["field"] == field
    assert answer["error"].startswith(field)
    assert "\n" not in answer["error"]
    assert [word for word in words if word not in answer["error"]] == []


def big(collector_at: Open, *, host: str, agents: int = 1000) -> Collector:
    """A fleet of long names with as many messages as are kept."""
    names = tuple(f"agent-{number:04}-{'x' * 53}" for number in range(agents))
    document = plan(names, seconds=600_000)
    for agent in document["agents"]:
        agent["host"] = host
    collector = collector_at(document)
    for name in names:
        collector.ready(name)
    collector.pass_time(2)
    for number, name in enumerate(names):
        words = [event(0, "start"), event(1, "sample", disk_free_bytes=2**62 + 1, agent_rss_bytes=2**62 + 1)]
        words += [event(2, "heartbeat", written_bytes=123_456_789_123_456 + number)]
        if number < 20:
            words += [event(3 + n, "error", message="\u20ac\U0001f600" * 2000) for n in range(3)]
        collector.push(name, *words)
    return collector


@pytest.mark.parametrize("host", ["host.example", "\U0001f600" * 255, '"\u202e' * 127])
def test_the_answer_is_bounded_for_a_thousand_agents(collector_at: Open, host: str) -> None:
    """Below 64 KB whatever is said in it."""
    collector = big(collector_at, host=host, agents=1000 if host == "host.example" else 150)
    curve = collector.run._curve
    for second in range(0, 100_000, 2):
        if curve.wants(second):
            curve.add(second, 123_456_789_012.3)
    response = collector.client.get("/api/v1/live")
    answer = response.get_json()
    assert len(response.get_data()) < 64_000
    assert len(answer["agents"]["rows"]) == 100
    assert answer["agents"]["found"] == len(collector.run.figures())
    assert 5 < len(answer["messages"]) <= 50
    assert len(answer["curve"]["bytes_per_second"]) <= CURVE_POINTS
    assert len(answer["missing"]) <= 10


def test_a_long_curve_is_thinned() -> None:
    """Steps double as often as needed, each with the mean of what it covers; what nobody saw is a gap."""
    curve = _Curve()
    for second in range(5000):
        if curve.wants(second / 2) and not 1000 <= second / 2 < 1100:
            curve.add(second / 2, 10.0 if second < 2000 else 20.0)
    values = curve.values
    assert curve.step_s == 8
    assert len(values) == 313
    assert values[0] == 10
    assert values[124] == 10
    assert set(values[125:137]) == {None}
    assert values[-1] == 20


# The page


def test_the_page_and_its_parts_allow_nothing_from_elsewhere(collector: Collector) -> None:
    """Strict headers on everything; no part of it is inline or from another place."""
    page = collector.client.get("/")
    text = page.get_data(as_text=True)
    assert page.content_type == "text/html; charset=utf-8"
    assert RUN in text
    assert "://" not in text
    assert "<style" not in text
    assert text.count("<script") == text.count("<script src=") == 3
    wanted = [part.split('"')[0] for part in text.replace('href="static', 'src="static').split('src="')[1:]]
    assert {Path(path).name for path in wanted} == set(live._ASSETS)
    for path in ("/", *(f"/{path}" for path in wanted), "/api/v1/live", "/static/nothing", "/api/v1/live?limit=x"):
        headers = collector.client.get(path).headers
        assert headers["Content-Security-Policy"].startswith("default-src 'self'; script-src 'self'; ")
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
    for path in wanted:
        kind = "text/css" if path.endswith(".css") else "text/javascript"
        answer = collector.client.get(f"/{path}")
        assert answer.content_type == f"{kind}; charset=utf-8"
        again = collector.client.get(f"/{path}", headers={"If-None-Match": answer.headers["ETag"]})
        assert (again.status_code, again.get_data()) == (304, b"")


@pytest.mark.parametrize(
    "name", ["nothing.js", "../live.py", "..%2flive.py", "vendor/uplot/README.md", "LICENSE", "%00"]
)
def test_nothing_but_its_parts_is_served(collector: Collector, name: str) -> None:
    """There is no folder to look around in."""
    assert collector.client.get(f"/static/{name}").status_code == 404


def test_the_columns_are_those_that_the_script_fills() -> None:
    """A heading for each cell, each sorted by a key that is allowed."""
    script = (ROOT / "fury_collector" / "static" / "live.js").read_text()
    cells = script.split("const CELLS = [")[1].split("];")[0].strip().splitlines()
    assert len(live._COLUMNS) == len(cells) + 1
    for (key, *_), cell in zip(live._COLUMNS[1:], cells):
        assert key is None or f"row.{key}" in cell
    assert {key for key, *_ in live._COLUMNS if key} == {*wire.SORTS} - {"worst"}
    assert "innerHTML" not in script
    assert "eval" not in script


# In a real browser


Serve = Callable[..., Process]
NAMES_SHOWN = "[...document.querySelectorAll('#rows th')].map(th => th.textContent)"
CELLS = """Object.fromEntries([...document.querySelectorAll("#rows tr")].map(
  (tr) => [tr.cells[0].textContent, [...tr.cells].slice(1).map((td) => td.textContent)]))"""


def until(page: browser.Page, expression: str, wanted: Any = True, *, seconds: float = 20) -> Any:
    """Wait until the page's expression has that value."""
    deadline = time.monotonic() + seconds
    while True:
        found = page.evaluate(expression)
        if found == wanted:
            return found
        assert time.monotonic() < deadline, (expression, found, page.evaluate("document.body.innerText"))
        time.sleep(0.1)


def press(page: browser.Page, key: str, code: int, text: str = "") -> None:
    """Press a key as a keyboard does."""
    common = {"key": key, "code": key, "windowsVirtualKeyCode": code}
    page.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
    page.call("Input.dispatchKeyEvent", type="keyUp", **common)


def fleet_at_work(process: Process, names: tuple[str, ...]) -> None:
    """Arm, start, and push what agents of very different speed have to say."""
    for name in names:
        status, answer = process.ready(name)
        assert status == 200
    time.sleep(max(0.0, answer["start_in_s"]) + 0.7)
    for index, name in enumerate(names):
        rate = 220_000_000 - (index * 37 % 61) * 3_000_000
        words = [event(0, "start")]
        for n in range(3):
            words.append(event(1 + n, "rollover", bytes=rate, write_p99_s=0.002))
        words += [
            event(
                4,
                "sample",
                agent_cpu_ratio=0.21 + index % 7 / 50,
                host_cpu_ratio=0.4 + index % 5 / 10,
                disk_free_bytes=50_000_000_000 + index * 1_234_000_000,
                write_histogram=histogram(*[0.0004] * 90, *[0.002 + index % 9 / 500] * 10),
            ),
            event(5, "heartbeat", written_bytes=5 * rate, rollovers=3),
        ]
        assert process.push(name, *words)[0] == 200


def test_a_browser_follows_a_run(chromium: browser.Chromium, serve: Serve, tmp_path: Path) -> None:
    """Rows appear and change by themselves; what agents say stays text; keys sort; words filter; it says when all is silent."""
    document = plan()
    document["agents"][1]["host"] = NASTY
    process = serve(document)
    url = f"http://127.0.0.1:{process.port}/"
    with chromium.page(width=1280, height=900) as page:
        page.open(url)
        until(page, NAMES_SHOWN, sorted(NAMES))
        assert page.evaluate("document.getElementById('state-name').textContent") == "arming"
        assert page.evaluate(f"{CELLS}.alecto[2]") == "–"
        assert "waiting for alecto, megaera, tisiphone" in page.evaluate("document.getElementById('left').textContent")
        fleet_at_work(process, NAMES)
        process.push("tisiphone", event(6, "error", message=NASTY))
        until(page, f"{CELLS}.alecto[2]", "220")  # nobody reloaded it
        until(page, "document.getElementById('state-name').textContent", "running")
        until(page, NAMES_SHOWN, ["megaera", "tisiphone", "alecto"])
        assert page.evaluate(f"{CELLS}.megaera[0]") == NASTY[:-1] + "…"
        assert html.visible(NASTY) in page.evaluate("document.getElementById('messages').textContent")
        assert page.evaluate("document.querySelectorAll('main img, main script').length") == 0

        kept = "window.kept"
        page.evaluate(f"{kept} = document.querySelector('#rows tr'); 0")
        process.push("alecto", event(6, "heartbeat", written_bytes=5 * 220_000_000 + 110_000_000))
        until(page, f"{CELLS}.alecto[2]", "202")
        assert page.evaluate(f"{kept}.isConnected")  # changed in place
        until(page, "Number(document.getElementById('plot').dataset.drawn) > 1")
        page.screenshot(OUTPUT / "live-light.png")

        page.evaluate("document.querySelector('[data-sort=name]').focus()")
        press(page, "Enter", 13, "\r")
        until(page, NAMES_SHOWN, ["alecto", "megaera", "tisiphone"])
        assert page.evaluate("document.activeElement.dataset.sort") == "name"
        assert page.evaluate("document.activeElement.closest('th').getAttribute('aria-sort')") == "ascending"
        press(page, " ", 32, " ")
        until(page, NAMES_SHOWN, ["tisiphone", "megaera", "alecto"])
        assert page.evaluate("document.querySelectorAll('[aria-sort]').length") == 1
        assert page.evaluate("document.querySelector('[aria-sort]').getAttribute('aria-sort')") == "descending"

        page.evaluate("document.querySelector('label[for=text]').control.focus()")
        page.call("Input.insertText", text="alecto")
        until(page, NAMES_SHOWN, ["alecto"])
        assert page.evaluate("document.getElementById('found').textContent") == "1 of 3 agents"
        page.evaluate("i = document.getElementById('health'); i.value = 'lost'; i.dispatchEvent(new Event('change'))")
        until(page, NAMES_SHOWN, [])
        assert page.evaluate("!document.getElementById('nobody').hidden")
        assert page.complaints == []
        assert {request.split(str(process.port))[1].split("?")[0] for request in page.requests} - {""} >= {
            "/",
            "/api/v1/live",
        }
        assert [request for request in page.requests if not request.startswith((url, "data:"))] == []

        answers = "Number(document.body.dataset.answers)"
        turn = "document.dispatchEvent(new Event('visibilitychange'))"
        page.evaluate(f"Object.defineProperty(document, 'hidden', {{value: true, configurable: true}}); {turn}")
        time.sleep(0.3)
        before = page.evaluate(answers)
        time.sleep(2.5)
        assert page.evaluate(answers) == before  # nobody looks: nothing is asked
        page.evaluate(f"delete document.hidden; {turn}")
        until(page, f"{answers} > {before}", seconds=1)

        process.kill()
        until(page, "document.getElementById('gone').textContent.startsWith('the collector does not answer since ')")
        page.screenshot(OUTPUT / "live-gone.png")
        assert {line for line in page.complaints if "ERR_CONNECTION" not in line} == set()


def test_it_says_when_the_run_is_over_and_asks_no_more(chromium: browser.Chromium, serve: Serve) -> None:
    """The collector ends with its run, and no error is left in the console."""
    process = serve(plan(("alecto",)))
    with chromium.page() as page:
        page.open(f"http://127.0.0.1:{process.port}/")
        process.ready("alecto")
        time.sleep(1.7)
        process.push(
            "alecto", event(0, "start"), event(1, "rollover"), event(2, "final", written_bytes=CHUNK, rollovers=1)
        )
        until(page, "document.getElementById('state-name').textContent", "finished")
        assert page.evaluate("document.getElementById('state-words').textContent") == (
            "the run is over: 1 agent delivered everything"
        )
        assert process.popen.wait(20) == 0
        asked = len(page.requests)
        time.sleep(3)
        page.settle()
        assert len(page.requests) == asked
        assert page.complaints == []


@pytest.mark.parametrize("agents", [3, 1000])
def test_dark_and_on_a_phone(chromium: browser.Chromium, serve: Serve, agents: int) -> None:
    """Only the table scrolls sideways, for a small and a large fleet; dark is another colour."""
    names = NAMES if agents == 3 else tuple(f"agent-{number:04}" for number in range(agents))
    process = serve(plan(names))
    fleet_at_work(process, names)
    shades = set()
    for width, dark in ((1280, True), (360, False), (360, True)):
        with chromium.page(width=width, height=800, dark=dark, mobile=width < 600, scale=1 + (width < 600)) as page:
            page.open(f"http://127.0.0.1:{process.port}/")
            until(page, "document.querySelectorAll('#rows tr').length", min(100, agents))
            until(page, "Number(document.getElementById('plot').dataset.drawn) > 1")
            page.settle()
            page.screenshot(OUTPUT / f"live-{agents}-{width}-{'dark' if dark else 'light'}.png", whole=width < 600)
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert page.evaluate("document.getElementById('previous').parentNode.hidden") == (agents == 3)
            shades.add((dark, page.evaluate("getComputedStyle(document.body).backgroundColor")))
            if agents > 100:
                first = page.evaluate(NAMES_SHOWN)
                page.evaluate("document.getElementById('next').click()")
                until(page, "document.getElementById('found').textContent", "101–200 of 1\u202f000 agents")
                assert not {*first} & {*page.evaluate(NAMES_SHOWN)}
            assert page.complaints == []
    assert len(shades) == 2


def test_a_real_agent_is_on_it(chromium: browser.Chromium, serve: Serve, tmp_path: Path) -> None:
    """Every column of an agent that writes to a disk gets a figure; over TLS, after one login."""
    secured = Secured(tmp_path / "credentials", RUN, ("alecto",))
    process = serve(plan(("alecto",), seconds=6), secured=secured)
    url = process.url
    line = f"alecto --run-id {RUN} --chunk-mb 1 --seconds 6 --directory {tmp_path} --collector-url {url}"
    agent = AgentProcess(
        [
            *line.split(),
            "--credentials-directory",
            str(secured.agents["alecto"]),
            "--rate-mb-s",
            "8",
            "--heartbeat-seconds",
            "1",
            "--sample-seconds",
            "1",
            "--drain-seconds",
            "10",
        ]
    )
    with chromium.page() as page:
        page.answer_login("fury", secured.password)
        page.open(f"{url}/")
        until(page, f"'alecto' in {CELLS} && {CELLS}.alecto.every(text => text && text !== '–')")
        assert float(page.evaluate(f"{CELLS}.alecto[3]")) == pytest.approx(8, rel=0.5)
        until(page, "document.getElementById('state-name').textContent", "finished")
        # The browser notes its own first request, which it had no password for yet.
        assert [one for one in page.complaints if "401 (Unauthorized)" not in one] == []
        assert page.asked == 1
    assert agent.finish().code == 0, agent.out + agent.err
