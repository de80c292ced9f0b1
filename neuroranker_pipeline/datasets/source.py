"""What every data set offers the pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import pyarrow as pa


class Source(Protocol):
    """Passages, queries and judgments from outside, streamed as record batches of the schemas in ``tables``."""

    name: str
    licence: str
    """Whose text it is and on what terms."""

    def digest(self) -> str:
        """A cheap fingerprint of the data: equal digests promise equal tables."""
        ...

    def passages(self) -> Iterator[pa.RecordBatch]: ...

    def queries(self) -> Iterator[pa.RecordBatch]: ...

    def qrels(self) -> Iterator[pa.RecordBatch]: ...
