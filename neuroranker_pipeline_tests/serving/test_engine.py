"""The inference engine: an order that is a function of the input, whatever runs beside it."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuroranker_pipeline.serving.engine import Ranking, Reranker, best_cosines
from neuroranker_pipeline.serving.onnx_model import OnnxEncoder
from neuroranker_pipeline_tests.export.models import QUERY, TEXTS, WORDS, ragged_texts


@pytest.fixture(scope="module")
def encoder(int8_dir: Path) -> OnnxEncoder:
    return OnnxEncoder(int8_dir, threads=2)


@pytest.fixture
def reranker(encoder: OnnxEncoder) -> Iterator[Reranker]:
    made = Reranker(encoder)
    yield made
    made.close()


def scores(ranking: Ranking) -> dict[int, float]:
    return {item.index: item.score for item in ranking.results}


def order(ranking: Ranking) -> list[int]:
    return [item.index for item in ranking.results]


def test_the_relevant_text_comes_first(reranker: Reranker) -> None:
    assert order(reranker.rerank(QUERY, TEXTS)) == [0, 1]
    assert order(reranker.rerank(QUERY, TEXTS[::-1])) == [1, 0]


def test_no_texts_give_an_empty_ranking(reranker: Reranker) -> None:
    ranking = reranker.rerank("bread", [])
    assert (ranking.results, ranking.tokens, ranking.cached) == ([], 3, 0)


def test_a_score_is_the_cosine_of_the_vectors(reranker: Reranker, encoder: OnnxEncoder) -> None:
    texts = ragged_texts(12)
    vector = reranker.encode_query(QUERY)
    assert vector.shape == (encoder.dimension,)
    assert vector.dtype == np.float32
    expected = (encoder.encode(texts).astype(np.float64) * vector).sum(axis=1)
    found = scores(reranker.rerank(QUERY, texts))
    np.testing.assert_allclose([found[i] for i in range(12)], expected, rtol=0, atol=1e-12)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join), min_size=1, max_size=8),
    seed=st.integers(0, 99),
)
def test_the_ranking_is_complete_sorted_and_stable(encoder: OnnxEncoder, texts: list[str], seed: int) -> None:
    reranker = Reranker(encoder, cache_bytes=0)
    ranking = reranker.rerank(QUERY, texts)
    assert sorted(order(ranking)) == list(range(len(texts)))
    by_score = sorted(ranking.results, key=lambda item: (-item.score, item.index))
    assert ranking.results == by_score, "ties keep the order of the texts"
    shuffle = random.Random(seed).sample(range(len(texts)), len(texts))
    before = scores(ranking)
    after = scores(reranker.rerank(QUERY, [texts[i] for i in shuffle]))
    assert all(before[shuffle[index]] == score for index, score in after.items())


def test_equal_texts_tie_exactly(reranker: Reranker) -> None:
    ranking = reranker.rerank("bread", [*ragged_texts(10), "copper", *ragged_texts(10, 1), "copper", "COPPER"])
    ties = [item for item in ranking.results if item.index in (10, 21, 22)]
    assert [item.index for item in ties] == [10, 21, 22]
    assert len({item.score for item in ties}) == 1


def test_the_number_of_texts_does_not_change_a_cosine() -> None:
    rng = np.random.default_rng(0)
    query = rng.standard_normal(384).astype(np.float32) / 20
    rows = rng.standard_normal((200, 384)).astype(np.float32) / 20
    together = best_cosines(query, [rows[i : i + 1] for i in range(200)])
    assert [best_cosines(query, [rows[i : i + 1]])[0] for i in range(200)] == together.tolist()
    windows = best_cosines(query, [rows[:1], rows[1:150], rows[150:]])
    assert windows.tolist() == [together[0], together[1:150].max(), together[150:].max()]


def test_the_best_window_counts(reranker: Reranker) -> None:
    texts = ["copper " * 400 + QUERY, "copper " * 400, QUERY]
    cut = reranker.rerank(QUERY, texts)
    whole = reranker.rerank(QUERY, texts, long="windows")
    assert {item.index: item.truncated for item in cut.results} == {0: True, 1: True, 2: False}
    assert not any(item.truncated for item in whole.results)
    assert scores(cut)[0] == scores(cut)[1], "the end, where they differ, is cut off"
    assert scores(whole)[0] > scores(whole)[1]
    assert scores(whole)[2] == scores(cut)[2]
    assert (whole.cached, cut.cached) == (0, 0), "a text in windows is not the text cut off"


def test_cached_texts_are_neither_tokenized_nor_run(reranker: Reranker, encoder: OnnxEncoder) -> None:
    texts = [*ragged_texts(30), "copper", "copper"]
    for long in ("truncate", "windows"):
        first = reranker.rerank(QUERY, texts, long)
        before = reranker.stats()
        again = reranker.rerank(QUERY, texts, long)
        after = reranker.stats()
        assert again.results == first.results
        assert again.tokens == first.tokens
        assert (first.cached, again.cached) == (0, 32)
        assert after["cache_misses"] == before["cache_misses"]
        assert after["cache_hits"] == before["cache_hits"] + 31, "different texts"
        assert after["cache_entries"] == before["cache_entries"]


def test_only_new_texts_are_read(int8_dir: Path) -> None:
    class Counting(OnnxEncoder):
        def __init__(self, path: Path) -> None:
            super().__init__(path, threads=1)
            self.texts = self.sequences = 0

        def read(self, texts, long="truncate"):  # type: ignore[no-untyped-def]
            self.texts += len(texts)
            return super().read(texts, long)

        def run(self, tokens):  # type: ignore[no-untyped-def]
            self.sequences += len(tokens)
            return super().run(tokens)

    encoder = Counting(int8_dir)
    reranker = Reranker(encoder)
    texts = ["word " * (40 + i) for i in range(10)]
    reranker.rerank(QUERY, texts)
    assert (encoder.texts, encoder.sequences) == (10, 11)
    ranking = reranker.rerank("another query", [*texts, "word " * 60])
    assert (encoder.texts, encoder.sequences) == (11, 13)
    assert ranking.cached == 10
    assert reranker.stats()["cache_entries"] == 11, "no query among them"
    reranker.close()


def test_the_cache_stays_within_its_bytes(encoder: OnnxEncoder) -> None:
    reranker = Reranker(encoder, cache_bytes=20_000)
    ranking = reranker.rerank(QUERY, WORDS[:20])
    stats = reranker.stats()
    assert 0 < stats["cache_bytes"] <= 20_000
    assert 0 < stats["cache_entries"] < 20
    again = reranker.rerank(QUERY, WORDS[:20])
    assert again.results == ranking.results
    none = Reranker(encoder, cache_bytes=0)
    assert [none.rerank(QUERY, WORDS[:3]).cached for _ in range(2)] == [0, 0]
    assert none.stats()["cache_entries"] == 0


def test_stats_count_texts_and_tokens(reranker: Reranker) -> None:
    ranking = reranker.rerank("bread", ["copper", "copper", "river mountain", "word " * 300])
    assert ranking.tokens == 3 + 3 + 3 + 4 + 256
    reranker.rerank("bread", ["copper"])
    stats = reranker.stats()
    assert (stats["texts"], stats["tokens"], stats["queued"]) == (5, ranking.tokens + 6, 0)
    assert (stats["cache_hits"], stats["cache_misses"], stats["cache_entries"]) == (1, 3, 3)


def test_too_long_agrees_with_the_ranking(reranker: Reranker) -> None:
    texts = ragged_texts(30)
    before = reranker.too_long(texts)
    ranking = reranker.rerank(QUERY, texts)
    assert before == sorted(item.index for item in ranking.results if item.truncated) != []
    assert reranker.too_long([*texts, "word " * 300, "short"]) == [*before, 30]


def test_what_is_cut_is_named(reranker: Reranker) -> None:
    assert reranker.cut("short", ["short", "word " * 300]) == (False, [1])
    assert reranker.cut("word " * 300, ["word " * 300], "windows") == (True, [])
    assert reranker.encoder.works()


@pytest.mark.parametrize("cache_bytes", [0, 30_000, 2**24])
def test_scores_are_the_same_bits_whatever_runs_beside(encoder: OnnxEncoder, cache_bytes: int) -> None:
    pool = [*ragged_texts(12), *(" ".join(WORDS[i : i + 1 + i % 5]) for i in range(28)), "COPPER", "copper"]
    queries = [QUERY, "bread", "what is copper"]
    idle = Reranker(encoder, cache_bytes=0)
    expected = {
        (query, text, long): idle.rerank(query, [text], long).results[0].score
        for query in queries
        for text in pool
        for long in ("truncate", "windows")
    }
    busy = Reranker(encoder, cache_bytes)
    start = threading.Barrier(8)

    def client(seed: int) -> int:
        rng, wrong = random.Random(seed), 0
        start.wait()
        for _ in range(30):
            query, long = rng.choice(queries), rng.choice(["truncate", "truncate", "windows"])
            texts = [*rng.choices(pool[12:], k=rng.randint(1, 8)), *rng.choices(pool[:12], k=rng.randint(0, 2))]
            ranking = busy.rerank(query, texts, long)
            assert len(ranking.results) == len(texts)
            wrong += sum(item.score != expected[query, texts[item.index], long] for item in ranking.results)
        return wrong

    with ThreadPoolExecutor(8) as clients:
        assert list(clients.map(client, range(8))) == [0] * 8
    assert busy.stats()["cache_bytes"] <= cache_bytes
    idle.close()
    busy.close()


def test_a_closed_reranker_says_so(encoder: OnnxEncoder) -> None:
    reranker = Reranker(encoder)
    reranker.rerank(QUERY, TEXTS)
    reranker.close()
    reranker.close()
    with pytest.raises(RuntimeError, match="closed"):
        reranker.rerank(QUERY, TEXTS)


def test_a_forgotten_reranker_takes_its_threads_with_it(encoder: OnnxEncoder) -> None:
    before = set(threading.enumerate())
    reranker = Reranker(encoder)
    reranker.rerank(QUERY, TEXTS)
    threads = set(threading.enumerate()) - before
    assert len(threads) == encoder.threads
    gone = weakref.ref(reranker)
    del reranker
    gc.collect()
    assert gone() is None
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
