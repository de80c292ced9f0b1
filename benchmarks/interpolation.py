"""What adding BM25's score is worth, and how its weight is best chosen, on a finished lake.

    python benchmarks/interpolation.py --lake data_lake --profile quickstart

First every weight of the grid on each evaluation split, beside BM25, the int8 student alone, and the peer that needs no
weight, reciprocal rank fusion (k = 60; Cormack, Clarke and Büttcher 2009). Scores are those of the served search: stored
vectors of the passages, the int8 student's of the query. Then three rules of choice: queries of all splits are drawn to
choose on, and the gain over the student alone is measured on the others. One standard error: the smallest weight whose loss
against the best is within one (Breiman et al. 1984).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from measured import table

from neuroranker_pipeline.assets import passage_embeddings
from neuroranker_pipeline.config.load import load_settings
from neuroranker_pipeline.config.settings import Settings
from neuroranker_pipeline.datasets.tables import read_table, read_texts
from neuroranker_pipeline.evaluation.measures import measure_vectors, ranked
from neuroranker_pipeline.evaluation.significance import paired_randomization
from neuroranker_pipeline.evaluation.tables import p_number
from neuroranker_pipeline.ranking.embeddings import cosine_scores, encode_texts, read_embeddings
from neuroranker_pipeline.ranking.interpolation import interpolate
from neuroranker_pipeline.ranking.scoring import scores_table
from neuroranker_pipeline.resources.lake import Lake
from neuroranker_pipeline.serving.onnx_model import OnnxEncoder

MEASURE = "MRR@10"
K = 60


def ranks(scores: pa.Table) -> pa.Table:
    """qid, pid and the 1-based rank of every row."""
    return ranked(scores.select(["qid", "pid", "score"])).select(["qid", "pid", "rank"])


def fused(scores: pa.Table, first_stage: pa.Table) -> pa.Table:
    """Reciprocal rank fusion of two rankings of the same candidates."""
    other = ranks(first_stage).rename_columns(["qid", "pid", "other"])
    both = ranks(scores).join(other, ["qid", "pid"])
    values = 1 / (K + both["rank"].to_numpy()) + 1 / (K + both["other"].to_numpy())
    return scores_table(both, values.astype(np.float32))


def values_of(lake: Lake, split: str, settings: Settings) -> dict[str, np.ndarray]:
    """MRR@10 of each judged query of a split, by ranker; the weights of the grid are named by their number."""
    candidates, qrels = read_table(lake.read("bm25_candidates", split)), read_table(lake.read("qrels"))
    encoder = OnnxEncoder(lake.read("student_onnx_int8"))
    texts = read_texts(lake.read("queries"), "qid", pc.unique(candidates["qid"]).to_pylist())
    shards = [lake.read("passage_embeddings", shard) for shard in passage_embeddings.partitions(settings)]
    vectors = read_embeddings(shards, pc.unique(candidates["pid"]))
    scores = cosine_scores(candidates, encode_texts(texts, list(texts), encoder, "qid"), vectors)
    runs = {"BM25": candidates, "fused": fused(scores, candidates)}
    runs |= {f"{weight:g}": interpolate(scores, candidates, weight) for weight in settings.interpolation.grid}
    judged = qrels.filter(pc.is_in(qrels["qid"], pa.array(list(texts)))).select(["qid", "pid", "grade"])
    level = settings.data.relevant_from(split)
    return {name: measure_vectors(ranked(run), judged, [MEASURE], level)[1][MEASURE] for name, run in runs.items()}


def gains(values: np.ndarray, drawn: int, draws: int, seed: int) -> dict[str, np.ndarray]:
    """Gain over weight 0 on the queries not drawn, (draws,), by rule. values: (weights, queries), weight 0 first."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {"best": [], "one standard error": [], "the second weight, always": []}
    for _ in range(draws):
        order = rng.permutation(values.shape[1])
        dev, test = values[:, order[:drawn]], values[:, order[drawn:]].mean(axis=1)
        best = int(dev.mean(axis=1).argmax())
        loss = dev[best] - dev
        error = loss.std(axis=1, ddof=1) / np.sqrt(drawn)
        near = int((loss.mean(axis=1) <= error).argmax())
        for rule, weight in zip(found, (best, near, 1), strict=True):
            found[rule].append(test[weight] - test[0])
    return {rule: np.array(gained) for rule, gained in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", type=Path, default=Path("data_lake"))
    parser.add_argument("--profile", default="quickstart")
    parser.add_argument("--drawn", type=int, nargs="+", default=[50, 150, 300], help="queries to choose on")
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    settings = load_settings(options.profile)
    lake = Lake(options.lake, settings.profile)
    splits = ["dev", "gate", *settings.data.test_splits]
    measured = {split: values_of(lake, split, settings) for split in splits}
    rows = []
    for name in next(iter(measured.values())):
        cells = [f"{found[name].mean():.4f}" for found in measured.values()]
        p = paired_randomization(measured[splits[-1]][name], measured[splits[-1]]["0"], options.seed)
        rows.append([name, *cells, "" if name == "0" else p_number(p)])
    queries = [f"{split} ({len(found['0'])})" for split, found in measured.items()]
    print(table([f"weight, {MEASURE}", *queries, f"p against 0 on {splits[-1]}"], rows))
    grid = [f"{weight:g}" for weight in sorted(settings.interpolation.grid)]
    values = np.concatenate([[found[weight] for weight in grid] for found in measured.values()], axis=1)
    rows = []
    for drawn in options.drawn:
        for rule, gained in gains(values, drawn, options.draws, options.seed).items():
            rows.append([str(drawn), rule, f"{gained.mean():+.4f}", f"{(gained < 0).mean():.1%}"])
    print()
    print(table(["chosen on", "rule", "mean gain elsewhere", "a loss"], rows))


if __name__ == "__main__":
    main()
