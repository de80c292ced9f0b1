"""A small application that a real uvicorn serves, and its client."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from neuroranker_pipeline.serving import http

LARGE_SIZE = 20_000_000  # bytes: more than the kernel holds


async def length(request: Request) -> JSONResponse:
    return JSONResponse(len(await request.body()))


async def sleep(request: Request) -> PlainTextResponse:
    await asyncio.sleep(0.5)
    return PlainTextResponse("late")


async def large(request: Request) -> PlainTextResponse:
    return PlainTextResponse("x" * LARGE_SIZE)


async def fail(request: Request) -> JSONResponse:
    raise ValueError("a secret of the server")


def application() -> ASGIApp:
    methods = ["GET", "POST"]
    routes = [Route("/", length), Route("/livez", length)]
    routes += [Route(f"/{f.__name__}", f, methods=methods) for f in (length, sleep, large, fail)]
    return Starlette(routes=routes)


@contextmanager
def served(layer: Callable[[ASGIApp], ASGIApp], **options: Any) -> Iterator[int]:
    """The port at which ``layer`` around the application, its errors shaped, is served; ``options`` are uvicorn's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = http.JsonErrors(layer(application()))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", **options))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def exchange(port: int, head: str | bytes, body: bytes = b"") -> tuple[int, dict[str, str], Any]:
    """Send a request as it stands; gives status, headers (lower case) and JSON, once the server has answered."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall((head.encode() if isinstance(head, str) else head) + b"\r\nHost: test\r\n\r\n" + body)
        stream = client.makefile("rb")
        status = int(stream.readline().split()[1])
        lines = iter(stream.readline, b"\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.decode().partition(":") for line in lines)}
        content = stream.read(int(headers["content-length"]))
        return status, headers, json.loads(content) if "json" in headers["content-type"] else content


def post(port: int, path: str, body: bytes = b"{}") -> tuple[int, dict[str, str], Any]:
    return exchange(port, f"POST {path} HTTP/1.1\r\nContent-Length: {len(body)}", body)
