"""The bounds before the service, each around a small application that a real uvicorn serves."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.serving import http
from neuroranker_pipeline_tests.serving.small_application import (
    exchange,
    post,
    served,
)

SECRET = "correct-horse"


def test_settings_come_from_the_environment() -> None:
    environment = {"NEURORANKER_MAX_CONCURRENCY": "2", "NEURORANKER_TIMEOUT_SECONDS": "0.5", "OTHER": "x"}
    assert http.Settings.from_environment(environment) == http.Settings(max_concurrency=2, timeout_seconds=0.5)
    assert http.Settings.from_environment({"NEURORANKER_CACHE_MB": "0"}).cache_mb == 0
    assert http.Settings.from_environment({}) == http.Settings()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("NEURORANKER_MAX_CONCURRENCY", "0"),
        ("NEURORANKER_MAX_CONCURRENCY", "2.5"),
        ("NEURORANKER_TIMEOUT_SECONDS", "soon"),
        ("NEURORANKER_TIMEOUT_SECONDS", "nan"),
        ("NEURORANKER_TIMEOUT_SECONDS", "inf"),
        ("NEURORANKER_BODY_SECONDS", "-1"),
        ("NEURORANKER_CACHE_MB", ""),
    ],
)
def test_wrong_settings_name_the_variable(variable: str, value: str) -> None:
    with pytest.raises(BadInput, match=f"{variable}: must be a .*number from .*got '{value}'"):
        http.Settings.from_environment({variable: value})


def test_the_key_comes_from_the_environment_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{SECRET}\n")
    assert http.api_key({}) is None
    assert http.api_key({"NEURORANKER_API_KEY": SECRET}) == SECRET.encode()
    assert http.api_key({"NEURORANKER_API_KEY_FILE": str(tmp_path / "key")}) == SECRET.encode()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"NEURORANKER_API_KEY": " "}, "must hold one key"),
        ({"NEURORANKER_API_KEY": f"{SECRET} {SECRET}"}, "must hold one key"),
        ({"NEURORANKER_API_KEY": f"{SECRET}é"}, "must hold one key"),
        ({"NEURORANKER_API_KEY_FILE": "absent"}, "absent cannot be read"),
        ({"NEURORANKER_API_KEY": SECRET, "NEURORANKER_API_KEY_FILE": "f"}, "both set"),
    ],
)
def test_a_wrong_key_ends_in_one_line_that_does_not_quote_it(environment: dict[str, str], message: str) -> None:
    with pytest.raises(BadInput, match=message) as error:
        http.api_key(environment)
    assert SECRET not in str(error.value)


def test_the_key_opens_all_and_the_probes_need_none() -> None:
    with served(lambda app: http.BearerKey(app, SECRET.encode())) as port:
        for path in ("/", "/livez"):
            assert exchange(port, f"GET {path} HTTP/1.1")[0] == 200
        for shown in (SECRET, f"Bearer {SECRET}x", f"Basic {SECRET}", "Bearer", f"Bearer {SECRET}\r\nAuthorization: x"):
            assert exchange(port, f"GET /length HTTP/1.1\r\nAuthorization: {shown}")[0] == 401
        assert exchange(port, f"GET /length HTTP/1.1\r\nAuthorization: bearer {SECRET}")[0] == 200
        status, headers, answer = post(port, "/length")
        assert (status, headers["www-authenticate"], answer["error"]) == (401, "Bearer", "Unauthorized")
        assert exchange(port, "POST /livez HTTP/1.1\r\nContent-Length: 0")[0] == 401


def test_a_body_beyond_the_bound_is_refused() -> None:
    with served(lambda app: http.BoundedBody(app, 100_000)) as port:
        assert post(port, "/length", b"x" * 100_000)[::2] == (200, 100_000)
        for size in (100_001, 5_000_000):
            assert post(port, "/length", b"x" * size)[0] == 413
        chunks = b"186a0\r\n" + b"x" * 100_000 + b"\r\n1\r\nx\r\n0\r\n\r\n"  # not announced
        assert exchange(port, "POST /length HTTP/1.1\r\nTransfer-Encoding: chunked", chunks)[0] == 413


def test_a_slow_body_is_refused_and_its_connection_closed() -> None:
    with served(lambda app: http.BoundedBody(app, 100, seconds=0.2)) as port:
        status, headers, answer = exchange(port, "POST /length HTTP/1.1\r\nContent-Length: 10", b"half")
        assert (status, headers["connection"]) == (408, "close")
        assert answer == {"error": "Request Timeout", "detail": "the body was not there after 0.2 seconds"}


def test_all_bodies_together_are_bounded() -> None:
    with served(lambda app: http.BoundedBody(app, 1000, total_bytes=1500)) as port:
        with ThreadPoolExecutor() as pool:
            first = pool.submit(post, port, "/sleep", b"x" * 1000)
            time.sleep(0.2)
            status, headers, _ = post(port, "/length", b"x" * 1000)
            assert (status, headers["retry-after"]) == (503, "1")
            assert first.result()[0] == 200
        assert post(port, "/length", b"x" * 1000)[0] == 200, "what was held is free again"


def test_more_requests_than_the_bound_are_refused_but_probes_are_not() -> None:
    with served(lambda app: http.BoundedConcurrency(app, 2)) as port:
        with ThreadPoolExecutor() as pool:
            running = [pool.submit(post, port, "/sleep") for _ in range(2)]
            time.sleep(0.2)
            status, headers, answer = post(port, "/length")
            assert (status, headers["retry-after"], answer["error"]) == (429, "1", "Too Many Requests")
            assert exchange(port, "GET /livez HTTP/1.1")[0] == 200
            assert [future.result()[0] for future in running] == [200, 200]
        assert post(port, "/length")[0] == 200


def test_more_requests_wait_for_their_turn_up_to_a_bound() -> None:
    with served(lambda app: http.BoundedConcurrency(app, 1, queue=2)) as port, ThreadPoolExecutor() as pool:
        start = time.monotonic()
        accepted = [pool.submit(post, port, "/sleep") for _ in range(3)]
        time.sleep(0.2)
        assert post(port, "/length")[0] == 429
        assert [future.result()[0] for future in accepted] == [200] * 3
        assert time.monotonic() - start > 1.4, "one at a time"


def test_a_turn_that_does_not_come_is_answered() -> None:
    layers = partial(http.BoundedConcurrency, limit=1, queue=2, seconds=0.1)
    with served(layers) as port, ThreadPoolExecutor() as pool:
        running = pool.submit(post, port, "/sleep")
        time.sleep(0.2)
        start = time.monotonic()
        assert post(port, "/length")[0] == 429
        assert 0.05 < time.monotonic() - start < 0.3
        assert running.result()[0] == 200
        assert post(port, "/length")[0] == 200


def test_an_expired_request_is_answered_and_counts_until_its_work_ends() -> None:
    with served(lambda app: http.BoundedConcurrency(http.Deadline(app, 0.1), 1)) as port:
        start = time.monotonic()
        status, headers, answer = post(port, "/sleep")
        assert (status, headers["retry-after"]) == (504, "1")
        assert answer == {"error": "Gateway Timeout", "detail": "no answer within 0.1 seconds"}
        assert time.monotonic() - start < 0.4
        assert post(port, "/length")[0] == 429
        time.sleep(0.5)
        assert post(port, "/length")[::2] == (200, 2)


def test_an_error_of_the_server_tells_the_client_nothing() -> None:
    with served(lambda app: http.Deadline(app, 5)) as port:
        status, _, answer = post(port, "/fail")
        assert (status, sorted(answer)) == (500, ["detail", "error"])
        assert "secret" not in json.dumps(answer)


def test_an_error_keeps_the_headers_that_say_what_to_do() -> None:
    with served(lambda app: app) as port:
        status, headers, answer = post(port, "/livez")
        assert (status, answer["error"]) == (405, "Method Not Allowed")
        assert set(headers["allow"].split(", ")) == {"GET", "HEAD"}


@pytest.mark.parametrize(
    "header",
    [
        "Content-Type: application/vnd.bentoml+pickle",
        "Content-Type: multipart/form-data; boundary=x",
        "Content-Type: text/plain",
        "Content-Type: application/json\r\nContent-Type: application/vnd.bentoml+pickle",
        "Content-Encoding: gzip",
    ],
)
def test_a_body_that_is_not_plain_json_is_refused(header: str) -> None:
    with served(http.JsonBodies) as port:
        status, _, answer = exchange(port, f"POST /length HTTP/1.1\r\nContent-Length: 2\r\n{header}", b"{}")
        assert (status, answer["error"]) == (415, "Unsupported Media Type")


@pytest.mark.parametrize(
    "header", ["Content-Type: Application/JSON; charset=utf-8", "X: y", "Content-Encoding: identity"]
)
def test_json_is_taken_with_and_without_its_name(header: str) -> None:
    with served(http.JsonBodies) as port:
        assert exchange(port, f"POST /length HTTP/1.1\r\nContent-Length: 2\r\n{header}", b"{}")[0] == 200
