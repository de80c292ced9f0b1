"""The simulation of the release gate: what is true in it is what was asked for, and it counts what the gate decides."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

QUERIES = 200


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("gate")


@pytest.fixture
def values() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ranks = {name: rng.choice([0.0, 0.2, 0.5, 1.0], QUERIES) for name in ("base student", "search", "release 1")}
    return {"BM25": np.zeros(QUERIES), **ranks}


def test_chances_give_the_wanted_means(gate: ModuleType, values: dict[str, np.ndarray]) -> None:
    differences = np.column_stack([values["search"] - values[name] for name in ("base student", "release 1")])
    chances = gate.tilted(differences, np.array([-0.05, 0.02]))
    assert chances.min() > 0
    assert chances.sum() == pytest.approx(1)
    assert chances @ differences == pytest.approx([-0.05, 0.02], abs=1e-4)
    observed = gate.tilted(differences, differences.mean(axis=0))
    assert observed == pytest.approx(np.full(QUERIES, 1 / QUERIES), rel=1e-3)
    with pytest.raises(SystemExit, match="no weights of these queries"):
        gate.tilted(np.ones((QUERIES, 1)), np.array([-1.0]))


def test_gates_are_counted_by_what_is_true(gate: ModuleType, values: dict[str, np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    ruined = gate.Truth("base student", "loss", -0.3, 0.0)
    assert gate.simulate(values, ruined, 400, 20, rng)["full"] == 0
    gained = gate.Truth("base student", "gain", 0.3, 0.3)
    counts = gate.simulate(values, gained, 400, 20, rng)
    assert (counts["full"], counts["weak"], counts["all"]) == (20, 0, 20)
    few = gate.simulate(values, gate.Truth("release 1", "no loss", None, 0.0), 20, 20, rng)
    assert few["full"] == 0
    assert few["weak"] > 15


def test_the_values_of_an_evaluation_are_read(gate: ModuleType, values: dict[str, np.ndarray], tmp_path: Path) -> None:
    names = {"search": "student int8", "release 1": "hard-label control"}
    rows = [
        (names.get(r, r), f"q{i:03d}", "MRR@10", float(v)) for r, found in values.items() for i, v in enumerate(found)
    ]
    table = pa.table(dict(zip(("ranker", "qid", "measure", "value"), zip(*rows, strict=True), strict=True)))
    pq.write_table(table, tmp_path / "per_query.parquet")
    read = gate.read_values(tmp_path / "per_query.parquet", "student int8", "hard-label control")
    assert {name: found.tolist() for name, found in read.items()} == {n: v.tolist() for n, v in values.items()}
    with pytest.raises(SystemExit, match="no ranker 'search'"):
        gate.read_values(tmp_path / "per_query.parquet", "search", "hard-label control")
