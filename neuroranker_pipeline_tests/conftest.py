"""What all tests share: no telemetry, no model hub, and small exported models that are made once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadFileScheduling

# On a busy machine an example may take long; and a test suite says the same twice.
hypothesis.settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("steady")

os.environ["DAGSTER_DISABLE_TELEMETRY"] = "1"
os.environ["BENTOML_DO_NOT_TRACK"] = "True"
os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes: more threads than processors hold each other up
    os.environ["OMP_NUM_THREADS"] = "1"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes for all tests; none besides this one for tests that were named, which would only wait for its start."""
    return min(2, os.cpu_count() or 1) if config.args_source is config.ArgsSource.TESTPATHS else 0


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return ByWhatIsShared(config, log)


class ByWhatIsShared(LoadFileScheduling):
    """The tests of a file run in one process, for they share its fixtures; so do all tests of the smoke graph."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return GRAPH if file.startswith(GRAPH) and not file.endswith("test_msmarco.py") else file


GRAPH = "neuroranker_pipeline_tests/e2e/"


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
