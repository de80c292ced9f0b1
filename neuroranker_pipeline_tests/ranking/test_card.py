from __future__ import annotations

import pytest
import yaml

from neuroranker_pipeline.datasets.licences import DataTerms
from neuroranker_pipeline.ranking.card import Estimate, model_card, sparkline
from neuroranker_pipeline.ranking.loop import TrainingResult
from neuroranker_pipeline.ranking.settings import StudentSettings, TeacherSettings

MS_MARCO = DataTerms("MS MARCO", "non-commercial research only", "https://microsoft.github.io/msmarco/", "ms_marco")
OWN = DataTerms("files/own", "the user's own data")
MEASURES = {
    "this model": {"MRR@10": Estimate(0.36127, 0.35, 0.37), "nDCG@10": Estimate(0.42, 0.41, 0.43)},
    "BM25": {"MRR@10": Estimate(0.1872, 0.18, 0.195), "nDCG@10": Estimate(0.234, 0.22, 0.24)},
}


def result() -> TrainingResult:
    history = [{"step": step, "loss": 2.0 / step, "lr": 1e-4} for step in range(10, 1010, 10)]
    history += [{"step": 500, "dev_mrr": 0.331}, {"step": 1000, "dev_mrr": 0.3613}]
    return TrainingResult(
        history=history, best_step=1000, steps=1000, examples=512_000, seconds=61.4, lists=64_000, skipped=17,
        device="NVIDIA H100, bfloat16",
    )  # fmt: skip


def parts(card: str) -> tuple[dict, str]:
    """The front matter, and the rest."""
    opened, front, body = card.split("---\n", 2)
    assert opened == ""
    return yaml.safe_load(front), body


def test_the_front_matter_says_what_the_hub_wants_to_know():
    student = StudentSettings(base="sentence-transformers/all-MiniLM-L6-v2")
    front, _ = parts(model_card(student, 7, result(), [MS_MARCO, OWN], MEASURES, 6980))
    assert front == {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "license": "other",
        "license_name": "terms-of-the-training-data-and-base-model",
        "license_link": "https://microsoft.github.io/msmarco/",
        "base_model": "sentence-transformers/all-MiniLM-L6-v2",
        "datasets": ["ms_marco"],
        "tags": ["sentence-transformers", "bi-encoder", "reranker"],
    }
    front, _ = parts(model_card(TeacherSettings(), 7, result(), [OWN], MEASURES, 6980))
    assert front["pipeline_tag"] == "text-ranking"
    assert not front.keys() & {"base_model", "datasets", "license_link"}  # a packaged base, and data of one's own


def test_the_body_names_data_figures_settings_and_curves():
    teacher = TeacherSettings(prior_weight=0.3, max_length=192)
    _, body = parts(model_card(teacher, 7, result(), [MS_MARCO, OWN], MEASURES, 6980, base_factor=12.5))
    assert "MS MARCO: non-commercial research only (https://microsoft.github.io/msmarco/)" in body
    assert "files/own: the user's own data" in body
    assert "| this model | 0.3613 [0.3500, 0.3700] | 0.4200 [0.4100, 0.4300] |" in body
    assert "6,980 queries of the dev split" in body
    assert "1,000 steps over 64,000 training lists (512,000 query-passage pairs seen; 17 queries left out" in body
    assert "seed 7, on NVIDIA H100, bfloat16, in 61 s" in body
    assert "weights kept are those of step 1,000" in body
    assert "| 1,000 | 0.0020 | 0.3613 |" in body
    assert "12.5 x the untouched base student's cosine" in body
    weights = {"first": 0.5, "base_student": 0.25}
    _, body = parts(model_card(teacher, 7, result(), [OWN], MEASURES, 6980, weights=weights))
    assert "the weighted sum of standardized scores: 0.5 x first, 0.25 x base_student." in body
    _, body = parts(model_card(teacher, 7, result(), [MS_MARCO, OWN], MEASURES, 6980, base_factor=12.5))
    assert "at most 192 tokens" in body
    settings = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert settings["prior_weight"] == 0.3
    assert settings["training"]["learning_rate"] == teacher.training.learning_rate
    assert settings["lists"]["negatives"] == 7


def test_a_run_without_evaluations_and_with_matryoshka_dimensions_has_a_card():
    short = TrainingResult(history=[{"step": 1, "loss": 0.5}], steps=1)
    _, body = parts(model_card(StudentSettings(dimensions=(64, 128)), 0, short, [OWN], {}, 0))
    assert yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])["dimensions"] == [64, 128]
    assert "dev MRR@10 `" not in body


@pytest.mark.parametrize(
    ("values", "line"), [([], ""), ([1.0], "▁"), ([0, 1], "▁█"), ([7, 0, 3.5], "█▁▅"), ([2, 2], "▁▁")]
)
def test_a_sparkline_runs_from_the_lowest_to_the_highest(values, line):
    assert sparkline(values) == line


def test_a_long_curve_keeps_its_shape_in_a_short_line():
    line = sparkline([float(i) for i in range(1000)], width=8)
    assert line == "▁▂▃▄▅▆▇█"
