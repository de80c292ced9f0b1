"""A collection in the shape of ArguAna: every query is a passage too, under the same id, and must not find itself."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import pyarrow.compute as pc
import pytest

from neuroranker_pipeline.datasets.tables import read_table
from neuroranker_pipeline.orchestration.planner import bring_up_to_date, selected
from neuroranker_pipeline.resources.workspace import Workspace

DEPTH = 5
PROFILE = f"""
extends: smoke
shards: {{train_queries: 1, passages: 1}}
data: {{source: beir, folder: arguments}}
unjudged: {{source: none}}
bm25: {{depth: {DEPTH}}}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty arguments, each countered by the next; some judged about themselves, as such files may be."""
    root = tmp_path_factory.mktemp("arguments")
    folder = root / "arguments"
    (folder / "qrels").mkdir(parents=True)
    texts = [f"Argument {n} says that smoking topic{n % 7} harms group{n % 5} a lot" for n in range(30)]
    rows = [{"_id": f"a{n}", "title": f"Of {n}", "text": text} for n, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [{"_id": f"a{n}", "text": text} for n, text in enumerate(texts)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    for split, part in (("train", range(0, 20)), ("dev", range(20, 26)), ("test", range(26, 30))):
        lines = [f"a{n}\ta{(n + 7) % 30}\t1\n" + (f"a{n}\ta{n}\t1\n" if n % 2 else "") for n in part]
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    (root / "arguments.yaml").write_text(PROFILE)
    return root


def made(root: Path, mode: str) -> Workspace:
    workspace = Workspace(
        profile=str(root / "arguments.yaml"),
        lake_root=str(root / f"lake-{mode}"),
        data_root=str(root),
        overrides=[f"data.queries_are_passages={mode}"],
    )
    with dg.DagsterInstance.local_temp() as instance:
        list(bring_up_to_date(selected(["bm25_candidates"]), workspace, instance))
    return workspace


def test_no_query_finds_itself_nor_is_judged_about_itself(root: Path) -> None:
    lake = made(root, "auto").lake
    assert lake.usable("qrels").figures["own_passages"] == lake.usable("queries").rows
    judged = read_table(lake.read("qrels"))
    assert judged.num_rows == 30
    assert not pc.any(pc.equal(judged["qid"], judged["pid"])).as_py()
    for shard in ("train-00", "dev", "gate", "test"):
        candidates = read_table(lake.read("bm25_candidates", shard))
        assert not pc.any(pc.equal(candidates["qid"], candidates["pid"])).as_py()
        full = candidates.group_by("qid").aggregate([("pid", "count")])
        assert pc.all(pc.equal(full["pid_count"], DEPTH)).as_py(), "another passage takes the place"
        assert pc.min(candidates["rank"]).as_py() == 1


def test_the_setting_switches_it_off(root: Path) -> None:
    lake = made(root, "false").lake
    assert lake.usable("qrels").figures["own_passages"] == 0
    candidates = read_table(lake.read("bm25_candidates", "test"))
    first = candidates.filter(pc.equal(candidates["rank"], 1))
    assert first["qid"].to_pylist() == first["pid"].to_pylist(), "its own words find it first"
