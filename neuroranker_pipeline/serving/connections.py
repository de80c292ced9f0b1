"""The server's connections: which are held, for how long, which paths get through, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import threading
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from neuroranker_pipeline.serving.http import CLOSE, RETRY, refusal


def running_server() -> uvicorn.Server | None:
    """The server that runs the application: BentoML hands it to nobody, but SIGTERM ends it."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return server if isinstance(server, uvicorn.Server) else None


class Drain:
    """On SIGTERM answers what has been sent, and what comes within ``seconds``, before the server closes.

    uvicorn alone closes a connection on which the next request may be under way, and leaves others in the queue of a
    socket that BentoML's parent process keeps open. Here each answer first says ``Connection: close`` and ``/readyz``
    503; then connections are refused, and uvicorn answers what it has accepted.
    """

    def __init__(self, app: ASGIApp, seconds: float = 1) -> None:
        self.app = app
        self.seconds = seconds
        self._draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            self._listen_for_the_end()
        if self._draining and scope["type"] == "http" and scope["path"] == "/readyz":
            await refusal(503, "the service is stopping", {**RETRY, **CLOSE})(scope, receive, send)
        else:
            await self.app(scope, receive, self._closing(send))

    def _closing(self, send: Send) -> Send:
        async def closing(message: Message) -> None:
            if self._draining and message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        return closing

    def _listen_for_the_end(self) -> None:
        server, stop = running_server(), signal.getsignal(signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread() or server is None:
            return
        loop = asyncio.get_running_loop()
        signal.signal(signal.SIGTERM, lambda *_: loop.call_soon_threadsafe(self._begin, loop, server, stop))

    def _begin(self, loop: asyncio.AbstractEventLoop, server: uvicorn.Server, stop: Any) -> None:
        if not self._draining:
            self._draining = True
            loop.call_later(self.seconds, self._end, loop, server, stop, 1000)

    def _end(self, loop: asyncio.AbstractEventLoop, server: uvicorn.Server, stop: Any, tries: int) -> None:
        listeners = [listener for opened in server.servers for listener in opened.sockets]
        if tries and select.select(listeners, [], [], 0)[0]:
            loop.call_later(0.001, self._end, loop, server, stop, tries - 1)  # who has connected is accepted first
            return
        refuse_connections(listener.fileno() for listener in listeners)
        for opened in server.servers:
            opened.close()
        stop(signal.SIGTERM, None)


class Front:
    """Answers what BentoML must not see: 404 to a path that is none of ``paths``, 400 to headers that are no text.

    BentoML keeps figures of every path that was ever asked for, and writes paths and content types to its log as they
    are; what it traces with fails at headers that it cannot decode.
    """

    def __init__(self, app: ASGIApp, paths: Iterable[str]) -> None:
        self.app = app
        self.paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self.paths:
            await refusal(404, "no such path; GET /docs.json says what there is", CLOSE)(scope, receive, send)
        elif scope["type"] == "http" and not self._are_text(scope["headers"]):
            await refusal(400, "the headers must be text", CLOSE)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _are_text(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        try:
            text = [(name.decode(), value.decode()) for name, value in headers]
        except UnicodeDecodeError:
            return False
        return all(value.isprintable() for name, value in text if name == "content-type")


def paths_of(routes: Iterable[Any]) -> Iterator[str]:
    """The paths that an application's routes answer at, files among them."""
    for route in routes:
        mounted = getattr(route, "app", None)
        if isinstance(mounted, Starlette):
            yield from paths_of(mounted.routes)
        elif isinstance(mounted, StaticFiles):
            folders = map(Path, mounted.all_directories)
            yield from (f"{route.path}/{file.name}" for folder in folders for file in folder.iterdir())
        else:
            yield route.path


class BoundedConnections:
    """Ends the connections of clients that make the server wait; uvicorn bounds none of this.

    A connection is ended when it has not brought the headers of a request ``seconds`` after uvicorn's keep-alive time,
    nor taken the answer to the last one by then, and when a request has not been answered after ``request_seconds``.
    With more than ``limit`` connections, or ``unsent_bytes`` of answers that nobody takes, the longest waiting ends:
    who comes and asks at once is answered, however many others do not. Longer headers than ``head_bytes`` are refused.
    """

    def __init__(
        self,
        app: ASGIApp,
        seconds: float = 10,
        request_seconds: float = 75,
        paths: Iterable[str] = (),  # besides those of the application's routes
        limit: int = 800,
        head_bytes: int = 2**16,
        unsent_bytes: int = 2**28,
    ) -> None:
        self.app = app
        self.paths = paths
        self.seconds, self.request_seconds = seconds, request_seconds
        self.limit, self.head_bytes, self.unsent_bytes = limit, head_bytes, unsent_bytes
        self.waiting: dict[Any, None] = {}  # for their client, the longest waiting first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" and (server := running_server()):
            raise_file_limit()
            server.config.http_protocol_class = self.protocol(server.config.http_protocol_class)
            server.config.ws_protocol_class = None  # nothing here speaks it
            server.config.loaded_app = Front(server.config.loaded_app, {*paths_of(scope["app"].routes), *self.paths})
        await self.app(scope, receive, send)

    def protocol(self, base: Any) -> Any:
        """uvicorn's protocol ``base``, of either of its parsers, within these bounds."""
        return type(f"Bounded{base.__name__}", (BoundedProtocol, base), {"bounds": self})

    def end_longest(self, connections: int) -> None:
        """End the longest waiting until there are few enough connections, and bytes that they do not take."""
        unsent = {each: each.transport.get_write_buffer_size() for each in self.waiting}
        over, many = sum(unsent.values()) - self.unsent_bytes, connections - self.limit
        for each, size in unsent.items():
            if many > 0 or (over > 0 and size):
                del self.waiting[each]
                each.transport.abort()
                many, over = many - 1, over - size


def raise_file_limit(files: int = 8192) -> None:
    """Let the process open so many files, as far as it may: all that connect at once are open before any is ended."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # Windows has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = files if hard == resource.RLIM_INFINITY else min(files, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


class BoundedProtocol(asyncio.Protocol):
    """What ``BoundedConnections`` adds to uvicorn's protocols, whose names these are."""

    bounds: BoundedConnections
    head = 0  # bytes of headers that are not complete
    timer: asyncio.TimerHandle | None = None

    def connection_made(self: Any, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.await_client()
        if len(self.connections) > self.bounds.limit:
            self.bounds.end_longest(len(self.connections))

    def data_received(self: Any, data: bytes) -> None:
        previous = self.cycle
        super().data_received(data)
        cycle = self.cycle
        if cycle is not previous:
            self.head = 0
            self.end_after(self.bounds.request_seconds)
        elif cycle is None or cycle.response_complete:
            self.head += len(data)
            if self.head > self.bounds.head_bytes and not (cycle and cycle.more_body):
                self.refuse(431, f"the headers exceed {self.bounds.head_bytes} bytes")
        if cycle is not None and not cycle.more_body and not cycle.response_complete:
            self.bounds.waiting.pop(self, None)

    def on_response_complete(self: Any) -> None:
        super().on_response_complete()  # type: ignore[misc]
        if self.cycle.response_complete:  # else the next is being worked on
            self.await_client()
            if self.transport.get_write_buffer_size():
                self.bounds.end_longest(len(self.connections))

    def connection_lost(self: Any, exc: Exception | None) -> None:
        self.bounds.waiting.pop(self, None)
        self.timer.cancel()
        super().connection_lost(exc)

    def send_400_response(self: Any, msg: str) -> None:
        self.refuse(400, msg)

    def refuse(self: Any, status: int, detail: str) -> None:
        answer = refusal(status, detail, CLOSE)
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()
        self.transport.write(b"\r\n".join([head, *(b": ".join(pair) for pair in answer.raw_headers), b"", answer.body]))
        self.transport.close()

    def await_client(self: Any) -> None:
        self.bounds.waiting[self] = None
        self.end_after(self.timeout_keep_alive + self.bounds.seconds)

    def end_after(self: Any, seconds: float) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.loop.call_later(seconds, self.transport.abort)


def refuse_connections(descriptors: Iterable[int]) -> None:
    """Stop listening on sockets, in every process that shares them; to ``listen`` again undoes it."""
    for descriptor in descriptors:
        with socket.socket(fileno=os.dup(descriptor)) as listener, contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
