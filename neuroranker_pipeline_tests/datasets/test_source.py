from __future__ import annotations

from pathlib import Path

import pydantic
import pytest

from neuroranker_pipeline.datasets.source import SOURCES, DataSettings, open_source
from neuroranker_pipeline_tests.datasets.raw import passages, write

SETTINGS = pydantic.TypeAdapter(DataSettings)
NEEDED = {"beir": {"folder": "x"}, "ir_datasets": {"dataset": "x", "train": "x/train"}}


@pytest.mark.parametrize("kind", SOURCES)
def test_the_source_says_which_settings(kind: str) -> None:
    settings = SETTINGS.validate_python({"source": kind, **NEEDED.get(kind, {})})
    assert type(settings) is SOURCES[kind][0]
    assert SETTINGS.validate_python(settings) == settings
    source = open_source(settings, Path("/root-of-data"))
    assert source.name
    assert source.licence
    assert settings.test_splits
    assert 0 <= settings.max_reject_share < 1


def test_without_a_source_it_is_pydocs() -> None:
    assert SETTINGS.validate_python({"dev_queries": 7}).dev_queries == 7
    with pytest.raises(pydantic.ValidationError, match="union_tag_invalid"):
        SETTINGS.validate_python({"source": "marco"})


def test_relative_folders_begin_at_the_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "own", {"passages.tsv": "pid\ttext\n1\tone\n"})
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder, root in (("own", tmp_path), (str(tmp_path / "own"), Path("/elsewhere")), ("~/own", Path("/elsewhere"))):
        settings = SETTINGS.validate_python({"source": "files", "folder": folder})
        assert passages(open_source(settings, root)) == [("1", "one")]
