"""The final score of two stages: the model's plus a weight times the first stage's, both standardized.

Standardized over the candidates of a query, to mean 0 and standard deviation 1, so that one weight fits every query. A few
judged queries are enough to choose it (Bruch, Gai and Ingber 2022, https://arxiv.org/abs/2210.11934); it is kept beside the
model, in ``interpolation.json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.serving.onnx_model import read_json

INTERPOLATION_FILE = "interpolation.json"
WEIGHT = "bm25_weight"
MOST = 10.0
"""Beyond this weight the model hardly counts."""
LEAST_SPREAD = 1e-9
"""Of scores up to 1: what rounding leaves of equal ones is less."""


def bm25_weight(folder: Path) -> float | None:
    """The weight of BM25's score that was chosen for the model in ``folder``; None where none was.

    Raises ``BadInput`` for a file that holds no weight.
    """
    file = folder / INTERPOLATION_FILE
    if not file.is_file():
        return None
    weight = read_json(file).get(WEIGHT)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= MOST:
        raise BadInput(
            f"{file}: {WEIGHT} must be a number from 0 to {MOST:g}, got {weight!r}; make the model again, or remove the "
            "file to rank by the model alone"
        )
    return float(weight)


def interpolated(scores: np.ndarray, first_stage: Sequence[float] | np.ndarray, weight: float) -> np.ndarray:
    """The final scores, (n,) float64, of a query's n candidates; with a weight of 0 the model's ``scores`` themselves."""
    if not weight:
        return np.asarray(scores, np.float64)
    return standardized(scores) + weight * standardized(first_stage)


def search_scores(
    vectors: np.ndarray, query: np.ndarray, bm25: Sequence[float] | np.ndarray, weight: float
) -> tuple[np.ndarray, np.ndarray]:
    """What search gives one query's n candidates: the cosines and the final scores, each (n,) float32.

    vectors: their stored unit vectors, (n, dimension) float16, by falling BM25 score and then pid; query: its unit vector,
    (dimension,) float32; bm25: BM25's scores. Search and whoever measures it call this, so that they agree to the bit.
    """
    # A sum per row, and no matrix product, whose rounding would depend on the number of rows.
    cosines = (vectors.astype(np.float32) * query).sum(axis=1).clip(-1, 1)
    # Lucene's scores are float32; what JSON makes of them is not, and would round otherwise.
    return cosines, interpolated(cosines, np.asarray(bm25, np.float32), weight).astype(np.float32)


def best_first(scores: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The positions of float32 ``scores``, (n,), by falling score, and then by ``ids``: the order of every run."""
    return np.lexsort((ids, -scores))


def standardized(scores: Sequence[float] | np.ndarray) -> np.ndarray:
    """Finite scores, (n,), brought to mean 0 and standard deviation 1, float64; all 0 where they are all equal.

    As ``ranking.ensemble.standardize`` does it for tables.
    """
    values = np.asarray(scores, np.float64)
    if not len(values):
        return values
    values = values / np.abs(values).max(initial=1.0)  # the square of a large score would be infinite
    centred = values - values.mean()
    spread = np.sqrt(np.square(centred).mean())
    return centred / spread if spread > LEAST_SPREAD else np.zeros(len(values))
