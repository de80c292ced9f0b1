"""The packaged service."""

from __future__ import annotations

from neuroranker_pipeline.assets.corpus import passages, queries
from neuroranker_pipeline.assets.evaluation import eval_report
from neuroranker_pipeline.assets.export import student_onnx_int8
from neuroranker_pipeline.assets.lake_asset import Needs, lake_asset
from neuroranker_pipeline.assets.retrieval import bm25_candidates
from neuroranker_pipeline.assets.step import Step
from neuroranker_pipeline.assets.training import texts_for
from neuroranker_pipeline.checks import serving as checks
from neuroranker_pipeline.datasets.tables import read_table


@lake_asset(
    group="serving",
    kinds={"bentoml"},
    needs=[student_onnx_int8, eval_report, Needs(bm25_candidates, "dev"), passages, queries],
    settings=["bento"],
    checks=[checks.bento_answers_correctly],
    by_content=False,
)
def ranker_bento(step: Step) -> None:
    """The Bento in the user's BentoML store: the int8 student, its tokenizer and the report, ready to serve."""
