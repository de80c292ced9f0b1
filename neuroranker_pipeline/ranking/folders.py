"""The folder format of sentence-transformers: which modules a saved model has, and how long its inputs may be.

https://sbert.net/docs/sentence_transformer/usage/custom_models.html describes it; the bi-encoder is written in the
layout that every release since 2.0 opens, the cross-encoder in the modular layout that release 6 introduced.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from neuroranker_pipeline.errors import BadInput

Pooling = Literal["mean", "cls"]
IDENTITY = "torch.nn.modules.linear.Identity"


@dataclass(frozen=True)
class Layout:
    """What a model folder says about itself beyond its weights."""

    cross_encoder: bool
    classifier: bool  # a published cross-encoder: AutoModelForSequenceClassification with one label
    pooling: Pooling
    max_length: int | None
    dense: Path | None  # the folder of a cross-encoder's linear head


def read_layout(folder: Path) -> Layout:
    """Read a sentence-transformers or plain Hugging Face folder.

    A folder without ``modules.json`` pools by the mean. Raises ``BadInput`` naming the file when the folder is no
    model, or has a module, pooling or prompt that we would silently get wrong.
    """
    config = read_json(folder / "config.json")
    saved = read_json(folder / "config_sentence_transformers.json", {})
    transformer = read_json(folder / "sentence_bert_config.json", {})
    architecture = (config.get("architectures") or [""])[0]
    classifier = architecture.endswith("ForSequenceClassification")
    pooling: Pooling = "mean"
    dense = None
    for module in read_json(folder / "modules.json", []):
        kind, path = module["type"].rsplit(".", 1)[-1], folder / module["path"]
        if kind == "Pooling":
            pooling = _pooling(path / "config.json")
        elif kind == "Dense" and saved.get("model_type") == "CrossEncoder":
            dense = path
        elif kind not in ("Transformer", "Normalize"):
            raise BadInput(f"{folder / 'modules.json'}: module {module['type']} is not supported")
    if any((saved.get("prompts") or {}).values()):
        raise BadInput(f"{folder / 'config_sentence_transformers.json'}: models with prompts are not supported")
    return Layout(
        cross_encoder=classifier or saved.get("model_type") == "CrossEncoder",
        classifier=classifier,
        pooling=pooling,
        max_length=transformer.get("max_seq_length"),
        dense=dense,
    )


def _pooling(file: Path) -> Pooling:
    config = read_json(file)
    mode = config.get("pooling_mode")
    if mode is None:  # before release 5.4: one boolean a mode
        modes = [
            key.removeprefix("pooling_mode_") for key, on in config.items() if key.startswith("pooling_mode_") and on
        ]
        mode = {"mean_tokens": "mean", "cls_token": "cls"}.get(modes[0]) if len(modes) == 1 else modes
    if mode not in ("mean", "cls"):
        raise BadInput(f"{file}: pooling {mode!r} is not supported; only 'mean' and 'cls' are")
    return mode


def write_bi_encoder(folder: Path, pooling: Pooling, dimension: int, max_length: int) -> None:
    """Write the JSON files that make a saved transformer open as ``SentenceTransformer(folder)``."""
    prefix = "sentence_transformers.models"
    _write_modules(
        folder,
        [
            ("", f"{prefix}.Transformer"),
            ("1_Pooling", f"{prefix}.Pooling"),
            ("2_Normalize", f"{prefix}.Normalize"),
        ],
    )
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": dimension,
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_mean_tokens": pooling == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    )
    (folder / "2_Normalize").mkdir(exist_ok=True)
    write_json(
        folder / "config_sentence_transformers.json",
        {"model_type": "SentenceTransformer", "prompts": {}, "similarity_fn_name": "cosine"},
    )


def write_cross_encoder(folder: Path, pooling: Pooling, dimension: int, head: nn.Linear) -> None:
    """Write the JSON files and the head that make a saved transformer open as ``CrossEncoder(folder)``."""
    _write_modules(
        folder,
        [
            ("", "sentence_transformers.base.modules.transformer.Transformer"),
            ("1_Pooling", "sentence_transformers.sentence_transformer.modules.pooling.Pooling"),
            ("2_Dense", "sentence_transformers.base.modules.dense.Dense"),
        ],
    )
    write_json(
        folder / "sentence_bert_config.json",
        {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            "module_output_name": "token_embeddings",
        },
    )
    write_json(
        folder / "1_Pooling" / "config.json",
        {"embedding_dimension": dimension, "pooling_mode": pooling, "include_prompt": True},
    )
    write_json(
        folder / "2_Dense" / "config.json",
        {
            "in_features": dimension,
            "out_features": 1,
            "bias": True,
            "activation_function": IDENTITY,
            "module_input_name": "sentence_embedding",
            "module_output_name": "scores",
        },
    )
    save_file(
        {f"linear.{key}": value for key, value in head.state_dict().items()},
        folder / "2_Dense" / "model.safetensors",
    )
    write_json(
        folder / "config_sentence_transformers.json",
        {"model_type": "CrossEncoder", "activation_fn": IDENTITY, "prompts": {}},
    )


def read_head(folder: Path, dimension: int) -> nn.Linear:
    """The (dimension -> 1) linear head in a ``Dense`` module's folder; raises ``BadInput`` on any other shape."""
    config = read_json(folder / "config.json")
    if config.get("activation_function") != IDENTITY or config.get("out_features") != 1:
        raise BadInput(f"{folder / 'config.json'}: the head must have one output and no activation")
    head = nn.Linear(dimension, 1)
    weights: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    head.load_state_dict({key.removeprefix("linear."): value for key, value in weights.items()})
    return head


def read_json(file: Path, default: Any = None) -> Any:
    """The JSON in ``file``; ``default`` when it is absent, else ``BadInput`` naming it."""
    if not file.is_file() and default is not None:
        return default
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{file}: no such file; a model folder must hold it") from None
    except ValueError as error:
        raise BadInput(f"{file}: not valid JSON ({error})") from None


def write_json(file: Path, content: Any) -> None:
    """Write ``content`` as indented JSON, making the folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_modules(folder: Path, modules: list[tuple[str, str]]) -> None:
    write_json(
        folder / "modules.json",
        [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(modules)],
    )
