"""The plain command on tables and a tiny model, on one process and under ``torchrun``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from neuroranker_pipeline.datasets.tables import QRELS, QUERIES, write_table
from neuroranker_pipeline.ranking import train
from neuroranker_pipeline.ranking.lists import positives
from neuroranker_pipeline.ranking.models import BiEncoder, CrossEncoder
from neuroranker_pipeline.ranking.scoring import mean_reciprocal_rank, score_candidates
from neuroranker_pipeline_tests.ranking.conftest import FLOAT32

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# The command where every import of these fails.
BARE = """
import runpy, sys
sys.modules.update(dict.fromkeys(("dagster", "pydantic", "duckdb", "rich", "bentoml", "pyserini"), None))
runpy.run_module("neuroranker_pipeline.ranking.train", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def tables(collection, oracle, tmp_path) -> Path:
    """The collection with its last six queries as dev; two tables are single files, the others folders."""
    folder = tmp_path / "tables"
    folder.mkdir()
    split = ["dev" if int(qid[1:]) >= 24 else "train" for qid in collection.queries]
    queries = pa.table([list(collection.queries), list(collection.queries.values()), split], schema=QUERIES)
    qrels = collection.qrels.set_column(3, "split", pa.array(split))
    passages = pa.table({"pid": list(collection.passages), "text": list(collection.passages.values())})
    for name, table in {"queries": queries, "passages": passages}.items():
        pq.write_table(table, folder / f"{name}.parquet")
    write_table(folder / "qrels", qrels, QRELS)
    write_table(folder / "bm25_candidates", collection.candidates, collection.candidates.schema, rows_per_file=100)
    write_table(folder / "teacher_scores", oracle, oracle.schema)
    return folder


@pytest.fixture
def settings(tiny, tmp_path) -> Path:
    training = {"epochs": 2, "lists_per_step": 6, "learning_rate": "2e-3", "precision": "float32", "eval_every": 4}
    training |= {"dropout": 0.0, "log_every": 1}
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"base": str(tiny), "max_length": 32, "lists": {"negatives": 4}, "training": training}))
    return file


def arguments(model, tables, settings, out, *more, device="cpu") -> list[str]:
    return [model, "--data", str(tables), "--settings", str(settings), "--out", str(out), "--device", device, *more]


def test_a_teacher_from_tables(collection, tables, settings, tmp_path, capsys):
    out = tmp_path / "models" / "teacher"
    assert train.main(arguments("teacher", tables, settings, out, "--seed", "3")) == 0
    shown = capsys.readouterr()
    record = json.loads((out / "training.json").read_text())
    assert record["steps"] == 8
    assert record["lists"] == 24
    assert shown.out == (
        f"dev MRR@10 {record['dev_mrr']:.4f}, weights of step {record['best_step']} of 8; the model is in {out}\n"
    )
    assert "training the teacher: step 8 of 8" in shown.err
    assert list(out.parent.iterdir()) == [out]  # neither checkpoints nor a half-written model
    dev = collection.candidates.filter(
        pc.is_in(collection.candidates["qid"], pa.array([f"q{i}" for i in range(24, 30)]))
    )
    scores = score_candidates(CrossEncoder.load(out), dev, collection.queries, collection.passages, FLOAT32)
    asked = collection.qrels.filter(pc.is_in(collection.qrels["qid"], dev["qid"].combine_chunks()))
    assert mean_reciprocal_rank(scores, positives(asked)) == pytest.approx(record["dev_mrr"])
    assert train.main(arguments("teacher", tables, settings, out)) == 1
    assert capsys.readouterr().err == f"error: --out {out}: is there already; remove it, or name another folder\n"


def test_only_what_reaches_the_relevance_level_is_learned_from(tables, settings, tmp_path):
    (file,) = (tables / "qrels").iterdir()
    qrels = pq.read_table(file)
    better = [2 if qid in ("q0", "q1", "q5", "q25") else 1 for qid in qrels["qid"].to_pylist()]
    pq.write_table(qrels.set_column(2, "grade", pa.array(better, pa.int32())), file)
    given = arguments("teacher", tables, settings, tmp_path / "out", "--relevance-level", "2")
    assert train.main(given) == 0
    assert json.loads((tmp_path / "out" / "training.json").read_text())["lists"] == 3


def test_a_relevance_level_above_all_grades_leaves_nothing_to_learn(tables, settings, tmp_path, capsys):
    given = arguments("teacher", tables, settings, tmp_path / "out", "--relevance-level", "2")
    assert train.main(given) == 1
    assert "no training list" in capsys.readouterr().err


def test_without_dev_candidates_the_last_weights_are_kept(tables, settings, tmp_path, capsys):
    candidates = pq.read_table(tables / "bm25_candidates")
    for file in (tables / "bm25_candidates").iterdir():
        file.unlink()
    train_only = candidates.filter(pc.less(pc.utf8_length(candidates["qid"]), 3))  # q0 to q9
    pq.write_table(train_only, tables / "bm25_candidates" / "part.parquet")
    (tables / "teacher_scores" / "part-00000.parquet").unlink()
    (tables / "teacher_scores").rmdir()
    file = tmp_path / "control.yaml"
    file.write_text(settings.read_text().replace("{", '{"objective": "hard_labels", ', 1))
    assert train.main(arguments("student", tables, file, tmp_path / "out")) == 0
    assert "dev MRR@10 not measured (no dev queries), weights of step 2 of 2" in capsys.readouterr().out


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_two_processes_on_a_bare_machine(tables, settings, tmp_path, device):
    if device == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    (tmp_path / "bare.py").write_text(BARE)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, str(tmp_path / "bare.py"), *arguments("student", tables, settings, tmp_path / "two", device=device)],
        capture_output=True, text=True, check=False, timeout=300, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the model is in") == 1
    assert done.stderr.count("step 8 of 8") == 1
    assert train.main(arguments("student", tables, settings, tmp_path / "one", device=device)) == 0
    two, one = (json.loads((tmp_path / name / "training.json").read_text()) for name in ("two", "one"))
    assert two["steps"] == one["steps"] == 8
    losses = [[line["loss"] for line in run["history"] if "loss" in line] for run in (two, one)]
    assert len(losses[0]) == 8
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert BiEncoder.load(tmp_path / "two").dimension == 32


def missing_table(tables, settings):
    (tables / "passages.parquet").unlink()
    return f"--data {tables}: no table passages; expected a folder passages of Parquet files, or passages.parquet"


def missing_column(tables, settings):
    table = pq.read_table(tables / "queries.parquet")
    pq.write_table(table.drop_columns(["split"]), tables / "queries.parquet")
    return f"{tables / 'queries.parquet'}: expected Parquet with the columns qid, text, split: "


def not_parquet(tables, settings):
    (tables / "queries.parquet").write_text("qid,text,split")
    return f"{tables / 'queries.parquet'}: expected Parquet with the columns qid, text, split: "


def unknown_passage(tables, settings):
    table = pq.read_table(tables / "passages.parquet")
    pq.write_table(table.slice(5), tables / "passages.parquet")
    return "pid"


def no_teacher_scores(tables, settings):
    (tables / "teacher_scores" / "part-00000.parquet").unlink()
    (tables / "teacher_scores").rmdir()
    return f"--data {tables}: no table teacher_scores; "


def unknown_key(tables, settings):
    settings.write_text("training: {lerning_rate: 1}")
    return f"{settings}: training.lerning_rate: unknown key; did you mean learning_rate?"


def wrong_range(tables, settings):
    settings.write_text("training: {warmup: 2}")
    return f"{settings}: training.warmup must be in [0, 1), got 2.0"


def no_settings(tables, settings):
    settings.unlink()
    return f"{settings}: cannot be read: No such file or directory"


@pytest.mark.parametrize(
    "spoil",
    [
        missing_table, missing_column, not_parquet, unknown_passage, no_teacher_scores, unknown_key, wrong_range,
        no_settings,
    ],
)  # fmt: skip
def test_bad_input_is_one_line(tables, settings, tmp_path, capsys, spoil):
    told = spoil(tables, settings)
    assert train.main(arguments("student", tables, settings, tmp_path / "out")) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("error: ")
    assert told in shown.err
    assert not (tmp_path / "out").exists()


def test_bad_arguments_end_with_the_usage(capsys):
    with pytest.raises(SystemExit) as stopped:
        train.main(["referee", "--data", "x", "--out", "y"])
    assert stopped.value.code == 2
    assert "invalid choice: 'referee'" in capsys.readouterr().err
