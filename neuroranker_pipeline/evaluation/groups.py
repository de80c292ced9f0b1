"""Kinds of queries, for measures kind by kind: by how they are put, and by how long they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from neuroranker_pipeline.evaluation.significance import bootstrap_interval

BY_TYPE, BY_LENGTH = "type", "length"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What an English question begins with: a question word, or an auxiliary verb.
QUESTION_WORDS = _words(
    "what which who whom whose when where why how is are was were am do does did can could should would will shall may "
    "might must has have had"
)
# Words that join others: a query without any is a list of keywords.
FUNCTION_WORDS = _words(
    "a an the of in on at to for from by with without and or not but as if than then that this these those it its into "
    "onto over under between about be been being is are was were do does did has have had can could will would should "
    "may might must you your i my me we our they their he she his her"
)
CODE = re.compile(
    r"""\w_\w            # snake_case, __dunder__
    | \w\(               # a call
    | ::|->|==|\[\]      # operators of common languages
    | (?<![\w.])[A-Za-z_]\w+(?:\.(?!(?:com|org|net|edu|gov|io)\b)[A-Za-z_]\w+)+   # dotted.name, but no host name
    | \b[a-z]{2,}[A-Z][a-z]\w*                                                    # camelCase
    """,
    re.VERBOSE,
)


@dataclass(frozen=True)
class Breakdown:
    """Every ranker's mean in the primary measure over one group of queries, with its 95% percentile bootstrap interval.

    No test is made within a group: with so many of them, some would be significant by chance.
    """

    by: str
    group: str
    queries: int
    means: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]

    def figures(self, measure: str) -> dict[str, float]:
        """``{"student/MRR@10/type: question": 0.5}``."""
        return {f"{ranker}/{measure}/{self.by}: {self.group}": mean for ranker, mean in self.means.items()}


def query_type(text: str) -> str:
    """``identifier``, ``question``, ``keywords`` or ``phrase``: the first whose rule holds.

    identifier: it holds a name as code writes it (``snake_case``, ``camelCase``, ``dotted.name``, ``call()``); question: it
    begins with a question word or auxiliary verb, or ends with a question mark; keywords: no function word in it;
    phrase: anything else. The rules know English.
    """
    if CODE.search(text):
        return "identifier"
    words = re.findall(r"[^\W\d_]+", text.lower())
    if text.rstrip().endswith("?") or (words and words[0] in QUESTION_WORDS):
        return "question"
    return "phrase" if FUNCTION_WORDS.intersection(words) else "keywords"


def word_count(text: str) -> int:
    """Words between white space."""
    return len(text.split())


def length_bins(counts: Iterable[int]) -> list[tuple[int, int]]:
    """The thirds of some word counts as ranges ``(fewest, most)``, ascending and without gaps.

    Equal counts stay together, so the thirds are as even as that allows, and fewer where there are few counts.
    """
    ordered = sorted(counts)
    if not ordered:
        return []
    ends = sorted({ordered[-(-len(ordered) * third // 3) - 1] for third in (1, 2, 3)})
    starts = [ordered[0], *(end + 1 for end in ends[:-1])]
    return list(zip(starts, ends, strict=True))


def query_groups(texts: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Every query's group by each way to part them: ``{"type": {qid: "question"}, "length": {qid: "6 to 8 words"}}``."""
    counts = {qid: word_count(text) for qid, text in texts.items()}
    labels = {}
    for fewest, most in length_bins(counts.values()):
        name = f"{fewest} to {most} words" if fewest < most else f"{fewest} word{'' if fewest == 1 else 's'}"
        labels.update(dict.fromkeys(range(fewest, most + 1), name))
    return {
        BY_TYPE: {qid: query_type(text) for qid, text in texts.items()},
        BY_LENGTH: {qid: labels[count] for qid, count in counts.items()},
    }


def break_down(
    groups: Mapping[str, Mapping[str, str]], qids: Sequence[str], values: Mapping[str, np.ndarray], seed: int = 0
) -> tuple[Breakdown, ...]:
    """``values`` (ranker -> one value a query of ``qids``) group by group, larger groups first, lengths ascending.

    ``groups`` as ``query_groups`` gives them; a query in no group is left out.
    """
    found = []
    for by, group_of in groups.items():
        rows: dict[str, list[int]] = {}
        for row, qid in enumerate(qids):
            if qid in group_of:
                rows.setdefault(group_of[qid], []).append(row)
        places = {group: _first_number(group) if by == BY_LENGTH else -len(own) for group, own in rows.items()}
        for _, group in sorted((place, group) for group, place in places.items()):
            members = {ranker: vector[rows[group]] for ranker, vector in values.items()}
            found.append(
                Breakdown(
                    by=by,
                    group=group,
                    queries=len(rows[group]),
                    means={ranker: float(vector.mean()) for ranker, vector in members.items()},
                    intervals={ranker: bootstrap_interval(vector, seed) for ranker, vector in members.items()},
                )
            )
    return tuple(found)


def _first_number(group: str) -> int:
    return int(group.split()[0])
