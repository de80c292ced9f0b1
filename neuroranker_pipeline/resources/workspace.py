"""What every asset is handed: the profile's settings, its lake, its metrics, and the raw data's source."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

import dagster as dg

from neuroranker_pipeline.config.load import load_settings
from neuroranker_pipeline.config.settings import Settings
from neuroranker_pipeline.datasets.source import Source, open_source
from neuroranker_pipeline.resources.lake import Lake
from neuroranker_pipeline.resources.metrics import MetricsStore

LAKE_VARIABLE = "NEURORANKER_LAKE"
PROFILE_VARIABLE = "NEURORANKER_PROFILE"
DEFAULT_PROFILE = "quickstart"


def default_lake() -> str:
    """``$NEURORANKER_LAKE``, else ``data_lake`` in the checkout this package lies in, else in the current folder."""
    chosen = os.environ.get(LAKE_VARIABLE)
    checkout = Path(__file__).resolve().parents[2]
    return chosen or str((checkout if (checkout / "workspace.yaml").is_file() else Path.cwd()) / "data_lake")


def default_profile() -> str:
    """``$NEURORANKER_PROFILE``, else ``quickstart``."""
    return os.environ.get(PROFILE_VARIABLE) or DEFAULT_PROFILE


class Workspace(dg.ConfigurableResource):
    """One profile over one lake."""

    profile: str = DEFAULT_PROFILE
    lake_root: str = "data_lake"
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
        return open_source(self.settings.data)
