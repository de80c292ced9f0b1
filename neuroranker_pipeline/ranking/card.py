"""The model card of a trained model: a README.md as the Hugging Face Hub reads it, from the run itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import yaml

from neuroranker_pipeline.datasets.licences import DataTerms
from neuroranker_pipeline.ranking.loop import TrainingResult
from neuroranker_pipeline.ranking.settings import StudentSettings, TeacherSettings

CARD = "README.md"
BLOCKS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH, CURVE_ROWS = 60, 12


@dataclass(frozen=True)
class Estimate:
    """A measure's mean over queries, and the ends of its 95% bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


def model_card(
    settings: TeacherSettings | StudentSettings,
    seed: int,
    result: TrainingResult,
    data: Sequence[DataTerms],
    measures: Mapping[str, Mapping[str, Estimate]],
    dev_queries: int,
    base_factor: float = 0.0,
    weights: Mapping[str, float] | None = None,
) -> str:
    """The card's text: YAML front matter and Markdown.

    measures: estimates on the dev split, by ranker and then by measure; every ranker has the same measures.
    base_factor: what the teacher adds of the base student's cosine, 0 for none. weights: of the members of the ensemble that
    the teacher is, by name.
    """
    teacher = isinstance(settings, TeacherSettings)
    title = "A cross-encoder for passage re-ranking" if teacher else "A sentence encoder for passage ranking"
    parts = [
        f"---\n{_front_matter(settings, data)}---",
        f"# {title}",
        _use(settings, base_factor, weights or {}),
        f"## Data and its terms\n\n{_data(data)}",
        f"## Measures\n\n{_measures(measures, dev_queries)}",
        f"## Training\n\n{_training(seed, result)}",
        f"### Curves\n\n{_curves(result.history)}",
        f"### Settings\n\n```yaml\n{_settings(settings)}```",
        f"## Limits\n\n{_limits(settings)}",
    ]
    return "\n\n".join(parts) + "\n"


def sparkline(values: Sequence[float], width: int = CURVE_WIDTH) -> str:
    """Values as a line of block characters, from the lowest to the highest; means where they are more than ``width``."""
    if not values:
        return ""
    edges = [round(i * len(values) / min(width, len(values))) for i in range(min(width, len(values)) + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, span = min(means), (max(means) - min(means)) or 1.0
    return "".join(BLOCKS[round((value - low) / span * (len(BLOCKS) - 1))] for value in means)


def _front_matter(settings: TeacherSettings | StudentSettings, data: Sequence[DataTerms]) -> str:
    teacher = isinstance(settings, TeacherSettings)
    fields: dict[str, Any] = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "text-ranking" if teacher else "sentence-similarity",
        "license": "other",
        "license_name": "terms-of-the-training-data-and-base-model",
    }
    if link := next((terms.url for terms in data if terms.url), None):
        fields["license_link"] = link
    if _on_hub(settings.base):
        fields["base_model"] = settings.base
    if hub := [terms.hub for terms in data if terms.hub]:
        fields["datasets"] = hub
    fields["tags"] = ["sentence-transformers", "cross-encoder" if teacher else "bi-encoder", "reranker"]
    return yaml.safe_dump(fields, sort_keys=False)


def _use(settings: TeacherSettings | StudentSettings, base_factor: float, weights: Mapping[str, float]) -> str:
    if isinstance(settings, StudentSettings):
        learned = "distilled from a cross-encoder's scores" if settings.objective == "distill" else "trained on labels"
        return (
            f"A bi-encoder, {learned}, that orders the candidates of a first stage such as BM25, or finds passages by "
            f"their vectors. It starts from `{settings.base}`, reads at most {settings.max_length} tokens of a text, and "
            "takes queries and passages without any prefix. The score is the cosine.\n\n"
            "```python\nfrom sentence_transformers import SentenceTransformer\n\n"
            'model = SentenceTransformer("path/to/this/folder")\n'
            'vectors = model.encode(["a question", "a passage", "another passage"])\n'
            "print(vectors[:1] @ vectors[1:].T)\n```"
        )
    listed = ", ".join(f"{weight:g} x {name}" for name, weight in weights.items())
    together = (
        f" In the pipeline it is one member of an ensemble, the weighted sum of standardized scores: {listed}. This folder "
        "opens as this member; the others are below it, and `ensemble.json` names them all."
    )
    added = (
        f" In the pipeline its score is added to {base_factor:.4g} x the untouched base student's cosine; this folder's "
        "`ensemble.json` holds the factor."
    )
    return (
        "A cross-encoder that orders the candidates of a first stage such as BM25, and teaches smaller models. It starts "
        f"from `{settings.base}` and reads a query and a passage together, at most {settings.max_length} tokens of both. "
        f"The score is a logit without bounds.{together if weights else added if base_factor else ''}\n\n"
        "```python\nfrom sentence_transformers import CrossEncoder\n\n"
        'model = CrossEncoder("path/to/this/folder")\n'
        'print(model.predict([("a question", "a passage"), ("a question", "another passage")]))\n```'
    )


def _data(data: Sequence[DataTerms]) -> str:
    lines = [f"- {t.name}: {' '.join(t.licence.split())}{f' ({t.url})' if t.url else ''}" for t in data]
    return (
        "\n".join(lines) + "\n\nThese terms, and those of the base model, bind whoever uses or passes on the weights."
    )


def _measures(measures: Mapping[str, Mapping[str, Estimate]], queries: int) -> str:
    names = list(next(iter(measures.values()), {}))
    rows = [[ranker, *(str(found[name]) for name in names)] for ranker, found in measures.items()]
    return (
        f"Means over {queries:,} queries of the dev split, with 95% bootstrap intervals. Dev queries choose weights and "
        f"settings, so these are not test figures.\n\n{_table(['ranker', *names], rows)}"
    )


def _training(seed: int, result: TrainingResult) -> str:
    best = f" The weights kept are those of step {result.best_step:,}." if result.best_step else ""
    return (
        f"{result.steps:,} steps over {result.lists:,} training lists ({result.examples:,} query-passage pairs seen; "
        f"{result.skipped:,} queries left out for lack of a positive or of negatives), seed {seed}, on {result.device}, "
        f"in {result.seconds:,.0f} s.{best} `training.json` beside this file has the whole history."
    )


def _curves(history: Sequence[Mapping[str, float]]) -> str:
    losses = [row["loss"] for row in history if "loss" in row]
    evaluated = {int(row["step"]): row["dev_mrr"] for row in history if "dev_mrr" in row}
    lines = [f"loss `{sparkline(losses)}`"] if losses else []
    if len(evaluated) > 1:
        lines.append(f"dev MRR@10 `{sparkline(list(evaluated.values()))}`")
    loss = {int(row["step"]): row["loss"] for row in history if "loss" in row}
    steps = sorted(loss.keys() | evaluated.keys())
    picked = sorted({*steps[:: max(1, -(-len(steps) // CURVE_ROWS))], *steps[-1:]})
    rows = [[f"{s:,}", *(f"{v[s]:.4f}" if s in v else "" for v in (loss, evaluated))] for s in picked]
    return "\n\n".join([*lines, _table(["step", "loss", "dev MRR@10"], rows)])


def _settings(settings: TeacherSettings | StudentSettings) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return yaml.safe_dump(plain(asdict(settings)), sort_keys=False)


def _limits(settings: TeacherSettings | StudentSettings) -> str:
    scores = "Cosines" if isinstance(settings, StudentSettings) else "Logits"
    return (
        "- It ranks texts like those it was trained on; other languages and subjects are untested.\n"
        f"- It does not see what comes after {settings.max_length} tokens.\n"
        f"- {scores} order the passages of one query; they are no probabilities and do not compare across queries.\n"
        "- It judges how well a passage fits a question, not whether the passage is true.\n"
        "- Few passages are judged: an unjudged one counts as not relevant in the measures above."
    )


def _on_hub(base: str) -> bool:
    """Whether the name has the form of a Hugging Face id."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", base) is not None


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
