"""The release gate: what search ships against BM25, the base student and the best release, on queries of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.assets.columns import Columns
from neuroranker_pipeline.assets.corpus import passages, qrels, queries
from neuroranker_pipeline.assets.evaluation import eval_report
from neuroranker_pipeline.assets.export import student_onnx_int8
from neuroranker_pipeline.assets.lake_asset import Needs, lake_asset
from neuroranker_pipeline.assets.retrieval import bm25_candidates
from neuroranker_pipeline.assets.step import Step
from neuroranker_pipeline.assets.student import passage_embeddings
from neuroranker_pipeline.assets.teacher import base_scores
from neuroranker_pipeline.assets.training import texts_for
from neuroranker_pipeline.checks import release as checks
from neuroranker_pipeline.datasets.shards import judgments_of, queries_of_shard
from neuroranker_pipeline.datasets.tables import RANKER_VALUES, read_table, write_table
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.evaluation.rankers import BASE, FIRST_STAGE, INT8, SEARCH
from neuroranker_pipeline.resources.lake import label
from neuroranker_pipeline.resources.releases import MODEL, Override, Registry, Release, person
from neuroranker_pipeline.resources.workspace import Workspace

if TYPE_CHECKING:
    from neuroranker_pipeline.evaluation.release import Decision

GATE: Final = "gate"
OVERRIDE_TAG = "neuroranker/override"  # on a run of release_decision: the reason why its model may pass
DECISION, REPORT, MEASURED = "decision.json", "decision.md", "releases.json"
PASSED, OVERRIDDEN, BLOCKED = "released", "released by a person's override", "blocked"


def _releases(workspace: Workspace) -> dict[str, str]:
    """The releases that are measured beside the int8 student, as inputs: their models."""
    model = workspace.lake.usable(student_onnx_int8.name).data_version
    return {f"release {one.number}": one.model for one in Registry(workspace.lake).measured_for(model)}


@lake_asset(
    group="evaluation",
    kinds={"parquet"},
    needs=[
        Needs(bm25_candidates, GATE),
        Needs(base_scores, GATE),
        Needs(passage_embeddings, "all"),
        student_onnx_int8,
        passages,
        queries,
        qrels,
    ],
    settings=["release.measure", "relevance_levels"],
    checks=[checks.gate_is_measured],
    columns=Columns(
        RANKER_VALUES,
        {
            "qid": "queries.qid",
            "value": "qrels.grade bm25_candidates.pid base_scores.score passage_embeddings.embedding",
        },
    ),
    code_version="2",
    also_from=_releases,
)
def gate_evaluation(step: Step) -> None:
    """BM25, the base student, the int8 student, what search makes of it and the releases that are kept on the gate split,
    per query: ranker, measure, qid, value."""
    from neuroranker_pipeline.datasets.trec import write_run
    from neuroranker_pipeline.evaluation.measures import DEFAULT_MEASURES
    from neuroranker_pipeline.evaluation.release import gate_values

    asked = queries_of_shard(read_table(step.read("queries")), GATE, step.settings.shards.train_queries)
    judged = judgments_of(read_table(step.read("qrels")), asked["qid"].to_pylist())
    if not judged.num_rows:
        raise BadInput("no query of the gate split is judged, so no model can be released: see docs/releases.md")
    runs = _runs(step)
    measure = step.settings.release.measure
    measures = list(dict.fromkeys([measure, *DEFAULT_MEASURES]))
    values = gate_values(runs, judged, measures, step.settings.data.relevant_from(GATE))
    step.record(write_table(step.out, values, RANKER_VALUES))
    (step.out / "runs").mkdir()
    for name, run in runs.items():
        write_run(run, step.out / "runs" / f"{name.replace(' ', '-')}.trec", tag=name.replace(" ", "-"))
    means = values.group_by(["ranker", "measure"]).aggregate([("value", "mean")]).to_pylist()
    step.record(**{f"{GATE}/{row['ranker']}/{row['measure']}": row["value_mean"] for row in means})
    queries_judged = len(set(judged["qid"].to_pylist()))
    step.check(checks.gate_is_measured(queries_judged, len(runs), values.num_rows // len(measures)))


def _runs(step: Step) -> dict[str, pa.Table]:
    """Every ranker's run over the gate's candidates, by the code that the report measures with."""
    from neuroranker_pipeline.evaluation.release import release_name
    from neuroranker_pipeline.ranking.embeddings import rank_by_cosine, read_embeddings
    from neuroranker_pipeline.ranking.interpolation import search_run
    from neuroranker_pipeline.serving.onnx_model import OnnxEncoder

    candidates, model = read_table(step.read("bm25_candidates", GATE)), step.read("student_onnx_int8")
    texts, found = texts_for(step, candidates)
    stored = read_embeddings(step.read_all("passage_embeddings"), pc.unique(candidates["pid"]))
    runs = {
        FIRST_STAGE: candidates,
        BASE: read_table(step.read("base_scores", GATE)),
        INT8: rank_by_cosine(candidates, texts, found, OnnxEncoder(model)),
        SEARCH: search_run(candidates, texts, model, stored),
    }
    measured = step.releases.measured_for(step.manifest("student_onnx_int8").data_version)
    kept = [one for one in measured if step.releases.kept(one.number)]
    for done, release in enumerate(kept):
        step.progress("measuring releases", done, len(kept))
        runs[release_name(release.number)] = _run_of_release(step.releases, release, candidates, texts, found)
    _write_measured(step, measured, kept)
    return runs


def _run_of_release(
    registry: Registry, release: Release, candidates: pa.Table, texts: Mapping[str, str], found: Mapping[str, str]
) -> pa.Table:
    """What the search of a release gives for today's candidates, by its int8 model and its weight of BM25's score. The
    vectors that its Bento stores are of its own time's passages, so the int8 model encodes today's."""
    from neuroranker_pipeline.ranking.embeddings import encode_texts
    from neuroranker_pipeline.ranking.interpolation import search_run
    from neuroranker_pipeline.serving.onnx_model import OnnxEncoder

    model = registry.open(release.number) / MODEL
    pids = pc.unique(candidates["pid"]).to_pylist()
    return search_run(candidates, texts, model, encode_texts(found, pids, OnnxEncoder(model), "pid"))


def _write_measured(step: Step, measured: Sequence[Release], kept: Sequence[Release]) -> None:
    """Keep which releases were asked for, and what is known of those that are kept."""
    known = {
        str(one.number): {"release": one.number, "tag": one.tag, "model": one.model, "figures": dict(one.figures)}
        for one in kept
    }
    about = {"measured": [one.number for one in measured], "kept": known}
    (step.out / MEASURED).write_text(json.dumps(about, indent=2), "utf-8")


@lake_asset(
    group="serving",
    kinds={"json", "markdown"},
    needs=[gate_evaluation, student_onnx_int8, Needs(eval_report, "all")],
    settings=[
        "release.measure",
        "release.alpha",
        "release.over_bm25",
        "release.loss_to_base",
        "release.loss_to_release",
        "seed",
    ],
    checks=[checks.search_beats_bm25, checks.search_not_worse_than_base, checks.search_not_worse_than_best_release],
    code_version="2",
)
def release_decision(step: Step) -> None:
    """Whether what search ships may be released, decided on the gate split alone, with the evidence.

    A person can let exactly this model through: ``neuroranker release --override REASON``, or a run of this asset with the
    tag ``neuroranker/override: REASON``. The reason is recorded with the release.
    """
    from neuroranker_pipeline.evaluation.release import decide, vectors_of

    rules, folder = step.settings.release, step.read("gate_evaluation")
    decision = decide(
        vectors_of(read_table(folder), rules.measure),
        rules.measure,
        rules.alpha,
        rules.over_bm25,
        rules.loss_to_base,
        rules.loss_to_release,
        step.settings.seed,
    )
    override = None if decision.passed else _override(step, step.manifest("student_onnx_int8").data_version)
    _write(step, decision, json.loads((folder / MEASURED).read_text("utf-8")), override)
    step.record(**{f"{GATE}/over {test.against}": test.difference for test in decision.tests})
    step.check(checks.search_beats_bm25(decision.test_against(FIRST_STAGE), override))
    step.check(checks.search_not_worse_than_base(decision.test_against(BASE), override))
    step.check(checks.search_not_worse_than_best_release(decision.test_against_release(), override))


def _write(step: Step, decision: Decision, releases: Mapping[str, Any], override: Override | None) -> None:
    """Keep the decision with its evidence: for programs, for people, and in the UI."""
    from neuroranker_pipeline.evaluation.release_report import render_decision

    outcome = PASSED if decision.passed else OVERRIDDEN if override else BLOCKED
    best = releases["kept"].get(str(decision.best_release))
    elsewhere = _on_tests(step, best)
    record = {
        "outcome": outcome,
        "model": step.manifest("student_onnx_int8").data_version,
        "compared_with": best,
        "measured": releases["measured"],
        "override": asdict(override) if override else None,
        **decision.to_dict(),
        "test": elsewhere,
    }
    (step.out / DECISION).write_text(json.dumps(record, indent=2), "utf-8")
    named = f"release {best['release']}, the best that is kept" if best else ""
    why = f"{override.reason} ({override.who}, {override.at})" if override else ""
    gone = [number for number in releases["measured"] if str(number) not in releases["kept"]]
    report = render_decision(decision, outcome, named, why, elsewhere, gone)
    (step.out / REPORT).write_text(report, "utf-8")
    step.show("decision", report)


def _override(step: Step, model: str) -> Override | None:
    """A person's word for exactly this model: given now with the run, or recorded before.

    Raises ``BadInput`` for a word on a model that the gate has not blocked before: nobody can have read its evidence.
    """
    recorded, reason = step.releases.history().override_of(model), step.tag(OVERRIDE_TAG)
    if recorded or not reason:
        return recorded
    judged = step.releases.lake.manifest(release_decision.name)
    if judged is None or not judged.failed_checks or judged.inputs[student_onnx_int8.name] != model:
        raise BadInput(f"{OVERRIDE_TAG}: the gate has not judged this model yet; run without it, and read the decision")
    return step.releases.let_through(model, reason, person(), step.run_id)


def _on_tests(step: Step, best: Mapping[str, Any] | None) -> dict[str, dict[str, float]]:
    """The measure on the test splits, for the rankers that the gate compares; the best release's is of its own time."""
    from neuroranker_pipeline.evaluation.release import release_name

    measure, found = step.settings.release.measure, {}
    for split in map(str, step.settings.data.test_splits):
        figures = step.manifest(label(eval_report.name, split)).figures
        named = {name: figures.get(f"{name}/{measure}") for name in (FIRST_STAGE, BASE, INT8, SEARCH)}
        if best:
            named[release_name(best["release"])] = best["figures"].get(f"{split}/{measure}")
        found[split] = {name: value for name, value in named.items() if value is not None}
    return found
