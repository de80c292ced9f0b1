from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from neuroranker_pipeline.datasets.tables import CANDIDATES
from neuroranker_pipeline.datasets.trec import ranked, read_qrels, read_run, untied, write_run
from neuroranker_pipeline.errors import BadInput

identifiers = st.text(st.characters(codec="utf-8", exclude_characters=" \ufeff", exclude_categories=["Cc"]), min_size=1)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
few_scores = st.sampled_from([0.0, 1.0, -1.5, 0.1])
runs = st.dictionaries(st.tuples(identifiers, identifiers), finite | few_scores, max_size=30)


def scores_table(run: dict[tuple[str, str], float]) -> pa.Table:
    return pa.table(
        {
            "qid": pa.array([qid for qid, _ in run], pa.string()),
            "pid": pa.array([pid for _, pid in run], pa.string()),
            "score": pa.array(list(run.values()), pa.float32()),
        }
    )


@example({("q", "p"): float(np.finfo(np.float32).max)})
@given(runs)
def test_a_written_run_reads_back_exactly(run: dict[tuple[str, str], float]) -> None:
    table = scores_table(run)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.trec"
        assert write_run(table, path, "tag") == len(run)
        assert read_run(path).equals(untied(ranked(table)))
        assert [file.name for file in Path(folder).iterdir()] == ["run.trec"]


@given(runs)
def test_untied_scores_fall_strictly_and_keep_the_order(run: dict[tuple[str, str], float]) -> None:
    before, after = (made.to_pylist() for made in (ranked(scores_table(run)), untied(ranked(scores_table(run)))))
    assert [(row["qid"], row["pid"], row["rank"]) for row in before] == [
        (row["qid"], row["pid"], row["rank"]) for row in after
    ]
    lowest = float(np.finfo(np.float32).min)
    for qid in {qid for qid, _ in run}:
        old, new = ([row["score"] for row in rows if row["qid"] == qid] for rows in (before, after))
        assert all(low < high or low == lowest for high, low in itertools.pairwise(new))
        assert np.allclose(old, new, rtol=1e-5, atol=1e-30)
        if len(set(old)) == len(old):
            assert old == new


@given(runs)
def test_ranking_is_by_score_then_pid_whatever_the_order_of_rows(run: dict[tuple[str, str], float]) -> None:
    rows = ranked(scores_table(run)).to_pylist()
    for qid in {qid for qid, _ in run}:
        mine = [row for row in rows if row["qid"] == qid]
        pids = [pid for q, pid in run if q == qid]
        expected = sorted(pids, key=lambda pid: (-float(np.float32(run[qid, pid])), pid))
        assert [row["pid"] for row in mine] == expected
        assert [row["rank"] for row in mine] == list(range(1, len(mine) + 1))
    assert list(dict.fromkeys(row["qid"] for row in rows)) == list(dict.fromkeys(qid for qid, _ in run))


def test_ranked_has_the_schema_of_candidates_even_when_empty() -> None:
    assert ranked(scores_table({})).schema == CANDIDATES


def test_file_ranks_and_order_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "run.trec"
    path.write_text("q Q0 b 1 2.5 x\nq\tQ0\ta 2 2.5 x\n\nq Q0 c 3 9 x\n")
    assert [(row["pid"], row["rank"]) for row in read_run(path).to_pylist()] == [("c", 1), ("a", 2), ("b", 3)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q Q0 p 1 2.0", "expected `qid Q0 pid rank score tag`"),
        ("q Q0 p 1 high x", "the score must be a finite number, got 'high'"),
        ("q Q0 p 1 nan x", "finite"),
        ("q Q0 p 1 1e39 x", "finite"),
        ("q Q0 a 1 1 x", "passage a occurs twice for query q"),
    ],
)
def test_bad_run_lines_name_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "run.trec"
    path.write_text(f"q Q0 a 1 3.0 x\n{line}\n")
    with pytest.raises(BadInput, match=r"run\.trec:2: .*") as error:
        read_run(path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("row", "tag"), [((("q q", "p"), 1.0), "t"), ((("q", ""), 1.0), "t"), ((("q", "p"), 1.0), "a tag")]
)
def test_what_the_format_cannot_hold_is_refused(tmp_path: Path, row: tuple[tuple[str, str], float], tag: str) -> None:
    path = tmp_path / "run.trec"
    with pytest.raises(BadInput, match="white space"):
        write_run(scores_table(dict([row])), path, tag)
    assert list(tmp_path.iterdir()) == []


def test_scores_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not finite"):
        write_run(scores_table({("q", "p"): float("nan")}), tmp_path / "run.trec")


def test_qrels(tmp_path: Path) -> None:
    path = tmp_path / "qrels.txt"
    path.write_text("1\t0\tp1\t3\n1 0 p2 -2\n1 0 p1 3\n")
    assert read_qrels(path, "dev").to_pylist() == [
        {"qid": "1", "pid": "p1", "grade": 3, "split": "dev"},
        {"qid": "1", "pid": "p2", "grade": -2, "split": "dev"},
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 0 p1", "expected `qid 0 pid grade`"),
        ("1 0 p2 high", "whole number, got 'high'"),
        ("1 0 p2 99999999999", "whole number"),
        ("1 0 p1 2", "graded 3 before"),
    ],
)
def test_bad_qrels_lines_name_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "qrels.txt"
    path.write_text(f"1 0 p1 3\n{line}\n")
    with pytest.raises(BadInput, match=r"qrels\.txt:2: .*") as error:
        read_qrels(path)
    assert message in str(error.value)
