"""From raw data to a Bento that answers, through the command line as a user types it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from neuroranker_pipeline.assets import ASSETS
from neuroranker_pipeline.config.load import load_settings
from neuroranker_pipeline.errors import NotReady
from neuroranker_pipeline.orchestration.search import open_search
from neuroranker_pipeline.resources.lake import Lake
from neuroranker_pipeline.resources.manifest import Manifest
from neuroranker_pipeline.resources.workspace import Workspace
from neuroranker_pipeline.serving.packaging import serve_bento
from neuroranker_pipeline_tests.e2e.conftest import PROFILE, Graph, assert_whole

pytestmark = pytest.mark.e2e

RANKERS = (
    "BM25",
    "base student",
    "cross-encoder",
    "teacher",
    "student",
    "hard-label control",
    "student ONNX",
    "student int8",
    "search",
)
PAIRS = [("q one", "a passage"), ("how to read a file", "Open a file and return a stream."), ("x", "y " * 300)]


def ran(output: str) -> list[str]:
    """The assets that a run made, by its lines with a check mark."""
    return list(dict.fromkeys(re.findall(r"✓ (\w+)", output)))


def test_every_asset_is_there_and_whole(graph: Graph) -> None:
    settings = load_settings(PROFILE)
    releases = 2  # the first one, and the log
    assert assert_whole(graph.lake) == sum(len(asset.partitions(settings)) for asset in ASSETS) + releases


@pytest.mark.parametrize(
    ("phase", "asset"), [("teacher training", "teacher_checkpoint"), ("student training", "student_checkpoint")]
)
def test_training_went_on_from_its_checkpoint(graph: Graph, phase: str, asset: str) -> None:
    before, finished = graph.killed[phase]["result"], graph.killed[phase]["finished"]
    records = [json.loads(file.read_text()) for file in graph.lake.read(asset).rglob("training.json")]
    assert all(0 < before["steps"] < after["steps"] == 12 for after in records)
    # Speeds are measured, so they can only be equal where the steps were not taken again.
    assert any(after["history"][: len(before["history"])] == before["history"] for after in records)
    # The teacher's first member was finished when its second was killed.
    assert len(finished) == (phase == "teacher training")
    assert all(member in records for member in finished)


def test_a_killed_run_is_marked_as_failed_and_blocks_nobody(graph: Graph) -> None:
    import dagster as dg

    home = graph.root / "lake" / ".dagster" / PROFILE
    with dg.DagsterInstance.from_config(str(home)) as instance:
        statuses = [run.status.value for run in instance.get_runs()]
        assert statuses.count("FAILURE") == 5
        assert set(statuses) == {"FAILURE", "SUCCESS"}
        assert all(not instance.event_log_storage.get_concurrency_info(pool).claimed_slots for pool in ("gpu", "jvm"))


def test_the_run_ends_with_the_table_and_the_next_commands(graph: Graph) -> None:
    for ranker in RANKERS:
        assert re.search(rf"{re.escape(ranker)} .*0\.\d\d\d", graph.output), ranker
    assert "bentoml serve ranker-smoke:latest --port 8000" in graph.output
    assert "neuroranker search --profile smoke" in graph.output


def test_a_second_run_makes_nothing(graph: Graph) -> None:
    done = graph.command("run")
    assert done.returncode == 0
    assert ran(done.stdout) == []
    assert "0 steps run" in done.stdout


def test_the_report_holds_every_ranker_and_its_runs(graph: Graph) -> None:
    folder = graph.lake.read("eval_report", "test")
    report = json.loads((folder / "report.json").read_text())
    assert [row["ranker"] for row in report["rankers"]] == list(RANKERS)
    assert report["queries"] == load_settings(PROFILE).data.test_queries
    assert len(list((folder / "runs").glob("*.trec"))) == len(RANKERS)
    assert "<script" not in (folder / "report.html").read_text()
    assert report["final"] == "search"
    assert len(re.findall(r"^\W*search ", graph.command("report").stdout, re.MULTILINE)) == 1
    leaks = {row["split"]: row for row in report["leaks"]["splits"]}
    assert leaks.keys() == {"dev", "gate", "test"}
    assert all(row["same"] == row["near"] == 0 < row["queries"] for row in leaks.values())


def test_search_shows_both_ranks(graph: Graph) -> None:
    done = graph.command("search", "parse a JSON document", "-k", "5")
    assert done.returncode == 0, done.stderr
    header, *rows = done.stdout.splitlines()
    assert header.split()[:3] == ["rank", "BM25", "score"]
    assert [int(row.split()[0]) for row in rows if row.split()[0].isdigit()] == [1, 2, 3, 4, 5]
    assert any(row.split()[3].startswith("json.") for row in rows)


def test_a_student_older_than_a_shard_of_the_embeddings_is_not_searched_with(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    usable = Lake.usable

    def made_before_the_last_shard(lake: Lake, asset: str, partition: str | None = None) -> Manifest:
        found = usable(lake, asset, partition)
        older = {name: version for name, version in found.inputs.items() if name != "passage_embeddings[shard-01]"}
        return replace(found, inputs=older) if asset == "student_onnx_int8" else found

    monkeypatch.setattr(Lake, "usable", made_before_the_last_shard)
    with pytest.raises(NotReady, match="are of different models: run `neuroranker run`"):
        open_search(Workspace(profile=PROFILE, lake_root=str(graph.root / "lake")))


def test_metrics_hold_every_materialization(graph: Graph) -> None:
    done = graph.command("metrics", "SELECT count(DISTINCT asset) AS assets FROM materializations WHERE checks_passed")
    assert done.stdout.split() == ["assets", str(len(ASSETS))]
    done = graph.command("metrics", "SELECT value FROM measures WHERE ranker = 'student int8' AND measure = 'MRR@10'")
    shown = re.search(r"student int8 \W+(0\.\d+)", graph.output)
    assert shown is not None
    assert float(done.stdout.split()[1]) == pytest.approx(float(shown[1]), abs=5e-4)


@pytest.mark.parametrize(
    ("asset", "figure"),
    [("teacher_checkpoint", "dev/cross-encoder/MRR@10"), ("student_checkpoint", "dev/MRR@10")],
)
def test_a_model_has_a_card_with_its_figures(graph: Graph, asset: str, figure: str) -> None:
    folder = graph.lake.read(asset)
    _, front, body = (folder / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "sentence-transformers"
    shown = re.search(r"\| this model \| (0\.\d+) \[", body)
    assert shown is not None
    assert float(shown[1]) == pytest.approx(graph.lake.usable(asset).figures[figure], abs=1e-4)
    assert "12 steps over" in body


def test_the_models_open_in_sentence_transformers_with_equal_scores(graph: Graph) -> None:
    import torch
    from sentence_transformers import CrossEncoder as TheirCrossEncoder
    from sentence_transformers import SentenceTransformer

    from neuroranker_pipeline.ranking.device import Compute
    from neuroranker_pipeline.ranking.models import BiEncoder, CrossEncoder

    compute = Compute(torch.device("cpu"), torch.float32)
    queries, passages = map(list, zip(*PAIRS, strict=True))
    teacher = graph.lake.read("teacher_checkpoint")
    ours = CrossEncoder.load(teacher).score(queries, passages, compute)
    theirs = TheirCrossEncoder(str(teacher)).predict(PAIRS)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    student = graph.lake.read("student_checkpoint")
    np.testing.assert_allclose(
        BiEncoder.load(student).encode(passages, compute), SentenceTransformer(str(student)).encode(passages), atol=1e-4
    )


def post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def test_the_bento_in_the_store_answers_and_searches(graph: Graph) -> None:
    texts = [
        "Neural ranking models learn to order documents given a query.",
        "Inverse propensity scoring reweights clicks to debias position.",
    ]
    question, k = "parse a JSON document", 5
    with serve_bento("ranker-smoke:latest", Path(graph.environment["BENTOML_HOME"])) as url:
        answer = post(f"{url}/rerank", {"query": "what is a neural ranking model", "texts": texts})
        found = post(f"{url}/search", {"query": question, "k": k})
    assert [item["index"] for item in answer] == [0, 1]
    assert len(found["hits"]) == k
    chosen = json.loads((graph.lake.read("student_onnx_int8") / "interpolation.json").read_text())
    assert found["bm25_weight"] == chosen["bm25_weight"] in load_settings(PROFILE).interpolation.grid
    values = {row["weight"]: row["value"] for row in chosen["grid"]}
    assert values[found["bm25_weight"]] == max(values.values())
    _, *rows = graph.command("search", question, "-k", str(k)).stdout.splitlines()
    # "rank BM25 score pid ..."; the command searches the same passages with the student in PyTorch.
    shown = {row.split()[3]: int(row.split()[1]) for row in rows if row.split()[0].isdigit()}
    served = {hit["pid"]: hit["bm25_rank"] for hit in found["hits"]}
    assert all(served[pid] == rank for pid, rank in shown.items() if pid in served)
    assert len(served.keys() & shown.keys()) >= k - 1


def test_a_bento_lost_from_the_store_is_put_back_without_building_it(graph: Graph) -> None:
    bentoml = [sys.executable, "-m", "bentoml"]
    subprocess.run(
        [*bentoml, "delete", "--yes", "ranker-smoke"], env=graph.environment, check=True, capture_output=True
    )
    done = graph.command("run")
    assert done.returncode == 0
    assert ran(done.stdout) == []
    listed = subprocess.run(
        [*bentoml, "list", "-o", "json"], env=graph.environment, check=True, capture_output=True, text=True
    )
    assert "ranker-smoke:" in listed.stdout


def test_a_student_that_is_shown_to_be_worse_than_the_base_student_goes_no_further(graph: Graph) -> None:
    worse = ("--set", "student.training.learning_rate=0.5", "--set", "bounds.student_over_base=0")
    done = graph.command("run", "--select", "student_onnx", *worse)
    assert done.returncode == 1
    assert "not_worse_than_base (MRR@10 on the dev split is not significantly below" in done.stderr
    assert ran(done.stdout) == []
    assert re.search(r"✗ student_checkpoint +failed", done.stdout)
    assert re.search(r"- student_onnx +waits for student_checkpoint", done.stdout)


RATE = ("--set", "student.training.learning_rate=5e-5")


def test_a_learning_rate_changes_only_its_model_and_what_follows(graph: Graph) -> None:
    done = graph.command("run", *RATE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ran(done.stdout) == [
        "student_checkpoint",
        "student_control",
        "passage_embeddings",
        "student_onnx",
        "student_onnx_int8",
        "eval_report",
        "gate_evaluation",
        "release_decision",
        "ranker_bento",
        "ranker_release",
    ]
    compared = graph.command("report", "--compare", "previous", "latest")
    assert compared.returncode == 0, compared.stdout + compared.stderr
    assert "student.training.learning_rate: 0.0001 → 5e-05" in compared.stdout
    report = json.loads((graph.lake.read("eval_report", "test") / "report.json").read_text())
    assert len(report["history"]) == 2


def test_a_student_that_may_be_below_by_chance_reaches_the_release_decision(graph: Graph) -> None:
    before = graph.lake.usable("release_decision")
    figures = graph.lake.usable("student_checkpoint").figures
    gain = figures["dev/MRR@10"] - figures["dev/base student/MRR@10"] + 0.0005  # a little more than it has
    done = graph.command("run", *RATE, "--set", f"bounds.student_over_base={gain}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ran(done.stdout) == ["student_checkpoint"], "trained anew, and the same: what follows stays fresh"
    (check,) = [one for one in graph.lake.usable("student_checkpoint").checks if one.name == "not_worse_than_base"]
    assert check.metadata["mrr_at_10"] - check.metadata["base_student"] < check.metadata["bound"]
    assert check.metadata["p"] > 0.05
    assert graph.lake.usable("release_decision") == before
