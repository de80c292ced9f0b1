from __future__ import annotations

import dataclasses
import hashlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from neuroranker_pipeline.datasets import pydocs
from neuroranker_pipeline.datasets.leaks import find_leaks
from neuroranker_pipeline.datasets.near import near_pairs
from neuroranker_pipeline.datasets.pydocs import PydocsSettings, PydocsSource
from neuroranker_pipeline.datasets.rejects import Rejects
from neuroranker_pipeline.datasets.source import Source
from neuroranker_pipeline.datasets.tables import JUDGMENTS, PASSAGES, QRELS, QUERIES
from neuroranker_pipeline.datasets.validate import check_passages, check_qrels, check_queries
from neuroranker_pipeline.errors import BadInput

SMALL = PydocsSettings(
    packages=("json", "statistics", "logging", "email"), dev_queries=5, gate_queries=6, test_queries=7
)


def read(settings: PydocsSettings) -> tuple[pa.Table, pa.Table, pa.Table]:
    source: Source = PydocsSource(settings)
    return (
        pa.Table.from_batches(source.passages(Rejects()), PASSAGES),
        pa.Table.from_batches(source.queries(Rejects()), QUERIES),
        pa.Table.from_batches(source.qrels(Rejects()), JUDGMENTS).select(QRELS.names),
    )


def words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def test_tables_fit_together() -> None:
    passages, queries, qrels = read(SMALL)
    assert check_passages(passages.to_batches()) == []
    assert check_queries(queries) == []
    assert check_qrels(qrels, queries, passages["pid"].combine_chunks()) == []
    assert qrels.num_rows >= queries.num_rows > 50


def test_splits_have_the_sizes_asked_for() -> None:
    splits = read(dataclasses.replace(SMALL, max_train_queries=9))[1]["split"].to_pylist()
    assert {split: splits.count(split) for split in set(splits)} == {"dev": 5, "gate": 6, "test": 7, "train": 9}


def test_limiting_the_training_queries_moves_no_other_query() -> None:
    def evaluation(settings: PydocsSettings) -> set[tuple[str, str]]:
        rows = read(settings)[1].to_pylist()
        return {(row["qid"], row["split"]) for row in rows if row["split"] != "train"}

    assert evaluation(SMALL) == evaluation(dataclasses.replace(SMALL, max_train_queries=9))


def test_no_passage_holds_its_own_query_word_for_word() -> None:
    passages, queries, qrels = read(SMALL)
    text = dict(zip(passages["pid"].to_pylist(), passages["text"].to_pylist(), strict=True))
    query = dict(zip(queries["qid"].to_pylist(), queries["text"].to_pylist(), strict=True))
    leaks = [row["pid"] for row in qrels.to_pylist() if words(query[row["qid"]]) in words(text[row["pid"]])]
    assert leaks == []


def test_a_summary_repeated_in_the_body_is_no_query(monkeypatch: pytest.MonkeyPatch) -> None:
    body = "The body repeats: count all the words. And then it goes on."
    docs = {
        "m.repeats": f"Count all the words.\n\n{body}",
        "m.twice": "Drop the oldest entry now.\n\nA body that is long enough to be kept here.",
        "m.twice_too": "Drop the oldest entry now!\n\nAnother body that is long enough to be kept here.",
        "m.short": "Return a useful number quickly.\n\nShort.",
        "m.few": "Too few.\n\nA body that is long enough to be kept in the collection.",
    }
    docs |= {f"m.f{n}": f"Compute the answer number {n}.\n\nThe {n} is enough: long." for n in range(4)}
    monkeypatch.setattr(pydocs, "public_docstrings", lambda package: docs)
    settings = PydocsSettings(
        packages=("m",), dev_queries=1, gate_queries=1, test_queries=1, min_passage_chars=20, max_passage_chars=21
    )
    passages, _, qrels = read(settings)
    assert sorted(qrels["pid"].to_pylist()) == ["m.f0", "m.f1", "m.f2", "m.f3"]
    assert sorted(passages["pid"].to_pylist()) == sorted(set(docs) - {"m.short"})
    assert passages.to_pylist()[-1]["text"] == "m.twice_too: Another body that is"


def test_what_is_near_goes_into_one_split(monkeypatch: pytest.MonkeyPatch) -> None:
    docs = {
        f"m.a{n}": f"Number {n} of many summaries.\n\nText {n}: {' '.join(f'w{n}x{i}' for i in range(9))}"
        for n in range(60)
    }
    docs |= {f"m.q{n}": f"Return the one common summary here {n}.\n\nBody {n} {'y' * n} z{n} v{n}" for n in range(1, 9)}
    docs |= {f"m.b{n}": f"Summary {n * '!'}x{n} alone {n}.\n\nBodies of which all words are one" for n in range(9)}
    monkeypatch.setattr(pydocs, "public_docstrings", lambda package: docs)
    sizes = {"dev_queries": 8, "gate_queries": 9, "test_queries": 30}
    passages, queries, qrels = read(PydocsSettings(packages=("m",), min_passage_chars=5, min_query_words=3, **sizes))
    splits = queries["split"].to_pylist()
    assert {f"{split}_queries": splits.count(split) for split in ("dev", "gate", "test")} == sizes
    assert find_leaks(queries).same == find_leaks(queries).near == 0
    body = {row["pid"]: row["text"].partition(": ")[2] for row in passages.to_pylist()}
    learned = {body[row["pid"]] for row in qrels.to_pylist() if row["split"] == "train"}
    held = {body[row["pid"]] for row in qrels.to_pylist() if row["split"] != "train"}
    assert learned
    assert not near_pairs(sorted(held), sorted(learned)).held.size


def test_a_large_group_is_trained_on_and_the_others_are_placed_by_a_hash() -> None:
    """Of one query in a group, and of up to four, placed by the same hash: sizes say nothing about the split."""
    groups = [n if n < 600 else 600 + (n - 600) // 4 for n in range(1000)] + [5_000] * 40
    qids = sorted(hashlib.blake2b(str(n).encode(), digest_size=8).hexdigest() for n in range(len(groups)))
    sizes = {"test": 200, "gate": 100, "dev": 50}
    settings = PydocsSettings(test_queries=200, gate_queries=100, dev_queries=50)
    splits = pydocs._assign_splits(qids, groups, settings)
    members: dict[int, set[str]] = {}
    for qid, group in zip(qids, groups, strict=True):
        members.setdefault(group, set()).add(splits[qid])
    assert all(len(found) == 1 for found in members.values())
    assert members[5_000] == {"train"}
    assert {split: list(splits.values()).count(split) for split in sizes} == sizes
    held = [len(members[group]) and groups.count(group) for group in members if members[group] == {"test"}]
    assert 0.3 < sum(size == 4 for size in held) * 4 / 200 < 0.5, "as in all: 400 of 1,000"


def test_passages_of_one_body_are_all_relevant(monkeypatch: pytest.MonkeyPatch) -> None:
    docs = {f"m.f{n}": f"Compute the answer number {n}.\n\nThe {n} is enough: long." for n in range(4)}
    docs |= {name: f"Open the door of {name}.\n\nBodies that are equal here." for name in ("m.one", "m.two")}
    monkeypatch.setattr(pydocs, "public_docstrings", lambda package: docs)
    _, queries, qrels = read(PydocsSettings(
        packages=("m",), dev_queries=1, gate_queries=1, test_queries=1, min_passage_chars=5
    ))  # fmt: skip
    asked = {row["text"]: row["qid"] for row in queries.to_pylist()}
    judged = [(row["qid"], row["pid"]) for row in qrels.to_pylist()]
    for name in ("m.one", "m.two"):
        qid = asked[f"Open the door of {name}."]
        assert [pid for asker, pid in judged if asker == qid] == ["m.one", "m.two"]
    assert len(judged) == 8


def test_max_passages_keeps_whole_pairs_and_is_a_subset() -> None:
    passages, queries, qrels = read(dataclasses.replace(SMALL, max_passages=120))
    assert passages.num_rows == 120
    assert set(passages["pid"].to_pylist()) <= set(read(SMALL)[0]["pid"].to_pylist())
    assert check_qrels(qrels, queries, passages["pid"].combine_chunks()) == []


def test_split_names_open_a_passage_with_the_words_of_the_name() -> None:
    text = {row["pid"]: row["text"] for row in read(dataclasses.replace(SMALL, split_names=True))[0].to_pylist()}
    assert text["json.JSONDecoder.raw_decode"].startswith("json JSONDecoder raw decode: ")


def test_extraction_is_deterministic_between_processes() -> None:
    code = (
        "from neuroranker_pipeline_tests.datasets.test_pydocs import SMALL, read\n"
        "import hashlib; print(hashlib.sha256(repr([t.to_pylist() for t in read(SMALL)]).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[2],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_sources_are_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read(SMALL)
    monkeypatch.setattr(pydocs, "public_docstrings", lambda package: pytest.fail("parsed again"))
    read(SMALL)


def test_digest_follows_the_settings_and_reads_no_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pydocs, "public_docstrings", lambda package: pytest.fail("parsed"))
    first, second = PydocsSource(SMALL), PydocsSource(dataclasses.replace(SMALL, dev_queries=4))
    for table in ("passages", "queries", "qrels", "candidates"):
        assert first.digest(table) == PydocsSource(SMALL).digest(table) != second.digest(table)


def test_digest_names_a_missing_package() -> None:
    with pytest.raises(BadInput, match="'no_such_package' is not installed"):
        PydocsSource(dataclasses.replace(SMALL, packages=("json", "no_such_package"))).digest("passages")


def test_licence_says_whose_text_it_is() -> None:
    licence = PydocsSource(dataclasses.replace(SMALL, packages=("json", "sklearn"))).licence
    assert "PSF-2.0" in licence
    assert "scikit-learn" in licence
    assert "BSD" in licence


def test_too_few_queries_is_one_clear_error() -> None:
    with pytest.raises(BadInput, match="cannot fill test_queries"):
        read(dataclasses.replace(SMALL, packages=("statistics",), test_queries=1000))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("packages", ()),
        ("min_passage_chars", 0),
        ("max_passage_chars", 39),
        ("max_query_words", 3),
        ("dev_queries", 0),
        ("max_passages", 0),
        ("max_train_queries", -1),
    ],
)
def test_bad_settings_name_the_field(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be"):
        PydocsSettings(**{field: value})


def test_judgments_have_a_place_rows_are_counted_and_no_run_is_given() -> None:
    source, rejects = PydocsSource(SMALL), Rejects()
    rows = sum(batch.num_rows for table in (source.passages, source.queries) for batch in table(rejects))
    assert rejects.accepted == rows > 100
    judged = pa.Table.from_batches(source.qrels(rejects), JUDGMENTS)
    assert set(judged["file"].to_pylist()) == {"pydocs"}
    assert judged["line"][0].as_py() == 1
    assert list(source.candidates(rejects)) == []
