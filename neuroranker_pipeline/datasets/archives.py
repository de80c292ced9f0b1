"""Bytes out of plain files, gzip files and tar archives that nobody vouches for.

Nothing is extracted to disk. An archive is refused when a member's path leaves it, when it holds links or devices, when it
ends early or is damaged (with the byte), or when it grows out of all proportion.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from neuroranker_pipeline.errors import BadInput

ARCHIVES = (".tar.gz", ".tgz", ".tar")
MAX_RATIO = 100
"""Text shrinks 3 to 20 times; gzip can reach 1,030:1 on nothing but zeros."""
FREE_BYTES = 64 << 20
"""So much may come out of any archive, whatever the ratio: small files may be very regular."""
MAX_HEADER_BYTES = 1 << 20
READ_BYTES = 1 << 20


class Inflated(io.RawIOBase):
    """The content of a gzip file, with one clear error when it is cut short, damaged, or a bomb."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._raw = path.open("rb")
        self._gzip = gzip.GzipFile(fileobj=self._raw)
        self._out = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            count = self._gzip.readinto(buffer)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise BadInput(
                f"{self.path}: damaged near byte {self._raw.tell():,} of {self.path.stat().st_size:,} ({error}); "
                "get the file again"
            ) from None
        self._out += count
        if self._out > FREE_BYTES and self._out > MAX_RATIO * self._raw.tell():
            raise BadInput(
                f"{self.path}: unpacks to more than {MAX_RATIO} times its size ({self._out:,} bytes from the first "
                f"{self._raw.tell():,}); this is not a text archive"
            )
        return count

    def close(self) -> None:
        self._gzip.close()
        self._raw.close()
        super().close()


class _Member(tarfile.TarInfo):
    """A member of an archive nobody vouches for: tarfile reads extended headers (a long name, say) into memory, unfolds
    sparse files, and takes a damaged header for the archive's end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        try:
            return super().frombuf(buf, encoding, errors)
        except (tarfile.EmptyHeaderError, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
            raise  # the end
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type == tarfile.GNUTYPE_SPARSE or self.size < 0:
            raise tarfile.ReadError("a sparse file or a negative size")
        if not (self.isreg() or self.isdir()) and self.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]


class _Content(io.RawIOBase):
    """A member's content, with one clear error where the archive ends before it does."""

    def __init__(self, path: Path, content: IO[bytes]) -> None:
        self._path = path
        self._content = content

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        with _clear_errors(self._path):
            return self._content.readinto(buffer)  # type: ignore[attr-defined]


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The content of a plain or ``.gz`` file. Raises ``BadInput`` when it cannot be read."""
    with _clear_errors(path):
        packed = path.suffix in (".gz", ".tgz")
        with io.BufferedReader(Inflated(path), READ_BYTES) if packed else path.open("rb") as stream:
            yield stream


def open_members(path: Path, names: tuple[str, ...] = ()) -> Iterator[tuple[str, IO[bytes]]]:
    """The regular files of a tar archive, in its order, as (name without folders, content).

    ``names`` limits them. The archive is read to its end, so that damage anywhere is found. Raises ``BadInput``
    when a wanted name is missing, or for what the module's first lines say.
    """
    missing = set(names)
    with open_bytes(path) as stream:
        try:
            for name, content in _members(path, stream):
                if name in missing or not names:
                    missing.discard(name)
                    yield name, content
        except (ValueError, RecursionError) as error:  # what tarfile makes of a forged header
            raise BadInput(f"{path}: damaged archive ({error}); get the file again") from None
        while stream.read(READ_BYTES):  # what follows the archive's end mark: a gzip file's check sum is there
            pass
    if missing:
        raise BadInput(f"{path}: no {', '.join(sorted(missing))} in this archive")


def _members(path: Path, stream: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(path, "r|", stream, bufsize=READ_BYTES, tarinfo=_Member) as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
            _demand_harmless(path, member)
            name = PurePosixPath(member.name).name
            if member.isreg() and not name.startswith("._"):  # macOS archives hold a "._" twin of every file
                content = archive.extractfile(member)
                assert content is not None
                yield name, io.BufferedReader(_Content(path, content), READ_BYTES)


def _demand_harmless(path: Path, member: tarfile.TarInfo) -> None:
    parts = PurePosixPath(member.name).parts
    if ".." in parts or member.name.startswith(("/", "\\")):
        raise BadInput(f"{path}: the member {member.name!r} points out of the archive; refused")
    if member.issym() or member.islnk():
        raise BadInput(f"{path}: the member {member.name!r} is a link; refused")
    if not (member.isreg() or member.isdir()) or member.issparse() or member.size < 0:
        raise BadInput(f"{path}: the member {member.name!r} is neither plain file nor folder; refused")


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    """Turn what a missing, unreadable or damaged file raises into one clear error."""
    try:
        yield
    except tarfile.TarError as error:
        raise BadInput(f"{path}: damaged archive ({error}); get the file again") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror or error})") from None
