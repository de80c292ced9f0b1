"""How much BM25's score adds to a model's: the weight chosen on judged queries, kept and told with the model.

The score itself, and where its weight lies, is in :mod:`neuroranker_pipeline.serving.interpolation`, which the service
carries; here it is computed for tables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.serving.interpolation import INTERPOLATION_FILE, WEIGHT
from neuroranker_pipeline.serving.onnx_model import read_json


@dataclass(frozen=True)
class Choice:
    """The best weight of a grid: MRR@10 by weight, over so many judged queries."""

    weight: float
    grid: Mapping[float, float]
    queries: int

    def write(self, folder: Path) -> None:
        """Keep it beside a model, where whoever ranks with the model finds it."""
        about = {
            WEIGHT: self.weight,
            "measure": "MRR@10",
            "split": "dev",
            "queries": self.queries,
            "grid": [{"weight": weight, "value": value} for weight, value in self.grid.items()],
        }
        (folder / INTERPOLATION_FILE).write_text(json.dumps(about, indent=2) + "\n", "utf-8")


def interpolate(scores: pa.Table, first_stage: pa.Table, weight: float) -> pa.Table:
    """``scores`` + ``weight`` x ``first_stage``, each standardized per query, as a scores table in the rows of ``scores``.

    Both hold the same (qid, pid) pairs. A weight of 0 leaves ``scores`` as they are.
    """
    from neuroranker_pipeline.ranking.ensemble import combine

    if not weight:
        return scores
    return combine({"model": scores, "first stage": first_stage}, {"model": 1.0, "first stage": weight})


def choose_weight(
    scores: pa.Table, first_stage: pa.Table, relevant: Mapping[str, set[str]], grid: Sequence[float]
) -> Choice:
    """The weight of ``grid`` with the highest MRR@10, the smallest of equals. Without judged queries that is the smallest.

    relevant: the positives of each query, which were not trained on.
    """
    from neuroranker_pipeline.ranking.scoring import mean_reciprocal_rank

    found = {
        weight: mean_reciprocal_rank(interpolate(scores, first_stage, weight), relevant) for weight in sorted(grid)
    }
    judged = sum(bool(relevant.get(qid)) for qid in pc.unique(scores["qid"]).to_pylist())
    return Choice(max(found, key=lambda weight: found[weight]), found, judged)


def card_section(model: Path) -> str:
    """What a model's card says of its weight, as a section of Markdown; nothing for a model without one."""
    about = read_json(model / INTERPOLATION_FILE)
    if not about:
        return ""
    rows = [f"| {row['weight']:g} | {row['value']:.4f} |" for row in about["grid"]]
    table = "\n".join([f"| weight | {about['measure']} |", "| --- | --- |", *rows])
    return (
        "## With BM25\n\n"
        "Where BM25's scores are known, the final score is the int8 model's cosine, standardized over the candidates of the "
        f"query, plus {about[WEIGHT]:g} x BM25's score, standardized likewise (`{INTERPOLATION_FILE}`). The weight is the "
        f"best of these over {about['queries']:,} queries of the {about['split']} split, the smallest of equals; 0 is the "
        f"model alone:\n\n{table}\n"
    )
