"""Checkpoints are whole, or are not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from neuroranker_pipeline.errors import NotReady
from neuroranker_pipeline.ranking.checkpoint import load_checkpoint, remove_checkpoints, save_checkpoint


def save(work: Path, step: int, fingerprint: str = "run") -> None:
    save_checkpoint(work, step, {"weight": torch.full((2,), float(step))}, {"fingerprint": fingerprint})


def test_the_newest_is_kept_and_read(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        save(tmp_path, step)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000010"]
    found = load_checkpoint(tmp_path, "run")
    assert found is not None
    assert found[0]["weight"].tolist() == [10.0, 10.0]


def test_another_runs_checkpoint_is_removed(tmp_path: Path) -> None:
    save(tmp_path, 1, "another")
    assert load_checkpoint(tmp_path, "run") is None
    assert list(tmp_path.iterdir()) == []


def test_what_a_crash_left_half_written_or_half_removed_is_not_read(tmp_path: Path) -> None:
    save(tmp_path, 2)
    for name in (".step-000000001", ".step-000000003"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text('{"fingerprint": "run"}')
    found = load_checkpoint(tmp_path, "run")
    assert found is not None
    assert found[0]["weight"].tolist() == [2.0, 2.0]
    save(tmp_path, 3)
    found = load_checkpoint(tmp_path, "run")
    assert found is not None
    assert found[0]["weight"].tolist() == [3.0, 3.0]


def test_nothing_is_found_where_there_is_nothing(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "absent", "run") is None


def test_a_checkpoint_that_cannot_be_written_leaves_the_older_one(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".step-000000002").write_text("in the way")
    with pytest.raises(NotReady, match="the checkpoint cannot be written"):
        save(tmp_path, 2)
    found = load_checkpoint(tmp_path, "run")
    assert found is not None
    assert found[0]["weight"].tolist() == [1.0, 1.0]


def test_a_finished_run_leaves_nothing_but_what_was_not_its_own(tmp_path: Path) -> None:
    save(tmp_path / "a", 1)
    (tmp_path / "a" / ".step-000000002").mkdir()
    remove_checkpoints(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    save(tmp_path / "b", 1)
    (tmp_path / "b" / "notes.txt").touch()
    remove_checkpoints(tmp_path / "b")
    assert [file.name for file in (tmp_path / "b").iterdir()] == ["notes.txt"]
    remove_checkpoints(tmp_path / "absent")
