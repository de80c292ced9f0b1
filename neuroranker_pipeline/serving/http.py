"""What stands between the network and the service: a bound on bodies, and one shape for errors."""

from __future__ import annotations

import json
import logging
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


def refusal(status: int, detail: Any) -> JSONResponse:
    """An error as every client sees it: ``{error, detail}``."""
    return JSONResponse({"error": HTTPStatus(status).phrase, "detail": detail}, status_code=status)


class BoundedBody:
    """Answers 413 to a body of more than ``max_bytes``, announced or not, before it fills the memory."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.max_bytes:
                await refusal(413, f"the body exceeds {self.max_bytes} bytes")(scope, receive, send)
                return
        unread = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return unread.pop() if unread else await receive()

        await self.app(scope, replay, send)


class JsonErrors:
    """Gives every error response the shape ``{error, detail}``, whoever wrote it (router, BentoML)."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start: Message | None = None
        body = b""

        async def reshape(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start" and message["status"] >= 400:
                start = message
            elif start is not None and message["type"] == "http.response.body":
                body += message.get("body", b"")
                if not message.get("more_body", False):
                    await _shaped(start["status"], body)(scope, receive, send)
            else:
                await send(message)

        await self.app(scope, receive, reshape)


def _shaped(status: int, body: bytes) -> JSONResponse:
    try:
        content = json.loads(body)
    except ValueError:
        return refusal(status, body.decode("utf-8", "replace").strip() or HTTPStatus(status).phrase)
    if isinstance(content, list) and len(content) == 1:  # BentoML wraps some of its errors in a list
        content = content[0]
    if not (isinstance(content, dict) and "error" in content):
        return refusal(status, content)
    if "detail" not in content:
        return refusal(status, content["error"])
    if not isinstance(content["detail"], list):
        return JSONResponse(content, status_code=status)
    # What pydantic found: the first finding is the error, all of them the detail.
    detail = [{key: error.get(key) for key in ("type", "loc", "msg")} for error in content["detail"]]
    where = ".".join(map(str, detail[0]["loc"])) or "body"
    return JSONResponse({"error": f"{where}: {detail[0]['msg']}", "detail": detail}, status_code=status)


class WithoutRefusals(logging.Filter):
    """Drops BentoML's stack trace of a request that did not validate: the client's mistake, told to the client."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], ValidationError))
