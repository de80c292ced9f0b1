"""What every asset is handed: the profile's settings, its lake, its metrics, and the raw data's source."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

import dagster as dg
import pydantic

from neuroranker_pipeline.config.load import load_settings
from neuroranker_pipeline.config.settings import Settings
from neuroranker_pipeline.datasets.source import Source, open_source
from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.resources.lake import Lake
from neuroranker_pipeline.resources.metrics import MetricsStore

LAKE_VARIABLE = "NEURORANKER_LAKE"
PROFILE_VARIABLE = "NEURORANKER_PROFILE"
DATA_VARIABLE = "NEURORANKER_DATA"
DEFAULT_PROFILE = "quickstart"


def default_lake() -> str:
    """``$NEURORANKER_LAKE``, else ``data_lake`` in the checkout this package lies in, else in the current folder."""
    return os.environ.get(LAKE_VARIABLE) or str(_home() / "data_lake")


def default_data() -> str:
    """``$NEURORANKER_DATA``, else ``raw`` in the ``data_lake`` folder: where relative folders of raw data begin."""
    return os.environ.get(DATA_VARIABLE) or str(_home() / "data_lake" / "raw")


def _home() -> Path:
    checkout = Path(__file__).resolve().parents[2]
    return checkout if (checkout / "workspace.yaml").is_file() else Path.cwd()


def default_profile() -> str:
    """``$NEURORANKER_PROFILE``, else ``quickstart``."""
    return os.environ.get(PROFILE_VARIABLE) or DEFAULT_PROFILE


class Workspace(dg.ConfigurableResource):
    """One profile over one lake."""

    profile: str = DEFAULT_PROFILE
    lake_root: str = "data_lake"
    data_root: str = pydantic.Field(default_factory=default_data)
    overrides: list[str] = []  # noqa: RUF012 (pydantic copies it)

    @cached_property
    def settings(self) -> Settings:
        return load_settings(self.profile, self.overrides)

    @cached_property
    def lake(self) -> Lake:
        return Lake(self.lake_root, self.settings.profile)

    @cached_property
    def metrics(self) -> MetricsStore:
        return MetricsStore(f"{self.lake_root}/{self.settings.profile}/metrics")

    @cached_property
    def source(self) -> Source:
        settings = self.settings
        return open_source(settings.data, Path(self.data_root), dict(settings.training_collections))

    @property
    def unjudged_file(self) -> Path:
        """The file of queries without judgments that the settings name. Raises ``BadInput`` when it is not there."""
        path = Path(self.data_root).expanduser() / Path(self.settings.unjudged.file).expanduser()
        if not path.is_file():
            raise BadInput(f"unjudged.file: {path} is not there; put it there, or name another")
        return path
