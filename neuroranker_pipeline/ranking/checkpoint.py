"""Checkpoints of a training run that survive ``kill -9``: safetensors and JSON, replaced in one rename."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from neuroranker_pipeline.errors import NotReady

PREFIX = "step-"
STATE, TENSORS = "state.json", "tensors.safetensors"


def save_checkpoint(work: Path, step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Write ``step-<step>`` in ``work``, then remove the older ones; a crash leaves the newest complete one.

    Raises ``NotReady`` when the folder cannot be written to, or the disk is full; the older one is then still there.
    """
    target, unfinished = work / f"{PREFIX}{step:09d}", work / f".{PREFIX}{step:09d}"
    try:
        work.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, unfinished / TENSORS)
        (unfinished / STATE).write_text(json.dumps(state), encoding="utf-8")
        for file in (unfinished / TENSORS, unfinished / STATE):
            _sync(file)
        if target.exists():
            _remove(target)
        os.rename(unfinished, target)
        _sync(work)
        for older in _checkpoints(work)[:-1]:
            _remove(older)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise NotReady(f"{work}: the checkpoint cannot be written ({error}); free some space and start again") from None


def load_checkpoint(work: Path, fingerprint: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """The newest checkpoint whose state carries ``fingerprint``; ``None`` when there is none.

    Checkpoints of another run (other settings, data or starting weights) are of no use and are removed.
    """
    found = None
    for folder in _checkpoints(work):
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if state["fingerprint"] == fingerprint:
            found = load_file(folder / TENSORS), state
        else:
            _remove(folder)
    return found


def remove_checkpoints(work: Path) -> None:
    """Remove the checkpoints of a finished run, and ``work`` when nothing else is in it."""
    for folder in [*_checkpoints(work), *work.glob(f".{PREFIX}*")]:
        shutil.rmtree(folder)
    if work.is_dir() and not any(work.iterdir()):
        work.rmdir()


def _remove(folder: Path) -> None:
    """Remove a checkpoint so that a crash halfway leaves nothing that looks like one."""
    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    os.rename(folder, unfinished)
    shutil.rmtree(unfinished)


def _checkpoints(work: Path) -> list[Path]:
    return sorted(work.glob(f"{PREFIX}*")) if work.is_dir() else []


def _sync(path: Path) -> None:
    """Have the disk hold a file, or a folder's list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
