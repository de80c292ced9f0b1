"""What a service refuses to start with: one line that says what is wrong, and status 1."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from neuroranker_pipeline.errors import NotReady
from neuroranker_pipeline.serving.packaging import BentoInfo, serve_bento

# What BentoML calls before it starts a worker; it prints such an error as the tests below see it.
CHECK = """
import json, os, sys
from bentoml.exceptions import BentoMLConfigException
from neuroranker_pipeline.serving.service import Ranker
for environment in json.loads(sys.argv[1]):
    os.environ.update(environment)
    try:
        Ranker.inner.check()
    except BentoMLConfigException as error:
        print(str(error).replace(os.linesep, "<newline>"))
    else:
        print("started")
    for name in environment:
        os.environ.pop(name, None)
"""


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def test_what_is_wrong_is_said_in_one_line(int8_dir: Path, tmp_path: Path) -> None:
    """A model that cannot be served, in each way that one may be broken; and a key that is none."""
    spoilt: dict[str, tuple[Callable[[Path], object], str]] = {
        "missing": (shutil.rmtree, "missing/model.onnx: no such file"),
        "tokenizer": (remove("tokenizer.json"), "tokenizer.json: missing"),
        "text": (write("model.onnx", "text"), "model.onnx: not a model that ONNX Runtime can load"),
        "weight": (
            write("interpolation.json", '{"bm25_weight": -1}'),
            "interpolation.json: bm25_weight must be a number",
        ),
        "cut": (write("interpolation.json", '{"bm25_we'), "interpolation.json: not JSON"),
        "list": (write("interpolation.json", "[]"), "interpolation.json: expected a JSON object"),
    }
    for name, (spoil, _) in spoilt.items():
        shutil.copytree(int8_dir, tmp_path / name)
        spoil(tmp_path / name)
    environments = [{"STUDENT_ONNX": str(tmp_path / name / "model.onnx")} for name in spoilt]
    good = {"STUDENT_ONNX": str(int8_dir)}
    command = [sys.executable, "-c", CHECK, json.dumps([*environments, {**good, "NEURORANKER_API_KEY": ""}, good])]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    *refused, key, last = done.stdout.splitlines()
    assert last == "started", done.stderr
    for line, (name, (_, message)) in zip(refused, spoilt.items(), strict=True):
        assert line.startswith(f"cannot serve: {tmp_path / name}"), line
        assert message in line
    assert key.startswith("cannot serve: NEURORANKER_API_KEY: must hold one key")


def test_a_wrong_environment_ends_the_service(bento: BentoInfo, home: Path) -> None:
    message = "NEURORANKER_MAX_CONCURRENCY: must be a whole number from 1 to 1024"
    with (
        pytest.raises(NotReady, match=f"ended with status 1: Error: .*cannot serve: {message}"),
        serve_bento(bento.tag, home, {"NEURORANKER_MAX_CONCURRENCY": "0"}),
    ):
        pytest.fail("it must not start")


def test_a_damaged_model_ends_the_service(bento: BentoInfo, home: Path, tmp_path: Path) -> None:
    shutil.copytree(bento.path, tmp_path / "bento")
    model = tmp_path / "bento" / "src" / "model" / "model.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    with (
        pytest.raises(NotReady, match=r"ended with status 1: Error: .*model\.onnx: changed since its digest was taken"),
        serve_bento(tmp_path / "bento", home),
    ):
        pytest.fail("it must not start")
