"""The packaged service."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import pyarrow.compute as pc

from neuroranker_pipeline.assets.corpus import passages, queries
from neuroranker_pipeline.assets.evaluation import eval_report
from neuroranker_pipeline.assets.export import student_onnx_int8
from neuroranker_pipeline.assets.lake_asset import LakeAsset, Needs, lake_asset
from neuroranker_pipeline.assets.policies import WEEKLY
from neuroranker_pipeline.assets.release import DECISION, GATE, REPORT, release_decision
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
from neuroranker_pipeline.checks import release as release_checks
from neuroranker_pipeline.checks import serving as checks
from neuroranker_pipeline.config.settings import Settings
from neuroranker_pipeline.datasets.joined import MAIN
from neuroranker_pipeline.datasets.tables import read_table
from neuroranker_pipeline.resources.releases import ARCHIVE, MODEL, Override, Release, now, person

ASKED = 20  # passages that the built Bento re-ranks before it is published
TAG_FILE = "tag.txt"
CARD = "README.md"
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
        release_decision,
        Needs(eval_report, "all"),
        Needs(bm25_candidates, "dev"),
        passages,
        queries,
        *(Needs(asset, shards, _searchable) for asset, shards in SEARCHED),
    ],
    settings=["bento", *ANALYZER],
    checks=[checks.bento_answers_correctly],
    code_version="3",
    by_content=False,
    freshness=WEEKLY,
)
def ranker_bento(step: Step) -> None:
    """The search that passed the gate and its int8 student, as a Bento that was started and asked.

    The artifact is the exported Bento: ``bentoml import`` puts it into any store.
    """
    from neuroranker_pipeline.serving.engine import Reranker
    from neuroranker_pipeline.serving.onnx_model import OnnxEncoder
    from neuroranker_pipeline.serving.packaging import build_bento, export_bento, served_order

    model = step.read("student_onnx_int8")
    shutil.rmtree(step.work)
    store = step.work / "store"  # not the user's, where an unchecked Bento would be the latest
    report = step.work / "report"
    for split in eval_report.partitions(step.settings):
        (report / str(split)).mkdir(parents=True)
        for name in REPORT_FILES:
            shutil.copyfile(step.read("eval_report", split) / name, report / str(split) / name)
    for name in (DECISION, REPORT):
        shutil.copyfile(step.read("release_decision") / name, report / name)
    collection = _collection(step, model) if step.settings.bento.search else None
    card = _card(step, model)
    bento = build_bento(model, report, step.settings.bento.name, None, _labels(step), store, collection, card)
    export_bento(bento, step.out / ARCHIVE, store)
    (step.out / TAG_FILE).write_text(bento.tag)
    step.metadata["tag"] = bento.tag

    query, documents = _question(step)
    with closing(Reranker(OnnxEncoder(model))) as reranker:
        expected = [ranked.index for ranked in reranker.rerank(query, documents).results]
    step.check(checks.bento_answers_correctly(served_order(bento.path, query, documents), expected))


@lake_asset(
    group="serving",
    kinds={"bentoml"},
    needs=[ranker_bento, release_decision, student_onnx_int8],
    checks=[release_checks.was_not_rolled_back, release_checks.release_is_latest],
)
def ranker_release(step: Step) -> None:
    """The Bento as a numbered release: kept in the lake's ``releases``, and the latest of its name in the BentoML store.

    ``neuroranker rollback`` puts the one before back. A model that was rolled back is not released again.
    """
    from neuroranker_pipeline.serving.store import latest_tag

    bento, model = step.manifest("ranker_bento"), step.manifest("student_onnx_int8").data_version
    withdrawn = release_checks.was_not_rolled_back(step.releases.history().withdrawal(model))
    step.check(withdrawn)
    tag = (step.read("ranker_bento") / TAG_FILE).read_text()
    step.metadata["tag"] = tag
    if withdrawn.passed:
        release = _release(step, tag, bento.data_version, model)
        step.releases.serve(release.number)
        step.metadata["release"] = release.number
        step.record(release=release.number)
    step.check(release_checks.release_is_latest(latest_tag(step.settings.bento.name), tag))
    (step.out / TAG_FILE).write_text(tag)


def _release(step: Step, tag: str, bento: str, model: str) -> Release:
    """Add this Bento to the registry: with its model, which later ones are compared with, and its decision."""
    from neuroranker_pipeline.evaluation.rankers import INT8, SEARCH

    folder, decided = step.read("release_decision"), _decision(step)
    best, measure = decided["compared_with"], decided["measure"]
    figures = {f"{GATE}/{ranker}/{measure}": value for ranker, value in decided["means"].items()}
    figures |= {
        f"{split}/{measure}": value
        for split, found in decided["test"].items()
        if (value := found.get(SEARCH, found.get(INT8))) is not None
    }
    release = Release(
        number=0,  # the registry's to give
        tag=tag,
        model=model,
        bento=bento,
        who=person(),
        at=now(),
        compared_with=best["release"] if best else None,
        figures=figures,
        override=Override(**decided["override"]) if decided["override"] else None,
        measured=tuple(decided["measured"]),
        evidence=decided["evidence"],
    )
    files = {ARCHIVE: step.read("ranker_bento") / ARCHIVE, MODEL: step.read("student_onnx_int8")}
    files |= {name: folder / name for name in (DECISION, REPORT)}
    return step.releases.add(release, files, step.run_id, step.settings.release.keep)


def _decision(step: Step) -> dict[str, Any]:
    return json.loads((step.read("release_decision") / DECISION).read_text("utf-8"))


def _labels(step: Step) -> dict[str, str]:
    """What a person who finds the Bento in a store can read off it: what it is, and on whose word."""
    decided, student = _decision(step), step.manifest("student_onnx_int8")
    labels = {"profile": step.settings.profile, "student": student.version, "model": student.data_version}
    override = {f"override_{key}": decided["override"][key] for key in ("reason", "who", "at") if decided["override"]}
    return {**labels, "gate": decided["outcome"], "evidence": decided["evidence"], **override}


def _card(step: Step, model: Path) -> Path:
    """The student's card, and how far the exported model adds BM25's score."""
    from neuroranker_pipeline.ranking.interpolation import card_section

    out = step.work / CARD
    out.write_text(f"{(step.read('student_checkpoint') / CARD).read_text('utf-8')}\n{card_section(model)}", "utf-8")
    return out


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
