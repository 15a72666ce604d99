"""A real Chromium for tests: headless, over the DevTools protocol's pipe, so that neither a port nor a driver is needed.

with Chromium.start() as chromium, chromium.page(width=1280, height=800) as page:
    page.open(path.as_uri())
    page.evaluate("document.title")
    page.screenshot(output / "page.png")
    assert page.complaints == []
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Optional

TIMEOUT_S = 60.0
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # CI runs as root in containers
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--no-default-browser-check",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--remote-debugging-pipe",
)


def find() -> Optional[str]:
    """The browser's program, None where there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Chromium:
    """A running browser."""

    def __init__(self, pid: int, reads: int, writes: int, home: tempfile.TemporaryDirectory[str]) -> None:
        self._pid, self._reads, self._writes, self._home = pid, reads, writes, home
        self._buffer = b""
        self._number = 0
        self._pages: dict[str, Page] = {}

    @classmethod
    def start(cls, *options: str) -> Chromium:
        """Start one with a profile of its own."""
        program = find()
        if program is None:
            raise FileNotFoundError("chromium is not on PATH")
        home = tempfile.TemporaryDirectory(prefix="fury-chromium-", ignore_cleanup_errors=True)
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        # Above 9, so that giving them the numbers that the browser expects overwrites none of them.
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (theirs_in, theirs_out)]
        log = os.open(os.path.join(home.name, "log"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        pid = os.posix_spawn(
            program,
            [program, *_OPTIONS, f"--user-data-dir={home.name}/profile", *options],
            {**os.environ, "HOME": home.name},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, ends[0], 3),
                (os.POSIX_SPAWN_DUP2, ends[1], 4),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
            ],
            setpgroup=0,
        )
        for fd in (theirs_in, theirs_out, log, *ends):
            os.close(fd)
        return cls(pid, ours_in, ours_out, home)

    def __enter__(self) -> Chromium:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            self.call("Browser.close", timeout_s=5)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and os.waitpid(self._pid, os.WNOHANG)[0] == 0:
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)
        os.close(self._reads)
        os.close(self._writes)
        self._home.cleanup()

    def call(self, method: str, *, session: Optional[str] = None, timeout_s: float = TIMEOUT_S, **params: Any) -> Any:
        """One command's result; what happens meanwhile goes to its page."""
        number = self.tell(method, session=session, **params)
        deadline = time.monotonic() + timeout_s
        while True:
            answer = self._next(deadline)
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._happened(answer)

    def tell(self, method: str, *, session: Optional[str] = None, **params: Any) -> int:
        """Give one command without waiting for its result; the command's number."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._writes, data) :]
        return self._number

    def wait(self, seconds: float) -> None:
        """Take in what happens for that long."""
        deadline = time.monotonic() + seconds
        with contextlib.suppress(TimeoutError):
            while True:
                self._happened(self._next(deadline))

    def _happened(self, event: dict[str, Any]) -> None:
        page = self._pages.get(event.get("sessionId", ""))
        if page is not None and "method" in event:
            page.happened(event["method"], event["params"])

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._reads], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError("chromium said nothing in time")
            got = os.read(self._reads, 1 << 20)
            if not got:
                raise OSError(f"chromium ended: {(Path(self._home.name) / 'log').read_text(errors='replace')[-2000:]}")
            self._buffer += got
        message, _, self._buffer = self._buffer.partition(b"\0")
        told: dict[str, Any] = json.loads(message)
        return told

    @contextlib.contextmanager
    def page(
        self, *, width: int = 1280, height: int = 800, dark: bool = False, scale: float = 1.0, mobile: bool = False
    ) -> Iterator[Page]:
        """A tab of that many CSS pixels."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile
        )
        page.scheme("dark" if dark else "light")
        try:
            yield page
        finally:
            self.call("Target.closeTarget", targetId=target)
            del self._pages[session]


class Page:
    """One tab: what it complained of, and what it asked the network for."""

    def __init__(self, chromium: Chromium, session: str) -> None:
        self._chromium, self._session = chromium, session
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.asked = 0
        self._user = self._password = ""
        self._loaded = False

    def _tell(self, method: str, **params: Any) -> None:
        self._chromium.tell(method, session=self._session, **params)

    def answer_login(self, user: str, password: str) -> None:
        """Answer the browser's login window from now on, as often as it is shown (`asked`), and click its warning away.

        The warning is that of a certificate whose authority nobody imported.
        """
        self._user, self._password = user, password
        self.call("Security.setIgnoreCertificateErrors", ignore=True)
        self.call("Fetch.enable", handleAuthRequests=True)

    def call(self, method: str, **params: Any) -> Any:
        """One command of this tab."""
        return self._chromium.call(method, session=self._session, **params)

    def happened(self, method: str, params: dict[str, Any]) -> None:
        """Take in an event."""
        if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(arg.get("value", arg)) for arg in params["args"]))
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Fetch.authRequired":
            self.asked += 1
            answer = {"response": "ProvideCredentials", "username": self._user, "password": self._password}
            self._tell("Fetch.continueWithAuth", requestId=params["requestId"], authChallengeResponse=answer)
        elif method == "Fetch.requestPaused":
            self._tell("Fetch.continueRequest", requestId=params["requestId"])
        elif method == "Page.loadEventFired":
            self._loaded = True

    def scheme(self, preferred: str, *, media: str = "") -> None:
        """Prefer `light` or `dark`, on a `screen` or in `print`."""
        self.call(
            "Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": preferred}]
        )

    def offline(self) -> None:
        """No network from now on."""
        self.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)

    def open(self, url: str) -> None:
        """Go there and wait until it has loaded and drawn."""
        self._loaded = False
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + TIMEOUT_S
        while not self._loaded:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{url} did not load")
            self._chromium.wait(0.05)
        self.settle()

    def settle(self) -> None:
        """Wait until two frames have been drawn."""
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, which may be a promise; what it throws is a RuntimeError."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """A PNG of the whole page, or of what is to be seen."""
        path.parent.mkdir(parents=True, exist_ok=True)
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self, path: Path) -> None:
        """What a printer would get, on the page size that the page asks for."""
        path.parent.mkdir(parents=True, exist_ok=True)
        printed = self.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
        path.write_bytes(base64.b64decode(printed["data"]))
