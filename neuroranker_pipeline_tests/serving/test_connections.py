"""The bounds of connections, with both of uvicorn's parsers."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from neuroranker_pipeline.serving import connections
from neuroranker_pipeline_tests.serving.small_application import (
    LARGE_SIZE,
    application,
    exchange,
    length,
    post,
    served,
)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"GET /absent HTTP/1.1", 404),
        (b"GET /length/ HTTP/1.1", 404),
        (b"GET /length%0aforged HTTP/1.1", 404),
        (b"GET /length HTTP/1.1\r\nContent-Type: \xbd", 400),
        (b"GET /length HTTP/1.1\r\nX: \\u\xba", 400),
        ("GET /length HTTP/1.1\r\nContent-Type: text/plain\r\nX: é".encode(), 200),
    ],
)
def test_what_bentoml_must_not_see_is_answered_before(head: bytes, expected: int) -> None:
    with served(lambda app: connections.Front(app, ["/length"])) as port:
        assert exchange(port, head)[0] == expected


def test_the_paths_of_an_application(tmp_path: Path) -> None:
    (tmp_path / "page.css").touch()
    mounted = [Mount("/files", StaticFiles(directory=tmp_path)), Mount("/", Starlette(routes=[Route("/info", length)]))]
    assert list(connections.paths_of([Route("/", length), *mounted])) == ["/", "/files/page.css", "/info"]


@pytest.fixture(params=[H11Protocol, HttpToolsProtocol])
def parser(request: pytest.FixtureRequest) -> Any:
    """Either of uvicorn's parsers: which it takes depends on what is installed."""
    return request.param


@contextmanager
def bounded(parser: Any, keep_alive: int = 0, **bounds: Any) -> Iterator[int]:
    """The port of the application, its connections within ``bounds``, with seconds of keep-alive time."""
    protocol = connections.BoundedConnections(application(), **bounds).protocol(parser)
    with served(lambda app: app, http=protocol, timeout_keep_alive=keep_alive) as port:
        yield port


def connect(port: int, data: bytes = b"") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=5)
    client.sendall(data)
    return client


def ended(client: socket.socket) -> bool:
    """Whether the server ends a connection, within the socket's timeout, without another answer."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


HEAD = b"POST /length HTTP/1.1\r\nHost: test\r\n"


@pytest.mark.parametrize("first", [b"", b"P", HEAD])
def test_headers_that_do_not_come_end_the_connection(parser: Any, first: bytes) -> None:
    with bounded(parser, seconds=0.3) as port, connect(port, first) as client:
        start = time.monotonic()
        assert ended(client)
        assert 0.2 < time.monotonic() - start < 3


def test_a_byte_at_a_time_does_not_help(parser: Any) -> None:
    with bounded(parser, seconds=0.5) as port, connect(port, HEAD + b"X: ") as client:
        start = time.monotonic()
        with pytest.raises(ConnectionError):
            for _ in range(100):
                client.sendall(b"a")
                time.sleep(0.05)
        assert time.monotonic() - start < 3


def test_a_request_that_is_worked_on_may_take_longer(parser: Any) -> None:
    with bounded(parser, seconds=0.2, request_seconds=5) as port:
        assert post(port, "/sleep")[0] == 200
    request = HEAD.replace(b"length", b"sleep") + b"\r\n"
    with bounded(parser, seconds=0.2, request_seconds=0.3) as port, connect(port, request) as client:
        assert ended(client)


def taken(client: socket.socket) -> int:
    """Bytes that can still be read, until the end of the connection."""
    size = 0
    with contextlib.suppress(ConnectionResetError):
        while data := client.recv(2**16):
            size += len(data)
    return size


LARGE = HEAD.replace(b"length", b"large") + b"Content-Length: 0\r\n\r\n"


@pytest.mark.parametrize(("late", "whole"), [(0, True), (1.5, False)])
def test_an_answer_that_nobody_takes_ends_the_connection(parser: Any, late: float, whole: bool) -> None:
    with bounded(parser, seconds=0.5) as port, connect(port, LARGE) as client:
        time.sleep(late)
        assert (taken(client) > LARGE_SIZE) == whole


def test_answers_that_nobody_takes_do_not_fill_the_memory(parser: Any) -> None:
    with bounded(parser, unsent_bytes=LARGE_SIZE * 3 // 2) as port, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(port, LARGE)) for _ in range(3)]
        time.sleep(1)
        assert sorted(taken(client) > LARGE_SIZE for client in clients) == [False, False, True]
        assert post(port, "/length")[0] == 200


def test_the_longest_waiting_makes_room(parser: Any) -> None:
    with bounded(parser, limit=3) as port:
        clients = [connect(port, first) for first in (HEAD, HEAD + b"Content-Length: 9\r\n\r\nhalf", b"")]
        time.sleep(0.2)
        assert [post(port, "/length")[0] for _ in range(3)] == [200] * 3
        for client in clients[1:]:
            client.settimeout(0.2)
        assert [ended(client) for client in clients] == [True, False, False]
        for client in clients:
            client.close()


def test_headers_are_bounded(parser: Any) -> None:
    with bounded(parser, head_bytes=50_000) as port:
        assert exchange(port, "GET /length HTTP/1.1\r\nX: " + "a" * 10_000)[0] == 200
        with connect(port, HEAD) as client, pytest.raises(ConnectionError):
            for _ in range(1000):
                client.sendall(b"X: " + b"a" * 10_000 + b"\r\n")
                time.sleep(0.001)


def test_what_is_no_http_is_told_so_in_json(parser: Any) -> None:
    with bounded(parser) as port:
        status, headers, answer = exchange(port, "NONSENSE")
        assert (status, headers["connection"]) == (400, "close")
        assert answer == {"error": "Bad Request", "detail": "Invalid HTTP request received."}


def test_many_requests_on_one_connection(parser: Any) -> None:
    with bounded(parser, keep_alive=5) as port, connect(port) as client:
        stream = client.makefile("rb")
        for pipelined in (1, 3):
            client.sendall((HEAD + b"Content-Length: 2\r\n\r\n{}") * pipelined)
            for _ in range(pipelined):
                assert b"200" in stream.readline()
                assert [line for line in iter(stream.readline, b"\r\n") if line.startswith(b"content-length")]
                assert stream.read(1) == b"2"
