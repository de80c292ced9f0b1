"""One Bento, and one service of it, for all tests that need no other: to build and to start one takes seconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neuroranker_pipeline.serving.interpolation import INTERPOLATION_FILE, WEIGHT
from neuroranker_pipeline.serving.packaging import BentoInfo, build_bento, serve_bento

BM25_WEIGHT = 0.5


@pytest.fixture(scope="session")
def evaluation() -> dict[str, Any]:
    """The report that the Bento carries."""
    rankers = [{"ranker": "BM25", "measures": {"MRR@10": 0.5}}, {"ranker": "student int8", "measures": {"MRR@10": 1}}]
    return {
        "dataset": {"name": "rivers", "passages": 3},
        "queries": 2,
        "primary": "MRR@10",
        "final": "student int8",
        "rankers": rankers,
    }


@pytest.fixture(scope="session")
def weighted_dir(int8_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The int8 model with a weight of BM25's score beside it."""
    folder = tmp_path_factory.mktemp("weighted") / "int8"
    shutil.copytree(int8_dir, folder)
    (folder / INTERPOLATION_FILE).write_text(json.dumps({WEIGHT: BM25_WEIGHT}))
    return folder


@pytest.fixture(scope="package")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The BentoML store of ``bento``; a service that uses it as its own home loses its figures to the next one."""
    return tmp_path_factory.mktemp("bentoml")


@pytest.fixture(scope="package")
def bento(
    weighted_dir: Path, evaluation: dict[str, Any], home: Path, tmp_path_factory: pytest.TempPathFactory
) -> BentoInfo:
    """``ranker:v1``, without a collection."""
    report = tmp_path_factory.mktemp("report")
    (report / "report.md").write_text("# Evaluation\n")
    (report / "test").mkdir()
    (report / "test" / "report.json").write_text(json.dumps(evaluation))
    return build_bento(weighted_dir, report, version="v1", labels={"profile": "smoke"}, bentoml_home=home)


@pytest.fixture(scope="package")
def url(bento: BentoInfo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The Bento, served from its folder until the last test of this package."""
    # Another neuroranker_pipeline is on the path, and a broken one: the Bento must use the code it carries.
    decoy = tmp_path_factory.mktemp("decoy") / "neuroranker_pipeline"
    decoy.mkdir()
    (decoy / "__init__.py").write_text("raise RuntimeError('the wrong neuroranker_pipeline')")
    environment = {"PYTHONPATH": str(decoy.parent), "NEURORANKER_BODY_SECONDS": "2"}
    with serve_bento(bento.path, tmp_path_factory.mktemp("own-bentoml"), environment) as address:
        yield address
