"""What the collector's commands may be given wrongly: plans, credentials, databases, files, names of runs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fury_collector import wire
from fury_collector.__main__ import main
from fury_collector.db import Database
from tests.bad_input import check
from tests.collector.conftest import NAMES, RUN, plan
from tests.secured import Secured

HERE = "{here}"
PLAN = HERE + "/plan.json"
SERVE = ["serve", "--plain-http", "--port", "0", "--plan", PLAN, "--database", HERE + "/new.db"]
LISTS = "`fury_collector runs` lists"
OLD = ["--database", HERE + "/old.db"]

COMMANDS: dict[str, tuple[list[str], list[str]]] = {
    "an unknown command": (["sevre"], ["No such command 'sevre'"]),
    "an unknown option": ([*SERVE, "--prot", "1"], ["No such option '--prot'", "--port"]),
    "no plan": (["serve", "--plain-http"], ["Missing option '--plan'"]),
    "a plan nowhere": ([*SERVE, "--plan", "/nowhere.json"], ["the plan file /nowhere.json", "No such file"]),
    "a plan of two lines": ([*SERVE, "--plan", "/no\nwhere"], ["the plan file /no where", "No such file"]),
    "a plan that is a directory": ([*SERVE, "--plan", HERE], ["--plan", "is a directory"]),
    "a port in words": ([*SERVE, "--port", "https"], ["--port", "'https' is not a valid integer"]),
    "a port beyond": ([*SERVE, "--port", "65536"], ["--port", "65536", "0<=x<=65535"]),
    "no patience": ([*SERVE, "--barrier-seconds", "0"], ["--barrier-seconds", "1<=x<=86400"]),
    "an address that is none": ([*SERVE, "--host", "300.0.0.1"], ["host: 300.0.0.1", "loopback"]),
    "plain HTTP for everybody": ([*SERVE, "--host", "0.0.0.0"], ["host: 0.0.0.0", "--plain-http", "127.0.0.1"]),
    "neither": (["serve", "--plan", PLAN], ["credentials-directory is missing", "--plain-http"]),
    "credentials nowhere": (
        ["serve", "--plan", PLAN, "--credentials-directory", "/nowhere"],
        ["credentials-directory: /nowhere/access.json", "No such file"],
    ),
    "a database that is none": ([*SERVE, "--database", PLAN], ["/plan.json", "not a database"]),
    "a database in a directory that is none": (
        [*SERVE, "--database", HERE + "/none/fury.db"],
        ["/none/fury.db", "directory"],
    ),
    "a database that is a directory": ([*SERVE, "--database", HERE], ["--database", "is a directory"]),
    "a state file nowhere": ([*SERVE, "--state-file", HERE + "/none/state"], ["/none/state", "--state-file"]),
    "runs of nothing": (["runs", "--database", HERE + "/none.db"], ["/none.db"]),
    "a report of no run": (["report", "nobody", *OLD], ["nobody", LISTS]),
    "a report of markup": (["report", "<script>", *OLD], ["<script>", LISTS]),
    "a report of SQL": (["report", "'; drop table runs; --", *OLD], ["drop table", LISTS]),
    "a page nowhere": (["report", RUN, "--html", HERE + "/none/x.html", *OLD], ["/none/x.html", "name another file"]),
    "an export to a file": (["export", RUN, "--output", PLAN, *OLD], ["--output", "is a file"]),
    "an export to proc": (["export", RUN, "--output", "/proc/x", *OLD], ["/proc/x", "name another directory"]),
    "an export without output": (["export", RUN, *OLD], ["Missing option '--output'"]),
    "hosts that are none": (
        ["export", RUN, "--output", HERE + "/out", "--hosts", HERE + "/list.json", *OLD],
        ["hosts must be an object"],
    ),
    "hosts in an unknown state": (
        ["export", RUN, "--output", HERE + "/out", "--hosts", HERE + "/clean.json", *OLD],
        ["hosts.alecto.cleanup", "confirmed, unconfirmed, pending", "spotless"],
    ),
    "a comparison with nothing": (["compare", *OLD], ["two", "compare"]),
    "a margin of nothing": (["compare", RUN, RUN, "--margin", "0", *OLD], ["--margin", "0.1<=x<=99"]),
    "a group without runs": (["compare", RUN, "--group", "fast=", *OLD], ["fast=", "NAME=RUN,RUN"]),
    "a comparison with nobody": (["compare", RUN, "nobody", *OLD], ["nobody", LISTS]),
    "a journal of nobody": (["ingest", RUN, "nobody=" + PLAN, *OLD], ["has no agent nobody", "alecto"]),
    "a journal nowhere": (["ingest", RUN, "alecto=/nowhere.db", *OLD], ["no journal /nowhere.db", "alecto"]),
    "a journal without a name": (["ingest", RUN, PLAN, *OLD], ["NAME=JOURNAL"]),
    "journals of no run": (["ingest", "nobody", "alecto=" + PLAN, *OLD], ["nobody", LISTS]),
}
SECRET = "s3cret"
URLS: dict[str, tuple[list[str], list[str]]] = {
    "empty": (["--database-url", ""], ["database-url is no URL", "postgresql+psycopg://user@host/database"]),
    "a word": (["--database-url", "postgresql"], ["database-url is no URL"]),
    "another database": (["--database-url", "mysql://h/d"], ["must begin with postgresql+psycopg://"]),
    "a file": (["--database-url", "sqlite:///fury.db"], ["must begin with postgresql+psycopg://"]),
    "another driver": (["--database-url", "postgresql+psycopg2://h/d"], ["must begin with postgresql+psycopg://"]),
    "a port in words": (["--database-url", "postgresql://h:five/d"], ["database-url is no URL"]),
    "half an IPv6 address": (["--database-url", "postgresql://[::1/d"], ["database-url is no URL"]),
    "a password": (["--database-url", f"postgresql://u:{SECRET}@h/d"], ["has a password", "--database-url-file"]),
    "a password elsewhere": (["--database-url", f"postgresql://h/d?password={SECRET}"], ["has a password"]),
    "two databases": (["--database-url", "postgresql://h/d", "--database", HERE + "/old.db"], ["name one database"]),
    "no file": (["--database-url-file", HERE + "/none"], ["cannot read the database-url file", "/none"]),
    "everybody's file": (["--database-url-file", HERE + "/open.url"], ["can be read by others", "chmod 600"]),
    "a file with nothing": (["--database-url-file", HERE + "/empty.url"], ["/empty.url", "is no URL"]),
    "a file of noise": (
        ["--database-url-file", HERE + "/noise.url"],
        ["cannot read the database-url file", "not UTF-8"],
    ),
}


def broken(**changes: Any) -> dict[str, Any]:
    """A plan with changed fields (`...`: left out)."""
    return {key: value for key, value in {**plan(), **changes}.items() if value is not ...}


def one(**changes: Any) -> dict[str, Any]:
    """A plan of one agent with changed fields."""
    return broken(agents=[{**plan()["agents"][0], **changes}])


PLANS: dict[str, tuple[Any, list[str]]] = {
    "empty": (b"", ["the plan file", "is not JSON"]),
    "not UTF-8": (b'"\xff"', ["the plan file", "is not UTF-8"]),
    "too deep": (b"[" * 100_000, ["nested too deeply"]),
    "a list": ([], ["plan must be an object, not []"]),
    "no run": (broken(run_id=...), ["plan.run_id is missing"]),
    "a run that climbs": (broken(run_id="../x"), ["plan.run_id", "1 to 64", "../x"]),
    "another time": (broken(created_at="yesterday"), ["plan.created_at", "ISO 8601", "yesterday"]),
    "another zone": (broken(created_at="2026-11-24T03:04:05+01:00"), ["plan.created_at", "UTC"]),
    "a day that is none": (broken(created_at="2026-02-30T03:04:05Z"), ["plan.created_at", "2026-02-30"]),
    "no agents": (broken(agents=[]), ["plan.agents", "1 to 100000"]),
    "agents by name": (broken(agents={"alecto": {}}), ["plan.agents", "a list"]),
    "an agent of markup": (one(name="<b>"), ["plan.agents[0].name", "1 to 64", "<b>"]),
    "one name twice": (broken(agents=plan()["agents"][:1] * 2), ["plan.agents names alecto twice"]),
    "a fraction of a chunk": (one(chunk_mb=0.5), ["plan.agents[0].chunk_mb", "1 to 1000000", "0.5"]),
    "no time": (one(seconds=0), ["plan.agents[0].seconds", "0.001 to 691200"]),
    "a number for a directory": (one(directory=7), ["plan.agents[0].directory", "at most 4096"]),
    "slower than all": (broken(slow_percent=100), ["plan.slow_percent", "1 to 99", "100"]),
    "parameters as text": (broken(parameters="chunk_mb=20"), ["plan.parameters", "an object"]),
    "an unknown objective": (broken(slo={"speed": ">1"}), ["slo: 'speed' is not a figure"]),
}
DIGEST = "0" * 64
ACCESS = {"control": DIGEST, "readers": DIGEST, "agents": {"alecto": DIGEST}}
NOT_OURS = "it is not what the run put there"
NO_KEY = "it holds no key with its certificate"
CREDENTIALS: dict[str, tuple[str, Any, list[str]]] = {
    "access cut off": ("access.json", b'{"control": "', [NOT_OURS]),
    "access of a list": ("access.json", [], [NOT_OURS]),
    "access without agents": ("access.json", {"control": DIGEST, "readers": DIGEST}, [NOT_OURS]),
    "access by list": ("access.json", {**ACCESS, "agents": ["alecto"]}, [NOT_OURS]),
    "access with a short digest": ("access.json", {**ACCESS, "control": "00"}, [NOT_OURS]),
    "access with a digest of no text": ("access.json", {**ACCESS, "agents": {"alecto": 7}}, [NOT_OURS]),
    "access too deep": ("access.json", b"[" * 100_000, [NOT_OURS]),
    "no certificate": ("tls.pem", None, ["No such file"]),
    "a certificate of nothing": ("tls.pem", b"", [NO_KEY]),
    "a certificate of noise": ("tls.pem", b"\0\xff" * 500, [NO_KEY]),
    "a certificate without key": ("tls.pem", "certificate", [NO_KEY]),
    "a key without certificate": ("tls.pem", "key", [NO_KEY]),
    "another's key": ("tls.pem", "another", [NO_KEY]),
}

Refused = Callable[[list[str], list[str]], None]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory with a plan, a database with one run, and files that are wrong."""
    (tmp_path / "plan.json").write_text(json.dumps(plan()))
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "clean.json").write_text('{"alecto": {"cleanup": "spotless"}}')
    for name, content in (("open", SECRET), ("empty", ""), ("noise", "\xff")):
        (tmp_path / f"{name}.url").write_text(content, encoding="latin-1")
        (tmp_path / f"{name}.url").chmod(0o644 if name == "open" else 0o600)
    database = Database(tmp_path / "old.db")
    database.add_run(wire.plan(plan()))
    database.close()
    return tmp_path


@pytest.fixture
def refused(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that has to end with 2 or 3 and one sentence, with the same files as before."""

    def run(words: list[str], says: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", ["fury_collector", *(word.replace(HERE, str(here)) for word in words)])
        before = check.contents(here)
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert ended.value.code in (2, 3), err
        assert out == ""
        name, _, sentence = err.rstrip("\n").partition(": ")
        assert name == "fury_collector"
        check.one_sentence(sentence, says)
        assert SECRET not in sentence
        assert check.contents(here) == before

    return run


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", COMMANDS)
def test_a_bad_command_is_one_sentence(case: str, refused: Refused) -> None:
    """The option or the name, what is allowed, and no file is made."""
    if case == "an export to proc" and os.geteuid() != 0:
        pytest.skip("others may not even try")
    refused(*COMMANDS[case])


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", URLS)
def test_a_bad_database_url_is_one_sentence(case: str, refused: Refused) -> None:
    """What a URL has to look like, and never the password in it."""
    words, says = URLS[case]
    refused(["runs", *words], says)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", PLANS)
def test_a_bad_plan_is_one_sentence(case: str, here: Path, refused: Refused) -> None:
    """The field is named by its whole path."""
    given, says = PLANS[case]
    (here / "plan.json").write_bytes(given if isinstance(given, bytes) else json.dumps(given).encode())
    refused(SERVE, says)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", CREDENTIALS)
def test_bad_credentials_are_one_sentence(case: str, here: Path, refused: Refused) -> None:
    """The file is named, and nothing of what is in it is said."""
    name, given, says = CREDENTIALS[case]
    made = Secured(here / "secured", RUN, NAMES).collector
    key, end, certificate = (made / "tls.pem").read_text().partition("-----END PRIVATE KEY-----\n")
    assert end
    other = (Secured(here / "other", "another", NAMES).collector / "tls.pem").read_text().partition(end)[0]
    made_of = {"certificate": certificate, "key": key + end, "another": other + end + certificate}
    (made / name).unlink()
    if given is not None:
        text = made_of[given] if isinstance(given, str) else given
        raw = text if isinstance(text, bytes) else text.encode() if isinstance(text, str) else json.dumps(text).encode()
        (made / name).write_bytes(raw)
    refused(
        ["serve", "--port", "0", "--plan", PLAN, "--database", HERE + "/new.db", "--credentials-directory", str(made)],
        ["credentials-directory: ", name, "give the directory that the run made", *says],
    )
