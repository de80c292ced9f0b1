"""Markdown for the UI."""

from __future__ import annotations

import pyarrow as pa

from neuroranker_pipeline.assets.previews import bars, curve, markdown_table, table_preview


def test_a_cell_cannot_break_out_of_its_table() -> None:
    lines = markdown_table(["a", "b"], [["x | y\nz", 0.5]]).splitlines()
    assert lines == ["| a | b |", "| --- | --- |", "| x \\| y z | 0.5000 |"]


def test_a_preview_cuts_rows_and_texts() -> None:
    table = pa.table({"pid": [str(i) for i in range(9)], "text": ["long " * 99] * 9})
    lines = table_preview(table, rows=3, width=20).splitlines()
    assert len(lines) == 5
    assert lines[2].endswith("long long long long … |")


def test_bars_are_relative_to_the_largest() -> None:
    lines = bars({"half": 0.5, "whole": 1.0, "none": 0.0}).splitlines()[2:]
    assert [line.count("█") for line in lines] == [12, 24, 0]


def test_a_curve_keeps_its_last_step() -> None:
    text = curve([(step, 1.0 / step) for step in range(1, 101)], "loss")
    assert "step 1 " in text
    assert "step 100 " in text
    assert text.count("step") <= 15
    assert curve([], "loss").startswith("**loss**")
