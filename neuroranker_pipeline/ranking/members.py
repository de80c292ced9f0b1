"""A teacher's folder: one cross-encoder beside the untouched base student, or an ensemble of several members.

``ensemble.json`` in the folder says which. The folder itself opens as the best cross-encoder of the ensemble; the other
members lie below it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.progress import Progress, silent
from neuroranker_pipeline.ranking.device import Compute
from neuroranker_pipeline.ranking.embeddings import TorchEncoder, rank_by_cosine
from neuroranker_pipeline.ranking.ensemble import combine, weighted_sum
from neuroranker_pipeline.ranking.folders import read_layout
from neuroranker_pipeline.ranking.hub import resolve_model
from neuroranker_pipeline.ranking.models import BiEncoder, CrossEncoder
from neuroranker_pipeline.ranking.scoring import add_scores, mean_spread, score_candidates, scores_of, scores_table
from neuroranker_pipeline.ranking.settings import MemberSettings

ENSEMBLE = "ensemble.json"
MEMBERS = "members"  # the folder of all members but the best


@dataclass(frozen=True)
class Member:
    """folder: below the teacher's, ``.`` for the best; ``None`` for the base student, whose scores are given.
    weight: of its standardized score. spread: the standard deviation of its scores within a query, as a mean over the dev
    queries. dev: what it reaches by itself on the dev split."""

    folder: str | None
    weight: float
    spread: float
    dev: float


@dataclass(frozen=True)
class Ensemble:
    """members: by name, ``base_student`` among them; best: the one that the teacher's folder opens as; base: the base
    student's ``name``, ``layers`` and ``max_length``."""

    members: Mapping[str, Member]
    best: str
    base: Mapping[str, Any]

    def write(self, folder: Path) -> None:
        """Put ``ensemble.json`` into a teacher's folder."""
        (folder / ENSEMBLE).write_text(json.dumps(asdict(self), indent=2))

    @property
    def weights(self) -> dict[str, float]:
        """The weights that are not 0, by member."""
        return {name: member.weight for name, member in self.members.items() if member.weight}

    @property
    def needed(self) -> dict[str, Member]:
        """The members that have to score: those with a weight, and the best."""
        return {name: member for name, member in self.members.items() if member.weight or name == self.best}


@dataclass(frozen=True)
class Single:
    """One cross-encoder, whose score the base student's x ``base_factor`` is added to."""

    base_factor: float

    def write(self, folder: Path) -> None:
        """Put ``ensemble.json`` into a teacher's folder."""
        (folder / ENSEMBLE).write_text(json.dumps(asdict(self)))


def read_members(folder: Path) -> Single | Ensemble:
    """What ``ensemble.json`` in a teacher's folder says; a folder without it is one cross-encoder by itself.

    Raises ``BadInput`` when the file is damaged.
    """
    file = folder / ENSEMBLE
    if not file.is_file():
        return Single(0.0)
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        if "members" not in held:
            return Single(float(held["base_factor"]))
        members = {name: Member(**member) for name, member in held["members"].items()}
        return Ensemble(members, held["best"], held["base"])
    except (ValueError, TypeError, KeyError, AttributeError):
        raise BadInput(f"{file}: not what a teacher's folder holds; make teacher_checkpoint again") from None


def save_ready(settings: MemberSettings, folder: Path) -> None:
    """Save the member ``settings.base`` as it is, a cross-encoder or a bi-encoder, in ``folder``.

    Raises ``ModelNotFound``, or ``BadInput`` for a folder that is neither.
    """
    open_member(resolve_model(settings.base), settings.layers, settings.max_length).save(folder)


def is_cross_encoder(folder: Path) -> bool:
    """Whether a member reads query and passage together."""
    return read_layout(folder).cross_encoder


def open_member(folder: Path, layers: int | None = None, max_length: int | None = None) -> CrossEncoder | BiEncoder:
    """A member's model, whichever of the two it is. Raises ``BadInput`` for a folder that is neither."""
    return (CrossEncoder if is_cross_encoder(folder) else BiEncoder).load(folder, layers, max_length)


def score_pairs(
    model: CrossEncoder | BiEncoder,
    pairs: pa.Table,
    queries: Mapping[str, str],
    passages: Mapping[str, str],
    compute: Compute,
    progress: Progress = silent,
    work: Path | None = None,
) -> pa.Table:
    """A scores table of ``pairs`` (qid, pid): a cross-encoder's logits, or a bi-encoder's cosines.

    work: keeps finished parts; see ``infer_in_parts``.
    """
    if isinstance(model, CrossEncoder):
        return score_candidates(model, pairs, queries, passages, compute, progress, work)
    scores = rank_by_cosine(pairs, queries, passages, TorchEncoder(model, compute, work))
    progress("scoring", len(scores), len(scores))
    return scores


def score_teacher(
    folder: Path,
    pairs: pa.Table,
    prior: pa.Table,
    queries: Mapping[str, str],
    passages: Mapping[str, str],
    compute: Compute,
    progress: Progress = silent,
    work: Path | None = None,
    lists: bool = False,
) -> tuple[pa.Table, pa.Table]:
    """The teacher's scores of ``pairs`` (qid, pid), and those of its best member alone: scores tables in the rows' order.

    prior: the base student's scores of these pairs, and of any others.
    lists: the pairs are training lists. The members of an ensemble are otherwise standardized over a query's pairs, which
    takes a sample of its candidates; a few passages are none (two would always get 1 and -1). Over lists each score is
    divided by its member's spread on the dev split, which is the same on average, and keeps what a list's own spread tells;
    without dev queries, by its spread within these lists.
    """
    held = read_members(folder)
    if isinstance(held, Single):
        alone = score_candidates(CrossEncoder.load(folder), pairs, queries, passages, compute, progress, work)
        return add_scores(alone, prior, held.base_factor), alone
    scores = {}
    for name, member in held.needed.items():
        if member.folder is None:
            scores[name] = scores_table(pairs, scores_of(pairs, prior).astype(np.float32))
        else:
            model, place = open_member(folder / member.folder), None if work is None else work / name
            scores[name] = score_pairs(model, pairs, queries, passages, compute, progress, place)
    total = _over_lists(held, scores) if lists else together(held, scores)
    return total, scores[held.best]


def together(ensemble: Ensemble, scores: Mapping[str, pa.Table]) -> pa.Table:
    """The weighted sum of the members' scores, each standardized over the rows of a query."""
    weights = ensemble.weights
    return combine({name: scores[name] for name in weights}, weights)


def _over_lists(ensemble: Ensemble, scores: Mapping[str, pa.Table]) -> pa.Table:
    """The weighted sum of the members' scores, each divided by its spread on the dev split."""
    columns = {}
    for name in ensemble.weights:
        spread = ensemble.members[name].spread or mean_spread(scores[name]) or 1.0
        columns[name] = scores[name]["score"].to_numpy().astype(np.float64) / spread
    return weighted_sum(scores[ensemble.best], columns, ensemble.weights)


def open_base(ensemble: Ensemble) -> BiEncoder:
    """The untouched base student that the ensemble was weighted with. Raises ``ModelNotFound``."""
    base = ensemble.base
    return BiEncoder.load(base["name"], base["layers"], base["max_length"])
