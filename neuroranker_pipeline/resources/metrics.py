"""The run-metrics store: what every materialization measured, as Parquet files that any DuckDB client can
query.

Each materialization adds one file to ``materializations/`` and, when it has them, one to ``figures/`` and one to
``per_query/``. What was tried and made nothing adds one to ``outcomes/``. No file is ever rewritten, so any number of
readers and writers work side by side without a lock. ``views.sql`` gives the same views to a plain client:
``duckdb -init <root>/views.sql``. docs/metrics.md describes every column.

Cost (two cores): an append takes about 10 ms; a query of a store with 1,000 materializations half a second, with 5,000
(10,000 files) three seconds.
"""

from __future__ import annotations

import glob
import io
import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
        ("version", pa.string()),
        ("bytes", pa.int64()),
        ("settings", pa.string()),
        ("versions", pa.string()),
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
PER_QUERY = pa.schema(
    [
        ("record_id", pa.string()),
        ("run_id", pa.string()),
        ("asset", pa.string()),
        ("partition", pa.string()),
        ("ranker", pa.string()),
        ("qid", pa.string()),
        ("measure", pa.string()),
        ("value", pa.float64()),
    ]
)
OUTCOMES = pa.schema(
    [
        ("run_id", pa.string()),
        ("profile", pa.string()),
        ("asset", pa.string()),
        ("partition", pa.string()),
        ("started_at", pa.timestamp("us", tz="UTC")),
        ("outcome", pa.string()),
        ("seconds", pa.float64()),
        ("error", pa.string()),
    ]
)
# Columns are only ever added, at the end: a store that an older version wrote to stays readable.
FAMILIES = {"materializations": MATERIALIZATIONS, "figures": FIGURES, "per_query": PER_QUERY, "outcomes": OUTCOMES}
LARGE = ("per_query",)  # copied for a query only if it names them

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

CREATE OR REPLACE VIEW breakdowns AS
SELECT m.started_at, m.profile, m.run_id, m.asset, m.partition,
       regexp_extract(f.name, '^(.*)/([^/]+)/(\w+): (.+)$', 1) AS ranker,
       regexp_extract(f.name, '^(.*)/([^/]+)/(\w+): (.+)$', 2) AS measure,
       regexp_extract(f.name, '^(.*)/([^/]+)/(\w+): (.+)$', 3) AS kind,
       regexp_extract(f.name, '^(.*)/([^/]+)/(\w+): (.+)$', 4) AS query_group, f.value, record_id
FROM materializations m JOIN figures f USING (record_id)
WHERE f.step IS NULL AND regexp_matches(f.name, '^.*/[^/]+/\w+: .+$');

CREATE OR REPLACE VIEW scores AS
SELECT m.started_at, m.profile, m.run_id, m.asset, m.partition,
       regexp_extract(f.name, '^(.*)/score [^/]+$', 1) AS ranker,
       regexp_extract(f.name, '/score ([^/]+)$', 1) AS statistic, f.value, record_id
FROM materializations m JOIN figures f USING (record_id)
WHERE f.step IS NULL AND regexp_matches(f.name, '^.*/score [^/]+$');

CREATE OR REPLACE VIEW steps AS
SELECT started_at, profile, run_id, asset, partition,
       CASE WHEN checks_passed IS false THEN 'blocked' ELSE 'made' END AS outcome,
       wall_seconds AS seconds, NULL::VARCHAR AS error
FROM materializations
UNION ALL
SELECT started_at, profile, run_id, asset, partition, outcome, seconds, error FROM outcomes;

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
    checked yet. ``version`` and ``bytes`` are those of the artifact in the lake, ``settings`` the whole
    profile, ``versions`` those of the software. ``per_query``: an evaluation's values, columns ranker, qid,
    measure, value.
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
    version: str | None = None
    bytes: int | None = None
    settings: Mapping[str, Any] | None = None
    versions: Mapping[str, str] | None = None
    per_query: pa.Table | None = None

    def __post_init__(self) -> None:
        if self.started_at.tzinfo is None:
            raise ValueError("started_at must have a time zone, got a naive datetime")


@dataclass(frozen=True)
class StepOutcome:
    """A step that made nothing: ``reused`` what was up to date, or ``failed`` with an ``error`` of one line."""

    outcome: Literal["reused", "failed"]
    run_id: str
    profile: str
    asset: str
    partition: str | None
    started_at: datetime
    seconds: float = 0.0
    error: str | None = None


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
        stamp = record.started_at.astimezone(UTC).strftime("%Y%m%dT%H%M%S")
        name = f"{stamp}-{record_id}.parquet"
        if record.per_query is not None and record.per_query.num_rows:
            self._write(f"per_query/{name}", _parquet(_with_keys(record.per_query, keys), PER_QUERY))
        if record.figures:
            figures = [{**keys, "name": f.name, "step": f.step, "value": f.value} for f in record.figures]
            self._write(f"figures/{name}", _parquet(figures, FIGURES))
        row = {column: _cell(getattr(record, column)) for column in MATERIALIZATIONS.names if column not in keys}
        self._write(f"materializations/{name}", _parquet([{**keys, **row}], MATERIALIZATIONS))
        return record_id

    def note(self, outcomes: Sequence[StepOutcome]) -> None:
        """Add what was tried and made nothing, as one file."""
        if outcomes:
            self._create()
            stamp = outcomes[-1].started_at.astimezone(UTC).strftime("%Y%m%dT%H%M%S")
            rows = [vars(outcome) for outcome in outcomes]
            self._write(f"outcomes/{stamp}-{uuid.uuid4().hex}.parquet", _parquet(rows, OUTCOMES))

    def connect(self) -> duckdb.DuckDBPyConnection:
        """An in-memory DuckDB connection with the views of ``views.sql``, each of which reads what is in the
        store when it is queried. The caller closes it.
        """
        return self._connection("VIEW", tuple(FAMILIES))

    def query(self, sql: str) -> tuple[list[str], list[tuple]]:
        """Column names and rows of one reading statement (SELECT, WITH, FROM, DESCRIBE, SHOW, SUMMARIZE,
        EXPLAIN).

        It runs over a copy of the store in memory, without access to any file: DuckDB 2 takes a COPY inside
        WITH, which the kind of statement does not show. Raises ``BadInput`` with one line for anything else
        and for SQL errors.
        """
        import duckdb

        wanted = [family for family in FAMILIES if family not in LARGE or family in sql.lower()]
        with self._connection("TABLE", wanted) as connection:
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
                raise BadInput(f"metrics: {one_line(error)}") from None

    def views_sql(self) -> str:
        """The SQL that defines the views over this store's files, for any DuckDB client on this machine."""
        return self._relations("VIEW", tuple(FAMILIES)) + VIEWS

    def _connection(self, kind: str, families: Sequence[str]) -> duckdb.DuckDBPyConnection:
        import duckdb

        self._create()
        filesystem, _ = self._filesystem()
        connection = duckdb.connect()
        if not _is_local(filesystem):
            filesystem.invalidate_cache()
            connection.register_filesystem(filesystem)
        try:
            connection.execute("SET preserve_insertion_order = false")  # a third faster over many small files
            connection.execute(self._relations(kind, families) + VIEWS)
        except duckdb.Error as error:
            connection.close()
            raise NotReady(f"metrics store {self.root}: {one_line(error)}") from error
        return connection

    def _relations(self, kind: str, families: Sequence[str]) -> str:
        """SQL that creates the base relations as VIEW (read when queried) or TABLE (copied now); one that is not among
        the ``families`` is empty."""
        filesystem, path = self._filesystem()
        base = path if _is_local(filesystem) else filesystem.unstrip_protocol(path)
        quoted = glob.escape(base).replace("'", "''")  # the folder's own name is no pattern
        return "".join(
            f"CREATE OR REPLACE {kind} {family} AS\n"
            f"SELECT * FROM read_parquet('{quoted}/{family}/{'*' if family in families else '0-schema*'}.parquet', "
            "union_by_name = true);\n\n"
            for family in FAMILIES
        )

    def _create(self) -> None:
        """Make the folders, an empty Parquet file in each (a glob without a match is an error), and views.sql.

        Leaves alone what is right already. The paths in views.sql are absolute, because DuckDB resolves relative
        ones from where the client was started; a moved lake gets new ones.
        """
        filesystem, path = self._filesystem()
        for family, schema in FAMILIES.items():
            name = f"{family}/0-schema-{len(schema)}.parquet"
            if not filesystem.exists(f"{path}/{name}"):
                self._write(name, _parquet([], schema))
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


def _parquet(rows: list[dict[str, Any]] | pa.Table, schema: pa.Schema) -> bytes:
    buffer = io.BytesIO()
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows, schema)
    pq.write_table(table.select(schema.names).cast(schema), buffer, compression="zstd")
    return buffer.getvalue()


def _with_keys(table: pa.Table, keys: Mapping[str, str | None]) -> pa.Table:
    for name, value in keys.items():
        table = table.append_column(name, pa.array([value] * table.num_rows, pa.string()))
    return table


def _cell(value: Any) -> Any:
    return json.dumps(value, sort_keys=True, default=str) if isinstance(value, Mapping) else value


def _is_local(filesystem: fsspec.AbstractFileSystem) -> bool:
    return "file" in ((filesystem.protocol,) if isinstance(filesystem.protocol, str) else filesystem.protocol)


def one_line(error: Exception) -> str:
    """An error's message on one line; of DuckDB's, without the drawing of the place in the query."""
    lines = (line.strip() for line in str(error).splitlines())
    return " ".join(line for line in lines if line and not line.startswith(("LINE ", "^")))
