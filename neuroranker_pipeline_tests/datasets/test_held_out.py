from __future__ import annotations

from pathlib import Path

from neuroranker_pipeline.datasets.held_out import SAME, TOO_NEAR, Carving, HeldOut
from neuroranker_pipeline.datasets.tables import QUERIES
from neuroranker_pipeline_tests.datasets.raw import table

ASKED = table(
    QUERIES,
    ("1", "How high is the tower?", "train"),
    ("2", "How old is the old bridge", "dev"),
    ("3", "Who built the town hall here", "test"),
)
TEXTS = [
    "how high is the TOWER",
    "how old is the OLD bridge!",
    "who built the town hall",
    "how old is the bridge",
    "else",
]


def test_what_is_held_out_is_never_learned_from_and_what_is_near_only_where_splits_were_carved() -> None:
    given = HeldOut.of(ASKED.to_batches(), Carving())
    assert given.repeated(TEXTS) == {1: SAME}
    carved = HeldOut.of(ASKED.to_batches(), Carving(frozenset({"test"})))
    assert carved.repeated(TEXTS) == {1: SAME, 2: TOO_NEAR}
    assert carved.repeated([]) == {}
    strict = HeldOut.of(ASKED.to_batches(), Carving(frozenset({"dev", "test"}), near=0.95))
    assert strict.repeated(TEXTS) == {1: SAME, 3: TOO_NEAR}, "the same words are near at any threshold"


def test_the_carving_is_kept_beside_the_queries(tmp_path: Path) -> None:
    carving = Carving(frozenset({"dev", "gate"}), 0.8)
    carving.write(tmp_path)
    assert Carving.read(tmp_path) == carving
