"""The packaged service."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path
from typing import Literal

import pyarrow.compute as pc

from neuroranker_pipeline.assets.corpus import passages, queries
from neuroranker_pipeline.assets.evaluation import eval_report
from neuroranker_pipeline.assets.export import student_onnx_int8
from neuroranker_pipeline.assets.lake_asset import LakeAsset, Needs, lake_asset
from neuroranker_pipeline.assets.retrieval import (
    ANALYZER,
    bm25_candidates,
    bm25_parameters,
    lucene_index,
    passages_of,
    tuned_parameters,
)
from neuroranker_pipeline.assets.step import Step
from neuroranker_pipeline.assets.student import passage_embeddings, student_checkpoint
from neuroranker_pipeline.assets.training import texts_for
from neuroranker_pipeline.checks import serving as checks
from neuroranker_pipeline.config.settings import Settings
from neuroranker_pipeline.datasets.joined import MAIN
from neuroranker_pipeline.datasets.tables import read_table
from neuroranker_pipeline.resources.lake import Lake

ASKED = 20  # passages that the built Bento re-ranks before it is published
ARCHIVE = "ranker.tar"  # not compressed: weights hardly shrink, and BentoML's own format takes half a minute
TAG_FILE = "tag.txt"
REPORT_FILES = ("report.html", "report.md", "report.json")  # of the evaluation; the runs stay in the lake
SEARCHED: tuple[tuple[LakeAsset, Literal["all"] | None], ...] = (
    (lucene_index, None),
    (bm25_parameters, None),
    (passage_embeddings, "all"),
)


def _searchable(settings: Settings) -> bool:
    return settings.bento.search


@lake_asset(
    group="serving",
    kinds={"bentoml"},
    needs=[
        student_checkpoint,
        student_onnx_int8,
        Needs(eval_report, "all"),
        Needs(bm25_candidates, "dev"),
        passages,
        queries,
        *(Needs(asset, shards, _searchable) for asset, shards in SEARCHED),
    ],
    settings=["bento", *ANALYZER],
    checks=[checks.bento_answers_correctly],
    code_version="2",
    by_content=False,
)
def ranker_bento(step: Step) -> None:
    """The int8 student as a Bento that was started and asked; published to the user's BentoML store if it answered right.

    The artifact is the exported Bento: ``bentoml import`` puts it into any other store.
    """
    from neuroranker_pipeline.serving.engine import OnnxEncoder, Reranker
    from neuroranker_pipeline.serving.packaging import build_bento, export_bento, import_bento, served_order

    model = step.read("student_onnx_int8")
    shutil.rmtree(step.work)
    store = step.work / "store"  # not the user's, where an unchecked Bento would be the latest
    labels = {"profile": step.settings.profile, "student": step.manifest("student_onnx_int8").version}
    report = step.work / "report"
    for split in eval_report.partitions(step.settings):
        (report / str(split)).mkdir(parents=True)
        for name in REPORT_FILES:
            shutil.copyfile(step.read("eval_report", split) / name, report / str(split) / name)
    collection = _collection(step, model) if step.settings.bento.search else None
    card = step.read("student_checkpoint") / "README.md"
    bento = build_bento(model, report, step.settings.bento.name, None, labels, store, collection, card)
    export_bento(bento, step.out / ARCHIVE, store)
    (step.out / TAG_FILE).write_text(bento.tag)
    step.metadata["tag"] = bento.tag

    query, documents = _question(step)
    with closing(Reranker(OnnxEncoder(model))) as reranker:
        expected = [ranked.index for ranked in reranker.rerank(query, documents).results]
    answered = checks.bento_answers_correctly(served_order(bento.path, query, documents), expected)
    step.check(answered)
    if answered.passed:
        import_bento(step.out / ARCHIVE, bento.tag)


def publish_again(lake: Lake) -> str | None:
    """Put the current Bento back into the user's store if it was lost from there; returns its tag if so."""
    from neuroranker_pipeline.serving.packaging import import_bento

    folder = lake.read(ranker_bento.name)
    tag = (folder / TAG_FILE).read_text()
    return tag if import_bento(folder / ARCHIVE, tag) else None


def _collection(step: Step, model: Path) -> Path:
    """What the Bento searches: the main collection's index, texts, and vectors, which are of the student that ``model``
    was made from, or the step would not have started."""
    from neuroranker_pipeline.serving.collection import write_collection

    out, folder = step.work / "collection", step.read("passages")
    bm25 = tuned_parameters(step.settings.bm25, step.read("bm25_parameters"))
    embeddings, index = step.read_all("passage_embeddings"), step.read("lucene_index") / MAIN
    step.record(write_collection(out, lambda: passages_of(folder, MAIN, step.settings), embeddings, index, model, bm25))
    return out


def _question(step: Step) -> tuple[str, list[str]]:
    """A dev query and its first candidates."""
    candidates = read_table(step.read("bm25_candidates", "dev"))
    asked = candidates.filter(pc.equal(candidates["qid"], candidates["qid"][0])).slice(0, ASKED)
    texts, found = texts_for(step, asked)
    return next(iter(texts.values())), [found[pid] for pid in asked["pid"].to_pylist()]
