"""What an artifact's `manifest.json` says: what made it, from what, what it holds, and whether it may be used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
# These tell how an artifact was made, with timings and where its raw data lay; what it is does not depend on them.
RECORDS = ("training.json", "README.md", "rejects.parquet")


@dataclass(frozen=True)
class Check:
    """The outcome of one asset check. A failed blocking check makes the artifact unusable downstream."""

    name: str
    passed: bool
    description: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    blocking: bool = True


@dataclass(frozen=True)
class Manifest:
    """What made one artifact; see :func:`fingerprint` for what decides whether it is still fresh."""

    profile: str
    asset: str
    partition: str | None
    version: str
    fingerprint: str
    data_version: str
    code_version: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    files: Mapping[str, Mapping[str, Any]]
    rows: int | None
    figures: Mapping[str, float]
    checks: tuple[Check, ...]
    run_id: str
    created_at: str

    @property
    def failed_checks(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.blocking and not check.passed)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Manifest:
        values = json.loads(text)
        values["checks"] = tuple(Check(**check) for check in values["checks"])
        return Manifest(**values)


def fingerprint(code_version: str, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Digest of everything that decides an artifact's content: the settings that its asset uses, the
    version of its code, and the data versions of its inputs. Equal fingerprints need no second run."""
    payload = json.dumps({"code": code_version, "settings": settings, "inputs": inputs}, sort_keys=True, default=str)
    return hashlib.sha256(payload.encode()).hexdigest()[:32]


def digest_files(folder: Path) -> dict[str, dict[str, Any]]:
    """``{relative path: {"bytes": size, "sha256": digest}}`` of every file below ``folder``, in name order."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
    return files


def content_version(files: Mapping[str, Mapping[str, Any]]) -> str:
    """The data version of an artifact whose bytes say all: a rerun with equal bytes leaves what follows fresh."""
    kept = {name: entry for name, entry in sorted(files.items()) if name.rpartition("/")[2] not in RECORDS}
    lines = "".join(f"{name} {entry['sha256']}\n" for name, entry in kept.items())
    return hashlib.sha256(lines.encode()).hexdigest()[:32]
