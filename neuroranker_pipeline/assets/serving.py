"""The packaged service."""

from __future__ import annotations

import json
import shutil

from neuroranker_pipeline.assets.corpus import passages, queries
from neuroranker_pipeline.assets.evaluation import eval_report
from neuroranker_pipeline.assets.export import student_onnx_int8
from neuroranker_pipeline.assets.lake_asset import Needs, lake_asset
from neuroranker_pipeline.assets.retrieval import bm25_candidates
from neuroranker_pipeline.assets.step import Step
from neuroranker_pipeline.assets.training import texts_for
from neuroranker_pipeline.checks import serving as checks
from neuroranker_pipeline.datasets.tables import read_table

ASKED = 20  # passages that the built Bento re-ranks before it is published
BENTO = "bento"  # the Bento's folder in the artifact
BENTO_INFO = "bento.json"


@lake_asset(
    group="serving",
    kinds={"bentoml"},
    needs=[student_onnx_int8, eval_report, Needs(bm25_candidates, "dev"), passages, queries],
    settings=["bento"],
    checks=[checks.bento_answers_correctly],
    by_content=False,
)
def ranker_bento(step: Step) -> None:
    """The int8 student as a Bento, asked once over HTTP; published to the user's BentoML store if it answered rightly."""
    from neuroranker_pipeline.serving.engine import OnnxEncoder, Reranker
    from neuroranker_pipeline.serving.packaging import build_bento, publish_bento, served_order

    model = step.read("student_onnx_int8")
    store = step.work / "store"  # not the user's: an unchecked Bento must never be the latest there
    shutil.rmtree(store, ignore_errors=True)
    labels = {"profile": step.settings.profile, "student": step.manifest("student_onnx_int8").version}
    bento = build_bento(model, step.read("eval_report"), step.settings.bento.name, None, labels, store)

    candidates = read_table(step.read("bm25_candidates", "dev")).slice(0, ASKED)
    asked = candidates.filter([qid == candidates["qid"][0].as_py() for qid in candidates["qid"].to_pylist()])
    texts, found = texts_for(step, asked)
    query, documents = next(iter(texts.values())), [found[pid] for pid in asked["pid"].to_pylist()]
    expected = [index for index, _ in Reranker(OnnxEncoder(model)).rerank(query, documents)]
    outcome = checks.bento_answers_correctly(served_order(bento.path, query, documents), expected)
    step.check(outcome)
    shutil.copytree(bento.path, step.out / BENTO)
    (step.out / BENTO_INFO).write_text(json.dumps({"tag": bento.tag}))
    step.metadata["tag"] = bento.tag
    if outcome.passed:
        publish_bento(bento.path)
