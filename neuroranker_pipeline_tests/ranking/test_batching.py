from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import RobertaProcessing

from neuroranker_pipeline.ranking.batching import by_length, epoch_order, longest_first, tokenize_pairs
from neuroranker_pipeline.ranking.models import BiEncoder
from neuroranker_pipeline_tests.ranking.conftest import MINILM

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny_tokenizer(tiny):
    return BiEncoder.load(tiny).tokenizer


def test_pairs_equal_the_tokenizer_own_batch():
    tokenizer = BiEncoder.load(MINILM, layers=1).tokenizer
    queries = ["short", "a much longer query than its passage " * 4, "x"]
    passages = ["a passage that is long " * 9, "tiny", ""]
    tokens = tokenize_pairs(tokenizer, queries, passages, 24)
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


def test_pairs_of_another_frame_equal_the_tokenizer_own_batch(tiny):
    """RoBERTa's pairs: two separators between the texts and no types."""
    tokenizer = BiEncoder.load(tiny).tokenizer
    tokenizer.backend_tokenizer.post_processor = RobertaProcessing(("[SEP]", 3), ("[CLS]", 2), add_prefix_space=False)
    queries, passages = ["w1 w2 w3 w4 w5", "w6", ""], ["w7", "w8 w9 " * 9, "w1"]
    tokens = tokenize_pairs(tokenizer, queries, passages, 12)
    expected = tokenizer(queries, passages, truncation="longest_first", max_length=12)["input_ids"]
    assert [tokens.ids[a:b].tolist() for a, b in pairwise(tokens.offsets)] == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30)), min_size=1, max_size=20), st.integers(4, 40))
def test_pairs_are_cut_as_the_tokenizer_cuts_them(tiny_tokenizer, sizes, max_length):
    queries, passages = ([" ".join(["w1"] * size) for size in side] for side in zip(*sizes, strict=True))
    tokens = tokenize_pairs(tiny_tokenizer, queries, passages, max_length)
    expected = tiny_tokenizer(queries, passages, truncation="longest_first", max_length=max_length)
    assert tokens.lengths.tolist() == [len(ids) for ids in expected["input_ids"]]
    starts = [types.index(1) if 1 in types else len(types) for types in expected["token_type_ids"]]
    assert tokens.segment.tolist() == starts


def test_the_longer_text_is_cut_first():
    n, m = longest_first(np.array([2, 9, 9, 1]), np.array([9, 2, 8, 1]), 7)
    assert list(zip(n.tolist(), m.tolist(), strict=True)) == [(2, 5), (5, 2), (4, 3), (1, 1)]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 25), min_size=1, max_size=9), st.randoms(use_true_random=False))
def test_a_packed_batch_holds_the_same_tokens(tiny_tokenizer, sizes, random):
    tokens = tokenize_pairs(tiny_tokenizer, [f"w{size}" for size in sizes], ["w3 " * size for size in sizes], 32)
    rows = random.choices(range(len(sizes)), k=5)
    padded, packed = tokens.batch(rows, CPU), tokens.packed(rows, CPU, 2)
    inside = padded["attention_mask"].bool()
    for key in ("input_ids", "token_type_ids"):
        assert torch.equal(padded[key][inside], packed[key][0].long())
    assert packed["bounds"].diff().tolist() == tokens.lengths[rows].tolist()
    assert packed["position_ids"][0].tolist() == [2 + i for row in rows for i in range(tokens.lengths[row])]
    assert packed["longest"] >= max(tokens.lengths[rows])
