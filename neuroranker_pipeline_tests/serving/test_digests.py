"""A folder that was cut short or changed on its way is found, and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.serving.digests import DIGESTS_FILE, check_digests, write_digests


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "index").mkdir()
    (tmp_path / "model.onnx").write_bytes(b"0123456789" * 2)
    (tmp_path / "index" / "segments_1").write_bytes(b"segments")
    write_digests(tmp_path)
    return tmp_path


def test_a_whole_folder_passes(folder: Path) -> None:
    check_digests(folder, required=True)
    digests = json.loads((folder / DIGESTS_FILE).read_text())
    assert list(digests) == ["index/segments_1", "model.onnx"]
    assert digests["model.onnx"]["bytes"] == 20


def test_digests_are_the_same_when_taken_again(folder: Path) -> None:
    before = (folder / DIGESTS_FILE).read_bytes()
    write_digests(folder)
    assert (folder / DIGESTS_FILE).read_bytes() == before


def test_a_folder_without_digests_passes_unless_they_are_required(tmp_path: Path) -> None:
    check_digests(tmp_path)
    with pytest.raises(BadInput, match=r"digests\.json: missing"):
        check_digests(tmp_path, required=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "index" / "segments_1").unlink(), r"index/segments_1: missing"),
        (lambda f: (f / "model.onnx").write_bytes(b"0123456789"), r"model\.onnx: is 10 bytes, should be 20"),
        (lambda f: (f / "model.onnx").write_bytes(b"X123456789" * 2), r"model\.onnx: changed since"),
        (lambda f: (f / DIGESTS_FILE).write_text("{"), r"digests\.json: not a record of digests"),
        (lambda f: (f / DIGESTS_FILE).write_text("[]"), r"digests\.json: not a record of digests"),
        (lambda f: (f / DIGESTS_FILE).write_text('{"model.onnx": 3}'), r"digests\.json: not a record of digests"),
        (
            lambda f: (f / DIGESTS_FILE).write_text('{"../other": {"sha256": "0", "bytes": 1}}'),
            r"digests\.json: not a record of digests of files in its folder",
        ),
    ],
)
def test_damage_is_named(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(BadInput, match=message):
        check_digests(folder)
