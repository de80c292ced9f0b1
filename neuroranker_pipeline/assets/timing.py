"""How long the rankers of the chain take, for the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neuroranker_pipeline.assets.step import Step

if TYPE_CHECKING:
    from neuroranker_pipeline.evaluation.latency import Latency
    from neuroranker_pipeline.ranking.embeddings import Encoder

SAME_COST = {"base student": "student", "hard-label control": "student"}

Score = Callable[[str, list[str]], np.ndarray]


def latencies(
    step: Step, asked: list[tuple[str, list[str]]], student: Encoder, exports: Mapping[str, Encoder]
) -> dict[str, Latency]:
    """The time of a query of up to 100 candidates, by ranker: the student in PyTorch, the cascades over it of the teacher
    and of its best cross-encoder, and the exports. ``SAME_COST`` names those that compute what another does, with other
    weights, and are not timed apart.
    """
    from neuroranker_pipeline.evaluation.latency import time_rerank

    if not asked:
        return {}
    best, members = _teacher(step)
    scorers = {"student": _cosines(student), **{name: _cosines(encoder) for name, encoder in exports.items()}}
    for name, scored_by in (("cross-encoder", [best]), ("teacher", members)):
        scorers[name] = _cascade(scorers["student"], scored_by, step.settings.cascade_depth)
    timed = {}
    for done, (name, score) in enumerate(scorers.items()):
        step.progress("timing rankers", done, len(scorers))
        timed[name] = time_rerank(score, asked, step.settings.timing_seconds)
    return {**timed, **{name: timed[as_long] for name, as_long in SAME_COST.items()}}


def _cosines(encoder: Encoder) -> Score:
    return lambda query, passages: encoder.encode(passages) @ encoder.encode([query])[0]


def _cascade(first: Score, members: Sequence[Score], depth: int) -> Score:
    def score(query: str, passages: list[str]) -> np.ndarray:
        best = [passages[i] for i in np.argsort(first(query, passages))[-depth:]]
        return np.sum([member(query, best) for member in members], axis=0)

    return score


def _teacher(step: Step) -> tuple[Score, list[Score]]:
    """The teacher's best cross-encoder, and all of its models that score; the base student is scored by the cascade."""
    from neuroranker_pipeline.ranking.device import pick_compute
    from neuroranker_pipeline.ranking.embeddings import TorchEncoder
    from neuroranker_pipeline.ranking.members import Single, is_cross_encoder, read_members
    from neuroranker_pipeline.ranking.models import BiEncoder, CrossEncoder

    compute, folder = pick_compute(step.settings.device), step.read("teacher_checkpoint")

    def model(place: Path) -> Score:
        if not is_cross_encoder(place):
            return _cosines(TorchEncoder(BiEncoder.load(place), compute))
        cross = CrossEncoder.load(place)
        return lambda query, passages: cross.score([query] * len(passages), passages, compute)

    held, best = read_members(folder), model(folder)
    if isinstance(held, Single):
        return best, [best]
    places = [member.folder for member in held.needed.values() if member.folder is not None]
    return best, [best if place == "." else model(folder / place) for place in places]
