"""Prometheus for the tests here: whether it can be had, and its HTTP API as Grafana uses it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.grafana import history


def need(*programs: str) -> None:
    """Skips the test where a program is missing; in CI it fails."""
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        reason = f"{' and '.join(missing)} not on PATH (Debian: apt-get install prometheus chromium nodejs npm)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def get(url: str, query: dict[str, str] | None = None) -> Any:
    """Returns the JSON at a URL; the answer's text is in the error where the status is not 2xx."""
    encoded = urllib.parse.urlencode(query or {})
    address = f"{url}?{encoded}" if encoded else url
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{error.code} from {address}: {error.read().decode()}") from error


def text(url: str) -> str:
    """Returns the text at a URL."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def until(what: str, ready: Callable[[], Any], timeout_s: float = 30) -> Any:
    """Returns the first true value of `ready`; an error of the network means not yet."""
    deadline = time.monotonic() + timeout_s
    last: object = None
    while time.monotonic() < deadline:
        try:
            last = ready()
        except OSError as error:
            last = error
        else:
            if last:
                return last
        time.sleep(0.2)
    raise AssertionError(f"not within {timeout_s:g} s: {what}; last: {last!r}")


def free_port() -> int:
    """Returns a port of the loopback that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def with_past(directory: Path, agents: list[str]) -> Iterator[Prometheus]:
    """Yields a Prometheus that scrapes nothing and knows the fixed past of these agents; of nothing where there are none."""
    tsdb = directory / "tsdb"
    if agents:
        samples = directory / "past.txt"
        history.write(samples, agents)
        command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(samples), str(tsdb)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
    (directory / "prometheus.yml").write_text("{}", encoding="utf-8")
    port = free_port()
    options = [f"--config.file={directory / 'prometheus.yml'}", f"--web.listen-address=127.0.0.1:{port}"]
    # Nothing marks the end of a series here, as a scrape would: without a newer sample it is gone after three scrapes.
    options += [f"--storage.tsdb.path={tsdb}", "--storage.tsdb.retention.time=100y", "--query.lookback-delta=6s"]
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(["prometheus", *options], stdout=log, stderr=subprocess.STDOUT)
    try:
        prometheus = Prometheus(f"http://127.0.0.1:{port}")
        until("Prometheus is ready", lambda: "Ready" in text(f"{prometheus.url}/-/ready"))
        yield prometheus
    finally:
        process.terminate()
        process.wait(20)


class Prometheus:
    """The parts of Prometheus' HTTP API that Grafana uses."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Returns the series of `expr` now, each with `metric` and `values`."""
        result = get(f"{self.url}/api/v1/query", {"query": expr})["data"]["result"]
        return [{"metric": series["metric"], "values": [series["value"]]} for series in result]

    def query_range(self, expr: str, start: float, end: float) -> list[dict[str, Any]]:
        """Returns the series of `expr` from start to end (seconds since the epoch), a value each second."""
        query = {"query": expr, "start": f"{start}", "end": f"{end}", "step": "1"}
        return list(get(f"{self.url}/api/v1/query_range", query)["data"]["result"])

    def label_values(self, selector: str, label: str) -> list[str]:
        """Returns what Grafana's `label_values(selector, label)` offers."""
        return list(get(f"{self.url}/api/v1/label/{label}/values", {"match[]": selector})["data"])

    def agents(self) -> dict[str, str]:
        """Returns the health of every agent that is a target now, by name."""
        targets = get(f"{self.url}/api/v1/targets", {"state": "active"})["data"]["activeTargets"]
        return {
            target["labels"]["agent"]: target["health"] for target in targets if target["scrapePool"] == "fury_agents"
        }
