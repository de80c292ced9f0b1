"""What stands between the network and the service: who may ask, how much, how long, and one shape for errors."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from http import HTTPStatus
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from neuroranker_pipeline.errors import BadInput

logger = logging.getLogger(__name__)

PREFIX = "NEURORANKER_"
KEY, KEY_FILE = f"{PREFIX}API_KEY", f"{PREFIX}API_KEY_FILE"
RETRY = {"Retry-After": "1"}  # seconds; a request takes less
CLOSE = {"Connection": "close"}  # the rest of a body that was not read is no next request
# Headers of an error that its reshaped answer keeps.
KEPT = ("allow", "connection", "retry-after", "www-authenticate")
JSON = re.compile(r"application/(?:[\w.-]+\+)?json", re.IGNORECASE | re.ASCII)
OPEN_PATHS = frozenset({"/livez", "/healthz", "/readyz"})


@dataclass(frozen=True)
class Settings:
    """What the environment may set: ``NEURORANKER_<FIELD>``; ``BOUNDS`` says how far."""

    max_concurrency: int = 64  # requests that each worker process works on at once
    max_queue: int = 256  # requests that wait for their turn
    timeout_seconds: float = 60  # for a request's turn to come, its body being there, and then for its work
    body_seconds: float = 10  # for a body to arrive, and for headers and answers to get on their way
    cache_mb: int = 64  # MiB of each worker's cache of vectors; 0: no cache
    reload_seconds: float = 10  # between two looks for a new model at STUDENT_ONNX; 0: none

    @property
    def request_seconds(self) -> float:
        """What a request may take from its headers to the beginning of its answer."""
        return self.body_seconds + 2 * self.timeout_seconds

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Raises ``BadInput`` naming the variable and its bounds."""
        values = {field.name: _number(environment, field.name) for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if value is not None})  # type: ignore[arg-type]


BOUNDS: dict[str, tuple[type[int] | type[float], float, float]] = {
    "max_concurrency": (int, 1, 1024),
    "max_queue": (int, 0, 10_000),
    "timeout_seconds": (float, 0.1, 3600),
    "body_seconds": (float, 0.1, 600),
    "cache_mb": (int, 0, 65_536),
    "reload_seconds": (float, 0, 3600),
}


def _number(environment: Mapping[str, str], name: str) -> int | float | None:
    variable = PREFIX + name.upper()
    text = environment.get(variable)
    if text is None:
        return None
    kind, low, high = BOUNDS[name]
    try:
        value = kind(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        what = "a whole number" if kind is int else "a number"
        raise BadInput(f"{variable}: must be {what} from {low} to {high}, got {text!r}")
    return value


def api_key(environment: Mapping[str, str] = os.environ) -> bytes | None:
    """The key that clients must show, None when none is set; raises ``BadInput``, which never quotes the key."""
    file = environment.get(KEY_FILE)
    if file is not None and KEY in environment:
        raise BadInput(f"{KEY} and {KEY_FILE} are both set; unset one")
    if file is None:
        source, text = KEY, environment.get(KEY)
    else:
        source, text = f"{KEY_FILE} ({file})", _read_key(file)
    if text is None:
        return None
    key = text.strip()
    if not (key and key.isascii() and key.isprintable() and " " not in key):
        raise BadInput(f"{source}: must hold one key of visible ASCII characters; unset it to serve without a key")
    return key.encode("ascii")


def _read_key(file: str) -> str:
    try:
        return Path(file).read_text("utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise BadInput(f"{KEY_FILE}: {file} cannot be read ({reason})") from None


def refusal(status: int, detail: Any, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error as every client sees it: ``{error, detail}``."""
    return JSONResponse({"error": HTTPStatus(status).phrase, "detail": detail}, status_code=status, headers=headers)


class BearerKey:
    """Answers 401 to a request without ``Authorization: Bearer <key>``; the probes and ``GET /`` need no key."""

    def __init__(self, app: ASGIApp, key: bytes) -> None:
        self.app = app
        self._digest = hashlib.sha256(key).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_open(scope) and not self._has_key(scope):
            answer = refusal(401, "this needs Authorization: Bearer <key>", {"WWW-Authenticate": "Bearer"})
            await answer(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        return scope["method"] in ("GET", "HEAD") and (scope["path"] in OPEN_PATHS or scope["path"] == "/")

    def _has_key(self, scope: Scope) -> bool:
        shown = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(shown) != 1:
            return False
        scheme, _, key = shown[0].partition(b" ")
        # Digests are of one length, so that the time of the comparison says nothing of the key's.
        same = hmac.compare_digest(hashlib.sha256(key.strip()).digest(), self._digest)
        return same and scheme.lower() == b"bearer"


class BoundedBody:
    """Receives a request's body before it goes on, within bounds of size and time.

    Answers 413 to a body of more than ``max_bytes``, announced or not, before it fills the memory; 408 to one that is
    not there after ``seconds``, so that a slow or half-open client holds nothing; and 503 while the bodies of all
    requests together exceed ``total_bytes``.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float = 10, total_bytes: int = 2**28) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.seconds = seconds
        self.total_bytes = total_bytes
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(self.seconds):
                    refused = await self._fill(body, receive)
            except TimeoutError:
                refused = refusal(408, f"the body was not there after {self.seconds:g} seconds", CLOSE)
            if refused is not None:
                await refused(scope, receive, send)
            else:
                await self.app(scope, _replay(bytes(body), receive), send)
        finally:
            self._held -= len(body)

    async def _fill(self, body: bytearray, receive: Receive) -> JSONResponse | None:
        """Receive all of the body; gives the refusal, if it must be refused."""
        refused, more = None, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                # Nobody reads it, but BentoML waits for an answer, and holds the request until its own timeout.
                return refusal(400, "the body ended early", CLOSE)
            more = message.get("more_body", False)
            if refused is None:  # else read on: a client that still sends would miss an answer
                refused = self._keep(body, message.get("body", b""))
        return refused

    def _keep(self, body: bytearray, chunk: bytes) -> JSONResponse | None:
        body += chunk
        self._held += len(chunk)
        if len(body) > self.max_bytes:
            return refusal(413, f"the body exceeds {self.max_bytes} bytes")
        if self._held > self.total_bytes:
            return refusal(503, "too much is being received; try again", RETRY)
        return None


def _replay(body: bytes, receive: Receive) -> Receive:
    unread = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return unread.pop() if unread else await receive()

    return replay


class JsonBodies:
    """Answers 415 to a POST of anything but plain JSON, before BentoML picks a parser by its type: one unpickles."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            headers = Headers(scope=scope)
            if not all(JSON.fullmatch(value.partition(";")[0].strip()) for value in headers.getlist("content-type")):
                await refusal(415, "the body must be JSON: Content-Type: application/json")(scope, receive, send)
                return
            if any(value.strip().lower() != "identity" for value in headers.getlist("content-encoding")):
                await refusal(415, "the body must not be compressed")(scope, receive, send)
                return
        await self.app(scope, receive, send)


class BoundedConcurrency:
    """Lets ``limit`` POSTs be worked on at once, while ``queue`` more wait for their turn, each at most ``seconds``.

    Answers 429 to those that find the queue full, or whose turn does not come.
    """

    def __init__(self, app: ASGIApp, limit: int, queue: int = 0, seconds: float = 60) -> None:
        self.app = app
        self.limit, self.queue, self.seconds = limit, queue, seconds
        self._turns = asyncio.Semaphore(limit)
        self._waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
        elif not await self._has_turn():
            detail = f"{self.limit} requests are being worked on, and {self.queue} may wait; try again"
            await refusal(429, detail, RETRY)(scope, receive, send)
        else:
            try:
                await self.app(scope, receive, send)
            finally:
                self._turns.release()

    async def _has_turn(self) -> bool:
        if self._turns.locked() and self._waiting >= self.queue:
            return False
        self._waiting += 1
        try:
            async with asyncio.timeout(self.seconds):
                return await self._turns.acquire()
        except TimeoutError:
            return False
        finally:
            self._waiting -= 1


class Deadline:
    """Answers 504 to a request whose answer has not begun after ``seconds``; ends an answer that nobody reads."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app = app
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = expired = False

        async def until_expired(message: Message) -> None:
            nonlocal started
            if not expired:
                started = True
                await send(message)

        work = asyncio.ensure_future(self.app(scope, receive, until_expired))
        try:
            await asyncio.wait({work}, timeout=self.seconds)
            if not work.done() and started:
                work.cancel()
            elif not work.done():
                expired = True
                await refusal(504, f"no answer within {self.seconds:g} seconds", RETRY)(scope, receive, send)
            # Work in a thread cannot be stopped: until it ends it counts as running, and no other takes its place.
            await asyncio.wait({work})
        except asyncio.CancelledError:
            work.cancel()
            raise
        if not work.cancelled() and (error := work.exception()):
            raise error


class JsonErrors:
    """Gives every error response the shape ``{error, detail}``, whoever wrote it (router, BentoML)."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error: Message | None = None
        started = False
        body = b""

        async def reshape(message: Message) -> None:
            nonlocal body, error, started
            if message["type"] == "http.response.start" and message["status"] >= 400:
                error = message
            elif error is not None and message["type"] == "http.response.body":
                body += message.get("body", b"")
                if not message.get("more_body", False):
                    started = True
                    await _shaped(error, body)(scope, receive, send)
            else:
                started = True
                await send(message)

        try:
            await self.app(scope, receive, reshape)
        except Exception:
            if scope["type"] != "http" or started:
                raise
            logger.exception("%s failed", scope["path"])
            await refusal(500, "an unexpected error; the server's log has it")(scope, receive, send)


def _shaped(start: Message, body: bytes) -> JSONResponse:
    status = start["status"]
    headers = {name: value for name, value in Headers(raw=list(start["headers"])).items() if name in KEPT}
    try:
        content = json.loads(body)
    except ValueError:
        return refusal(status, body.decode("utf-8", "replace").strip() or HTTPStatus(status).phrase, headers)
    if isinstance(content, list) and len(content) == 1:  # BentoML wraps some of its errors in a list
        content = content[0]
    if not (isinstance(content, dict) and "error" in content):
        return refusal(status, content, headers)
    if "detail" not in content:
        return refusal(status, content["error"], headers)
    if not (isinstance(content["detail"], list) and content["detail"]):
        return JSONResponse(content, status_code=status, headers=headers)
    # What pydantic found: the first finding is the error, all of them the detail.
    detail = [{key: error.get(key) for key in ("type", "loc", "msg")} for error in content["detail"]]
    where = ".".join(map(str, detail[0]["loc"])) or "body"
    error = f"{where}: {detail[0]['msg']}"
    return JSONResponse({"error": error, "detail": detail}, status_code=status, headers=headers)


class WithoutRefusals(logging.Filter):
    """Drops BentoML's stack trace of a request that did not validate: the client's mistake, told to the client."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], ValidationError))
