from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroranker_pipeline.ranking.batching import by_length, epoch_order, tokenize
from neuroranker_pipeline.ranking.models import BiEncoder
from neuroranker_pipeline_tests.ranking.conftest import MINILM

CPU = torch.device("cpu")


def test_pairs_equal_the_tokenizer_own_batch():
    tokenizer = BiEncoder.load(MINILM, layers=1).tokenizer
    queries = ["short", "a much longer query than its passage " * 4, "x"]
    passages = ["a passage that is long " * 9, "tiny", ""]
    tokens = tokenize(tokenizer, queries, 24, passages)
    expected = tokenizer(
        queries, passages, truncation="longest_first", max_length=24, padding=True, return_tensors="pt"
    )
    batch = tokens.batch([0, 1, 2], CPU)
    assert set(batch) == set(expected)
    for key, value in expected.items():
        assert torch.equal(batch[key], value), key


def test_a_batch_is_only_as_wide_as_its_longest_row(tiny):
    tokens = BiEncoder.load(tiny).tokenize(["w1", "w1 w2 w3", ""])
    assert tokens.ids.dtype == np.int32
    assert tokens.lengths.tolist() == [3, 5, 2]
    assert tokens.batch([2, 0], CPU)["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=200), st.integers(1, 700))
def test_batches_hold_every_row_once_within_the_budget(lengths, budget):
    lengths = np.array(lengths)
    parts = list(by_length(lengths, budget))
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(lengths)))
    for part in parts:
        assert len(part) == 1 or lengths[part].max() * len(part) <= budget


def test_little_is_padding():
    lengths = np.random.default_rng(0).integers(8, 129, 2_000)
    padded = sum(lengths[part].max() * len(part) for part in by_length(lengths, 4_096))
    assert padded < 1.05 * lengths.sum()


def test_epoch_order_depends_on_seed_and_epoch_alone():
    assert epoch_order(50, 1, 0).tolist() == epoch_order(50, 1, 0).tolist()
    assert epoch_order(50, 1, 0).tolist() != epoch_order(50, 1, 1).tolist()
    assert epoch_order(50, 1, 0).tolist() != epoch_order(50, 2, 0).tolist()
    assert sorted(epoch_order(50, 1, 0).tolist()) == list(range(50))
