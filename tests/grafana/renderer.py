"""Dashboards drawn by Grafana's own libraries in a real Chromium, without a Grafana server.

render/ is a small page around @grafana/scenes and @grafana/ui (Apache-2.0). Its packages are installed once for each lock
file, below .build/; its bundle is made by every session of tests.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import functools
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests import browser

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("render")
WIDTH, LINE_PX, HEAD_PX = 1400, 38, 150  # of the page; Grafana's grid has 30 px and a gap of 8 a line
SETTLED_S = 60.0


def packages() -> Path:
    """Returns the folder with node_modules as package-lock.json has them, installed unless it is there already."""
    lock = (SOURCE / "package-lock.json").read_bytes()
    made = ROOT / ".build" / f"renderer-{hashlib.sha256(lock).hexdigest()[:12]}"
    if not made.exists():
        making = made.with_name(f"{made.name}.{os.getpid()}")
        making.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(SOURCE / name, making)
        command = ["npm", "ci", "--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund"]
        try:
            run(command, making, timeout_s=400)
            making.rename(made)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return made


def run(command: list[str], directory: Path, *, timeout_s: float = 120, modules: Path | None = None) -> str:
    """Returns what a command prints; its output is in the error where it fails."""
    environment = {**os.environ, "NODE_PATH": str(modules)} if modules else None
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


def against_schema(dashboards: dict[str, Any], directory: Path) -> list[str]:
    """Returns what TypeScript says of dashboards (by name) against the types of @grafana/schema; writes into `directory`."""
    types = str(SOURCE / "src/dashboard")
    for name, dashboard in dashboards.items():
        text = f"import type {{ Dashboard }} from '{types}';\nexport const dashboard: Dashboard = {json.dumps(dashboard)};\n"
        (directory / f"{name}.ts").write_text(text, encoding="utf-8")
    modules = packages() / "node_modules"
    options = {"strict": True, "noEmit": True, "skipLibCheck": True, "target": "es2022", "types": []}
    options |= {"module": "esnext", "moduleResolution": "bundler", "paths": {"@grafana/*": [f"{modules}/@grafana/*"]}}
    config = {"compilerOptions": options, "files": [f"{name}.ts" for name in dashboards]}
    (directory / "tsconfig.json").write_text(json.dumps(config), encoding="utf-8")
    command = [str(modules / ".bin/tsc"), "--project", "tsconfig.json", "--pretty", "false"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in (0, 1, 2), done.stderr
    return done.stdout.splitlines()


def bundle(site: Path) -> None:
    """Puts the page with its script, style sheet, fonts and pictures into `site`."""
    modules = packages() / "node_modules"
    options = [f"--loader:.{kind}=dataurl" for kind in ("svg", "png", "woff2", "ttf")]
    options += ["--define:process.env.NODE_ENV='production'", "--define:global=window", "--jsx=transform", "--minify"]
    options += ["--alias:react-router-dom-v5-compat=react-router-dom", "--bundle", "--format=iife", "--log-level=error"]
    esbuild = str(modules / ".bin/esbuild")
    run([esbuild, "src/main.tsx", f"--outdir={site}", *options], SOURCE, modules=modules)
    shutil.copy(SOURCE / "index.html", site)
    shutil.copytree(modules / "@grafana/ui/dist/public/img", site / "public/build/img")
    icons = site / "public/build/img/icons/unicons"
    mirrored = (icons / "angle-double-right.svg").read_text().replace("<svg ", '<svg transform="scale(-1 1)" ')
    (icons / "angle-double-left.svg").write_text(mirrored)  # the time picker's; the package lacks it
    fonts = site / "public/fonts/inter"
    fonts.mkdir(parents=True)
    for name, weight in (("Regular", 400), ("Medium", 500)):
        font = modules / f"@fontsource/inter/files/inter-latin-{weight}-normal.woff2"
        shutil.copy(font, fonts / f"Inter-{name}.woff2")


def _utc(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


_SEEN = """async url => {
  const image = new Image(); image.src = url; await image.decode();
  const context = Object.assign(document.createElement('canvas'), { width: 140, height: 100 }).getContext('2d');
  context.imageSmoothingQuality = 'high'; context.drawImage(image, 0, 0, 140, 100);
  return [...context.getImageData(0, 0, 140, 100).data].filter((_, n) => n % 4 != 3);
}"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: what is missing is seen by the browser."""


class Renderer:
    """A site and a browser; `show` draws a dashboard."""

    def __init__(self, url: str, site: Path, chromium: browser.Chromium) -> None:
        self._url, self._site, self._chromium = url, site, chromium

    @classmethod
    @contextlib.contextmanager
    def start(cls, site: Path) -> Iterator[Renderer]:
        """Makes the page in `site` and serves it, with a browser beside."""
        bundle(site)
        handler = functools.partial(_Quiet, directory=str(site))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            with browser.Chromium.start() as chromium:
                yield cls(f"http://127.0.0.1:{server.server_port}", site, chromium)
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def show(
        self,
        dashboard: dict[str, Any],
        prometheus: str,
        *,
        begin: float,
        end: float,
        theme: str = "dark",
        picture: Path | None = None,
        height: int | None = None,
        **variables: Any,
    ) -> dict[str, Any]:
        """Draws a dashboard over a time range (seconds since the epoch) and returns what became of it.

        That is what render/src/main.tsx tells, with `complaints` of the browser, the page's `text`, its `links` to
        dashboards, and what Grafana's libraries know as `units` and `transformations`. `height` shows only the top.
        """
        (self._site / "dashboard.json").write_text(json.dumps(dashboard), encoding="utf-8")
        asked = {
            "dashboard": "dashboard.json",
            "prometheus": prometheus,
            "theme": theme,
            "from": _utc(begin),
            "to": _utc(end),
            "variables": json.dumps(variables),
        }
        lines = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
        height = height or lines * LINE_PX + HEAD_PX
        with self._chromium.page(width=WIDTH, height=height, dark=theme == "dark") as page:
            page.open(f"{self._url}/index.html?{urllib.parse.urlencode(asked)}")
            shown = self._settled(page)
            if picture:
                page.screenshot(picture, whole=False)
            shown |= {key: page.evaluate(f"window.fury.{key}") for key in ("units", "transformations")}
            links = page.evaluate("[...document.querySelectorAll('a[href*=\"/d/\"]')].map(a => a.getAttribute('href'))")
            text = page.evaluate("document.body.innerText")
            return {**shown, "complaints": page.complaints, "text": text, "links": links}

    def difference(self, one: Path, other: Path) -> float:
        """Returns how far two pictures are apart on average, seen from afar: 0 is the same, 1 is black beside white."""
        with self._chromium.page(width=100, height=100) as page:
            seen: list[list[int]] = []
            for path in (one, other):
                data = base64.b64encode(path.read_bytes()).decode()
                seen.append(page.evaluate(f"({_SEEN})('data:image/png;base64,{data}')"))
        return float(sum(abs(a - b) for a, b in zip(*seen)) / len(seen[0]) / 255)

    @staticmethod
    def _settled(page: browser.Page) -> dict[str, Any]:
        """Waits until every query has an answer and two frames have been drawn since; returns the page's status."""
        deadline, before = time.monotonic() + SETTLED_S, ""
        while time.monotonic() < deadline:
            told = page.evaluate("window.fury ? JSON.stringify(window.fury.status()) : ''")
            status: dict[str, Any] = json.loads(told or "{}")
            done = (
                status
                and not status["pending"]
                and all(panel["state"] in ("Done", "Error") for panel in status["panels"])
            )
            if done and told == before:
                page.settle()
                return status
            before = told
            time.sleep(0.25)
        raise AssertionError(f"not drawn within {SETTLED_S:g} s: {before[-3000:]} {page.complaints}")
