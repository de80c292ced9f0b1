from __future__ import annotations

import pytest

from neuroranker_pipeline.datasets.docstrings import plain_text, split_docstring

NUMPY_STYLE = """
    Return the sum of *a* over `axis`,
    e.g. Over rows. Wraps :func:`~numpy.add.reduce`.

    Parameters
    ----------
    a : array_like
        Elements to sum, see [1]_.

    See Also
    --------
    mean : Quotes the summary of another object.

    Examples
    --------
    >>> sum([1])
    1

    Returns
    -------
    float
    """


def test_summary_is_the_first_sentence_and_the_body_is_the_readable_rest() -> None:
    summary, body = split_docstring(NUMPY_STYLE)
    assert summary == "Return the sum of a over axis, e.g. Over rows."
    assert body == "Wraps numpy.add.reduce. Parameters: a : array_like Elements to sum, see . Returns: float"


def test_google_sections_stay_readable_and_their_examples_go() -> None:
    summary, body = split_docstring(
        "Clamp all elements.\n\nArgs:\n    x: the input\n\nExample::\n\n    >>> clamp(1)\n    1\n"
    )
    assert (summary, body) == ("Clamp all elements.", "Args: x: the input")


def test_signature_before_the_summary_is_left_out() -> None:
    docstring = "\nabs(input: Tensor, *,\n    out=None) -> Tensor\n\nComputes the absolute value.\n\nMore text."
    assert split_docstring(docstring) == ("Computes the absolute value.", "More text.")


def test_title_is_left_out_but_a_section_heading_is_no_title() -> None:
    assert split_docstring("=====\nTitle\n=====\n\nReads things. Fast.") == ("Reads things.", "Fast.")
    assert split_docstring("Parameters\n----------\nx : int\n    A number.") == ("", "Parameters: x : int A number.")


def test_summary_without_body() -> None:
    assert split_docstring("Close the file.") == ("Close the file.", "")


@pytest.mark.parametrize(
    ("markup", "plain"),
    [
        ("see :class:`~a.B` and ``x``", "see a.B and x"),
        ("`link text <https://example.org>`_", "link text"),
        ("%(name)s docs", "docs"),
        ("use **kwargs and *args*", "use **kwargs and args"),
        (".. versionadded:: 1.2\ntext", "text"),
        (":param x: a number", "x: a number"),
    ],
)
def test_markup_is_removed(markup: str, plain: str) -> None:
    assert plain_text(markup) == plain
