"""The cross-encoder's engine: pairs as PyTorch reads them, scores that depend on the pair alone, the offline order."""

from __future__ import annotations

import json
import math
import random
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.ranking import batching
from neuroranker_pipeline.ranking.models import CrossEncoder
from neuroranker_pipeline.ranking.rerank import load_ranker
from neuroranker_pipeline.serving.cross_encoder import (
    CrossReranker,
    Frame,
    OnnxCrossEncoder,
    longest_first,
    model_kind,
    open_model,
    open_reranker,
)
from neuroranker_pipeline.serving.engine import Ranking, Reranker
from neuroranker_pipeline.serving.onnx_model import MAX_WINDOWS, OnnxEncoder
from neuroranker_pipeline.serving.packaging import BentoInfo, serve_bento
from neuroranker_pipeline_tests.export import cross_models
from neuroranker_pipeline_tests.export.cross_models import MAX_LENGTH
from neuroranker_pipeline_tests.export.models import QUERY, TEXTS, WORDS, ragged_texts
from neuroranker_pipeline_tests.serving.client import post

ROOM = MAX_LENGTH - 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cross_models.int8(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def float32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cross_models.float32(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def encoder(folder: Path) -> OnnxCrossEncoder:
    return OnnxCrossEncoder(folder, threads=2)


@pytest.fixture
def reranker(encoder: OnnxCrossEncoder) -> Iterator[CrossReranker]:
    made = CrossReranker(encoder)
    yield made
    made.close()


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "model")


def scores(ranking: Ranking) -> dict[int, float]:
    return {item.index: item.score for item in ranking.results}


def test_pairs_are_cut_by_the_rule_that_training_uses() -> None:
    lengths = np.array(list(product(range(14), range(14))))
    for room in range(2, 16):
        kept = np.stack(batching.longest_first(*lengths.T, room), axis=1)
        assert [longest_first(n, m, room) for n, m in lengths.tolist()] == [tuple(pair) for pair in kept.tolist()]


@pytest.mark.parametrize("model", [cross_models.teacher, cross_models.roberta], ids=["bert", "roberta"])
def test_pairs_are_read_as_pytorch_reads_them(model, encoder, tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    reference = CrossEncoder.load(model(tmp_path_factory.getbasetemp()))
    if model is cross_models.roberta:
        reader = object.__new__(OnnxCrossEncoder)  # what reads pairs of it, without a graph
        reader.tokenizer = reference.tokenizer.backend_tokenizer
        reader.tokenizer.no_truncation()
        reader.frame, reader.room = Frame.of(reader.tokenizer), MAX_LENGTH - 4
    else:
        reader = encoder
    texts = [*ragged_texts(30), "", "what [SEP] is </s> this", "é ü 東京", " \t"]
    pairs = [(query, text) for query in (QUERY, *texts[:8], *texts[-4:]) for text in texts]
    expected = reference.tokenize(*map(list, zip(*pairs, strict=True)))
    for row, (query, text) in enumerate(pairs):
        (reading,) = reader.read(query, [text])
        codes = np.array(reading.sequences[0])
        batch = reference_batch(expected, row)
        assert np.maximum(codes, ~codes).tolist() == batch["input_ids"]
        assert (codes < 0).astype(int).tolist() == batch.get("token_type_ids", [0] * len(codes))


def reference_batch(tokens: batching.Tokens, row: int) -> dict[str, list[int]]:
    import torch

    return {name: values[0].tolist() for name, values in tokens.batch([row], torch.device("cpu")).items()}


@pytest.mark.parametrize("length", [5, 7, 16, 31, 32, MAX_LENGTH])
@pytest.mark.parametrize("model", ["float32", "folder"])
def test_company_of_one_length_changes_no_bit(request: pytest.FixtureRequest, model: str, length: int) -> None:
    codes = np.random.default_rng(length).integers(1000, 20_000, (40, length))
    codes[:, length // 2 :] = ~codes[:, length // 2 :]
    model_alone = OnnxCrossEncoder(request.getfixturevalue(model), threads=1)
    together = model_alone.run_all(codes.tolist())
    assert len(set(together.tolist())) == 40
    for size in (1, 2, 3, 5, 39):
        np.testing.assert_array_equal(model_alone.run_all(codes[-size:].tolist()), together[-size:])


def test_a_padded_batch_changes_no_score(encoder: OnnxCrossEncoder) -> None:
    sequences = [reading.sequences[0] for reading in encoder.read(QUERY, ragged_texts(16))]
    assert len({len(ids) for ids in sequences}) > 3
    np.testing.assert_allclose(encoder.run_padded(sequences), encoder.run_all(sequences), atol=1e-5)


def test_a_score_depends_on_the_pair_alone(reranker: CrossReranker) -> None:
    texts = ragged_texts(40)
    together = scores(reranker.rerank(QUERY, texts))
    alone = CrossReranker(reranker.encoder, cache_bytes=0)
    assert together == {i: alone.rerank(QUERY, [text]).results[0].score for i, text in enumerate(texts)}
    alone.close()


@pytest.mark.parametrize("cache_bytes", [0, 2**24])
def test_requests_at_once_change_no_score(encoder: OnnxCrossEncoder, cache_bytes: int) -> None:
    queries, texts = [QUERY, "bread", "what is copper"], [*WORDS[:20], *ragged_texts(8)]
    expected = {query: encoder.score(query, texts).tolist() for query in queries}
    busy, start = CrossReranker(encoder, cache_bytes), threading.Barrier(6)

    def client(seed: int) -> int:
        rng, wrong = random.Random(seed), 0
        start.wait()
        for _ in range(8):
            query, rows = rng.choice(queries), rng.choices(range(len(texts)), k=rng.randint(1, 8))
            found = scores(busy.rerank(query, [texts[row] for row in rows]))
            wrong += sum(found[place] != expected[query][row] for place, row in enumerate(rows))
        return wrong

    with ThreadPoolExecutor(6) as clients:
        assert list(clients.map(client, range(6))) == [0] * 6
    busy.close()


def test_served_and_offline_scores_are_equal(folder: Path, reranker: CrossReranker) -> None:
    passages = {f"p{i}": text for i, text in enumerate([*TEXTS, *ragged_texts(20)])}
    queries = {"q1": QUERY, "q2": "copper bread"}
    pairs = [(qid, pid) for pid in passages for qid in queries]  # not grouped by query
    candidates = pa.table({"qid": [qid for qid, _ in pairs], "pid": [pid for _, pid in pairs]})
    offline = load_ranker(folder).rerank(candidates, queries, passages)
    assert (offline["qid"].to_pylist(), offline["pid"].to_pylist()) == ([q for q, _ in pairs], [p for _, p in pairs])
    for qid, query in queries.items():
        served = scores(reranker.rerank(query, list(passages.values())))
        rows = [row for row in offline.to_pylist() if row["qid"] == qid]
        assert [row["score"] for row in rows] == [served[int(row["pid"][1:])] for row in rows]


def test_offline_order_agrees_with_pytorch(float32: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    teacher = cross_models.teacher(tmp_path_factory.getbasetemp())
    passages = {f"p{i}": text for i, text in enumerate([*TEXTS, *ragged_texts(10)])}
    candidates = pa.table({"qid": ["q"] * len(passages), "pid": list(passages)})
    ours, torchs = (
        load_ranker(model).rerank(candidates, {"q": QUERY}, passages)["score"].to_numpy()
        for model in (float32, teacher)
    )
    np.testing.assert_allclose(ours, torchs, atol=0.02)  # PyTorch may run in bfloat16 here


def test_offline_names_a_missing_text(folder: Path) -> None:
    candidates = pa.table({"qid": ["q"], "pid": ["p"]})
    with pytest.raises(BadInput, match="pid 'p' of the candidates has no text"):
        load_ranker(folder).rerank(candidates, {"q": QUERY}, {})


def test_windows_begin_with_what_truncation_reads_and_go_on(encoder: OnnxCrossEncoder) -> None:
    words = [WORDS[i % len(WORDS)] for i in range(300)]
    text = " ".join(words)
    (cut,), (whole,) = encoder.read("bread river", [text]), encoder.read("bread river", [text], "windows")
    assert (cut.truncated, whole.truncated) == (True, False)
    assert whole.sequences[0] == cut.sequences[0]
    tokens = [~token for token in encoder.frame.join([], encoder._ids([text])[0])[2:-1]]
    size = ROOM - 2
    contents = [[~token for token in ids[4:-1]] for ids in whole.sequences]
    assert {tuple(ids[:4]) for ids in whole.sequences} == {tuple(cut.sequences[0][:4])}, "the query is in each"
    assert contents == [
        tokens[start : start + size] for start in range(0, (size + 1) // 2 * len(contents), (size + 1) // 2)
    ]
    assert contents[-1][-1] == tokens[-1]


def test_windows_are_bounded_and_short_texts_have_one(encoder: OnnxCrossEncoder) -> None:
    (long,) = encoder.read(QUERY, ["word " * 9000], "windows")
    assert (len(long.sequences), long.truncated) == (MAX_WINDOWS, True)
    short = ["short", "", "word " * (ROOM - 6)]
    assert encoder.read(QUERY, short, "windows") == encoder.read(QUERY, short)
    huge = encoder.read("word " * 5000, ["word " * 5000, ""], "windows")
    assert all(len(ids) <= MAX_LENGTH for reading in huge for ids in reading.sequences)


def test_the_best_window_counts(reranker: CrossReranker) -> None:
    texts = ["copper " * 200 + QUERY, "copper " * 200]
    cut, whole = reranker.rerank(QUERY, texts), reranker.rerank(QUERY, texts, "windows")
    assert {item.index: item.truncated for item in cut.results} == {0: True, 1: True}
    assert scores(cut)[0] == scores(cut)[1], "the end, where they differ, is cut off"
    (reading,) = reranker.encoder.read(QUERY, texts[:1], "windows")
    assert len(reading.sequences) > 2
    assert scores(whole)[0] == max(reranker.encoder.run_all(reading.sequences))
    assert scores(whole)[0] != scores(whole)[1]
    np.testing.assert_array_equal(reranker.encoder.score(QUERY, texts, "windows"), [scores(whole)[i] for i in (0, 1)])


def test_what_is_cut_is_named(reranker: CrossReranker) -> None:
    words = len(QUERY.split())
    texts = ["short", "word " * (ROOM - words), "word " * (ROOM - words + 1), ""]
    assert reranker.cut(QUERY, texts) == (False, [2])
    assert reranker.cut(QUERY, texts, "windows") == (False, [])
    assert [item.index for item in reranker.rerank(QUERY, texts).results if item.truncated] == [2]
    assert reranker.cut("word " * ROOM, ["one"]) == (True, []), "the longer one is cut"
    assert reranker.cut("word " * ROOM, [""]) == (False, [])
    assert reranker.cut("word " * (ROOM + 1), []) == (True, [])


def test_pairs_that_were_asked_before_are_not_run_again(reranker: CrossReranker) -> None:
    texts = [*ragged_texts(12), "copper", "copper"]
    first = reranker.rerank(QUERY, texts)
    again = reranker.rerank(QUERY, texts)
    assert (first.cached, again.cached) == (0, 14)
    assert (again.results, again.tokens) == (first.results, first.tokens)
    assert reranker.rerank("another query", texts).cached == 0
    assert reranker.rerank(QUERY, texts, "windows").cached == 0
    stats = reranker.stats()
    assert (stats["cache_hits"], stats["cache_misses"], stats["queued"]) == (13, 3 * 13, 0)
    reranker.rerank("ab", ["c"])
    assert reranker.rerank("a", ["bc"]).cached == 0
    assert reranker.rerank("a", []).results == []


def test_tokens_count_the_query_with_each_text(reranker: CrossReranker) -> None:
    assert reranker.rerank("bread", ["copper", "river mountain", "word " * 300]).tokens == 5 + 6 + MAX_LENGTH


def test_int8_ranks_as_float32_does(folder: Path, float32: Path) -> None:
    texts = ragged_texts(30, seed=2)
    exact, close = (OnnxCrossEncoder(model).score(QUERY, texts) for model in (float32, folder))
    assert np.abs(close - exact).max() < 0.2 * exact.std()
    assert np.corrcoef(np.argsort(np.argsort(exact)), np.argsort(np.argsort(close)))[0, 1] > 0.97


def test_the_folder_says_which_kind_it_is(folder: Path, int8_dir: Path, copied: Path) -> None:
    assert (model_kind(folder), model_kind(int8_dir / "model.onnx")) == ("cross-encoder", "bi-encoder")
    assert isinstance(open_model(folder), OnnxCrossEncoder)
    for path, kind in ((folder, CrossReranker), (int8_dir, Reranker)):
        reranker = open_reranker(path, cache_bytes=0)
        assert type(reranker) is kind
        assert reranker.encoder.works()
        reranker.close()
    set_up(copied, kind="tri-encoder")
    with pytest.raises(BadInput, match=r"neuroranker\.json: kind 'tri-encoder' is unknown"):
        open_model(copied)
    (copied / "neuroranker.json").unlink()
    with pytest.raises(BadInput, match="an output 'embedding' of shape"):
        open_model(copied)


def set_up(folder: Path, **settings: object) -> None:
    file = folder / "neuroranker.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def test_an_older_folder_is_a_bi_encoder(int8_dir: Path, tmp_path: Path) -> None:
    older = shutil.copytree(int8_dir, tmp_path / "older")
    settings = json.loads((older / "neuroranker.json").read_text())
    del settings["kind"]
    (older / "neuroranker.json").write_text(json.dumps(settings))
    assert isinstance(open_model(older), OnnxEncoder)


def test_a_graph_of_the_other_kind_is_refused(folder: Path, int8_dir: Path) -> None:
    with pytest.raises(BadInput, match=r"model\.onnx: expected .* 'embedding' of shape .* outputs \['score'\]"):
        OnnxEncoder(folder)
    with pytest.raises(BadInput, match=r"model\.onnx: expected .* 'score' of shape \(n\), found .* \['embedding'\]"):
        OnnxCrossEncoder(int8_dir)


def test_a_graph_without_a_mask_is_refused(copied: Path) -> None:
    model = onnx.load(copied / "model.onnx")
    mask = next(node for node in model.graph.input if node.name == "attention_mask")
    model.graph.input.remove(mask)
    ones = [onnx.helper.make_node("Sign", ["input_ids"], ["attention_mask"])]
    nodes = [*ones, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, copied / "model.onnx")
    with pytest.raises(BadInput, match=r"found inputs \['input_ids', 'token_type_ids'\]"):
        OnnxCrossEncoder(copied)


def test_what_leaves_no_room_for_a_pair_is_refused(copied: Path) -> None:
    set_up(copied, max_length=4)
    with pytest.raises(BadInput, match=r"neuroranker\.json: max_length 4 leaves no room"):
        OnnxCrossEncoder(copied)


@pytest.mark.parametrize("pair", ["[CLS] $B:1 [SEP] $A [SEP]", "[CLS]:1 $A [SEP] $B:1 [SEP]:1"])
def test_a_tokenizer_without_pairs_is_refused(copied: Path, pair: str) -> None:
    tokenizer = Tokenizer.from_file(str(copied / "tokenizer.json"))
    special = [("[CLS]", 101), ("[SEP]", 102)]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=special)
    tokenizer.save(str(copied / "tokenizer.json"))
    with pytest.raises(BadInput, match=r"tokenizer\.json: its pairs are not two texts between special tokens"):
        OnnxCrossEncoder(copied)


def test_a_bento_serves_it_in_place_of_the_student(
    folder: Path, bento: BentoInfo, home: Path, reranker: CrossReranker
) -> None:
    texts = [*TEXTS, *ragged_texts(12)]
    expected = [(item.index, item.score) for item in reranker.rerank(QUERY, texts).results]
    with serve_bento(bento.tag, home, {"STUDENT_ONNX": str(folder)}) as url:
        _, raw = post(f"{url}/rerank", {"query": QUERY, "texts": texts, "raw_scores": True})
        assert [(item["index"], item["score"]) for item in raw] == expected
        _, mapped = post(f"{url}/rerank", {"query": QUERY, "texts": texts})
        assert [item["score"] for item in mapped] == pytest.approx([1 / (1 + math.exp(-s)) for _, s in expected])
        _, answer = post(f"{url}/v1/rerank", {"query": QUERY, "documents": texts, "long": "windows", "top_n": 3})
        best = reranker.rerank(QUERY, texts, "windows").results[:3]
        assert [item["index"] for item in answer["results"]] == [item.index for item in best]
        assert answer["usage"]["total_tokens"] == reranker.rerank(QUERY, texts, "windows").tokens
        status, refused = post(f"{url}/rerank", {"query": QUERY, "texts": ["a", "word " * 300], "truncate": False})
        assert (status, refused["detail"]) == (400, f"longer than {MAX_LENGTH} tokens with truncate false: texts[1]")
        assert post(f"{url}/search", {"query": QUERY})[0] == 404
        with urllib.request.urlopen(f"{url}/info", timeout=30) as response:
            model = json.load(response)["model"]
        assert (model["dimension"], model["max_length"], model["precision"]) == (None, MAX_LENGTH, "int8")
