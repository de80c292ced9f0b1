"""Fetch published files: resumable, bounded, checked against their digests, and put in place atomically.

A file grows as ``NAME.part``, beside it ``NAME.part.json`` says which version of which address it is a part of. A later call
goes on from there, also after ``kill -9``, if the server still has that version (``If-Range`` with its ETag or
Last-Modified) and answers ranges; else it starts anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import ipaddress
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuroranker_pipeline.errors import BadInput, NotReady, require
from neuroranker_pipeline.progress import Progress, silent

BLOCK = 1 << 20
TIMEOUT = 60.0
"""Seconds without a byte before a connection is given up."""
ATTEMPTS = 4
"""Failures with less than ``BLOCK`` bytes between them before the host counts as unreachable."""
BACKOFF = 1.0
"""Seconds before the second attempt; doubled for each later one."""
SPARE_BYTES = 64 << 20
"""Disk space that a download leaves free."""
PASSING = {408, 425, 429, 500, 502, 503, 504}
"""HTTP statuses worth another attempt."""


@dataclass(frozen=True)
class RemoteFile:
    """A published file: the ``name`` to store it under, its ``url``, and where known its size in ``bytes`` and ``md5``.

    Only https, and http to this machine itself. ``headers`` are sent with the request.
    Raises ``ValueError`` naming the field that cannot be.
    """

    name: str
    url: str
    bytes: int | None = None
    md5: str | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        plain = self.name not in ("", ".", "..") and not re.search(r"[/\\\0]", self.name)
        require(plain, "name", "a file name without a folder", self.name)
        require(_allowed(self.url), "url", "an https address", self.url)
        require(self.bytes is None or self.bytes >= 0, "bytes", "at least 0", self.bytes)
        require(self.md5 is None or bool(re.fullmatch("[0-9a-f]{32}", self.md5)), "md5", "32 hex digits", self.md5)


class _Passing(Exception):
    """A fault that may be gone at the next attempt."""


class _Final(Exception):
    """A fault that stays: the file cannot be had from there."""


def fetch(files: Sequence[RemoteFile], folder: Path, progress: Progress = silent) -> list[Path]:
    """Bring ``files`` into ``folder``, each resumed where an earlier call stopped; the answer holds their paths.

    What is already there with the right size and digest is left alone. ``progress`` gets the file's name and bytes.

    Raises ``BadInput`` if a file there, or what a server sent, is not the published file, and ``NotReady`` if a host cannot
    be reached (naming the files to put into ``folder`` by hand), the disk is too full, or another process
    is fetching the same file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [file for file in files if not _is_there(file, folder / file.name, progress)]
    for i, file in enumerate(missing):
        try:
            _download(file, folder, progress)
        except _Final as fault:
            names = ", ".join(file.name for file in missing[i:])
            raise NotReady(f"{file.url}: {fault}; fetch by other means and put into {folder}: {names}") from None
    return [folder / file.name for file in files]


def _is_there(file: RemoteFile, path: Path, progress: Progress) -> bool:
    if not path.exists():
        return False
    size = path.stat().st_size
    advice = "remove it to have it fetched anew"
    if file.bytes is not None and size != file.bytes:
        raise BadInput(f"{path}: {size} bytes, the published file has {file.bytes}: {advice}")
    if file.md5 is not None and (got := _md5(path, progress).hexdigest()) != file.md5:
        raise BadInput(f"{path}: md5 {got}, the published file has {file.md5}: {advice}")
    return True


def _md5(path: Path, progress: Progress) -> Any:
    """The running digest of what is in ``path``."""
    digest, done, size = hashlib.md5(usedforsecurity=False), 0, path.stat().st_size
    with path.open("rb") as handle:
        while block := handle.read(BLOCK):
            digest.update(block)
            done += len(block)
            progress(f"{path.name} (checking)", done, size)
    return digest


class _Part:
    """The part of a file that has been received; written through at once, so that nothing is lost when killed."""

    def __init__(self, file: RemoteFile, path: Path, progress: Progress) -> None:
        self.file, self.path, self.note = file, path, path.with_name(f"{path.name}.json")
        self.handle = path.open("ab", buffering=0)
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(self.handle.fileno()), path.stat()):
                raise FileNotFoundError(
                    path
                )  # published between opening and locking: this handle is the published file
        except (BlockingIOError, FileNotFoundError):
            self.handle.close()
            raise NotReady(f"{path}: another process is fetching it: wait for it, or stop it") from None
        try:
            state = json.loads(self.note.read_text(encoding="utf-8"))
            self.validator, self.total = str(state["validator"]), state["total"]
            known = state["url"] == file.url and isinstance(self.total, int | None)
        except (OSError, ValueError, KeyError, TypeError):
            known = False
        if not known:
            self.restart("", None)
        self.size = path.stat().st_size
        self.digest = _md5(path, progress)

    def restart(self, validator: str, total: int | None) -> None:
        """Throw away what is there; what follows is the version ``validator``, of ``total`` bytes if known."""
        self.handle.truncate(0)
        self.size, self.digest = 0, hashlib.md5(usedforsecurity=False)
        self.validator, self.total = validator, total
        state = {"url": self.file.url, "validator": validator, "total": total}
        self.note.write_text(json.dumps(state), encoding="utf-8")

    def append(self, block: bytes) -> None:
        limit = self.total if self.file.bytes is None else self.file.bytes
        if limit is not None and self.size + len(block) > limit:
            self.remove()
            raise BadInput(f"{self.file.url}: more than the {limit} bytes of the published file were sent")
        self.handle.write(block)
        self.digest.update(block)
        self.size += len(block)

    def remove(self) -> None:
        self.note.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def publish(self, target: Path) -> None:
        os.fsync(self.handle.fileno())
        os.replace(self.path, target)
        self.note.unlink(missing_ok=True)


def _download(file: RemoteFile, folder: Path, progress: Progress) -> None:
    try:
        part = _Part(file, folder / f"{file.name}.part", progress)
        with part.handle:
            _complete(part, progress)
            if file.md5 is not None and part.digest.hexdigest() != file.md5:
                part.remove()
                got = part.digest.hexdigest()
                raise BadInput(f"{file.url}: expected md5 {file.md5}, got {got}: what came was thrown away")
            part.publish(folder / file.name)
    except OSError as error:
        raise NotReady(
            f"{folder / file.name}: cannot be written ({error.strerror}): what came so far is kept"
        ) from error


def _complete(part: _Part, progress: Progress) -> None:
    """Receive until the part is whole. Raises ``_Final`` once ``ATTEMPTS`` in a row brought next to nothing."""
    best, failures = part.size, 0
    while part.size == 0 or part.size != (part.total if part.file.bytes is None else part.file.bytes):
        try:
            _receive(part, progress)
            return
        except _Passing as fault:
            failures = 1 if part.size >= best + BLOCK else failures + 1
            best = max(best, part.size)
            if failures >= ATTEMPTS:
                raise _Final(str(fault)) from None
            time.sleep(BACKOFF * 2 ** (failures - 1))


def _receive(part: _Part, progress: Progress) -> None:
    """One request: from where the part ends, or from the start where it cannot be continued."""
    file = part.file
    headers = dict(file.headers) | {"Accept-Encoding": "identity", "User-Agent": "neuroranker"}
    if part.size and part.validator:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": part.validator}
    with _open(urllib.request.Request(file.url, headers=headers), part) as response:
        validator = _validator(response.headers)
        if response.status == http.client.PARTIAL_CONTENT:
            spans = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if not spans or int(spans[1]) != part.size or validator not in ("", part.validator):
                part.restart("", None)
                raise _Passing("another range or version was sent than asked for")
        else:
            length = response.headers.get("Content-Length", "")
            announced = int(length) if length.isdecimal() else None
            if None not in (file.bytes, announced) and file.bytes != announced:
                raise BadInput(f"{file.url}: {announced} bytes were offered, the published file has {file.bytes}")
            part.restart(validator, announced)
        total = part.total or file.bytes or 0
        _make_sure_of_space(part.path.parent, total - part.size)
        for block in _blocks(response):
            part.append(block)
            progress(file.name, part.size, total)
    if total and part.size < total:
        raise _Passing(f"the connection ended after {part.size} of {total} bytes")


def _open(request: urllib.request.Request, part: _Part) -> http.client.HTTPResponse:
    try:
        return urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        message = f"answered {error.code} {error.reason}"
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.restart("", None)
            raise _Passing(message) from None
        raise (_Passing if error.code in PASSING else _Final)(message) from None
    except (OSError, http.client.HTTPException) as error:
        raise _Passing(f"cannot be reached ({getattr(error, 'reason', error)})") from None


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            block = response.read1(BLOCK)  # whatever has come, so that a slow server's bytes are kept
        except (OSError, http.client.HTTPException) as error:
            raise _Passing(f"the connection broke ({error})") from None
        if not block:
            return
        yield block


def _validator(headers: http.client.HTTPMessage) -> str:
    """What names this version in ``If-Range``: weak ETags may not (RFC 9110, 13.1.5)."""
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")


def _make_sure_of_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed + SPARE_BYTES > free:
        raise NotReady(f"{folder}: {needed / 1e6:,.0f} MB are to come, {free / 1e6:,.0f} MB are free: make room")


def _allowed(url: str) -> bool:
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "http":
        try:
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False
    return parts.scheme == "https" and bool(host)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows only to addresses that could have been asked for in the first place."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if not _allowed(newurl):
            raise _Final(f"leads to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
