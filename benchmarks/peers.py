"""sentence-transformers doing what our engine does: same weights, data, batch, length, precision and order of examples."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import (
    CrossEncoder,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss
from torch import nn
from torch.utils.data import SequentialSampler

WARM_UP = 6  # steps before the clock starts, as ours


def train_cross_encoder(folder: Path, rows: dict[str, list], options: dict, dropout: float, max_length: int):
    """Seconds and the loss of every step; ``rows``: query, passage, label."""
    model = CrossEncoder(str(folder), device=options["device"], max_length=max_length)
    return _train(
        model, CrossEncoderTrainer, CrossEncoderTrainingArguments, BinaryCrossEntropyLoss(model), rows, options, dropout
    )


def train_bi_encoder(
    folder: Path, rows: dict[str, list], options: dict, dropout: float, max_length: int, temperature: float
):
    """Seconds and the loss of every step; ``rows``: query, positive, negative_1 ..., label (the teacher's scores)."""
    model = SentenceTransformer(str(folder), device=options["device"])
    model.max_seq_length = max_length
    loss = DistillKLDivLoss(model, temperature=temperature)
    seconds, losses = _train(
        model, SentenceTransformerTrainer, SentenceTransformerTrainingArguments, loss, rows, options, dropout
    )
    return seconds, [value / temperature**2 for value in losses]  # it scales by the temperature squared


def _train(model, trainer_class, arguments_class, loss, rows, options, dropout):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    cuda = options["device"] == "cuda"
    arguments = arguments_class(
        output_dir=options["work"], num_train_epochs=1, per_device_train_batch_size=options["batch"],
        learning_rate=options["learning_rate"], warmup_steps=0.1, weight_decay=0.01, max_grad_norm=1.0,
        bf16=options["bf16"], use_cpu=not cuda, dataloader_num_workers=options["workers"], dataloader_drop_last=True,
        logging_strategy="steps", logging_steps=8, save_strategy="no", report_to=[], disable_tqdm=True,
        batch_sampler=_in_order,
    )  # fmt: skip
    few = {name: values[: WARM_UP * options["batch"]] for name, values in rows.items()}
    kept = {name: value.detach().clone() for name, value in model.state_dict().items()}
    trainer_class(model=model, args=arguments, train_dataset=Dataset.from_dict(few), loss=loss).train()
    model.load_state_dict(kept)
    trainer = trainer_class(model=model, args=arguments, train_dataset=Dataset.from_dict(rows), loss=loss)
    _wait(cuda)
    start = time.perf_counter()
    trainer.train()
    _wait(cuda)
    seconds = time.perf_counter() - start
    return seconds, [line["loss"] for line in trainer.state.log_history if "loss" in line]


def _in_order(dataset, batch_size, drop_last, valid_label_columns=None, generator=None, seed=0):
    sampler = SequentialSampler(dataset)
    return DefaultBatchSampler(
        sampler,
        batch_size=batch_size,
        drop_last=drop_last,
        valid_label_columns=valid_label_columns,
        generator=generator,
        seed=seed,
    )


def score(
    folder: Path, queries: Sequence[str], passages: Sequence[str], device: str, bf16: bool, max_length: int, batch: int
):
    """Seconds and scores of the pairs."""
    model = CrossEncoder(str(folder), device=device, max_length=max_length, model_kwargs={"dtype": _dtype(bf16)})
    pairs = list(zip(queries, passages, strict=True))
    model.predict(pairs[: 4 * batch], batch_size=batch, show_progress_bar=False)
    return _timed(lambda: model.predict(pairs, batch_size=batch, show_progress_bar=False), device)


def encode(folder: Path, texts: Sequence[str], device: str, bf16: bool, max_length: int, batch: int):
    """Seconds and unit vectors of the texts."""
    model = SentenceTransformer(str(folder), device=device, model_kwargs={"dtype": _dtype(bf16)})
    model.max_seq_length = max_length
    model.encode(list(texts[: 4 * batch]), batch_size=batch, show_progress_bar=False)
    return _timed(lambda: model.encode(list(texts), batch_size=batch, show_progress_bar=False), device)


def _dtype(bf16: bool) -> torch.dtype:
    return torch.bfloat16 if bf16 else torch.float32


def _timed(call, device: str) -> tuple[float, np.ndarray]:
    _wait(device == "cuda")
    start = time.perf_counter()
    result = call()
    _wait(device == "cuda")
    return time.perf_counter() - start, np.asarray(result, np.float32)


def _wait(cuda: bool) -> None:
    if cuda:
        torch.cuda.synchronize()
