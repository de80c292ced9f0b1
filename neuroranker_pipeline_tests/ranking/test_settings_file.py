"""Settings from a file: the same values that the pipeline's loader reads, and errors that name the key."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import yaml

from neuroranker_pipeline.config.load import load_settings, profile_names
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.ranking.settings import StudentSettings, TeacherSettings
from neuroranker_pipeline.ranking.settings_file import read_settings


def test_without_a_file_all_is_default():
    assert read_settings(None, TeacherSettings) == TeacherSettings()


@pytest.mark.parametrize("profile", profile_names())
def test_what_a_profile_holds_is_read_back(tmp_path, profile):
    file, settings = tmp_path / "settings.yaml", load_settings(profile)
    for kind, expected in ((TeacherSettings, settings.teacher.recipe()), (StudentSettings, settings.student)):
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(expected).items()}
        file.write_text(yaml.safe_dump(values))
        assert read_settings(file, kind) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("bse: x", "bse: unknown key; did you mean base?"),
        ("qqqq: 1", "qqqq: unknown key; known keys: base, "),
        ("lists: 3", "lists: expected a mapping of settings, got 3"),
        ("[1, 2]", "settings: expected a mapping of settings, got [1, 2]"),
        ("max_length: 1.5", "max_length: expected int, got 1.5"),
        ("max_length: true", "max_length: expected int, got True"),
        ("layers: two", "layers: expected int, got 'two'"),
        ("contrast_weight: much", "contrast_weight: expected float, got 'much'"),
        ("base: 3", "base: expected str, got 3"),
        ("distill_loss: mse", "distill_loss: expected one of kl, margin_mse, got 'mse'"),
        ("dimensions: 8", "dimensions: expected a list, got 8"),
        ("dimensions: [8, x]", "dimensions: expected int, got 'x'"),
        ("lists: {negatives: -1}", "lists.negatives must be at least 0, got -1"),
        ("{", "neither valid JSON nor YAML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, told):
    file = tmp_path / "student.yaml"
    file.write_text(text)
    with pytest.raises(BadInput) as raised:
        read_settings(file, StudentSettings)
    assert str(raised.value).startswith(f"{file}: {told}")


def test_numbers_and_nothing(tmp_path):
    file = tmp_path / "student.yaml"
    file.write_text("{student_temperature: 2e-2, contrast_weight: 1, layers: null, dimensions: [8, 16]}")
    settings = read_settings(file, StudentSettings)
    assert (settings.student_temperature, settings.contrast_weight, settings.layers) == (0.02, 1.0, None)
    assert settings.dimensions == (8, 16)
    file.write_text("")
    assert read_settings(file, StudentSettings) == StudentSettings()
