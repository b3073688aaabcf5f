"""A headless Chromium, told what to do over the pipe of its own debugging protocol: no driver and no WebSocket."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ANSWER_SECONDS = 30.0
POLL_SECONDS = 0.05


class Browser:
    """One browser with one tab; `problems` are what its console and its content policy complained of."""

    def __init__(self, profile: Path, *, width: int = 1100, height: int = 900, scale: float = 1.0) -> None:
        assert CHROMIUM is not None
        self.problems: list[str] = []
        self._next = 0
        self._buffer = b""
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
        # A shell puts the pipes' ends where Chromium expects them: 3 to read, 4 to write.
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "bash", CHROMIUM, *flags,
             "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self._session = ""
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        mobile = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile
        )

    def call(self, method: str, **parameters: Any) -> Any:
        """One command of the protocol and its result."""
        self._next += 1
        message = {"id": self._next, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._next:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer)

    def open(self, address: str) -> None:
        """Go to an address and wait until the page is there."""
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def value(self, script: str) -> Any:
        """What an expression gives in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, script: str, seconds: float = ANSWER_SECONDS) -> None:
        """Until an expression holds; a page that is being left has none of its own."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            result = self.call("Runtime.evaluate", expression=f"Boolean({script})", returnByValue=True)
            if result["result"].get("value"):
                return
            time.sleep(POLL_SECONDS)
        raise AssertionError(f"{script} did not come to hold: {self.value('document.body.innerText')[:2000]}")

    def press(self, key: str, code: int) -> None:
        """Press and release one key."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)
        if key == "Enter":
            self.call("Input.dispatchKeyEvent", type="char", key=key, code=key, text="\r")

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """A PNG of the page."""
        self.wait("document.readyState === 'complete' && document.documentElement.scrollWidth > 0")
        metrics = self.call("Page.getLayoutMetrics")
        size = metrics["cssContentSize"] if whole else metrics["cssLayoutViewport"]
        clip = {"x": 0, "y": 0, "width": metrics["cssLayoutViewport"]["clientWidth"], "scale": 1}
        clip["height"] = size["height"] if whole else size["clientHeight"]
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole, clip=clip)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        """End the browser and its children."""
        os.write(self._out, b'{"id":0,"method":"Browser.close"}\0')
        try:
            self._process.wait(ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            data = os.read(self._in, 1 << 16)
            assert data, "the browser has ended"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Log.entryAdded":
            self.problems.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")
        elif event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(str(parameters["exceptionDetails"]))
