"""The user's BentoML store: put a Bento into it, and choose which one ``<name>:latest`` is."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import uuid
from pathlib import Path

from neuroranker_pipeline.serving.packaging import bento_folder, run_bentoml, store_home

LATEST, SCRATCH = "latest", ".neuroranker-"
HOUR = 3600.0


def in_store(tag: str, bentoml_home: Path | None = None) -> bool:
    """Whether the store holds the Bento ``tag``, ``name:version``."""
    return (bento_folder(tag, bentoml_home) / "bento.yaml").is_file()


def import_bento(archive: Path, tag: str, bentoml_home: Path | None = None) -> bool:
    """Put an exported Bento into the user's BentoML store; False when ``tag`` is there already.

    It appears whole or not at all, and ``latest`` stays what it was. Raises ``NotReady`` when BentoML refuses the archive.
    """
    if in_store(tag, bentoml_home):
        return False
    home, target = store_home(bentoml_home), bento_folder(tag, bentoml_home)
    home.mkdir(parents=True, exist_ok=True)
    for left in home.glob(f"{SCRATCH}*"):  # by a process that was killed
        if time.time() - left.stat().st_mtime > HOUR:
            shutil.rmtree(left, ignore_errors=True)
    # BentoML copies file by file: killed, it would leave half a Bento in the store. So it works in a store of its own.
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=home) as scratch:
        run_bentoml("import", str(archive.resolve()), bentoml_home=Path(scratch))
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():  # half of it, from someone else's import
            shutil.rmtree(target)
        bento_folder(tag, Path(scratch)).rename(target)
    return True


def latest_tag(name: str, bentoml_home: Path | None = None) -> str | None:
    """The tag that ``<name>:latest`` names in the store; None where BentoML would have to look for the newest."""
    try:
        version = (bento_folder(f"{name}:{LATEST}", bentoml_home)).read_text("utf-8").strip()
    except OSError:
        return None
    tag = f"{name}:{version}"
    return tag if in_store(tag, bentoml_home) else None


def make_latest(tag: str, bentoml_home: Path | None = None) -> None:
    """Have ``<name>:latest`` name the Bento ``tag`` of the store, whatever others were built after it.

    BentoML 1.4 has no command for this. It reads the version from the file ``bentos/<name>/latest``, which it writes
    itself when a newer Bento comes or one is deleted (``bentoml._internal.store.Store``); so do we, in one step.
    """
    pointer = bento_folder(tag, bentoml_home).with_name(LATEST)
    written = pointer.with_name(f".{LATEST}.{uuid.uuid4().hex}")
    written.write_text(tag.partition(":")[2], "utf-8")
    os.replace(written, pointer)
