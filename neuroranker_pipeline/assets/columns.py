"""The columns of an asset's table, and the columns of its inputs that they come from, as Dagster shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
import pyarrow as pa

DESCRIPTIONS = {
    "qid": "id of the query",
    "pid": "id of the passage",
    "text": "what is searched with, or searched",
    "split": "train, dev, gate, test, or a further test split such as test-dl19",
    "grade": "relevance as judged, 0 for none",
    "rank": "place among the query's candidates, from 1",
    "score": "the higher, the more relevant; comparable within a query only",
    "cross_encoder": "the cross-encoder's share of the teacher's score",
    "ranker": "which ranker, as the report names it",
    "measure": "which measure, such as MRR@10",
    "value": "the measure of this query",
    "embedding": "unit vector; its length is the model's dimension",
}

# Of any dimension; the file has the model's.
EMBEDDINGS = pa.schema([("pid", pa.string()), ("embedding", pa.list_(pa.float32()))])


@dataclass(frozen=True)
class Columns:
    """A table's schema, and for columns that come from other tables, from which: words ``asset.column``."""

    schema: pa.Schema
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def lineage(self) -> dict[str, Any]:
        """Metadata of a materialization: which column comes from where."""
        deps = {
            column: [dg.TableColumnDep(asset, name) for asset, name in (word.split(".") for word in words.split())]
            for column, words in self.sources.items()
        }
        return {"dagster/column_lineage": dg.TableColumnLineage(deps)} if deps else {}

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata of the definition: the columns with their types, and where each comes from."""
        columns = [
            dg.TableColumn(
                name=column.name,
                type=str(column.type),
                description=DESCRIPTIONS.get(column.name),
                constraints=dg.TableColumnConstraints(nullable=False),  # every table is written without nulls
            )
            for column in self.schema
        ]
        return {"dagster/column_schema": dg.TableSchema(columns), **self.lineage}
