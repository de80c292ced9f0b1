"""The asset graph. ``ASSETS`` lists it in an order in which every asset follows all that it needs."""

from neuroranker_pipeline.assets.corpus import given_candidates, passages, qrels, queries
from neuroranker_pipeline.assets.evaluation import eval_report
from neuroranker_pipeline.assets.export import student_onnx, student_onnx_int8
from neuroranker_pipeline.assets.lake_asset import LakeAsset
from neuroranker_pipeline.assets.release import gate_evaluation, release_decision
from neuroranker_pipeline.assets.retrieval import bm25_candidates, bm25_parameters, lucene_index
from neuroranker_pipeline.assets.serving import ranker_bento, ranker_release
from neuroranker_pipeline.assets.student import passage_embeddings, student_checkpoint, student_control
from neuroranker_pipeline.assets.teacher import base_embeddings, base_scores, teacher_checkpoint, teacher_scores
from neuroranker_pipeline.assets.unjudged import unjudged_queries

ASSETS: tuple[LakeAsset, ...] = (
    passages,
    queries,
    qrels,
    given_candidates,
    unjudged_queries,
    lucene_index,
    bm25_parameters,
    bm25_candidates,
    base_embeddings,
    base_scores,
    teacher_checkpoint,
    teacher_scores,
    student_checkpoint,
    student_control,
    passage_embeddings,
    student_onnx,
    student_onnx_int8,
    eval_report,
    gate_evaluation,
    release_decision,
    ranker_bento,
    ranker_release,
)
