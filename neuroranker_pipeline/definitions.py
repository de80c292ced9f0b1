"""The code location: wiring only. ``NEURORANKER_PROFILE`` and ``NEURORANKER_LAKE`` choose what it is wired to."""

from __future__ import annotations

import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    """The asset graph of the chosen profile."""
    from neuroranker_pipeline.assets import ASSETS
    from neuroranker_pipeline.assets.corpus import raw_dataset
    from neuroranker_pipeline.resources.workspace import Workspace, default_lake, default_profile

    workspace = Workspace(profile=default_profile(), lake_root=default_lake())
    return dg.Definitions(
        assets=[raw_dataset, *(asset.to_dagster(workspace.settings) for asset in ASSETS)],
        resources={"workspace": workspace},
        # One process a run: steps of one run follow one another anyway, and models stay warm between them.
        executor=dg.in_process_executor,
    )
