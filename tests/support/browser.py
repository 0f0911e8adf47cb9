"""A headless Chromium, driven over a pipe with the DevTools protocol."""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--remote-debugging-pipe",
)  # fmt: skip


class BrowserError(Exception):
    """A script of the page failed, or the browser did not answer."""


class Browser:
    """One tab of a headless Chromium.

    Args:
        profile: an empty folder.

    Attributes:
        problems: uncaught exceptions, errors on the console and violations of the content security policy.
        requests: the addresses of all requests.
    """

    def __init__(self, profile: Path, chromium: str | None = CHROMIUM, *, timeout_s: float = 60) -> None:
        assert chromium is not None
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._timeout_s = timeout_s
        self._numbers = itertools.count(1)
        self._pending = b""
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        command = [chromium, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]

        def connect() -> None:
            # Chromium reads commands from descriptor 3 and writes answers to 4.
            first, second = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_read, to_write))
            os.dup2(first, 3)
            os.dup2(second, 4)

        self._process = subprocess.Popen(
            command, preexec_fn=connect, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_read)
        os.close(to_write)
        os.set_blocking(self._from, False)
        targets = self._send("Target.getTargets", session=None)["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        found = self._send("Target.attachToTarget", session=None, targetId=page, flatten=True)
        self._session: str | None = found["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command of the DevTools protocol to the tab; returns its result."""
        return self._send(method, session=self._session, **parameters)

    def open(self, address: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Loads a page, and waits until its scripts have drawn it."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise.

        Raises:
            BrowserError: it throws.
        """
        result = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise BrowserError(json.dumps(result["exceptionDetails"])[:2000])
        return result["result"].get("value")

    def wait(self, condition: str) -> None:
        """Waits until a JavaScript expression is true.

        Raises:
            BrowserError: it stays false.
        """
        end = time.monotonic() + self._timeout_s
        while not self.evaluate(f"!!({condition})"):
            if time.monotonic() > end:
                raise BrowserError(f"{condition} stays false; {self.problems}")
            time.sleep(0.02)

    def press(self, key: str, code: int = 0, text: str | None = None) -> None:
        """Presses a key, such as ``Tab`` (code 9) or ``Enter`` (13, with the text ``\\r``)."""
        down: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": code}
        if text is not None:
            down["text"] = text
        self.send("Input.dispatchKeyEvent", type="keyDown", **down)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Writes a picture of the window, or of the whole page, as PNG."""
        found = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def _send(self, method: str, *, session: str | None, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        while True:
            answer = self._receive(method)
            if answer.get("id") == number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _receive(self, method: str) -> dict[str, Any]:
        end = time.monotonic() + self._timeout_s
        while b"\0" not in self._pending:
            try:
                data = os.read(self._from, 1 << 20)
            except BlockingIOError:
                if time.monotonic() > end:
                    raise BrowserError(f"{method}: no answer") from None
                time.sleep(0.002)
                continue
            if not data:
                raise BrowserError(f"{method}: the browser has ended")
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\0")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _note(self, event: dict[str, Any]) -> None:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.problems.append(parameters["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and parameters["type"] == "error":
            self.problems.append(json.dumps(parameters["args"])[:500])
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
