"""SHA-256 digests of a folder that travels: a copy that was cut short or changed is found before it is served."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neuroranker_pipeline.errors import BadInput

DIGESTS_FILE = "digests.json"
HINT = "copy or build it again"


def write_digests(folder: Path) -> None:
    """Write ``folder/digests.json``: {relative path: {sha256, bytes}} of every other file under ``folder``, sorted."""
    files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    digests = {
        name: {"sha256": _sha256(folder / name), "bytes": (folder / name).stat().st_size}
        for name in files
        if name != DIGESTS_FILE
    }
    (folder / DIGESTS_FILE).write_text(json.dumps(digests, indent=2) + "\n", "utf-8")


def check_digests(folder: Path, required: bool = False) -> None:
    """Compare the files under ``folder`` with its ``digests.json``.

    Raises ``BadInput`` naming the first file that is missing, cut short or changed. A folder without digests passes
    unless they are ``required``; files that the digests do not name are not looked at.
    """
    record = folder / DIGESTS_FILE
    if not record.is_file():
        if required:
            raise BadInput(f"{record}: missing; {HINT}")
        return
    if problem := damage(folder, _read_digests(record)):
        raise BadInput(f"{problem}; {HINT}")


def damage(folder: Path, digests: Mapping[str, Mapping[str, Any]]) -> str:
    """The first file of ``digests`` that is missing, cut short or changed; empty when all are whole."""
    for name, digest in digests.items():  # sizes first: that a copy was cut short is seen at once
        file = folder / name
        if not file.is_file():
            return f"{file}: missing"
        if file.stat().st_size != digest["bytes"]:
            return f"{file}: is {file.stat().st_size} bytes, should be {digest['bytes']}"
    for name, digest in digests.items():
        if _sha256(folder / name) != digest["sha256"]:
            return f"{folder / name}: changed since its digest was taken"
    return ""


def _read_digests(record: Path) -> dict[str, dict[str, Any]]:
    try:
        digests = json.loads(record.read_text("utf-8"))
        names = [Path(name) for name in digests]
        whole = all(isinstance(d["sha256"], str) and isinstance(d["bytes"], int) for d in digests.values())
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadInput(f"{record}: not a record of digests ({error}); {HINT}") from error
    if not whole or any(name.is_absolute() or ".." in name.parts for name in names):
        raise BadInput(f"{record}: not a record of digests of files in its folder; {HINT}")
    return digests


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
