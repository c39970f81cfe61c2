"""A real headless browser, driven over the Chrome DevTools protocol through two pipes.

No driver and no websocket is needed: `--remote-debugging-pipe` reads commands from file descriptor
3 and writes answers to 4, each JSON and ended by a zero byte.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

#: The program, by any of its names; None where there is none.
PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)


class Browser:
    """One page of one browser, as a context manager.

    Attributes:
        problems: What the page's console and its uncaught exceptions said so far.
        asked: The address of every request so far.
    """

    def __enter__(self) -> Browser:
        assert PROGRAM
        self.home = TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        to_read, self.to_browser = os.pipe()
        self.from_browser, to_write = os.pipe()
        options = (
            "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run "
            f"--disable-extensions --remote-debugging-pipe --user-data-dir={self.home.name}"
        )
        # The shell gives the pipes the numbers that the browser expects.
        self.process = subprocess.Popen(
            ["bash", "-c", f"exec {PROGRAM} {options} about:blank 3<&{to_read} 4>&{to_write}"],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self.answers = os.fdopen(self.from_browser, "rb")
        self.buffer, self.number, self.session = b"", 0, None
        self.problems: list[str] = []
        self.asked: list[str] = []
        pages = self.send("Target.getTargets")["targetInfos"]
        page = next(p["targetId"] for p in pages if p["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=page, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        return self

    def __exit__(self, *exception: Any) -> None:
        self.session = None
        self.send("Browser.close")
        self.process.wait(20)
        os.close(self.to_browser)
        self.answers.close()
        self.home.cleanup()

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Give a command and wait for its answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def receive(self) -> dict[str, Any]:
        """The next message; what went wrong in the page is noted."""
        while b"\0" not in self.buffer:
            part = self.answers.read1(2**16)
            assert part, "the browser has ended"
            self.buffer += part
        text, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(text)
        params = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.problems.append(params["exceptionDetails"]["text"])
        if message.get("method") == "Log.entryAdded":
            self.problems.append(params["entry"]["text"])
        if message.get("method") == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])
        return message

    def open(self, page: Path, state: str = "") -> None:
        """Load a file, with ``state`` after the ``#``, and wait for it."""
        # Of two addresses that differ after the "#" only, the second would not be loaded anew.
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=page.as_uri() + (f"#{state}" if state else ""))
        while self.receive().get("method") != "Page.loadEventFired":
            pass
        if self.value("location.protocol") == "about:":
            while self.receive().get("method") != "Page.loadEventFired":
                pass

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript is in the page; a promise is waited for."""
        told = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key on the keyboard."""
        code, text = {"Tab": (9, ""), "Enter": (13, "\r"), " ": (32, " ")}.get(
            key, (ord(key[0].upper()), key)
        )
        name = "Space" if key == " " else key
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=name,
                windowsVirtualKeyCode=code,
                **typed,
            )

    def size(self, width: int, height: int) -> None:
        """Make the window as large as this."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def picture(self, path: Path) -> None:
        """Take a picture, for a person to look at."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))
