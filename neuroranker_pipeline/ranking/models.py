"""The two rankers: a bi-encoder (one vector a text) and a cross-encoder (one score a query-passage pair)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.progress import Progress, silent
from neuroranker_pipeline.ranking.batching import Tokens, tokenize, tokenize_pairs
from neuroranker_pipeline.ranking.device import Compute
from neuroranker_pipeline.ranking.folders import (
    IDENTITY,
    Layout,
    Pooling,
    read_head,
    read_layout,
    write_bi_encoder,
    write_cross_encoder,
)
from neuroranker_pipeline.ranking.forward import infer
from neuroranker_pipeline.ranking.hub import ModelNotFound, resolve_model
from neuroranker_pipeline.ranking.packed import mean_of_segments, packs

__all__ = ["BiEncoder", "CrossEncoder", "ModelNotFound", "resolve_model"]


class BiEncoder(nn.Module):
    """A transformer, a pooling and a normalization (Sentence-BERT, https://arxiv.org/abs/1908.10084)."""

    def __init__(
        self,
        transformer: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        pooling: Pooling,
        max_length: int,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.max_length = max_length

    @classmethod
    def load(cls, name: str | Path, layers: int | None = None, max_length: int | None = None) -> BiEncoder:
        """Open a sentence-transformers or plain Hugging Face model.

        ``layers`` keeps only the lowest ones; ``max_length`` (tokens a text) overrides the folder's own. Raises
        ``ModelNotFound``, or ``BadInput`` when the folder is a cross-encoder or pools in a way we do not support.
        """
        folder = resolve_model(name)
        layout = read_layout(folder)
        if layout.cross_encoder:
            raise BadInput(f"{folder}: this is a cross-encoder; a bi-encoder is needed here")
        transformer, tokenizer = _load_encoder(folder, layers)
        return cls(transformer, tokenizer, layout.pooling, _max_length(max_length, layout, transformer, tokenizer))

    def save(self, folder: Path) -> None:
        """Write a folder that ``SentenceTransformer(folder)`` opens with equal embeddings."""
        _save_transformer(self, folder)
        write_bi_encoder(folder, self.pooling, self.dimension, self.max_length)

    @property
    def reads_packed(self) -> bool:
        """Whether packed batches suit the model."""
        return packs(self.transformer)

    @property
    def dimension(self) -> int:
        """Components of an embedding."""
        return int(self.transformer.config.hidden_size)

    def forward(self, **inputs: Any) -> torch.Tensor:
        """Unit vectors, (b, dimension) float32, of a batch from ``Tokens.batch`` or ``Tokens.packed``."""
        return F.normalize(text_vectors(self.transformer, inputs, self.pooling), dim=-1)

    def tokenize(self, texts: Sequence[str], max_length: int | None = None) -> Tokens:
        """Token sequences of texts, cut to ``max_length`` tokens (the model's own when not given)."""
        return tokenize(self.tokenizer, texts, max_length or self.max_length)

    def encode(self, texts: Sequence[str], compute: Compute, progress: Progress = silent) -> np.ndarray:
        """Unit vectors, (n, dimension) float32, in the order of ``texts``."""
        if not texts:
            return np.zeros((0, self.dimension), np.float32)
        return infer(self, self.tokenize(texts), compute, "encoding", progress)


class Float32Linear(nn.Linear):
    """A linear layer that stays in float32 under autocast: bfloat16 logits tie, and ties are no ranking."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


class CrossEncoder(nn.Module):
    """A transformer over "query [SEP] passage" and a linear score (https://arxiv.org/abs/1901.04085).

    ``head`` scores the pooled token vectors. It is ``None`` for published cross-encoders, whose transformer
    is a sequence classifier and scores by itself.
    """

    def __init__(
        self,
        transformer: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        head: nn.Linear | None,
        pooling: Pooling,
        max_length: int,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.tokenizer = tokenizer
        self.head = head
        self.pooling = pooling
        self.max_length = max_length
        inner = set(transformer.base_model.modules())
        for module in [*transformer.modules(), head]:
            if type(module) is nn.Linear and module not in inner:
                module.__class__ = Float32Linear

    @classmethod
    def load(cls, name: str | Path, layers: int | None = None, max_length: int | None = None) -> CrossEncoder:
        """Open a cross-encoder: our own folders, and published sequence classifiers with one label.

        ``max_length`` counts the tokens of a pair. Raises ``ModelNotFound`` or ``BadInput``.
        """
        folder = resolve_model(name)
        layout = read_layout(folder)
        if not layout.cross_encoder:
            raise BadInput(f"{folder}: this is no cross-encoder; one is needed here")
        if layout.classifier:
            transformer, tokenizer = _load_classifier(folder, layers)
            head = None
        elif layout.dense is not None:
            transformer, tokenizer = _load_encoder(folder, layers)
            head = read_head(layout.dense, int(transformer.config.hidden_size))
        else:
            raise BadInput(f"{folder / 'modules.json'}: this cross-encoder has no linear head")
        length = _max_length(max_length, layout, transformer, tokenizer)
        return cls(transformer, tokenizer, head, layout.pooling, length)

    @classmethod
    def start(
        cls, name: str | Path, max_length: int | None = None, layers: int | None = None, seed: int = 0
    ) -> CrossEncoder:
        """A cross-encoder to train: a ready one as it is, or any other encoder with a new, seeded head.

        A new head reads the mean over the tokens of the pair: starting from a sentence encoder it needs far fewer
        examples than the [CLS] vector, which such a model never learned to use.
        """
        folder = resolve_model(name)
        if read_layout(folder).cross_encoder:
            return cls.load(folder, layers, max_length)
        transformer, tokenizer = _load_encoder(folder, layers)
        head = nn.utils.skip_init(nn.Linear, int(transformer.config.hidden_size), 1)
        with torch.no_grad():
            head.weight.normal_(0.0, 0.02, generator=torch.Generator().manual_seed(seed))
            head.bias.zero_()
        length = _max_length(max_length, read_layout(folder), transformer, tokenizer)
        return cls(transformer, tokenizer, head, "mean", length)

    @property
    def reads_packed(self) -> bool:
        """Whether packed batches suit the model: a classifier's own head reads the first token of a padded row."""
        return self.head is not None and packs(self.transformer)

    def save(self, folder: Path) -> None:
        """Write a folder that ``sentence_transformers.CrossEncoder(folder)`` opens with equal scores."""
        if self.head is None:
            self.transformer.config.sentence_transformers = {"activation_fn": IDENTITY}
        _save_transformer(self, folder)
        if self.head is not None:
            write_cross_encoder(folder, self.pooling, int(self.transformer.config.hidden_size), self.head)

    def forward(self, **inputs: Any) -> torch.Tensor:
        """Scores, (b,) float32 logits, of a batch of pairs from ``Tokens.batch`` or ``Tokens.packed``."""
        if self.head is None:
            return self.transformer(**inputs).logits.squeeze(-1).float()
        return self.head(text_vectors(self.transformer, inputs, self.pooling)).squeeze(-1).float()

    def tokenize(self, queries: Sequence[str], passages: Sequence[str]) -> Tokens:
        """Token sequences of (query, passage) pairs, the longer of the two cut first to ``max_length``."""
        return tokenize_pairs(self.tokenizer, queries, passages, self.max_length)

    def score(
        self, queries: Sequence[str], passages: Sequence[str], compute: Compute, progress: Progress = silent
    ) -> np.ndarray:
        """Scores, (n,) float32 logits, of ``(queries[i], passages[i])``."""
        if not queries:
            return np.zeros(0, np.float32)
        return infer(self, self.tokenize(queries, passages), compute, "scoring", progress)


def text_vectors(transformer: PreTrainedModel, inputs: dict[str, Any], pooling: Pooling) -> torch.Tensor:
    """One float32 vector a sequence, (b, d), of a padded or a packed batch."""
    hidden = transformer(**inputs).last_hidden_state
    if "bounds" not in inputs:
        return pool(hidden, inputs["attention_mask"], pooling)
    if pooling == "cls":
        return hidden[0, inputs["bounds"][:-1]].float()
    return mean_of_segments(hidden[0], inputs["bounds"])


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """One float32 vector a sequence from padded token vectors (b, t, d) and their mask (b, t)."""
    if pooling == "cls":
        return hidden[:, 0].float()
    weights = mask.unsqueeze(-1).float()
    return (hidden.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


def _load_encoder(folder: Path, layers: int | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    with _quiet():
        transformer = AutoModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, **_truncated(folder, layers)
        )
        return transformer, AutoTokenizer.from_pretrained(folder)


def _load_classifier(folder: Path, layers: int | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    with _quiet():
        if AutoConfig.from_pretrained(folder).num_labels != 1:
            raise BadInput(f"{folder / 'config.json'}: a cross-encoder must have one label")
        transformer = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, **_truncated(folder, layers)
        )
        return transformer, AutoTokenizer.from_pretrained(folder)


def _truncated(folder: Path, layers: int | None) -> dict[str, Any]:
    if layers is None:
        return {}
    available = AutoConfig.from_pretrained(folder).num_hidden_layers
    if not 1 <= layers <= available:
        raise BadInput(f"layers must be between 1 and the {available} of {folder}, got {layers}")
    return {"num_hidden_layers": layers}


def _max_length(
    asked: int | None, layout: Layout, transformer: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> int:
    """The asked-for or stated length, never more than the model has positions for."""
    positions = min(int(transformer.config.max_position_embeddings), int(tokenizer.model_max_length))
    length = asked or layout.max_length or positions
    if not 4 <= length <= positions:
        raise BadInput(f"max_length must be between 4 and the model's {positions} positions, got {length}")
    return length


def _save_transformer(model: BiEncoder | CrossEncoder, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.tokenizer.model_max_length = model.max_length
    if model.tokenizer.is_fast:  # tokenizer.json would otherwise carry the truncation of the last call
        model.tokenizer.backend_tokenizer.no_truncation()
        model.tokenizer.backend_tokenizer.no_padding()
    with _quiet():
        model.transformer.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and load reports: a head left out or layers cut off are what we asked for."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
