"""Evaluations of the past: in the run metrics, which keep all of them, or in a report's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from neuroranker_pipeline.errors import BadInput, NotReady
from neuroranker_pipeline.resources.metrics import MetricsStore

if TYPE_CHECKING:
    from neuroranker_pipeline.evaluation.compare import PastEvaluation

ASSET = "eval_report"
SHOWN = 20  # earlier evaluations in a report's history
SHORTEST = 4  # characters of an id
KEYWORDS = {"latest": 0, "previous": 1}


@dataclass(frozen=True)
class Entry:
    """One evaluation in the run metrics; ``settings`` and ``versions`` are None of one made before they were kept."""

    record_id: str
    run_id: str
    version: str
    split: str
    created: str
    settings: Mapping[str, Any] | None
    versions: Mapping[str, Any] | None

    def is_named(self, text: str) -> bool:
        return any(name.startswith(text) for name in (self.run_id, self.version, self.record_id) if name)

    def __str__(self) -> str:
        return f"{self.run_id[:8]} ({self.split}, {self.created})"


def past_measures(store: MetricsStore, split: str, measure: str, limit: int = SHOWN) -> list[dict[str, Any]]:
    """The last ``limit`` evaluations of a split, oldest first: ``{"created", "run_id", "measures": {ranker: mean}}``."""
    sql = """
        WITH evaluations AS (
            SELECT record_id, run_id, started_at FROM materializations WHERE asset = ? AND partition = ?
            ORDER BY started_at DESC, record_id LIMIT ?)
        SELECT e.started_at, e.run_id, e.record_id, m.ranker, m.value
        FROM evaluations e JOIN measures m USING (record_id)
        WHERE m.measure = ? AND m.ranker IS NOT NULL ORDER BY e.started_at, e.record_id"""
    with store.connect() as connection:
        rows = connection.execute(sql, [ASSET, split, limit, measure]).fetchall()
    found: dict[str, dict[str, Any]] = {}
    for started, run_id, record_id, ranker, value in rows:
        created = started.astimezone(UTC).isoformat(timespec="seconds")
        entry = found.setdefault(record_id, {"created": created, "run_id": run_id, "measures": {}})
        entry["measures"][ranker] = value
    return list(found.values())


def list_evaluations(store: MetricsStore, split: str | None = None) -> list[Entry]:
    """All evaluations in the run metrics, or those of one split, newest first."""
    sql = """
        SELECT record_id, run_id, coalesce(version, ''), partition, started_at, settings, versions
        FROM materializations WHERE asset = ? AND (partition = ? OR ? IS NULL)
        ORDER BY started_at DESC, record_id"""
    with store.connect() as connection:
        rows = connection.execute(sql, [ASSET, split, split]).fetchall()
    return [
        Entry(
            record_id=record_id,
            run_id=run_id,
            version=version,
            split=partition,
            created=started.astimezone(UTC).isoformat(timespec="seconds"),
            settings=json.loads(settings) if settings else None,
            versions=json.loads(versions) if versions else None,
        )
        for record_id, run_id, version, partition, started, settings, versions in rows
    ]


def find_evaluation(store: MetricsStore, text: str, split: str | None = None) -> PastEvaluation:
    """The evaluation that ``text`` names: a Dagster run's id or the version of its ``eval_report`` (either may be cut to
    what is unique), ``latest``, ``previous``, or the folder of a report.

    ``split`` tells which one, when a name fits evaluations of several. Raises ``BadInput`` for a name that fits none, or
    more than one, and ``NotReady`` for an evaluation whose values were not kept.
    """
    if Path(text).is_dir():
        return _from_folder(Path(text))
    entry = _pick(list_evaluations(store, split), text)
    return _from_store(store, entry, text)


def _pick(entries: list[Entry], text: str) -> Entry:
    known = f"the last evaluations are {', '.join(map(str, entries[:5]))}" if entries else "there is no evaluation yet"
    if text in KEYWORDS:
        same = [entry for entry in entries if entry.split == entries[0].split]
        if len(same) <= KEYWORDS[text]:
            raise BadInput(f"there is no {text} evaluation: {known}")
        return same[KEYWORDS[text]]
    if len(text) < SHORTEST:
        raise BadInput(f"{text!r} is too short for the id of a run: give at least {SHORTEST} characters; {known}")
    fitting = [entry for entry in entries if entry.is_named(text)]
    if not fitting:
        raise BadInput(f"no evaluation, and no report's folder, is named {text!r}: {known}")
    if len(fitting) > 1:
        advice = "add --split" if len({entry.split for entry in fitting}) > 1 else "give more of its id"
        raise BadInput(f"{text!r} fits {len(fitting)} evaluations, {', '.join(map(str, fitting[:5]))}: {advice}")
    return fitting[0]


def _from_store(store: MetricsStore, entry: Entry, text: str) -> PastEvaluation:
    from neuroranker_pipeline.evaluation.compare import PastEvaluation

    with store.connect() as connection:
        sql = "SELECT ranker, qid, measure, value FROM per_query WHERE record_id = ? ORDER BY measure, ranker, qid"
        values = connection.sql(sql, params=[entry.record_id]).to_arrow_table()
    if values.num_rows == 0:
        raise NotReady(
            f"the values of evaluation {entry} were not kept query by query, as those of later ones are: name the folder of "
            "its report instead"
        )
    return PastEvaluation(
        name=entry.run_id[:8] or text,
        split=entry.split,
        created=entry.created,
        version=entry.version,
        values=values,
        settings=entry.settings or {},
        versions=entry.versions or {},
    )


def _from_folder(folder: Path) -> PastEvaluation:
    from neuroranker_pipeline.evaluation.compare import PastEvaluation

    for name in ("report.json", "per_query.parquet"):
        if not (folder / name).is_file():
            raise BadInput(f"{folder} is not the folder of a report: it has no {name}")
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        return PastEvaluation(
            name=folder.name,
            split=report["split"],
            created=report["created"],
            version=folder.name,
            values=pq.read_table(folder / "per_query.parquet", columns=["ranker", "qid", "measure", "value"]),
            settings=report["settings"],
            versions=report["versions"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{folder}: the report is damaged ({error})") from None
