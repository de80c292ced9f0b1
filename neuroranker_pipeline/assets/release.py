"""The release gate: the int8 student against BM25, the base student and the last release, on queries of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from neuroranker_pipeline.assets.columns import Columns
from neuroranker_pipeline.assets.corpus import passages, qrels, queries
from neuroranker_pipeline.assets.evaluation import eval_report
from neuroranker_pipeline.assets.export import student_onnx_int8
from neuroranker_pipeline.assets.lake_asset import Needs, lake_asset
from neuroranker_pipeline.assets.retrieval import bm25_candidates
from neuroranker_pipeline.assets.step import Step
from neuroranker_pipeline.assets.teacher import base_scores
from neuroranker_pipeline.assets.training import texts_for
from neuroranker_pipeline.checks import release as checks
from neuroranker_pipeline.datasets.shards import judgments_of, queries_of_shard
from neuroranker_pipeline.datasets.tables import RANKER_VALUES, read_table, write_table
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.resources.lake import label
from neuroranker_pipeline.resources.releases import MODEL, Override, Registry, person
from neuroranker_pipeline.resources.workspace import Workspace

if TYPE_CHECKING:
    from neuroranker_pipeline.evaluation.release import Decision

GATE: Final = "gate"
OVERRIDE_TAG = "neuroranker/override"  # on a run of release_decision: the reason why its model may pass
DECISION, REPORT, REFERENCE = "decision.json", "decision.md", "reference.json"
PASSED, OVERRIDDEN, BLOCKED = "released", "released by a person's override", "blocked"


def _last_release(workspace: Workspace) -> dict[str, str]:
    """The release that the int8 student is compared with, as an input: its model."""
    model = workspace.lake.usable(student_onnx_int8.name).data_version
    reference = Registry(workspace.lake).history().reference_for(model)
    return {f"release {reference.number}": reference.model} if reference else {}


@lake_asset(
    group="evaluation",
    kinds={"parquet"},
    needs=[
        Needs(bm25_candidates, GATE),
        Needs(base_scores, GATE),
        student_onnx_int8,
        passages,
        queries,
        qrels,
    ],
    settings=["release.measure"],
    checks=[checks.gate_is_measured],
    columns=Columns(
        RANKER_VALUES, {"qid": "queries.qid", "value": "qrels.grade bm25_candidates.pid base_scores.score"}
    ),
    also_from=_last_release,
)
def gate_evaluation(step: Step) -> None:
    """BM25, the base student, the int8 student and the last released model on the gate split, per query: ranker, measure,
    qid, value."""
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
    values = gate_values(runs, judged, measures, step.settings.data.relevance_level(GATE))
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
    from neuroranker_pipeline.evaluation.release import BASE, CANDIDATE, FIRST_STAGE, LAST_RELEASE
    from neuroranker_pipeline.ranking.embeddings import rank_by_cosine
    from neuroranker_pipeline.serving.onnx_model import OnnxEncoder

    candidates = read_table(step.read("bm25_candidates", GATE))
    texts, found = texts_for(step, candidates)
    models = {CANDIDATE: step.read("student_onnx_int8")}
    reference = step.releases.history().reference_for(step.manifest("student_onnx_int8").data_version)
    known = None
    if reference is not None:
        models[LAST_RELEASE] = step.releases.open(reference.number) / MODEL
        known = {
            "release": reference.number,
            "tag": reference.tag,
            "model": reference.model,
            "figures": reference.figures,
        }
    (step.out / REFERENCE).write_text(json.dumps(known, indent=2), "utf-8")
    runs = {FIRST_STAGE: candidates, BASE: read_table(step.read("base_scores", GATE))}
    for done, (name, model) in enumerate(models.items()):
        step.progress("measuring at the gate", done, len(models))
        runs[name] = rank_by_cosine(candidates, texts, found, OnnxEncoder(model))
    return runs


@lake_asset(
    group="serving",
    kinds={"json", "markdown"},
    needs=[gate_evaluation, student_onnx_int8, Needs(eval_report, "all")],
    settings=["release.measure", "release.alpha", "release.over_bm25", "release.tolerated_loss", "seed"],
    checks=[checks.int8_beats_bm25, checks.int8_not_worse_than_base, checks.int8_not_worse_than_last_release],
)
def release_decision(step: Step) -> None:
    """Whether the int8 student may be released, decided on the gate split alone, with the evidence.

    A person can let exactly this model through: ``neuroranker release --override REASON``, or a run of this asset with the
    tag ``neuroranker/override: REASON``. The reason is recorded with the release.
    """
    from neuroranker_pipeline.evaluation.release import BASE, FIRST_STAGE, LAST_RELEASE, decide, vectors_of

    rules, model = step.settings.release, step.manifest("student_onnx_int8").data_version
    folder = step.read("gate_evaluation")
    reference = json.loads((folder / REFERENCE).read_text("utf-8"))
    values = vectors_of(read_table(folder), rules.measure)
    decision = decide(values, rules.measure, rules.alpha, rules.over_bm25, rules.tolerated_loss, step.settings.seed)
    override = None if decision.passed else _override(step, model)
    _write(step, decision, model, reference, override)
    step.record(**{f"{GATE}/over {test.against}": test.difference for test in decision.tests})
    step.check(checks.int8_beats_bm25(decision.test_against(FIRST_STAGE), override))
    step.check(checks.int8_not_worse_than_base(decision.test_against(BASE), override))
    step.check(checks.int8_not_worse_than_last_release(decision.test_against(LAST_RELEASE), override))


def _write(
    step: Step, decision: Decision, model: str, reference: Mapping[str, Any] | None, override: Override | None
) -> None:
    """Keep the decision with its evidence: for programs, for people, and in the UI."""
    from neuroranker_pipeline.evaluation.release import render_decision

    outcome = PASSED if decision.passed else OVERRIDDEN if override else BLOCKED
    elsewhere = _on_tests(step, reference)
    record = {
        "outcome": outcome,
        "model": model,
        "compared_with": reference,
        "override": asdict(override) if override else None,
        **decision.to_dict(),
        "test": elsewhere,
    }
    (step.out / DECISION).write_text(json.dumps(record, indent=2), "utf-8")
    named = f"last release ({reference['release']})" if reference else ""
    why = f"{override.reason} ({override.who}, {override.at})" if override else ""
    report = render_decision(decision, outcome, named, why, elsewhere)
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


def _on_tests(step: Step, reference: Mapping[str, Any] | None) -> dict[str, dict[str, float]]:
    """The measure on the test splits, for the rankers that the gate compares; the last release's is of its own time."""
    from neuroranker_pipeline.evaluation.release import BASE, CANDIDATE, FIRST_STAGE, LAST_RELEASE

    measure, found = step.settings.release.measure, {}
    for split in map(str, eval_report.partitions(step.settings)):
        figures = step.manifest(label(eval_report.name, split)).figures
        named = {name: figures.get(f"{name}/{measure}") for name in (FIRST_STAGE, BASE, CANDIDATE)}
        named[LAST_RELEASE] = reference["figures"].get(f"{split}/{measure}") if reference else None
        found[split] = {name: value for name, value in named.items() if value is not None}
    return found
