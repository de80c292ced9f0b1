"""Text from outside in Markdown."""

from __future__ import annotations

from neuroranker_pipeline.markdown import markdown, table


def test_text_is_shown_and_does_nothing() -> None:
    assert markdown("<b>a\n\n# b") == r"\<b\>a \# b"
    assert markdown("[x](javascript:y) `z` *w* _v_ &amp;") == r"\[x\](javascript:y) \`z\` \*w\* \_v\_ \&amp;"


def test_a_table_s_cells_stay_in_it_and_numbers_stand_to_the_right() -> None:
    lines = table(["a|b", "n"], [["x | y\n\nz", 1], ["", 0.5]]).splitlines()
    assert lines == [r"| a\|b | n |", "| --- | ---: |", r"| x \| y z | 1 |", "|   | 0.5 |"]
    assert table(["a"], []).splitlines() == ["| a |", "| --- |"]
