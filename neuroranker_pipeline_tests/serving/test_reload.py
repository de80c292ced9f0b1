"""A model that is replaced while it serves: the next one when it can be served, else the one before."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from neuroranker_pipeline.serving.onnx_model import OnnxEncoder
from neuroranker_pipeline.serving.reload import Reloader


class Served:
    """What a service holds: the model that was taken over last."""

    def __init__(self, path: Path) -> None:
        self.encoder = OnnxEncoder(path)
        self.reloader = Reloader(path, self.take_over, seconds=60)

    def take_over(self, path: Path) -> None:
        self.encoder = OnnxEncoder(path)


@pytest.fixture
def model(int8_dir: Path, tmp_path: Path) -> Path:
    shutil.copytree(int8_dir, tmp_path / "model")
    return tmp_path / "model"


def replace(model: Path, other: Path) -> None:
    """As a careful operator does it: whole files, each moved into its place."""
    for file in other.iterdir():
        shutil.copyfile(file, model / "new")
        os.replace(model / "new", model / file.name)


def test_a_new_model_is_taken_over_once_its_files_rest(model: Path, onnx_dir: Path) -> None:
    served = Served(model)
    before = served.encoder
    assert not served.reloader.look()
    replace(model, onnx_dir)
    assert not served.reloader.look(), "the copy may still be under way"
    assert served.encoder is before
    assert served.reloader.look()
    assert (served.encoder.encode(["rivers"]) == OnnxEncoder(onnx_dir).encode(["rivers"])).all()
    assert not served.reloader.look()


@pytest.mark.parametrize("spoil", ["cut short", "gone"])
def test_the_model_before_serves_on_when_the_new_one_fails(model: Path, int8_dir: Path, spoil: str) -> None:
    served = Served(model)
    before, answer = served.encoder, served.encoder.encode(["rivers"])
    if spoil == "gone":
        shutil.rmtree(model)
    else:
        (model / "new").write_bytes((model / "model.onnx").read_bytes()[:1000])
        os.replace(model / "new", model / "model.onnx")
    assert [served.reloader.look() for _ in range(3)] == [False] * 3
    assert served.encoder is before
    assert (served.encoder.encode(["rivers"]) == answer).all()
    assert served.reloader.failure is not None
    assert "model.onnx" in served.reloader.failure
    model.mkdir(exist_ok=True)
    replace(model, int8_dir)
    assert [served.reloader.look() for _ in range(3)] == [False, True, False]
    assert served.reloader.failure is None


def test_a_pointer_that_moves_names_a_new_model(int8_dir: Path, onnx_dir: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "student_onnx_int8"
    for version, source in (("v1", int8_dir), ("v2", onnx_dir)):
        shutil.copytree(source, artifact / "versions" / version)
    (artifact / "CURRENT").write_text("v1")
    served = Served(artifact)
    (artifact / "CURRENT").write_text("v2")
    assert [served.reloader.look() for _ in range(3)] == [False, True, False]
    assert served.encoder.model_file.parent.name == "v2"


def test_its_thread_ends(model: Path) -> None:
    served = Served(model)
    served.reloader.start()
    served.reloader.close()
    assert not served.reloader._thread.is_alive()
