"""The run-metrics store: what every materialization measured, as Parquet files that any DuckDB client can
query.

Each materialization adds one file to ``materializations/`` and, when it has figures, one to ``figures/``.
No file is ever rewritten, so any number of readers and writers work side by side without a lock.
``views.sql`` gives the same views to a plain client: ``duckdb -init <root>/views.sql``.

Cost (two cores): an append takes about 10 ms; a query of a store with 1,000 materializations half a second, with 5,000
(10,000 files) three seconds.
"""

from __future__ import annotations

import glob
import io
import os
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from neuroranker_pipeline.errors import BadInput, NotReady

if TYPE_CHECKING:
    import duckdb

MATERIALIZATIONS = pa.schema(
    [
        ("record_id", pa.string()),
        ("run_id", pa.string()),
        ("profile", pa.string()),
        ("asset", pa.string()),
        ("partition", pa.string()),
        ("code_version", pa.string()),
        ("data_version", pa.string()),
        ("fingerprint", pa.string()),
        ("started_at", pa.timestamp("us", tz="UTC")),
        ("wall_seconds", pa.float64()),
        ("rows", pa.int64()),
        ("device", pa.string()),
        ("checks_passed", pa.bool_()),
    ]
)
FIGURES = pa.schema(
    [
        ("record_id", pa.string()),
        ("run_id", pa.string()),
        ("asset", pa.string()),
        ("partition", pa.string()),
        ("name", pa.string()),
        ("step", pa.int64()),
        ("value", pa.float64()),
    ]
)
FAMILIES = {"materializations": MATERIALIZATIONS, "figures": FIGURES}

# A figure is a measure by its name: "MRR@10", or "<ranker>/MRR@10" where one asset measures several rankers.
VIEWS = r"""
CREATE OR REPLACE VIEW latest AS
SELECT * FROM materializations
QUALIFY row_number() OVER (PARTITION BY profile, asset, partition ORDER BY started_at DESC, record_id DESC) = 1;

CREATE OR REPLACE VIEW measures AS
SELECT m.started_at, m.profile, m.run_id, m.asset, m.partition,
       nullif(regexp_extract(f.name, '^(.*)/[^/]*$', 1), '') AS ranker,
       regexp_extract(f.name, '[^/]*$') AS measure, f.value, record_id
FROM materializations m JOIN figures f USING (record_id)
WHERE f.step IS NULL
  AND regexp_matches(f.name, '(^|/)((MRR|RR|nDCG|R|P|MAP|AP|Success)@[0-9]+|MRR|RR|nDCG|MAP|AP|Rprec)$');

CREATE OR REPLACE VIEW curves AS
SELECT m.started_at, m.profile, m.run_id, m.asset, m.partition, f.name, f.step, f.value, record_id
FROM materializations m JOIN figures f USING (record_id)
WHERE f.step IS NOT NULL;
"""


@dataclass(frozen=True)
class Figure:
    """One number: a size, a measure (``step`` None), or a point of a curve at training step ``step``."""

    name: str
    value: float
    step: int | None = None


@dataclass(frozen=True)
class RunRecord:
    """One materialization. ``started_at`` is aware of its time zone; ``checks_passed`` None means not
    checked yet.
    """

    run_id: str
    profile: str
    asset: str
    started_at: datetime
    wall_seconds: float
    code_version: str
    data_version: str
    fingerprint: str
    device: str
    checks_passed: bool | None = None
    partition: str | None = None
    rows: int | None = None
    figures: tuple[Figure, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.started_at.tzinfo is None:
            raise ValueError("started_at must have a time zone, got a naive datetime")


def history_figures(history: Iterable[Mapping[str, Any]], prefix: str = "") -> tuple[Figure, ...]:
    """A training history (``{"step": 10, "loss": 0.7, "lr": 1e-4, ...}`` a row) as curve points; other text
    is left out.
    """
    return tuple(
        Figure(prefix + name, float(value), int(row["step"]))
        for row in history
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float)
    )


@dataclass(frozen=True)
class MetricsStore:
    """The store in folder ``root``: a path, or a URL of any fsspec filesystem (``s3://bucket/metrics``)."""

    root: str

    def append(self, record: RunRecord) -> str:
        """Add one materialization and its figures; returns its record id. A reader sees all of it or nothing.

        The figures are written first and count only once their materialization is there.
        """
        record_id = uuid.uuid4().hex
        self._create()
        keys = {
            "record_id": record_id,
            "run_id": record.run_id,
            "asset": record.asset,
            "partition": record.partition,
        }
        figures = [{**keys, "name": f.name, "step": f.step, "value": f.value} for f in record.figures]
        stamp = record.started_at.astimezone(UTC).strftime("%Y%m%dT%H%M%S")
        name = f"{stamp}-{record_id}.parquet"
        if figures:
            self._write(f"figures/{name}", _parquet(figures, FIGURES))
        row = {column: getattr(record, column) for column in MATERIALIZATIONS.names if column not in keys}
        self._write(f"materializations/{name}", _parquet([{**keys, **row}], MATERIALIZATIONS))
        return record_id

    def connect(self) -> duckdb.DuckDBPyConnection:
        """An in-memory DuckDB connection with the views ``materializations``, ``figures``, ``latest``,
        ``measures`` and ``curves``, each of which reads what is in the store when it is queried. The
        caller closes it.
        """
        return self._connection("VIEW")

    def query(self, sql: str) -> tuple[list[str], list[tuple]]:
        """Column names and rows of one reading statement (SELECT, WITH, FROM, DESCRIBE, SHOW, SUMMARIZE,
        EXPLAIN).

        It runs over a copy of the store in memory, without access to any file: DuckDB 2 takes a COPY inside
        WITH, which the kind of statement does not show. Raises ``BadInput`` with one line for anything else
        and for SQL errors.
        """
        import duckdb

        with self._connection("TABLE") as connection:
            try:
                connection.execute("SET enable_external_access = false; SET lock_configuration = true")
                statements = connection.extract_statements(sql)
                kinds = [statement.type for statement in statements]
                reading = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
                if len(kinds) != 1 or kinds[0] not in reading:
                    raise BadInput("metrics: give one reading statement, such as SELECT * FROM measures")
                result = connection.execute(statements[0])
                return [column[0] for column in result.description or []], result.fetchall()
            except duckdb.Error as error:
                raise BadInput(f"metrics: {_one_line(error)}") from None

    def views_sql(self) -> str:
        """The SQL that defines the views over this store's files, for any DuckDB client on this machine."""
        return self._relations("VIEW") + VIEWS

    def _connection(self, kind: str) -> duckdb.DuckDBPyConnection:
        import duckdb

        self._create()
        filesystem, _ = self._filesystem()
        connection = duckdb.connect()
        if not _is_local(filesystem):
            filesystem.invalidate_cache()
            connection.register_filesystem(filesystem)
        try:
            connection.execute("SET preserve_insertion_order = false")  # a third faster over many small files
            connection.execute(self._relations(kind) + VIEWS)
        except duckdb.Error as error:
            connection.close()
            raise NotReady(f"metrics store {self.root}: {_one_line(error)}") from error
        return connection

    def _relations(self, kind: str) -> str:
        """SQL that creates the two base relations as VIEW (read when queried) or TABLE (copied now)."""
        filesystem, path = self._filesystem()
        base = path if _is_local(filesystem) else filesystem.unstrip_protocol(path)
        quoted = glob.escape(base).replace("'", "''")  # the folder's own name is no pattern
        return "".join(
            f"CREATE OR REPLACE {kind} {family} AS\n"
            f"SELECT * FROM read_parquet('{quoted}/{family}/*.parquet', union_by_name = true);\n\n"
            for family in FAMILIES
        )

    def _create(self) -> None:
        """Make the folders, an empty Parquet file in each (a glob without a match is an error), and views.sql.

        Leaves alone what is right already. The paths in views.sql are absolute, because DuckDB resolves relative
        ones from where the client was started; a moved lake gets new ones.
        """
        filesystem, path = self._filesystem()
        for family, schema in FAMILIES.items():
            if not filesystem.exists(f"{path}/{family}/0-schema.parquet"):
                self._write(f"{family}/0-schema.parquet", _parquet([], schema))
        views = (
            f"-- Views over the run metrics. Open with: duckdb -init {path}/views.sql\n\n" + self.views_sql()
        ).encode()
        with suppress(OSError):  # not there yet
            if filesystem.cat_file(f"{path}/views.sql") == views:
                return
        with suppress(OSError):  # a store that cannot be written to can still be read
            self._write("views.sql", views)

    def _filesystem(self) -> tuple[fsspec.AbstractFileSystem, str]:
        filesystem, path = fsspec.core.url_to_fs(self.root)
        return filesystem, path.rstrip("/")

    def _write(self, name: str, data: bytes) -> None:
        filesystem, path = self._filesystem()
        target = f"{path}/{name}"
        if not _is_local(filesystem):
            filesystem.pipe_file(target, data)  # an object store's PUT is all or nothing
            return
        temporary = Path(f"{target}.{uuid.uuid4().hex}.tmp")  # no glob of ours matches it
        temporary.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # an empty file after a power cut would break every later read
        temporary.replace(target)


def _parquet(rows: list[dict[str, Any]], schema: pa.Schema) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), buffer, compression="zstd")
    return buffer.getvalue()


def _is_local(filesystem: fsspec.AbstractFileSystem) -> bool:
    return "file" in ((filesystem.protocol,) if isinstance(filesystem.protocol, str) else filesystem.protocol)


def _one_line(error: Exception) -> str:
    """DuckDB's message and hints without the drawing of the place in the query."""
    lines = (line.strip() for line in str(error).splitlines())
    return " ".join(line for line in lines if line and not line.startswith(("LINE ", "^")))
