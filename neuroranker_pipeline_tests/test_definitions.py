"""The code location: Dagster's own checks of it are clean, and loading it is light."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from neuroranker_pipeline.orchestration.instance import TEMPLATE

REPOSITORY = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "pyserini", "jnius", "bentoml", "onnxruntime", "duckdb", "sentence_transformers"}


def run(tmp_path: Path, *command: str) -> subprocess.CompletedProcess[str]:
    shutil.copyfile(TEMPLATE, tmp_path / "dagster.yaml")
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(tmp_path),
        "NEURORANKER_LAKE": str(tmp_path / "lake"),
        "VIRTUAL_ENV": sys.prefix,
        # Nobody wants to be told of a newer version here, nor to wait for the answer.
        "DAGSTER_DG_UPDATE_CHECK_ENABLED": "0",
        "DG_CLI_TELEMETRY_ENABLED": "0",
    }
    return subprocess.run(
        command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize(
    ("command", "good"),
    [
        ("dagster definitions validate", "Validation successful for code location neuroranker"),
        ("dg check defs", "All definitions loaded successfully"),
    ],
)
def test_dagster_s_own_checks_are_clean(tmp_path: Path, command: str, good: str) -> None:
    program, *arguments = command.split()
    done = run(tmp_path, str(Path(sys.executable).with_name(program)), *arguments)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert good in said
    warned = [line for line in said.splitlines() if "warning" in line.lower()]
    assert [line for line in warned if "is superseded" not in line] == []  # that command itself is, by the other


def test_loading_the_code_location_is_light(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from neuroranker_pipeline.definitions import defs\n"
        "defs().get_repository_def().load_all_definitions()\n"
        f"print(*({HEAVY!r} & set(sys.modules)))"
    )
    done = run(tmp_path, sys.executable, "-W", "error", "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
