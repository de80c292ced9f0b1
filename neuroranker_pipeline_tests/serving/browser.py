"""A headless Chromium with one tab, driven through its DevTools protocol."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

SECONDS = 30.0
KEY_CODES = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-proxy-server",
)


class Browser:
    """One tab. What it waits for must come within ``SECONDS``."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.ids = count(1)
        self.events: list[dict[str, Any]] = []  # what the browser told beside its answers, once a domain is enabled

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the protocol, and give its result."""
        number = next(self.ids)
        self.connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (message := json.loads(self.connection.recv(timeout=SECONDS))).get("id") != number:
            self.events.append(message)
        assert "error" not in message, message
        return message["result"]

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.command("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, script: str) -> None:
        """Return as soon as a JavaScript expression is true."""
        deadline = time.monotonic() + SECONDS
        while not self.run(script):
            assert time.monotonic() < deadline, f"never true: {script}; the page: {self.run('document.body.innerText')}"
            time.sleep(0.02)

    def open(self, address: str) -> None:
        """Load a page; its scripts have run when this returns."""
        for url in ("about:blank", address):
            loader = self.command("Page.navigate", url=url)
            assert "errorText" not in loader, loader
            self.wait(f"location.href.startsWith({url[:11]!r}) && document.readyState === 'complete'")

    def resize(self, width: int, height: int) -> None:
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    def press(self, key: str, text: str = "") -> None:
        """Press and release a key; ``text`` is what it types."""
        event = {"key": key, "windowsVirtualKeyCode": KEY_CODES.get(key, 0)}
        self.command("Input.dispatchKeyEvent", type="keyDown", text="\r" if key == "Enter" else text, **event)
        self.command("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        """Put text where the focus is."""
        self.command("Input.insertText", text=text)

    def text(self, selector: str) -> str:
        """What a reader sees of the first element."""
        return self.run(f"document.querySelector({selector!r}).innerText")

    def texts(self, selector: str) -> list[str]:
        """The whole text of every element."""
        return self.run(f"[...document.querySelectorAll({selector!r})].map((element) => element.textContent)")

    def shown(self, selector: str) -> bool:
        return self.run(f"document.querySelector({selector!r}).checkVisibility()")

    def focus(self) -> str:
        """Where the focus is: an id, or ``list:rank`` in the lists of results."""
        where = "((e) => e.id || `${e.closest('ol')?.id}:${e.closest('.hit')?.dataset.rank}`)"
        return self.run(f"{where}(document.activeElement)")


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """Start the Chromium of this machine with an empty profile, and end it."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.fail("the search page is tested in a browser: install chromium (apt-get install chromium)")
    with (profile / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, *OPTIONS, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        with connect(_tab(process, profile), max_size=None, proxy=None) as connection:
            yield Browser(connection)
    finally:
        process.terminate()
        process.wait(SECONDS)


def _tab(process: subprocess.Popen[bytes], profile: Path) -> str:
    """The address of the first tab, once Chromium has written down the port that it listens on."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            port = (profile / "DevToolsActivePort").read_text().splitlines()[0]
            with direct.open(f"http://127.0.0.1:{port}/json", timeout=SECONDS) as response:
                return next(tab["webSocketDebuggerUrl"] for tab in json.load(response) if tab["type"] == "page")
        except (OSError, IndexError, StopIteration):
            time.sleep(0.05)
    pytest.fail(f"{process.args[0]} did not start: {(profile / 'log').read_text(errors='replace')[-1000:]}")
