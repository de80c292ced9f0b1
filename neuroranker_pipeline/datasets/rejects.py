"""Rows that cannot be used: kept with the place they stand at and the reason, and few enough or the work stops."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from neuroranker_pipeline.errors import BadInput

REJECTS = pa.schema(
    [
        ("file", pa.string()),
        ("line", pa.int64()),
        ("id", pa.string()),
        ("reason", pa.string()),
        ("excerpt", pa.string()),
    ]
)
REJECTED = "rejects/rejects.parquet"
"""Where they are kept below an artifact's folder: not beside its own Parquet files, which are read together."""
KEPT = 100_000
"""Rows kept in the table, so that its memory is bounded; all are counted."""
HOPELESS = 10_000
"""From so many rejected rows on, a source that rejects more rows than it accepts is given up at once."""
EXCERPT = 80  # characters


class Rejects:
    """What was refused of one artifact's rows, against the share that may be (``max_share``, 0 to 1)."""

    def __init__(self, max_share: float = 0.0) -> None:
        self.max_share = max_share
        self.accepted = 0
        self.reasons: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self._rows: list[tuple[str, int, str, str, str]] = []

    @property
    def count(self) -> int:
        """Rejected rows."""
        return self.reasons.total()

    @property
    def total(self) -> int:
        """Rows looked at."""
        return self.accepted + self.count

    def accept(self, rows: int) -> None:
        """Count rows that were fine. Raises ``BadInput`` when nearly nothing of the source can be used."""
        self.accepted += rows
        if self.count >= HOPELESS and self.count > self.accepted:
            self.demand()

    def leave_out(self, what: str, rows: int) -> None:
        """Count rows that are sound but not wanted."""
        if rows:
            self.left_out[what] += rows

    def add(self, file: str, line: int, reason: str, excerpt: str = "", identifier: str = "") -> None:
        """Refuse one row."""
        self.reasons[reason] += 1
        if len(self._rows) < KEPT:
            self._rows.append((file, line, identifier[:EXCERPT], reason, excerpt[:EXCERPT]))

    def demand(self) -> None:
        """Raise ``BadInput``, naming the first rejected row, when more than ``max_share`` of the rows were refused."""
        if not self.count or self.count <= self.max_share * self.total:
            return
        file, line, _, reason, excerpt = min(self._rows)
        shown = f" ({excerpt!r})" if excerpt else ""
        counts = ", ".join(f"{number:,} {why}" for why, number in self.reasons.most_common(5))
        raise BadInput(
            f"{file}:{line}: {reason}{shown}; {self.count:,} of {self.total:,} rows cannot be used ({counts}), and "
            f"data.max_reject_share allows {self.max_share:.2%}: mend the file, or raise the share"
        )

    def table(self) -> pa.Table:
        """The rejected rows (``KEPT`` of them at most) by file and line, schema ``REJECTS``."""
        columns = list(zip(*sorted(self._rows), strict=True)) or [()] * len(REJECTS)
        return pa.table([pa.array(column, field.type) for column, field in zip(columns, REJECTS, strict=True)], REJECTS)

    def write(self, folder: Path) -> None:
        """Write the table as ``REJECTED`` below an artifact's folder; nothing when there is none."""
        if self._rows:
            (folder / REJECTED).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(self.table(), folder / REJECTED, compression="zstd")
