"""Write the evaluation report: JSON for machines, Markdown and HTML for people, Parquet and TREC runs for
further analysis.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from neuroranker_pipeline.datasets.trec import write_run
from neuroranker_pipeline.evaluation import plots, tables
from neuroranker_pipeline.evaluation.evaluation import Evaluation
from neuroranker_pipeline.evaluation.findings import findings, verdict
from neuroranker_pipeline.evaluation.rankers import INT8

FORMAT = 2
SNIPPET = 320  # characters of a passage shown in an example


@dataclass(frozen=True)
class ReportContext:
    """What surrounds the numbers; everything but ``profile`` may be left out.

    ``dataset``, ``settings`` and ``versions`` are shown as given (nested mappings too). ``costs`` has one mapping a
    ranker: ``{"name": "student int8", "seconds": 12.3, "bytes": 23_000_000, "device": "cpu", "milliseconds": 210.0,
    "slowest": 240.0, "passages_per_second": 470.0}``, any key but name optional: seconds of training, and how long one
    query of 100 candidates takes (see ``latency.Latency``). ``histories`` holds training histories by model:
    ``{"teacher": [{"step": 10, "loss": 0.7, "lr": 1e-4}, ...]}``. ``queries`` and ``passages`` are the texts of
    ``Evaluation.example_ids()``. ``history`` are earlier evaluations of the split, oldest first: ``{"created": ...,
    "run_id": ..., "measures": {"student": 0.52}}`` in the primary measure; ``run_id`` is this one's. ``notes`` are
    sentences shown after the findings: what a ranker is, how it was run. ``leaks``: the held-out questions that training
    holds too, as ``datasets.leaks.Leaks`` writes them.
    """

    profile: str
    split: str = "test"
    created: str = ""
    dataset: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    costs: Sequence[Mapping[str, Any]] = ()
    histories: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    queries: Mapping[str, str] = field(default_factory=dict)
    passages: Mapping[str, str] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    run_id: str = ""
    notes: Sequence[str] = ()
    leaks: Mapping[str, Any] = field(default_factory=dict)


def report_data(evaluation: Evaluation, context: ReportContext) -> dict[str, Any]:
    """Everything in the report but the per-query table and the runs, as JSON-ready values (NaN and
    infinity: null).
    """
    scores = {f.name: getattr(evaluation, f.name) for f in evaluation.__dataclass_fields__.values()}
    del scores["per_query"], scores["runs"]
    scores["rankers"] = [asdict(row) for row in evaluation.rankers]
    scores["comparisons"] = [{**asdict(c), "verdict": verdict(c)} for c in evaluation.comparisons]
    scores["breakdowns"] = [asdict(row) for row in evaluation.breakdowns]
    scores["distributions"] = [asdict(row) for row in evaluation.distributions]
    scores["examples"] = [_with_texts(example, context) for example in evaluation.examples]
    surroundings = asdict(context)
    del surroundings["queries"], surroundings["passages"], surroundings["notes"]
    now = {row.ranker: row.measures[evaluation.primary] for row in evaluation.rankers}
    this = {"created": context.created, "run_id": context.run_id, "measures": now}
    surroundings["history"] = [*context.history, this]
    data = {
        "format": FORMAT,
        **surroundings,
        **scores,
        "differences": evaluation.differences(),
        "findings": [*findings(evaluation), *context.notes],
    }
    return _plain(data)


def write_report(evaluation: Evaluation, context: ReportContext, out: Path) -> dict[str, Any]:
    """Write report.json, report.md, report.html, per_query.parquet and runs/<ranker>.trec to the folder
    ``out``.

    Returns the contents of report.json. The HTML needs nothing but itself: no script and no request to
    anywhere.
    """
    (out / "runs").mkdir(parents=True, exist_ok=True)
    data = report_data(evaluation, context)
    text = json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False)
    (out / "report.json").write_text(text + "\n", encoding="utf-8")
    (out / "report.md").write_text(render_markdown(data), encoding="utf-8")
    (out / "report.html").write_text(render_html(data), encoding="utf-8")
    pq.write_table(evaluation.per_query, out / "per_query.parquet", compression="zstd")
    for ranker, run in evaluation.runs.items():
        write_run(run, out / "runs" / f"{file_name(ranker)}.trec", file_name(ranker))
    return data


def render_html(report: Mapping[str, Any]) -> str:
    """The report page from the contents of report.json; every text from outside is escaped."""
    return environment(autoescape=True).get_template("report.html.j2").render(r=report)


def render_markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown from the contents of report.json; also fit for Dagster's metadata."""
    return environment(autoescape=False).get_template("report.md.j2").render(r=report)


def file_name(ranker: str) -> str:
    """A ranker's name as a file name and TREC tag: ``student int8`` -> ``student-int8``."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", ranker).strip("-.") or "run"


def loss_curves(report: Mapping[str, Any]) -> dict[str, list[plots.Point]]:
    """(step, loss) of each training history; a loss that was not finite is NaN."""
    return {name: curve for name, rows in report["histories"].items() if (curve := _curve(rows, "loss"))}


def measure_curves(report: Mapping[str, Any]) -> dict[str, list[plots.Point]]:
    """(step, value) of each measure that a training history recorded on its way, as ``teacher dev MRR@10``."""
    curves = {}
    for model, rows in report["histories"].items():
        names = dict.fromkeys(key for row in rows for key in row if "@" in key)
        curves.update({f"{model} {name}": _curve(rows, name) for name in names})
    return curves


def cost_points(report: Mapping[str, Any], key: str, unit: float = 1.0) -> list[tuple[str, float, float]]:
    """``(ranker, cost, value of the primary measure)`` of each ranker whose ``key`` is known, for a scatter plot."""
    values = {row["ranker"]: row["measures"][report["primary"]] for row in report["rankers"]}
    rows = [row for row in report["costs"] if row.get(key) and row["name"] in values]
    return [(row["name"], row[key] / unit, values[row["name"]]) for row in rows]


def costed(report: Mapping[str, Any]) -> str:
    """The ranker to mark where costs are shown: the final one, or the model in it, for search is not timed by itself."""
    return report["final"] if any(row["name"] == report["final"] for row in report["costs"]) else INT8


def quality_of(report: Mapping[str, Any], ranker: str) -> float | None:
    """A ranker's mean in the primary measure, None for one that is not in the report."""
    return next((row["measures"][report["primary"]] for row in report["rankers"] if row["ranker"] == ranker), None)


def history_lines(report: Mapping[str, Any]) -> dict[str, list[plots.Point]]:
    """Each ranker's primary measure over the evaluations, numbered from 1; a gap where it was not measured."""
    nan = float("nan")
    return {
        row["ranker"]: [
            (float(number), past["measures"].get(row["ranker"], nan))
            for number, past in enumerate(report["history"], 1)
        ]
        for row in report["rankers"]
    }


def plot_images(report: Mapping[str, Any]) -> dict[str, str]:
    """The main plots as Markdown images that carry themselves, by title; for Dagster's UI, which shows them."""
    primary, final = report["primary"], report["final"]
    floor = quality_of(report, "BM25")
    drawn = {
        f"{primary} with 95% intervals": plots.intervals(interval_rows(report), primary, ceiling_of(report), final),
        f"{primary} against time": plots.scatter(
            cost_points(report, "milliseconds"), "milliseconds a query", primary, costed(report), floor
        ),
        f"change in {primary} by query": plots.differences(report["differences"], "queries, from worst to best"),
        f"history of {primary}": plots.lines(history_lines(report), "evaluation", primary)
        if len(report["history"]) > 1
        else "",
        **{
            f"loss of the {name}": plots.lines({name: curve}, "step", "loss")
            for name, curve in loss_curves(report).items()
        },
    }
    return {title: _image(title, svg) for title, svg in drawn.items() if svg}


def interval_rows(report: Mapping[str, Any]) -> list[tuple[str, float, float, float]]:
    """``(ranker, value, low, high)`` in the primary measure, NaN for a bound that is not known."""
    primary, nan = report["primary"], float("nan")
    return [
        (
            row["ranker"],
            row["measures"][primary],
            *(nan if bound is None else bound for bound in row["intervals"][primary]),
        )
        for row in report["rankers"]
    ]


def ceiling_of(report: Mapping[str, Any]) -> float | None:
    return report["ceiling"][report["primary"]] if report["ceiling"] else None


def _image(title: str, svg: str) -> str:
    """An SVG plot as a Markdown image: with its own colours, for it cannot take those of the page."""
    css = Path(__file__).with_name("templates").joinpath("report.css").read_text(encoding="utf-8")
    light, *rules = css[: css.index("}") + 1], *re.findall(r"^\.(?:plot|line|point).*$", css, re.MULTILINE)
    style = "\n".join([light, *rules, "svg { background: #fff; font-family: sans-serif; }"])
    named = svg.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * plots.WIDTH}" ', 1)
    whole = named.replace(">", f"><style>{style}</style>", 1)
    return f"![{tables.markdown(title)}](data:image/svg+xml;base64,{base64.b64encode(whole.encode()).decode()})"


def flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as ``("student.learning_rate", "0.0001")`` rows."""
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", _readable(value)))
    return rows


def size(count: float | None) -> str:
    """Bytes for people: ``23.4 MB``."""
    if count is None:
        return tables.DASH
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def seconds(value: float | None) -> str:
    """Wall time for people: ``8.2 s``, ``3 min 05 s``."""
    if value is None:
        return tables.DASH
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def minute(created: str) -> str:
    """A moment as ISO 8601 writes it, to the minute: ``2025-01-31 12:05`` (UTC, as reports are made)."""
    day, _, clock = created.partition("T")
    return f"{day} {clock[:5]}".strip()


def snippet(text: str, length: int = SNIPPET) -> str:
    """The head of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def environment(autoescape: bool) -> Environment:
    """The templates' environment, with the helpers that they share."""
    folder = Path(__file__).with_name("templates")
    made = Environment(
        loader=FileSystemLoader(folder),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    helpers = (
        *(
            flat,
            size,
            seconds,
            minute,
            snippet,
            loss_curves,
            measure_curves,
            history_lines,
            cost_points,
            costed,
            quality_of,
        ),
        *(interval_rows, ceiling_of, tables.markdown, verdict),
    )
    made.filters.update({helper.__name__: helper for helper in helpers})
    made.globals.update(plots=plots, tables=tables)
    return made


def _with_texts(example: Mapping[str, Any], context: ReportContext) -> dict[str, Any]:
    def add(row: Mapping[str, Any]) -> dict[str, Any]:
        return {**row, "text": snippet(context.passages.get(row["pid"], ""))}

    return {
        **example,
        "query": context.queries.get(example["qid"], ""),
        "relevant": [add(row) for row in example["relevant"]],
        "rankings": {name: [add(row) for row in rows] for name, rows in example["rankings"].items()},
    }


def _curve(rows: Sequence[Mapping[str, Any]], key: str) -> list[plots.Point]:
    points = [(float(row["step"]), row[key]) for row in rows if key in row]
    return [(step, float("nan") if value is None else float(value)) for step, value in points]


def _readable(value: Any) -> str:
    if value is None:
        return tables.DASH
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000 else str(value)


def _plain(value: Any) -> Any:
    """``value`` as JSON can hold it: lists for tuples, null for NaN and infinity, text for anything
    unknown.
    """
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)
