import subprocess
import sys
import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neuroranker_pipeline.errors import BadInput, NotReady
from neuroranker_pipeline.resources.metrics import (
    FAMILIES,
    Figure,
    MetricsStore,
    RunRecord,
    StepOutcome,
    history_figures,
)

VIEWS = (*FAMILIES, "latest", "measures", "breakdowns", "scores", "steps", "curves")
NOON = datetime(2025, 1, 31, 12, tzinfo=UTC)


def record(**changes) -> RunRecord:
    made = RunRecord(
        run_id="run-1",
        profile="quickstart",
        asset="eval_report",
        started_at=NOON,
        wall_seconds=1.5,
        code_version="1",
        data_version="abc",
        fingerprint="f00",
        device="cpu",
        checks_passed=True,
        rows=300,
        figures=(Figure("student int8/MRR@10", 0.52), Figure("bytes", 23e6), Figure("loss", 0.7, 10)),
    )
    return replace(made, **changes)


@pytest.fixture(params=["folder", "object store"])
def store(request, tmp_path):
    name = uuid.uuid4().hex
    return MetricsStore(str(tmp_path / "metrics") if request.param == "folder" else f"memory://{name}/metrics")


def test_an_empty_store_has_every_view_with_its_columns(store):
    for view in VIEWS:
        assert store.query(f"SELECT count(*) FROM {view}") == (["count_star()"], [(0,)])
    columns = [row[0] for row in store.query("DESCRIBE materializations")[1]]
    assert columns == FAMILIES["materializations"].names
    with store.connect() as connection:
        assert connection.execute("SELECT * FROM latest").fetchall() == []


def test_a_record_reads_back_as_it_was(store):
    appended = store.append(record(partition="dev"))
    columns, rows = store.query("SELECT * FROM materializations")
    row = dict(zip(columns, rows[0], strict=True))
    assert row.pop("started_at").astimezone(UTC) == NOON
    assert row == {
        "record_id": appended, "run_id": "run-1", "profile": "quickstart", "asset": "eval_report", "partition": "dev",
        "code_version": "1", "data_version": "abc", "fingerprint": "f00", "wall_seconds": 1.5, "rows": 300,
        "device": "cpu", "checks_passed": True, "version": None, "bytes": None, "settings": None, "versions": None,
    }  # fmt: skip
    figures = store.query("SELECT run_id, asset, partition, name, step, value FROM figures ORDER BY name")[1]
    assert figures == [
        ("run-1", "eval_report", "dev", "bytes", None, 23e6),
        ("run-1", "eval_report", "dev", "loss", 10, 0.7),
        ("run-1", "eval_report", "dev", "student int8/MRR@10", None, 0.52),
    ]


def test_measures_and_curves_part_the_figures(store):
    names = ["MRR@10", "a/b/nDCG@10", "R@100", "teacher/MAP", "loss", "bytes", "R", "MRR@ten", "student/size"]
    store.append(record(figures=(*tuple(Figure(name, 0.5) for name in names), Figure("MRR@10", 0.4, 100))))
    measures = store.query("SELECT ranker, measure FROM measures ORDER BY ALL")[1]
    assert measures == [("a/b", "nDCG@10"), ("teacher", "MAP"), (None, "MRR@10"), (None, "R@100")]
    assert store.query("SELECT name, step, value FROM curves")[1] == [("MRR@10", 100, 0.4)]


def test_an_artifact_and_what_made_it_are_kept(store):
    settings = {"seed": 13, "student": {"training": {"learning_rate": 2e-5}, "layers": (0, 1)}}
    store.append(record(version="20250131T120000-abc", bytes=2_500, settings=settings, versions={"torch": "2.13"}))
    sql = (
        "SELECT version, bytes, CAST(settings ->> '$.student.training.learning_rate' AS DOUBLE), versions ->> '$.torch' "
        "FROM latest"
    )
    assert store.query(sql)[1] == [("20250131T120000-abc", 2_500, 2e-5, "2.13")]


def test_values_per_query_are_kept_with_their_evaluation(store):
    rows = {"ranker": ["a", "a", "b"], "qid": ["q1", "q2", "q1"], "measure": ["MRR@10"] * 3, "value": [1.0, 0.5, 0.0]}
    appended = store.append(record(partition="test", per_query=pa.table(rows)))
    store.append(record(per_query=pa.table(rows).slice(0, 0)))
    found = store.query("SELECT record_id, partition, ranker, qid, value FROM PER_QUERY ORDER BY ranker, qid")[1]
    assert found == [(appended, "test", *row) for row in [("a", "q1", 1.0), ("a", "q2", 0.5), ("b", "q1", 0.0)]]
    with store.connect() as connection:
        assert connection.execute("SELECT count(*) FROM per_query").fetchall() == [(3,)]


def test_steps_are_what_was_made_blocked_reused_and_failed(store):
    store.append(record())
    store.append(record(checks_passed=False, asset="teacher_checkpoint"))
    store.append(record(checks_passed=None, asset="unchecked"))
    store.note(
        [
            StepOutcome("reused", "", "quickstart", "passages", None, NOON),
            StepOutcome("failed", "run-2", "quickstart", "queries", "dev", NOON, 3.5, "BadInput: no"),
        ]
    )
    store.note([])
    assert store.query("SELECT asset, partition, outcome, seconds, error FROM steps ORDER BY asset")[1] == [
        ("eval_report", None, "made", 1.5, None),
        ("passages", None, "reused", 0.0, None),
        ("queries", "dev", "failed", 3.5, "BadInput: no"),
        ("teacher_checkpoint", None, "blocked", 1.5, None),
        ("unchecked", None, "made", 1.5, None),
    ]
    assert store.query("SELECT count(*) FROM materializations")[1] == [(3,)]


def test_breakdowns_and_score_distributions_are_told_from_measures(store):
    names = ["a b/MRR@10/type: question", "a/MRR@10/length: 6 to 8 words", "a/score q05", "a/b/score mean", "a/MRR@10"]
    store.append(record(figures=tuple(Figure(name, 0.5) for name in names)))
    assert store.query("SELECT ranker, measure, kind, query_group FROM breakdowns ORDER BY ALL")[1] == [
        ("a", "MRR@10", "length", "6 to 8 words"),
        ("a b", "MRR@10", "type", "question"),
    ]
    assert store.query("SELECT ranker, statistic FROM scores ORDER BY ALL")[1] == [("a", "q05"), ("a/b", "mean")]
    assert store.query("SELECT ranker, measure FROM measures")[1] == [("a", "MRR@10")]


def test_a_store_of_an_earlier_version_reads_with_the_columns_of_now(tmp_path):
    """As it lay on disk before evaluations were kept query by query."""
    old = FAMILIES["materializations"].names[:13]
    MetricsStore(str(tmp_path / "new")).append(record())
    for family in ("materializations", "figures"):
        source, target = tmp_path / "new" / family, tmp_path / "old" / family
        target.mkdir(parents=True)
        (written,) = source.glob("2*.parquet")
        table = pq.read_table(written)
        table = table.select(old) if family == "materializations" else table
        pq.write_table(table, target / written.name)
        pq.write_table(table.slice(0, 0), target / "0-schema.parquet")
    store = MetricsStore(str(tmp_path / "old"))
    assert store.query("SELECT asset, version, settings FROM latest")[1] == [("eval_report", None, None)]
    assert store.query("SELECT outcome FROM steps")[1] == [("made",)]
    assert store.query("SELECT count(*) FROM per_query")[1] == [(0,)]


def test_latest_is_the_newest_of_each_asset_and_partition(store):
    for minute, partition in enumerate(["dev", "dev", "test", None, None]):
        store.append(record(started_at=NOON + timedelta(minutes=minute), partition=partition, rows=minute))
    assert store.query("SELECT partition, rows FROM latest ORDER BY rows")[1] == [("dev", 1), ("test", 2), (None, 4)]


def test_times_are_kept_in_utc_and_must_have_a_zone(store):
    store.append(record(started_at=datetime(2025, 1, 31, 14, tzinfo=timezone(timedelta(hours=2)))))
    assert store.query("SELECT started_at = TIMESTAMPTZ '2025-01-31 12:00:00+00' FROM latest")[1] == [(True,)]
    with pytest.raises(ValueError, match="time zone"):
        record(started_at=datetime(2025, 1, 31))


def test_values_that_are_not_finite_are_kept(store):
    diverged = [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": float("inf")}]
    store.append(record(figures=history_figures(diverged)))
    assert store.query("SELECT isnan(value), isinf(value) FROM curves ORDER BY step")[1] == [
        (True, False),
        (False, True),
    ]


def test_a_training_history_becomes_curve_points():
    rows: list[dict[str, Any]] = [{"step": 10, "loss": 0.7, "phase": "warm-up"}, {"step": 20, "loss": 0.5, "lr": 1}]
    assert history_figures(rows, "student/") == (
        Figure("student/loss", 0.7, 10),
        Figure("student/loss", 0.5, 20),
        Figure("student/lr", 1.0, 20),
    )


@pytest.mark.parametrize("name", ["plain", "it's [odd] * and ? ünï"])
def test_views_sql_works_in_a_plain_client_started_anywhere(tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    MetricsStore(name).append(record())  # a relative root
    script = (tmp_path / name / "views.sql").read_text("utf-8")
    monkeypatch.chdir("/")
    with duckdb.connect() as client:
        client.execute(script)
        assert client.execute("SELECT ranker, measure, value FROM measures").fetchall() == [
            ("student int8", "MRR@10", 0.52)
        ]
        client.execute(script)  # once more, as a second .read would


def test_a_moved_store_gets_new_paths(tmp_path):
    MetricsStore(str(tmp_path / "old")).append(record())
    (tmp_path / "old").rename(tmp_path / "new")
    MetricsStore(str(tmp_path / "new")).append(record())
    with duckdb.connect() as client:
        client.execute((tmp_path / "new" / "views.sql").read_text("utf-8"))
        assert client.execute("SELECT count(*) FROM materializations").fetchall() == [(2,)]


def test_a_store_whose_views_cannot_be_written_can_be_read(tmp_path):
    store = MetricsStore(str(tmp_path))
    store.append(record())
    (tmp_path / "views.sql").unlink()
    (tmp_path / "views.sql").mkdir()
    assert store.query("SELECT count(*) FROM materializations")[1] == [(1,)]


def test_nothing_is_rewritten_and_no_temporary_file_stays(tmp_path):
    store = MetricsStore(str(tmp_path))
    store.append(record())
    before = {file: (file.stat().st_ino, file.read_bytes()) for file in tmp_path.rglob("*") if file.is_file()}
    for _ in range(3):
        store.append(record())
        store.query("SELECT 1")
    assert all((file.stat().st_ino, file.read_bytes()) == old for file, old in before.items())
    assert not list(tmp_path.rglob("*.tmp"))
    assert len(list(tmp_path.rglob("*.parquet"))) == len(FAMILIES) + 4 * 2


def test_figures_of_an_append_that_died_do_not_count(tmp_path):
    store = MetricsStore(str(tmp_path))
    store.append(record())
    next((tmp_path / "materializations").glob("2*.parquet")).unlink()  # killed between its two files
    assert store.query("SELECT count(*) FROM measures")[1] == [(0,)]
    (tmp_path / "figures" / "x.parquet.123.tmp").write_bytes(b"half")  # killed in the middle of one
    assert store.query("SELECT count(*) FROM figures")[1] == [(3,)]


def test_a_later_version_may_add_a_column(tmp_path):
    store = MetricsStore(str(tmp_path))
    store.append(record())
    newer = pq.read_table(next((tmp_path / "materializations").glob("2*.parquet")))
    pq.write_table(newer.append_column("peak_memory", [[5.0]]), tmp_path / "materializations" / "newer.parquet")
    assert store.query("SELECT peak_memory FROM materializations ORDER BY ALL")[1] == [(5.0,), (None,)]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT nothing FROM figures", 'column "nothing" not found'),
        ("SELEC 1", "syntax error"),
        ("", "one reading statement"),
        ("SELECT 1; SELECT 2", "one reading statement"),
        ("DROP VIEW figures", "one reading statement"),
        ("COPY figures TO '{}'", "one reading statement"),
        ("ATTACH '{}'", "one reading statement"),
        ("SET enable_external_access = true", "one reading statement"),
        ("WITH w AS (COPY (SELECT 1) TO '{}') FROM w", "disabled"),
        ("EXPLAIN ANALYZE COPY figures TO '{}'", "disabled"),
        ("SELECT 'x'::int", "Could not convert"),
    ],
)
def test_a_query_that_does_not_just_read_is_one_clear_line(tmp_path, sql, message):
    victim = tmp_path / "victim"
    with pytest.raises(BadInput, match=message) as caught:
        MetricsStore(str(tmp_path / "metrics")).query(sql.replace("{}", str(victim)))
    assert "\n" not in str(caught.value)
    assert not victim.exists()


@pytest.mark.parametrize("sql", ["FROM latest", "WITH x AS (SELECT 1) FROM x", "SUMMARIZE figures", "SHOW TABLES",
                                 "DESCRIBE curves", "EXPLAIN SELECT 1", "SELECT 1 ; -- the end"])  # fmt: skip
def test_every_way_to_read_is_welcome(tmp_path, sql):
    columns, rows = MetricsStore(str(tmp_path)).query(sql)
    assert all(len(row) == len(columns) for row in rows)


def test_a_broken_file_is_one_clear_error(tmp_path):
    store = MetricsStore(str(tmp_path))
    store.append(record())
    (tmp_path / "figures" / "broken.parquet").write_bytes(b"not parquet")
    with pytest.raises(NotReady, match=r"broken\.parquet") as caught:
        store.query("SELECT 1")
    assert "\n" not in str(caught.value)


WRITER = """
import sys, time
from datetime import UTC, datetime
from neuroranker_pipeline.resources.metrics import Figure, MetricsStore, RunRecord
store, i = MetricsStore(sys.argv[1]), 0
while True:
    i += 1
    figures = tuple(Figure("loss", 1.0, step) for step in range(5))
    store.append(RunRecord(f"run-{i}", "p", "student", datetime.now(UTC), 1.0, "1", "d", "f", "cpu", figures=figures))
    print(i, flush=True)
    time.sleep(0.02)  # or a hundred reads would end among thousands of files
"""


@pytest.fixture
def writing(tmp_path):
    """A store that another process appends to all the while."""
    root = Path(__file__).parents[2]
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout
    try:
        assert writer.stdout.readline() == "1\n"
        yield MetricsStore(str(tmp_path))
        assert writer.poll() is None, "the writer died"
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()


COUNTS = "SELECT (SELECT count(*) FROM curves), (SELECT count(*) FROM materializations)"


def test_a_hundred_queries_while_a_run_is_writing(writing):
    seen = []
    for _ in range(100):
        ((points, runs),) = writing.query(COUNTS)[1]
        assert points == 5 * runs  # whole records only
        seen.append(runs)
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]


def test_a_hundred_reads_of_views_sql_while_a_run_is_writing(writing):
    first = None
    with duckdb.connect() as client:
        client.execute((Path(writing.root) / "views.sql").read_text("utf-8"))
        for _ in range(100):
            ((points, runs),) = client.execute(COUNTS).fetchall()
            assert points % 5 == 0
            first = first or runs
            time.sleep(0.002)
    assert runs > first
