"""What ``quality.py`` reads: the tables of ``quality_data.py``, whose queries are whose, and queries made from passages."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from neuroranker_pipeline.datasets.splits import unit_hash
from neuroranker_pipeline.ranking.lists import TrainingLists
from neuroranker_pipeline.ranking.settings import UnjudgedSettings
from neuroranker_pipeline.ranking.unjudged import sentence_as_query

TRAINED = {"slice": 20_000, "nq": 20_000, "squad": 3_000, "medquad": 4_000, "nfcorpus": 20_000, "pydocs": 20_000}
MADE = {"slice": 40_000, "pydocs": 6_000}  # passages that queries are made from
KINDS = ("sentence", "keywords")
CHOSEN = 300  # dev queries of a collection that choose, at most
WHOLE_TEST = {"slice": "gate", "pydocs": "test"}  # of the BEIR folders, "test" is half of dev
SENTENCES = UnjudgedSettings(source="sentences")
KEYWORDS = (3, 6)  # words of a query of keywords, from and to


class Data:
    """The tables, and whose queries are whose: ``train``, ``choose`` and ``report`` are qids."""

    def __init__(self, folder: Path, tiny: bool) -> None:
        self.folder, self.tiny = folder, tiny

    def table(self, name: str) -> pa.Table:
        parts = [pq.read_table(file) for file in sorted((self.folder / name).glob("*.parquet"))]
        return pa.concat_tables(parts, promote_options="default").combine_chunks()

    @cached_property
    def queries(self) -> pa.Table:
        table = self.table("queries")
        collection = [qid.partition("/")[0] for qid in table["qid"].to_pylist()]
        return table.append_column("collection", pa.array(collection))

    @cached_property
    def texts(self) -> dict[str, str]:
        """The text of every query, judged or made."""
        judged = dict(zip(self.queries["qid"].to_pylist(), self.queries["text"].to_pylist(), strict=True))
        return judged | {qid: text for qid, (text, _) in self.made.items()}

    @cached_property
    def whole_passages(self) -> dict[str, str]:
        table = self.table("passages")
        return dict(zip(table["pid"].to_pylist(), table["text"].to_pylist(), strict=True))

    @cached_property
    def passages(self) -> dict[str, str]:
        """The text of every passage, and of what is left of those that queries were made from."""
        return self.whole_passages | {f"{pid}#rest": rest for pid, (_, rest) in self.sources.items()}

    @cached_property
    def qrels(self) -> pa.Table:
        return self.table("qrels")

    @cached_property
    def candidates(self) -> pa.Table:
        table = self.table("bm25_candidates")
        return table.filter(pc.less_equal(table["rank"], 20)) if self.tiny else table

    # whose queries are whose

    def split(self, keep: Callable[[str, str], bool], limit: Mapping[str, int] | int) -> list[str]:
        """The qids for which ``keep(collection, split)``, of each collection the ``limit`` of the lowest hashes."""
        found: dict[str, list[str]] = {}
        for row in self.queries.select(["qid", "split", "collection"]).to_pylist():
            if keep(row["collection"], row["split"]):
                found.setdefault(row["collection"], []).append(row["qid"])
        chosen = []
        for name, qids in found.items():
            chosen += self.lowest(qids, limit if isinstance(limit, int) else limit.get(name, 0))
        return chosen

    def lowest(self, ids: list[str], most: int) -> list[str]:
        return sorted(ids, key=lambda one: unit_hash(one, "quality"))[: min(most, 6) if self.tiny else most]

    @cached_property
    def train(self) -> list[str]:
        return self.split(lambda _, split: split.startswith("train"), TRAINED)

    @cached_property
    def choose(self) -> list[str]:
        def kept(collection: str, split: str) -> bool:
            return split == "dev" or (split == "gate" and WHOLE_TEST.get(collection) != "gate")

        return self.split(kept, CHOSEN)

    @cached_property
    def report(self) -> list[str]:
        def kept(collection: str, split: str) -> bool:
            return split == "test-dl19" or split == WHOLE_TEST.get(collection, "test")

        return self.split(kept, 100_000)

    @cached_property
    def dl19(self) -> list[str]:
        return self.queries.filter(pc.equal(self.queries["split"], "test-dl19"))["qid"].to_pylist()

    def candidates_of(self, qids: list[str]) -> pa.Table:
        return of_queries(self.candidates, qids)

    def judged_of(self, qids: list[str]) -> pa.Table:
        return of_queries(self.qrels, qids)

    # queries made from passages

    @cached_property
    def sources(self) -> dict[str, tuple[str, str]]:
        """The passages that queries are made from: a sentence of each, and the rest of it."""
        found = {}
        for name, most in MADE.items():
            pids = [pid for pid in self.whole_passages if pid.startswith(f"{name}/")]
            for pid in self.lowest(pids, most):
                if (made := sentence_as_query(pid, self.whole_passages[pid], SENTENCES)) is not None:
                    found[pid] = made
        return found

    @cached_property
    def made(self) -> dict[str, tuple[str, str]]:
        """qid -> text and source pid: a sentence, and its rarest words, of every passage in ``sources``."""
        seen = Counter(word for text in self.whole_passages.values() for word in set(words(text)))
        found = {}
        for pid, (sentence, _) in self.sources.items():
            found[f"{pid}#sentence"] = (sentence, pid)
            most = KEYWORDS[0] + int(unit_hash(pid, "keywords") * (KEYWORDS[1] - KEYWORDS[0] + 1))
            rare = sorted(set(words(sentence)), key=lambda word: (seen[word], word))[:most]
            found[f"{pid}#keywords"] = (" ".join(dict.fromkeys(w for w in words(sentence) if w in rare)), pid)
        return found

    def made_of(self, kinds: tuple[str, ...], collections: tuple[str, ...] = tuple(MADE)) -> list[str]:
        ends, starts = tuple(f"#{kind}" for kind in kinds), tuple(f"{name}/" for name in collections)
        return [qid for qid in self.made if qid.endswith(ends) and qid.startswith(starts)]

    def own_of(self, qids: list[str]) -> pa.Table:
        """What stands for judgments of made queries: the rest of the own passage is relevant."""
        pids = [f"{self.made[qid][1]}#rest" for qid in qids]
        grades = pa.array([1] * len(qids), pa.int32())
        return pa.table({"qid": pa.array(qids, pa.string()), "pid": pa.array(pids, pa.string()), "grade": grades})


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def only(scores: pa.Table, rows: pa.Table) -> pa.Table:
    """The scores of some rows, in their order."""
    numbered = rows.select(["qid", "pid"]).append_column("row", pa.array(np.arange(len(rows))))
    joined = numbered.join(scores.select(["qid", "pid", "score"]), ["qid", "pid"], join_type="inner").sort_by("row")
    assert len(joined) == len(rows), f"{len(rows) - len(joined)} rows have no score"
    return joined.select(["qid", "pid", "score"]).combine_chunks()


def of_queries(table: pa.Table, qids: list[str]) -> pa.Table:
    return table.filter(pc.is_in(table["qid"], pa.array(qids, pa.string())))


def pairs(*tables: pa.Table) -> pa.Table:
    """The (qid, pid) of some tables, each once."""
    whole = pa.concat_tables(table.select(["qid", "pid"]) for table in tables)
    return whole.group_by(["qid", "pid"], use_threads=False).aggregate([])


def pairs_of(lists: TrainingLists) -> pa.Table:
    qids = np.repeat(np.asarray(lists.qids, dtype=object), lists.pids.shape[1])
    return pairs(pa.table({"qid": pa.array(qids, pa.string()), "pid": pa.array(lists.pids.ravel(), pa.string())}))


def by_collection(qids: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for qid in qids:
        found.setdefault(qid.partition("/")[0], []).append(qid)
    return found
