"""A webhook on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any


class Hook(BaseHTTPRequestHandler):
    """Answers as its path says, and remembers what it was sent."""

    posted: list[tuple[str, dict]] = []  # noqa: RUF012 (the tests empty it)
    hold = threading.Event()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.posted.append((self.headers["Content-Type"], json.loads(body)))
        if self.path == "/silent":
            self.hold.wait(30)
            return
        self.send_response(int(self.path[1:4]))
        if self.path.startswith("/302"):
            self.send_header("Location", "/200-elsewhere")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def webhook() -> Iterator[str]:
    Hook.posted.clear()
    Hook.hold.clear()
    server = HTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        Hook.hold.set()
        server.shutdown()
        thread.join()
        server.server_close()
