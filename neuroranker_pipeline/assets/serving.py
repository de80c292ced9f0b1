"""The packaged service."""

from __future__ import annotations

import shutil

import pyarrow.compute as pc

from neuroranker_pipeline.assets.corpus import passages, queries
from neuroranker_pipeline.assets.evaluation import eval_report
from neuroranker_pipeline.assets.export import student_onnx_int8
from neuroranker_pipeline.assets.lake_asset import Needs, lake_asset
from neuroranker_pipeline.assets.retrieval import bm25_candidates
from neuroranker_pipeline.assets.step import Step
from neuroranker_pipeline.assets.training import texts_for
from neuroranker_pipeline.checks import serving as checks
from neuroranker_pipeline.datasets.tables import read_table
from neuroranker_pipeline.resources.lake import Lake

ASKED = 20  # passages that the built Bento re-ranks before it is published
ARCHIVE = "ranker.tar"  # not compressed: weights hardly shrink, and BentoML's own format takes half a minute
TAG_FILE = "tag.txt"
REPORT_FILES = ("report.html", "report.md", "report.json")  # of the evaluation; the runs stay in the lake


@lake_asset(
    group="serving",
    kinds={"bentoml"},
    needs=[student_onnx_int8, Needs(eval_report, "all"), Needs(bm25_candidates, "dev"), passages, queries],
    settings=["bento"],
    checks=[checks.bento_answers_correctly],
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
    bento = build_bento(model, report, step.settings.bento.name, None, labels, store)
    export_bento(bento, step.out / ARCHIVE, store)
    (step.out / TAG_FILE).write_text(bento.tag)
    step.metadata["tag"] = bento.tag

    query, documents = _question(step)
    expected = [index for index, _ in Reranker(OnnxEncoder(model)).rerank(query, documents)]
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


def _question(step: Step) -> tuple[str, list[str]]:
    """A dev query and its first candidates."""
    candidates = read_table(step.read("bm25_candidates", "dev"))
    asked = candidates.filter(pc.equal(candidates["qid"], candidates["qid"][0])).slice(0, ASKED)
    texts, found = texts_for(step, asked)
    return next(iter(texts.values())), [found[pid] for pid in asked["pid"].to_pylist()]
