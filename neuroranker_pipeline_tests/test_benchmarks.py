"""The generator of synthetic collections: the same bytes for a seed, the published names, and queries that find."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import re
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

PASSAGES = 400
QUERIES = {"train": 120, "dev": 30, "eval": 20, "test": 5}
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "synthetic.py"


def add(tar: tarfile.TarFile, name: str, text: str) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(text.encode())
    tar.addfile(info, io.BytesIO(text.encode()))


@pytest.fixture(scope="module")
def synthetic() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_synthetic", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of raw files: 60 passages of 5 to 24 words of a made-up vocabulary, some of them capital or not ASCII."""
    folder = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(280)] + ["Café,", "(naïve)", "Größe", "the", "The"]
    share = 1 / (1 + np.arange(len(words)))
    passages = [
        " ".join([*rng.choice(words, rng.integers(5, 25), p=share / share.sum()).tolist(), f"once{i}"])
        for i in range(60)
    ]
    with tarfile.open(folder / "collection.tar.gz", "w:gz") as tar:
        add(tar, "collection.tsv", "".join(f"{pid}\t{text}\n" for pid, text in enumerate(passages)))
    with tarfile.open(folder / "queries.tar.gz", "w:gz") as tar:
        add(tar, "queries.train.tsv", "".join(f"{qid}\twhat is word{qid}\n" for qid in range(20)))
        add(tar, "queries.dev.tsv", "99\twhere is word4 then\n")
    return folder


def make(synthetic: ModuleType, source: Path, out: Path, seed: int = 13) -> dict:
    return synthetic.generate(synthetic.learn(source), out, PASSAGES, QUERIES, seed, plain=True)


@pytest.fixture(scope="module")
def made(synthetic: ModuleType, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made")
    make(synthetic, source, out)
    return out


def members(path: Path) -> dict[str, list[list[str]]]:
    rows = {}
    with tarfile.open(path, "r:gz") as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            rows[member.name] = [line.split("\t") for line in file.read().decode().splitlines()]
    return rows


def rows(path: Path, separator: str = "\t") -> list[list[str]]:
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return [line.split(separator) for line in text.splitlines()]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_the_same_seed_gives_the_same_bytes(synthetic: ModuleType, source: Path, made: Path, tmp_path: Path) -> None:
    make(synthetic, source, tmp_path / "again")
    make(synthetic, source, tmp_path / "other", seed=14)
    assert digests(tmp_path / "again") == digests(made)
    other = digests(tmp_path / "other")
    assert not [name for name, digest in digests(made).items() if other[name] == digest]


def test_a_chunk_does_not_depend_on_the_others(
    synthetic: ModuleType, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "CHUNK", 150)
    generator = synthetic.Generator(synthetic.learn(source), PASSAGES, 13)
    assert generator.chunks == 3
    lines = [generator.text(chunk)[0].tobytes() for chunk in (2, 0, 1)]
    assert [len(text.splitlines()) for text in lines] == [100, 150, 150]
    assert lines[0].startswith(b"300\t")
    assert lines[0] == synthetic.Generator(synthetic.learn(source), PASSAGES, 13).text(2)[0].tobytes()


def test_the_collection_has_the_published_form(made: Path) -> None:
    collection = members(made / "collection.tar.gz")
    assert list(collection) == ["collection.tsv"]
    passages = collection["collection.tsv"]
    assert [row[0] for row in passages] == [str(pid) for pid in range(PASSAGES)]
    assert {len(row) for row in passages} == {2}
    lengths = [len(text.split(" ")) for _, text in passages]
    assert min(lengths) >= 6
    assert max(lengths) <= 25
    assert 12 < np.mean(lengths) < 19  # the source: 5 to 24 words and one more
    assert rows(made / "collection.tsv") == passages


def test_queries_and_judgments_have_the_published_form(made: Path) -> None:
    queries = members(made / "queries.tar.gz")
    assert {name: len(lines) for name, lines in queries.items()} == {
        "queries.train.tsv": 120, "queries.dev.tsv": 30, "queries.eval.tsv": 20,
    }  # fmt: skip
    test = rows(made / "msmarco-test2019-queries.tsv.gz")
    everything = [*test, *(row for lines in queries.values() for row in lines)]
    assert len({qid for qid, _ in everything}) == len(everything) == sum(QUERIES.values())
    assert all(text == text.lower() and text for _, text in everything)
    for split, name in (("train", "qrels.train.tsv"), ("dev", "qrels.dev.small.tsv")):
        qrels = rows(made / name)
        assert [row[0] for row in qrels] == [qid for qid, _ in queries[f"queries.{split}.tsv"]]
        assert all((row[1], row[3]) == ("0", "1") and 0 <= int(row[2]) < PASSAGES for row in qrels)


def test_the_judged_passages_are_among_those_given(made: Path) -> None:
    texts = dict(rows(made / "collection.tsv"))
    queries = dict(rows(made / "msmarco-test2019-queries.tsv.gz"))
    judged = rows(made / "2019qrels-pass.txt", " ")
    assert {row[0] for row in judged} == set(queries)
    assert {row[3] for row in judged} == {"0", "1", "2", "3"}
    given = rows(made / "msmarco-passagetest2019-top1000.tsv.gz")
    assert {(row[0], row[2]) for row in judged} <= {(row[0], row[1]) for row in given}
    assert all(queries[qid] == query and texts[pid] == passage for qid, pid, query, passage in given)
    assert len({(qid, pid) for qid, pid, _, _ in given}) == len(given) == len(queries) * PASSAGES


def test_queries_find_their_passage_more_often_than_chance(made: Path) -> None:
    passages = {pid: set(re.findall(r"\w+", text.lower())) for pid, text in rows(made / "collection.tsv")}
    occurrences: dict[str, int] = {}
    for words in passages.values():
        for word in words:
            occurrences[word] = occurrences.get(word, 0) + 1
    queries = dict(members(made / "queries.tar.gz")["queries.train.tsv"])

    def score(query: str, pid: str) -> float:
        return sum(1 / occurrences[word] for word in query.split() if word in passages[pid])

    first = []
    for qid, _, pid, _ in rows(made / "qrels.train.tsv"):
        better = sum(score(queries[qid], other) >= score(queries[qid], pid) for other in passages) - 1
        first.append(better < PASSAGES / 20)
    assert np.mean(first) > 0.4  # by chance one in twenty


def test_the_vocabulary_keeps_growing(synthetic: ModuleType, source: Path) -> None:
    learned = synthetic.learn(source)
    known = set(learned.words)

    def fresh(passages: int) -> set[str]:
        lines = synthetic.Generator(learned, passages, 13).text(0)[0].tobytes().decode().splitlines()
        return {word for line in lines for word in line.partition("\t")[2].split(" ")} - known

    few, many = fresh(500), fresh(4000)
    assert 0 < 2 * len(few) < len(many)
    assert all(word.isascii() and word.isalpha() and len(word) >= 6 for word in many)


def test_made_up_words_are_distinct(synthetic: ModuleType) -> None:
    ranks = np.array([0, 1, 99, 100, 9_999, 10_000, 999_999, 1_000_000, 100**6 - 1])
    words = synthetic.made_up(ranks)
    assert len(set(words)) == len(ranks)
    assert [len(word) for word in words] == [6, 6, 6, 6, 6, 6, 6, 8, 12]
    assert len(set(synthetic.made_up(np.arange(30_000)))) == 30_000


def test_a_folder_without_the_files_says_so(synthetic: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"has neither collection.tar.gz nor collection.tsv"):
        synthetic.learn(tmp_path)
    (tmp_path / "collection.tsv").write_text("")
    (tmp_path / "queries.train.tsv").write_text("1\twhat\n")
    with pytest.raises(SystemExit, match="no passage"):
        synthetic.learn(tmp_path)


def test_the_script_runs(
    synthetic: ModuleType, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = ["--train-queries", "3", "--dev-queries", "2", "--eval-queries", "1", "--test-queries", "1"]
    synthetic.main([str(source), str(tmp_path), "--passages", "50", *counts])
    assert '"passages": 50' in capsys.readouterr().out
    assert not (tmp_path / "collection.tsv").exists()
    with pytest.raises(SystemExit):
        synthetic.main([str(source), str(tmp_path), "--passages", "0"])
    assert "--passages must be at least 1" in capsys.readouterr().err
