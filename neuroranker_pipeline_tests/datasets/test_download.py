"""Downloads from a real server on 127.0.0.1 that can be slow, break off, change its file, or know no ranges."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from neuroranker_pipeline.datasets import download
from neuroranker_pipeline.datasets.download import RemoteFile, fetch
from neuroranker_pipeline.datasets.msmarco_files import TOP_1000, TREC_DL, published_files
from neuroranker_pipeline.errors import BadInput, NotReady

DATA = bytes(i * i % 251 for i in range(300_000))


class Server(http.server.ThreadingHTTPServer):
    """What it serves and how; ``asked`` holds the Range header of every request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.etag, self.date = DATA, '"one"', ""
        self.ranges, self.length, self.heed_if_range = True, True, True
        self.stop_after: list[int] = []  # for each of the first requests, the bytes after which it breaks off
        self.statuses: list[int] = []  # for each of the first requests, an error to answer with
        self.redirect = ""
        self.block, self.pause = 1 << 16, 0.0
        self.announced: int | None = None
        self.asked: list[str] = []

    def url(self, name: str = "file.bin") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        served = self.server
        served.asked.append(self.headers.get("Range", ""))
        if served.redirect:
            self.send_response(302)
            self.send_header("Location", served.redirect)
            self.end_headers()
            return
        if served.statuses and (status := served.statuses.pop(0)) != 200:
            self.send_error(status)
            return
        start = self.start()
        if start >= len(served.data) > 0:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(served.data) - 1}/{len(served.data)}")
        if served.length:
            self.send_header("Content-Length", str(served.announced or len(served.data) - start))
        for name, value in (("ETag", served.etag), ("Last-Modified", served.date)):
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.send(served.data[start:][: served.stop_after.pop(0) if served.stop_after else None])

    def start(self) -> int:
        served, asked = self.server, re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not asked or not served.ranges:
            return 0
        same = self.headers.get("If-Range", "") in (served.etag, served.date)
        return int(asked[1]) if same or not served.heed_if_range else 0

    def send(self, data: bytes) -> None:
        for at in range(0, len(data), self.server.block):
            try:
                self.wfile.write(data[at : at + self.server.block])
                self.wfile.flush()
            except OSError:  # the other side has gone
                return
            time.sleep(self.server.pause)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "BACKOFF", 0.0)
    with Server() as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.shutdown()


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def remote(server: Server, size: int | None = len(DATA), digest: str | None = md5(DATA)) -> RemoteFile:
    return RemoteFile("file.bin", server.url(), size, digest)


def only(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_are_fetched_with_progress_and_then_left_alone(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    folder = tmp_path / "new" / "folder"
    (path,) = fetch([remote(server)], folder, lambda *report: seen.append(report))
    assert path == folder / "file.bin"
    assert path.read_bytes() == DATA
    assert only(folder) == ["file.bin"]
    assert seen[-1] == ("file.bin", len(DATA), len(DATA))
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})
    written = path.stat().st_mtime_ns
    assert fetch([remote(server)], folder) == [path]
    assert path.stat().st_mtime_ns == written
    assert server.asked == [""]


@pytest.mark.parametrize("size", [None, len(DATA)])
@pytest.mark.parametrize("length", [True, False])
def test_size_and_digest_need_not_be_known(server: Server, tmp_path: Path, size: int | None, length: bool) -> None:
    server.length = length
    assert fetch([remote(server, size, None)], tmp_path)[0].read_bytes() == DATA


def test_an_empty_file_is_a_file(server: Server, tmp_path: Path) -> None:
    server.data = b""
    assert fetch([remote(server, 0, md5(b""))], tmp_path)[0].read_bytes() == b""


def test_a_killed_fetch_is_resumed(server: Server, tmp_path: Path) -> None:
    server.block, server.pause = 10_000, 0.05
    code = "import sys, pathlib; from neuroranker_pipeline.datasets.download import *"
    call = f"fetch([RemoteFile('file.bin', {server.url()!r}, {len(DATA)}, {md5(DATA)!r})], pathlib.Path(sys.argv[1]))"
    process = subprocess.Popen([sys.executable, "-c", f"{code}; {call}", str(tmp_path)])
    part = tmp_path / "file.bin.part"
    try:
        while not (part.exists() and part.stat().st_size >= 50_000):
            assert process.poll() is None, "it ended by itself"
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "file.bin").exists()
    received = part.stat().st_size
    assert 50_000 <= received < len(DATA)

    server.pause = 0.0
    (path,) = fetch([remote(server)], tmp_path)
    assert path.read_bytes() == DATA
    assert server.asked == ["", f"bytes={received}-"]
    assert only(tmp_path) == ["file.bin"]


def test_a_fetch_killed_just_before_the_end_asks_for_nothing(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(DATA)
    state = {"url": server.url(), "validator": '"one"', "total": len(DATA)}
    (tmp_path / "file.bin.part.json").write_text(json.dumps(state))
    assert fetch([remote(server, None)], tmp_path)[0].read_bytes() == DATA
    assert server.asked == []


def test_a_broken_connection_is_resumed_as_long_as_it_gets_on(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "BLOCK", 40_000)
    server.stop_after = [50_000] * 5
    assert fetch([remote(server)], tmp_path)[0].read_bytes() == DATA
    assert server.asked == ["", *(f"bytes={50_000 * i}-" for i in range(1, 6))]


def test_a_weak_etag_is_not_used_but_the_date_is(server: Server, tmp_path: Path) -> None:
    server.etag, server.date, server.stop_after = 'W/"one"', "Wed, 01 Jan 2020 00:00:00 GMT", [100]
    assert fetch([remote(server)], tmp_path)[0].read_bytes() == DATA
    assert server.asked == ["", "bytes=100-"]
    server.date, server.stop_after, server.asked = "", [100], []
    assert fetch([RemoteFile("other", server.url())], tmp_path)[0].read_bytes() == DATA
    assert server.asked == ["", ""]


def test_a_server_without_ranges_starts_anew(server: Server, tmp_path: Path) -> None:
    server.ranges, server.stop_after = False, [50_000]
    assert fetch([remote(server)], tmp_path)[0].read_bytes() == DATA
    assert server.asked == ["", "bytes=50000-"]


def test_a_body_that_is_always_cut_is_given_up(server: Server, tmp_path: Path) -> None:
    server.ranges, server.stop_after = False, [50_000] * 100
    with pytest.raises(NotReady, match=r"ended after 50000 of 300000 bytes; .*put into .*: file.bin$"):
        fetch([remote(server)], tmp_path)
    assert len(server.asked) <= download.ATTEMPTS + 1
    assert not (tmp_path / "file.bin").exists()


@pytest.mark.parametrize("heed", [True, False])
def test_a_file_that_changed_meanwhile_is_fetched_anew(server: Server, tmp_path: Path, heed: bool) -> None:
    server.stop_after = [50_000] * 20
    server.ranges = False
    with pytest.raises(NotReady):
        fetch([remote(server)], tmp_path)
    changed = bytes(reversed(DATA))
    server.data, server.etag, server.stop_after, server.asked = changed, '"two"', [], []
    server.ranges, server.heed_if_range = True, heed
    assert fetch([remote(server, None, md5(changed))], tmp_path)[0].read_bytes() == changed
    assert server.asked == ["bytes=50000-"] if heed else ["bytes=50000-", ""]


def test_a_part_of_another_address_is_not_continued(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(b"of something else")
    state = {"url": server.url("other"), "validator": '"one"', "total": len(DATA)}
    for note in (json.dumps(state), "{", "[]", '{"url": 1}'):
        (tmp_path / "file.bin.part.json").write_text(note)
        assert fetch([remote(server)], tmp_path)[0].read_bytes() == DATA
        (tmp_path / "file.bin").unlink()
    assert set(server.asked) == {""}


def test_a_part_longer_than_the_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(DATA + b"more")
    state = {"url": server.url(), "validator": '"one"', "total": None}
    (tmp_path / "file.bin.part.json").write_text(json.dumps(state))
    assert fetch([remote(server)], tmp_path)[0].read_bytes() == DATA
    assert server.asked == [f"bytes={len(DATA) + 4}-", ""]


def test_a_wrong_digest_leaves_nothing(server: Server, tmp_path: Path) -> None:
    wrong = "0" * 32
    with pytest.raises(BadInput, match=f"^{server.url()}: expected md5 {wrong}, got {md5(DATA)}"):
        fetch([remote(server, digest=wrong)], tmp_path)
    assert only(tmp_path) == []


def test_more_or_fewer_bytes_than_declared_are_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"300000 bytes were offered, the published file has 1000$"):
        fetch([remote(server, 1000)], tmp_path)
    server.length = False
    with pytest.raises(BadInput, match="more than the 1000 bytes of the published file were sent"):
        fetch([remote(server, 1000)], tmp_path)
    server.ranges = False
    with pytest.raises(NotReady, match="ended after 300000 of 400000 bytes"):
        fetch([remote(server, 400_000)], tmp_path)
    assert not (tmp_path / "file.bin").exists()


def test_a_file_already_there_must_be_the_published_one(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"file.bin: 1 bytes, the published file has 300000: remove it"):
        fetch([remote(server)], tmp_path)
    with pytest.raises(BadInput, match=f"file.bin: md5 {md5(b'x')}, the published file has {md5(DATA)}: remove it"):
        fetch([remote(server, None)], tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == b"x"
    assert server.asked == []


def test_a_missing_file_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    server.statuses = [404]
    with pytest.raises(NotReady) as caught:
        fetch([remote(server), RemoteFile("next.bin", server.url("next.bin"))], tmp_path)
    assert str(caught.value) == (
        f"{server.url()}: answered 404 Not Found; fetch by other means and put into {tmp_path}: file.bin, next.bin"
    )
    assert len(server.asked) == 1


def test_a_passing_fault_is_tried_again(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 429, 200]
    assert fetch([remote(server)], tmp_path)[0].read_bytes() == DATA
    server.statuses, server.asked = [503] * 100, []
    with pytest.raises(NotReady, match="answered 503 Service Unavailable"):
        fetch([RemoteFile("other.bin", server.url())], tmp_path)
    assert len(server.asked) == download.ATTEMPTS


def test_an_unreachable_host_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "BACKOFF", 0.0)
    with Server() as closed:
        url = closed.url()  # nobody listens there any more
    with pytest.raises(
        NotReady, match=f"{url}: cannot be reached .*refused.* put into {tmp_path}: file.bin$"
    ) as caught:
        fetch([RemoteFile("file.bin", url)], tmp_path)
    assert "\n" not in str(caught.value)


def test_a_silent_server_is_given_up(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    server.block, server.pause = 10, 1.0
    with pytest.raises(NotReady, match="timed out"):
        fetch([RemoteFile("file.bin", server.url())], tmp_path)
    assert len(server.asked) == 2


def test_a_disk_too_small_is_noticed_before(server: Server, tmp_path: Path) -> None:
    server.announced = 10**18
    with pytest.raises(NotReady, match=r"1,000,000,000,000 MB are to come, .* MB are free: make room"):
        fetch([RemoteFile("file.bin", server.url())], tmp_path)


def test_two_fetches_of_one_file_do_not_mix(server: Server, tmp_path: Path) -> None:
    import fcntl

    with (tmp_path / "file.bin.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(NotReady, match="another process is fetching it"):
            fetch([remote(server)], tmp_path)
    assert fetch([remote(server)], tmp_path)[0].read_bytes() == DATA


def test_a_folder_that_cannot_be_written_is_one_line(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").mkdir()
    with pytest.raises(NotReady, match=r"file.bin: cannot be written"):
        fetch([remote(server)], tmp_path)


def test_a_redirect_must_not_leave_https(server: Server, tmp_path: Path) -> None:
    server.redirect = "http://192.0.2.1/file.bin"
    with pytest.raises(NotReady, match=r"leads to http://192.0.2.1/file.bin, which is not https"):
        fetch([remote(server)], tmp_path)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("field", "name", "url", "digest"),
    [
        ("name", "../file", "https://example.org/x", None),
        ("name", "", "https://example.org/x", None),
        ("url", "file", "http://example.org/x", None),
        ("url", "file", "http://127.0.0.1.example.org/x", None),
        ("url", "file", "file:///etc/hostname", None),
        ("url", "file", "ftp://example.org/x", None),
        ("md5", "file", "https://example.org/x", "ABC"),
    ],
)
def test_what_cannot_be_a_remote_file_is_refused(field: str, name: str, url: str, digest: str | None) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be"):
        RemoteFile(name, url, 1, digest)


def test_the_published_files_are_complete() -> None:
    files = published_files(TREC_DL, [file.name for file in TOP_1000])
    assert len({file.name for file in files}) == len(files) == 7
    for file in files:
        assert file.url.startswith("https://")
        assert file.url.endswith(f"/{file.name}")
        assert file.bytes is not None
        assert file.md5 is not None
    assert [file.name for file in published_files(["dl20"])] == [
        "collectionandqueries.tar.gz",
        "msmarco-test2020-queries.tsv.gz",
        "2020qrels-pass.txt",
    ]
