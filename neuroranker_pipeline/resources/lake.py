"""The one storage rule: every artifact is a folder that becomes current in one step.

Layout below the lake's root (a local path, or any fsspec URL such as ``s3://bucket/lake``)::

    <profile>/<asset>[/<partition>]/versions/<id>/...      files and manifest.json, never changed once there
    <profile>/<asset>[/<partition>]/CURRENT                the id of the version that counts

An artifact is written to a local scratch folder, digested, moved (or uploaded) to ``versions/<id>``, and made current by
replacing ``CURRENT``: one rename on a local disk, one object write elsewhere. A reader sees the old version or the new one;
a crash leaves the old one, and at most a scratch folder that the next run of the same asset clears.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from neuroranker_pipeline.errors import BadInput, NotReady
from neuroranker_pipeline.pointer import CURRENT
from neuroranker_pipeline.resources.locks import held_lock
from neuroranker_pipeline.resources.manifest import (
    MANIFEST,
    Check,
    Manifest,
    content_version,
    digest_files,
)


@dataclass
class Draft:
    """An artifact in the making. Files go into ``path``; whatever must survive a crash (training checkpoints) into
    ``work``, which is kept until an artifact with the same fingerprint is published."""

    path: Path
    work: Path
    rows: int | None = None
    figures: dict[str, float] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    manifest: Manifest | None = None


class Lake:
    """The artifacts of one profile."""

    def __init__(self, root: str | Path, profile: str, cache: Path | None = None):
        """``cache`` holds scratch folders and local copies when ``root`` is not a local disk."""
        self.profile = profile
        try:
            self.fs, self.root = fsspec.core.url_to_fs(str(root))
        except (ValueError, ImportError) as error:
            raise BadInput(f"lake {root}: {error}") from None
        self.is_local = isinstance(self.fs, LocalFileSystem)
        self.base = f"{self.root.rstrip('/')}/{profile}"
        default_cache = Path.home() / ".cache" / "neuroranker"
        self.scratch = (Path(self.base) if self.is_local else (cache or default_cache) / profile) / ".scratch"

    # reading

    def manifest(self, asset: str, partition: str | None = None) -> Manifest | None:
        """The current version's manifest, or None when nothing was ever published."""
        for attempt in range(3):
            version = self._current(asset, partition)
            if version is None:
                return None
            try:
                return Manifest.from_json(
                    self.fs.cat_file(f"{self._folder(asset, partition)}/versions/{version}/{MANIFEST}").decode()
                )
            except FileNotFoundError:
                time.sleep(0.05 * attempt)  # replaced and pruned between the two reads: look again
            except (ValueError, TypeError, KeyError):
                raise NotReady(
                    f"{self._folder(asset, partition)}: the manifest is damaged; delete this folder"
                ) from None
        raise NotReady(f"{self._folder(asset, partition)}: the current version {version} has no {MANIFEST}")

    def usable(self, asset: str, partition: str | None = None) -> Manifest:
        """The current version's manifest. Raises ``NotReady`` when it is missing or failed a blocking check."""
        name = label(asset, partition)
        manifest = self.manifest(asset, partition)
        if manifest is None:
            raise NotReady(f"{name} has not been made yet: run `neuroranker run --select {asset}`")
        if manifest.failed_checks:
            failed = "; ".join(f"{c.name} ({c.description} {dict(c.metadata)})" for c in manifest.failed_checks)
            raise NotReady(f"{name} failed a blocking check and may not be used: {failed}")
        return manifest

    def open(self, manifest: Manifest) -> Path:
        """The files of one version as a local folder (a copy, when the lake is not on a local disk)."""
        return self._local_copy(manifest.asset, manifest.partition, manifest.version)

    def read(self, asset: str, partition: str | None = None) -> Path:
        """The files of the current version, as a local folder; see :meth:`usable` for what it raises."""
        return self.open(self.usable(asset, partition))

    def _local_copy(self, asset: str, partition: str | None, version: str) -> Path:
        source = f"{self._folder(asset, partition)}/versions/{version}"
        if self.is_local:
            return Path(source)
        target = self._copies(asset, partition) / version
        if not target.exists():
            stage = target.with_name(f"{version}.{uuid.uuid4().hex}")
            stage.parent.mkdir(parents=True, exist_ok=True)
            self.fs.get(source, str(stage), recursive=True)
            stage.rename(target)
        return target

    # writing

    @contextmanager
    def publish(
        self,
        asset: str,
        partition: str | None,
        *,
        fingerprint: str,
        code_version: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        run_id: str = "",
        by_content: bool = True,
    ) -> Iterator[Draft]:
        """Write an artifact: fill ``draft.path`` inside the block; leaving it without an error makes it current.

        ``by_content=False`` takes the fingerprint as data version, for files that differ from run to run though they
        mean the same (a Lucene index). Raises ``NotReady`` when another process is writing the same artifact.
        """
        scratch = self.scratch / asset / (partition or "_")
        with held_lock(scratch / "lock", f"{label(asset, partition)} is being written"):
            self._clear_scratch(scratch, keep=fingerprint)
            draft = Draft(path=scratch / "stage", work=scratch / fingerprint)
            draft.path.mkdir()
            draft.work.mkdir(exist_ok=True)
            yield draft
            files = digest_files(draft.path)
            now = datetime.now(UTC)
            draft.manifest = Manifest(
                profile=self.profile,
                asset=asset,
                partition=partition,
                version=f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}",
                fingerprint=fingerprint,
                data_version=content_version(files) if by_content else fingerprint,
                code_version=code_version,
                settings=settings,
                inputs=inputs,
                files=files,
                rows=draft.rows,
                figures=draft.figures,
                checks=tuple(draft.checks),
                run_id=run_id,
                created_at=now.isoformat(),
            )
            (draft.path / MANIFEST).write_text(draft.manifest.to_json())
            _to_disk(draft.path)
            self._make_current(asset, partition, draft.path, draft.manifest.version)
            self._clear_scratch(scratch, keep=None)

    def _make_current(self, asset: str, partition: str | None, stage: Path, version: str) -> None:
        folder = self._folder(asset, partition)
        previous = self._current(asset, partition)
        target = f"{folder}/versions/{version}"
        if self.is_local:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            stage.rename(target)
            pointer = Path(folder) / f".{CURRENT}.{version}"
            with pointer.open("w") as handle:
                handle.write(version)
                handle.flush()
                os.fsync(handle.fileno())
            pointer.replace(Path(folder) / CURRENT)
        else:
            self.fs.put(str(stage), target, recursive=True)
            self.fs.pipe_file(f"{folder}/{CURRENT}", version.encode())
        self._prune(folder, keep={version, previous})

    def _prune(self, folder: str, keep: set[str | None]) -> None:
        for path in self.fs.ls(f"{folder}/versions", detail=False):
            if path.rstrip("/").rsplit("/", 1)[-1] not in keep:
                with suppress(FileNotFoundError):
                    self.fs.rm(path, recursive=True)
        for leftover in self.fs.glob(f"{folder}/.{CURRENT}.*"):
            self.fs.rm(leftover)

    def _clear_scratch(self, scratch: Path, keep: str | None) -> None:
        for path in scratch.iterdir():
            if path.name not in ("lock", keep):
                shutil.rmtree(path)

    def remove(self, asset: str, partition: str | None = None) -> None:
        """Take an artifact away for good: its pointer first, so that no reader finds half of it."""
        folder = self._folder(asset, partition)
        for path in (f"{folder}/{CURRENT}", folder):
            with suppress(FileNotFoundError):
                self.fs.rm(path, recursive=True)
        shutil.rmtree(self._copies(asset, partition), ignore_errors=True)

    # where things are

    def _copies(self, asset: str, partition: str | None) -> Path:
        return self.scratch.parent / ".copies" / asset / (partition or "")

    def _folder(self, asset: str, partition: str | None) -> str:
        return f"{self.base}/{asset}" + (f"/{partition}" if partition else "")

    def _current(self, asset: str, partition: str | None) -> str | None:
        try:
            return self.fs.cat_file(f"{self._folder(asset, partition)}/{CURRENT}").decode().strip()
        except FileNotFoundError:
            return None


def _to_disk(folder: Path) -> None:
    """Have the system write a folder's files out, so that no power cut leaves a pointer to empty ones."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


def label(asset: str, partition: str | None) -> str:
    """How an artifact is named to people: ``bm25_candidates[dev]``."""
    return asset if partition is None else f"{asset}[{partition}]"
