"""What every data set offers the pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import pyarrow as pa

from neuroranker_pipeline.datasets.pydocs import PydocsSettings, PydocsSource


class Source(Protocol):
    """Passages, queries and judgments from outside, streamed as record batches of the schemas in ``tables``."""

    name: str

    @property
    def licence(self) -> str:
        """Whose text it is and on what terms."""
        ...

    def digest(self) -> str:
        """A cheap fingerprint of the data: equal digests promise equal tables."""
        ...

    def passages(self) -> Iterator[pa.RecordBatch]: ...

    def queries(self) -> Iterator[pa.RecordBatch]: ...

    def qrels(self) -> Iterator[pa.RecordBatch]: ...


def open_source(settings: PydocsSettings) -> Source:
    """The source that the data settings name."""
    return PydocsSource(settings)
