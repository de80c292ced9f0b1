"""What all tests share: no telemetry, no model hub, and small exported models that are made once."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

# On a busy machine an example may take long; and a test suite says the same twice.
hypothesis.settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("steady")

os.environ["DAGSTER_DISABLE_TELEMETRY"] = "1"
os.environ["BENTOML_DO_NOT_TRACK"] = "True"
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def student_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from neuroranker_pipeline_tests.export import models

    return models.student(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def onnx_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from neuroranker_pipeline_tests.export import models

    return models.float32(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def int8_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from neuroranker_pipeline_tests.export import models

    return models.int8(tmp_path_factory.getbasetemp())
