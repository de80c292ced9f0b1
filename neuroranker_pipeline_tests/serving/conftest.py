from __future__ import annotations

from pathlib import Path

import pytest

from neuroranker_pipeline_tests.export import models


@pytest.fixture(scope="session")
def onnx_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.float32(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def int8_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.int8(tmp_path_factory.getbasetemp())
