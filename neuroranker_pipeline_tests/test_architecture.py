"""The rules that carry the structure, kept by a test."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import neuroranker_pipeline

PACKAGE = Path(neuroranker_pipeline.__file__).parent
NAME = PACKAGE.name
DOMAIN = ("datasets", "retrieval", "ranking", "export", "evaluation", "serving")
# From the foundations up: a package may import those before it, and itself.
LAYERS = ("errors", "progress", "domain", "config", "resources", "dagster side", "entry points")
LAYER_OF = {
    **dict.fromkeys(("errors", "progress", "pointer", "markdown", "__init__"), "errors"),
    **dict.fromkeys(DOMAIN, "domain"),
    "config": "config",
    "resources": "resources",
    **dict.fromkeys(("assets", "checks", "orchestration"), "dagster side"),
    **dict.fromkeys(("definitions", "cli", "console", "console_release", "console_report"), "entry points"),
}


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module


def part(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_one_way(file: Path) -> None:
    own = LAYERS.index(LAYER_OF[part(file)])
    for module in imports(file):
        if module.split(".")[0] == NAME and "." in module:
            other = LAYERS.index(LAYER_OF[module.split(".")[1]])
            assert other <= own, f"{file.name} of layer {LAYERS[own]} imports {module} of layer {LAYERS[other]}"


@pytest.mark.parametrize("package", DOMAIN)
def test_domain_packages_never_import_dagster(package: str) -> None:
    for file in (PACKAGE / package).rglob("*.py"):
        assert not any(module.split(".")[0].startswith("dagster") for module in imports(file)), file


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("definitions", {"torch", "transformers", "pyserini", "bentoml", "onnxruntime"}),
        ("cli", {"torch", "transformers", "pyserini", "bentoml", "onnxruntime", "dagster"}),
        ("config.load", {"torch", "transformers", "pyserini", "bentoml", "onnxruntime", "dagster"}),
        ("serving.engine", {"torch", "transformers", "pyserini", "dagster", "pyarrow"}),
        ("serving.service", {"torch", "transformers", "pyserini", "dagster", "pyarrow"}),
        ("retrieval.bm25", {"torch", "transformers", "dagster"}),
    ],
)
def test_imports_stay_light(module: str, forbidden: set[str]) -> None:
    code = f"import sys, {NAME}.{module}; print(*({forbidden!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_the_service_and_its_bento_need_only_what_they_carry() -> None:
    from neuroranker_pipeline.serving.packaging import MODULES

    carried = {f"{NAME}.{name.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}" for name in MODULES}
    files = [PACKAGE / "serving" / "service.py", *(PACKAGE / name for name in MODULES)]
    needed = {module for file in files for module in imports(file) if module.startswith(f"{NAME}.")}
    assert needed <= carried


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_files_and_functions_stay_short(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 420
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{file.name}: {node.name} has {length} lines"
