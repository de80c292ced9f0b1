"""Collections joined for training: each is searched in an index of its own, and evaluation stays on the main one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import dagster as dg
import pytest

from neuroranker_pipeline.datasets.tables import read_table
from neuroranker_pipeline.errors import NeuroRankerError
from neuroranker_pipeline.orchestration.planner import bring_up_to_date, selected
from neuroranker_pipeline.resources.workspace import Workspace
from neuroranker_pipeline.retrieval.bm25 import Searcher

ANIMALS = ("cat", "dog", "owl", "fox")
COLORS = ("red", "blue")


def write_beir(folder: Path, things: tuple[str, ...], splits: Mapping[str, int]) -> None:
    """A folder where every passage is about a thing, and every query asks for one; ``splits`` are numbers of queries."""
    (folder / "qrels").mkdir(parents=True)
    passages = [{"_id": f"d{n}", "title": "", "text": f"the {thing} {n}"} for n, thing in enumerate(things * 5)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in passages))
    number, queries = 0, []
    for split, count in splits.items():
        lines = ["query-id\tcorpus-id\tscore"]
        for _ in range(count):
            thing = number % len(things)
            queries.append({"_id": f"q{number}", "text": f"where is the {things[thing]} {number}"})
            lines.append(f"q{number}\td{thing}\t1")
            number += 1
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))


def workspace(root: Path) -> Workspace:
    profile = root / "joined.yaml"
    profile.write_text(
        "extends: smoke\n"
        "unjudged: {source: none}\n"
        "data: {source: beir, folder: animals}\n"
        "training_collections: {colors: {source: beir, folder: colors}}\n"
    )
    return Workspace(profile=str(profile), lake_root=str(root / "lake"), data_root=str(root))


def candidates(workspace: Workspace) -> None:
    with dg.DagsterInstance.local_temp() as instance:
        list(bring_up_to_date(selected(["bm25_candidates"]), workspace, instance))


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("joined")
    write_beir(root / "animals", ANIMALS, {"train": 12, "dev": 24, "test": 8})
    # "cat" is a word of this collection too: searching one index for all would mix them.
    write_beir(root / "colors", (*COLORS, "cat"), {"train": 9, "dev": 6, "test": 6})
    made = workspace(root)
    candidates(made)
    return made


def test_every_collection_has_its_own_index(joined: Workspace) -> None:
    index = joined.lake.read("lucene_index")
    sizes = {}
    for name in ("main", "colors"):
        searcher = Searcher(index / name, joined.settings.bm25)
        sizes[name] = searcher.num_docs
        searcher.close()
    assert sizes == {"main": 20, "colors": 15}
    assert sorted(path.name for path in index.iterdir() if path.is_dir()) == ["colors", "main"]


def test_only_training_queries_of_a_joined_collection_are_used(joined: Workspace) -> None:
    queries = read_table(joined.lake.read("queries"))
    splits = dict(zip(queries["qid"].to_pylist(), queries["split"].to_pylist(), strict=True))
    assert {split for qid, split in splits.items() if qid.startswith("colors:")} == {"train"}
    assert sum(qid.startswith("colors:") for qid in splits) == 9
    assert {split for qid, split in splits.items() if ":" not in qid} == {"train", "dev", "gate", "test"}


def test_candidates_come_from_the_query_s_own_collection(joined: Workspace) -> None:
    found = [read_table(joined.lake.read("bm25_candidates", shard)) for shard in ("train-00", "train-01")]
    rows = [row for table in found for row in table.to_pylist()]
    assert any(row["qid"].startswith("colors:") for row in rows)
    assert any(":" not in row["qid"] for row in rows)
    assert all(row["qid"].startswith("colors:") == row["pid"].startswith("colors:") for row in rows)
    for shard in ("dev", "gate", "test"):
        assert not any(":" in row["pid"] for row in read_table(joined.lake.read("bm25_candidates", shard)).to_pylist())


def test_ids_that_would_pass_for_another_collection_s_are_refused(tmp_path: Path) -> None:
    write_beir(tmp_path / "animals", ANIMALS, {"train": 12, "dev": 24, "test": 8})
    write_beir(tmp_path / "colors", COLORS, {"train": 4})
    for file in (tmp_path / "animals" / "queries.jsonl", *(tmp_path / "animals" / "qrels").iterdir()):
        file.write_text(file.read_text().replace("q3", "colors:q3"))
    with pytest.raises(NeuroRankerError, match="ids of the main collection begin with 'colors' and a colon"):
        candidates(workspace(tmp_path))


def test_a_joined_collection_without_training_queries_is_named(tmp_path: Path) -> None:
    write_beir(tmp_path / "animals", ANIMALS, {"train": 12, "dev": 24, "test": 8})
    write_beir(tmp_path / "colors", COLORS, {"dev": 4, "test": 4})
    with pytest.raises(NeuroRankerError, match=r"training_collections\.colors: no training query in it"):
        candidates(workspace(tmp_path))
