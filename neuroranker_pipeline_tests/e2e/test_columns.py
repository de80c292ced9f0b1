"""The columns that the UI shows are those of the files."""

from __future__ import annotations

import pyarrow as pa
import pytest

from neuroranker_pipeline.assets import ASSETS
from neuroranker_pipeline.config.load import load_settings
from neuroranker_pipeline.datasets.tables import read_table
from neuroranker_pipeline_tests.e2e.conftest import PROFILE, Graph


def plain(schema: pa.Schema) -> list[tuple[str, str]]:
    """Names and types; an embedding's dimension is the model's."""
    return [
        (
            field.name,
            "vector" if pa.types.is_list(field.type) or pa.types.is_fixed_size_list(field.type) else field.type,
        )
        for field in schema
    ]


@pytest.mark.e2e
def test_declared_columns_are_the_files(graph: Graph) -> None:
    settings = load_settings(PROFILE)
    for asset in ASSETS:
        if asset.columns:
            partition = asset.partitions(settings)[0]
            table = read_table(graph.lake.read(asset.name, partition))
            assert plain(table.schema) == plain(asset.columns.schema), asset.name
            assert sum(column.null_count for column in table.columns) == 0, asset.name
