"""A small evaluation with the rankers of a real report."""

import numpy as np
import pyarrow as pa
import pytest

from neuroranker_pipeline.evaluation.evaluation import Evaluation, evaluate
from neuroranker_pipeline.evaluation.groups import query_groups

SKILL = {
    "BM25": 0.5,
    "base student": 1.0,
    "teacher": 1.2,
    "student": 2.2,
    "hard-label control": 2.1,
    "student ONNX": 2.2,
    "student int8": 2.15,
}


def make_runs(queries: int = 60, depth: int = 20) -> tuple[dict[str, pa.Table], pa.Table]:
    """Runs over the same candidates, where the relevant passage gains by each ranker's skill; a quarter lack it."""
    rng = np.random.default_rng(0)
    qids = [f"q{i:03d}" for i in range(queries)]
    relevant = [f"q{i:03d}-p{rng.integers(0, depth * 4 // 3):02d}" for i in range(queries)]
    noise = rng.normal(size=(queries, depth))
    pids = [[f"{qid}-p{j:02d}" for j in range(depth)] for qid in qids]
    runs = {}
    for name, skill in SKILL.items():
        gain = np.array([[skill * (pid == wanted) for pid in row] for row, wanted in zip(pids, relevant, strict=True)])
        scores = noise + gain + (name != "BM25") * rng.normal(0, 0.8, noise.shape)
        runs[name] = pa.table(
            {
                "qid": [qid for qid in qids for _ in range(depth)],
                "pid": [pid for row in pids for pid in row],
                "score": pa.array(scores.ravel(), pa.float32()),
            }
        )
    grades = pa.array([1] * queries, pa.int32())
    return runs, pa.table({"qid": qids, "pid": relevant, "grade": grades})


@pytest.fixture(scope="session")
def runs_and_qrels() -> tuple[dict[str, pa.Table], pa.Table]:
    return make_runs()


TEXTS = {f"q{i:03d}": ("parse_args " if i % 3 == 0 else "what is ") + "a word " * (i % 4) for i in range(60)}


@pytest.fixture(scope="session")
def evaluation(runs_and_qrels) -> Evaluation:
    return evaluate(*runs_and_qrels, groups=query_groups(TEXTS))
