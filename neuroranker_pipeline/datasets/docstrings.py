"""A docstring as plain text: its summary sentence, and the rest of its body."""

from __future__ import annotations

import re
from inspect import cleandoc

SKIPPED_SECTIONS = {"see also", "references", "examples", "example", "attribution", "authors"}
"""Sections left out: 'See Also' quotes other objects' summaries, and examples and references are no prose."""

SECTIONS = {"parameters", "returns", "yields", "raises", "attributes", "methods", "notes", "note", "args", "arguments"}
"""Headings that cannot be a title: a docstring that starts with one has no summary."""

_UNDERLINE = re.compile(r"^\s*([=\-~^*#])\1{2,}\s*$")
_SIGNATURE = re.compile(r"^[\w.]+\s*\(.*?\)\s*(->\s*[^\n]*)?(?=\n|$)", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')]*\s+(?=[A-Z`*\"'(:\[])")
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|vs|cf|resp|approx|dr)|\b[A-Z])\.$")

_FILE_NAME = re.compile(r"^\w+\.py\s+-+\s+")

_REPLACEMENTS = [
    (re.compile(r"%\([^)\n]*\)[sd]"), " "),  # %(name)s: filled in when the package is imported
    # Directives, targets and citations.
    (re.compile(r"^\s*\.\. (?:[\w-]+::.*|_.*:.*|\[\w+\].*|#.*)$", re.MULTILINE), " "),
    (re.compile(r"^\s*:(?:width|height|alt|align|include-source|context|toctree)\b.*$", re.MULTILINE), " "),
    (re.compile(r":[\w:+-]+:`~?\.?([^`<]*?)\s*(?:<[^>`]*>)?`"), r"\1"),  # :class:`~a.B` -> a.B
    (re.compile(r"`([^`<]+?)\s*<[^>`]*>`_{1,2}"), r"\1"),  # `text <link>`_ -> text
    (re.compile(r"\[\d+\]_|\[\w+\]_"), " "),  # citations
    (re.compile(r"`{1,2}~?\.?([^`\n]*)`{1,2}_?"), r"\1"),
    (re.compile(r":(?:param|parameter|arg|keyword|type|raises?|var|ivar)\s+([^:\n]+):"), r"\1:"),
    (re.compile(r":(returns?|rtype|yields?):"), r"\1:"),
    (re.compile(r"(?<![\w*])(\*{1,2})(\w[^*\n]*)\1(?![\w*])"), r"\2"),  # emphasis
    (re.compile(r"\\(?=[*_|`])"), ""),
    (re.compile(r"(?<=\w)::(?=\s|$)"), ":"),
    (re.compile(r"(?:^|(?<=\s))[-=~^*]{3,}(?=\s|$)"), " "),
]


def split_docstring(docstring: str) -> tuple[str, str]:
    """Return (summary sentence, remaining body), both on one line and free of markup; either may be empty.

    The summary is the first sentence of the first paragraph (PEP 257; numpydoc's "short summary"). A
    signature or an underlined title before it is left out of both, and so are the sections in
    ``SKIPPED_SECTIONS``.
    """
    text = _without_title(cleandoc(docstring))
    text = _SIGNATURE.sub("", text, count=1).lstrip()
    text = _readable_sections(_without_title(text))
    first, _, rest = text.partition("\n\n")
    if first.partition(":")[0].lower() in SECTIONS:
        return "", plain_text(text)
    summary, remainder = _first_sentence(plain_text(first))
    return _FILE_NAME.sub("", summary).rstrip(":"), f"{remainder} {plain_text(rest)}".strip()


def plain_text(text: str) -> str:
    """``text`` without reStructuredText markup, white space collapsed."""
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    return " ".join(text.split())


def _first_sentence(paragraph: str) -> tuple[str, str]:
    for end in _SENTENCE_END.finditer(paragraph):
        sentence = paragraph[: end.start()]
        if not _ABBREVIATION.search(sentence):
            return sentence, paragraph[end.end() :]
    return paragraph, ""


def _without_title(text: str) -> str:
    lines = text.split("\n")
    if lines and _UNDERLINE.match(lines[0]):
        lines = lines[1:]
    if len(lines) > 1 and _UNDERLINE.match(lines[1]) and lines[0].strip().lower() not in SECTIONS:
        lines = lines[2:]
    return "\n".join(lines).lstrip()


def _readable_sections(text: str) -> str:
    """Turn underlined headings into ``Heading:``, and drop the skipped sections and every doctest."""
    lines = text.split("\n")
    kept: list[str] = []
    skipping, in_doctest = False, False
    for number, line in enumerate(lines):
        heading = _heading(lines, number)
        if heading:
            skipping = heading.lower() in SKIPPED_SECTIONS
        if line.lstrip().startswith(">>>"):
            in_doctest = True
        elif not line.strip():
            in_doctest = False
        if skipping or in_doctest or _UNDERLINE.match(line):
            continue
        kept.append(f"\n{heading}:" if heading else line)
    return "\n".join(kept).lstrip()


def _heading(lines: list[str], number: int) -> str:
    """The heading on this line, numpydoc's (underlined) or Google's (``Args:`` alone on an unindented line)."""
    line = lines[number].strip()
    if number + 1 < len(lines) and line and _UNDERLINE.match(lines[number + 1]):
        return line.rstrip(":")
    google = re.fullmatch(r"([A-Z][a-z]+(?: [A-Z][a-z]+)?)::?", lines[number])
    return google.group(1) if google else ""
