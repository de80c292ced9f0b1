"""The search page at ``/``, and BentoML's own page about the interface moved to ``/docs``."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from neuroranker_pipeline.errors import BadInput

PAGE_FILE = Path(__file__).with_name("page.html")
DOCS_PATH = "/docs"

# BentoML's page asks a third party to count its visitors; with this it runs its own files and nothing else.
DOCS_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


class SearchPage:
    """ASGI middleware: answers ``GET`` and ``HEAD`` of ``/`` with the search page, passes everything else on.

    What the application itself has at ``/`` stays reachable at ``/docs``. Raises ``BadInput`` without ``page.html``.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.page = _read_page(PAGE_FILE)
        self.headers = {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Length": str(len(self.page)),
            "Content-Security-Policy": content_security_policy(self.page.decode()),
            "Cache-Control": "no-cache",  # keep it, and ask each time whether it is still the one: an update shows at once
            "ETag": f'"{hashlib.sha256(self.page).hexdigest()[:32]}"',
            "Referrer-Policy": "no-referrer",  # the address holds the question
            "X-Content-Type-Options": "nosniff",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        root = scope.get("root_path", "").rstrip("/")
        path = scope["path"].removeprefix(root)
        if path == "/":
            await self._response(scope)(scope, receive, send)
        elif path == DOCS_PATH:
            index = {**scope, "path": f"{root}/", "raw_path": f"{root}/".encode()}
            await self.app(index, receive, _with_policy(send, DOCS_POLICY))
        else:
            await self.app(scope, receive, send)

    def _response(self, scope: Scope) -> Response:
        """The page, its headers alone for HEAD, or 304 for a browser that has it."""
        known = [tag.strip().removeprefix("W/") for tag in Headers(scope=scope).get("if-none-match", "").split(",")]
        if self.headers["ETag"] in known:
            headers = {name: value for name, value in self.headers.items() if not name.startswith("Content-")}
            return Response(status_code=304, headers=headers)
        return Response(self.page if scope["method"] == "GET" else b"", headers=self.headers)


def content_security_policy(page: str) -> str:
    """The strictest policy under which ``page`` works: its own inline script and style by hash, requests home."""
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    return (
        f"default-src 'none'; script-src {_hashes(scripts)}; style-src {_hashes(styles)}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    )


def _hashes(texts: Iterable[str]) -> str:
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"


def _read_page(file: Path) -> bytes:
    try:
        # As the browser hashes it: with the line endings that HTML gives it.
        return file.read_text("utf-8").encode()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{file}: the search page cannot be read ({error}); install or build the service again"
        ) from error


def _with_policy(send: Send, policy: str) -> Send:
    async def add(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["Content-Security-Policy"] = policy
        await send(message)

    return add
