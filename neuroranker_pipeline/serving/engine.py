"""The inference engine of the service: texts to unit vectors with ONNX Runtime, and passages to a ranking."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.pointer import resolve_artifact

MODEL_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "neuroranker.json"
OUTPUT = "embedding"

# Tokens in one run of the graph: a core's cache holds the activations of about this many.
BATCH_TOKENS = 1024
DEFAULT_MAX_LENGTH = 256


class OnnxEncoder:
    """A student exported to ONNX, beside its tokenizer.

    Texts of one length share a batch, so nothing is ever padded, and each thread runs its own batches: a text's
    vector depends on that text alone, not on the rest of the request.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        """Open a model folder (``model.onnx``, ``tokenizer.json``), or an ``.onnx`` file beside its tokenizer.

        ``threads`` defaults to the cores this process may use. Raises ``BadInput`` when a file is missing or is
        not what it should be.
        """
        self.model_file = find_model(Path(path))
        folder = self.model_file.parent
        self.threads = threads or available_cores()
        self.session = _open_session(self.model_file)
        self.tokenizer = _open_tokenizer(folder / TOKENIZER_FILE)
        config = read_json(folder / "config.json")
        self.max_length = _max_length(read_json(folder / SETTINGS_FILE), config, self.tokenizer)
        self.pad_id = int(config.get("pad_token_id") or 0)
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self.max_length)
        _check_vocabulary(self.tokenizer, config, folder)
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="onnx")

    @property
    def dimension(self) -> int:
        """Components of an embedding."""
        return int(self.session.get_outputs()[0].shape[1])

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included, cut to ``max_length``."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts))]

    def too_long(self, texts: Sequence[str]) -> list[int]:
        """Positions of the texts that ``tokenize`` cuts."""
        return [i for i, e in enumerate(self.tokenizer.encode_batch_fast(list(texts))) if e.overflowing]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, (n, dimension) float32, in the order of ``texts``."""
        return self.encode_tokens(self.tokenize(texts))

    def encode_tokens(self, tokens: Sequence[Sequence[int]]) -> np.ndarray:
        """Unit vectors, (n, dimension) float32, of token sequences."""
        vectors = np.empty((len(tokens), self.dimension), np.float32)
        batches = list(_equal_lengths(tokens))
        for rows, result in zip(batches, self._pool.map(lambda b: self._run(tokens, b), batches), strict=True):
            vectors[rows] = result
        return vectors

    def run_padded(self, tokens: Sequence[Sequence[int]]) -> np.ndarray:
        """One run over one padded batch: what the graph itself computes, for checks of its padding mask."""
        lengths = np.array([len(ids) for ids in tokens])
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        ids = np.full(mask.shape, self.pad_id, np.int64)
        ids[mask == 1] = np.concatenate([np.asarray(t, np.int64) for t in tokens])
        return self.session.run([OUTPUT], {"input_ids": ids, "attention_mask": mask})[0]

    def _run(self, tokens: Sequence[Sequence[int]], rows: list[int]) -> np.ndarray:
        ids = np.array([tokens[row] for row in rows], np.int64)
        return self.session.run([OUTPUT], {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]


class Reranker:
    """Orders passages by the cosine of their embedding with the query's."""

    def __init__(self, encoder: OnnxEncoder) -> None:
        self.encoder = encoder

    def rerank(self, query: str, texts: Sequence[str]) -> list[tuple[int, float]]:
        """(position in ``texts``, cosine), best first; ties keep the order of ``texts``."""
        return self.rerank_tokens(*self.tokenize(query, texts))

    def tokenize(self, query: str, texts: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """Token ids of the query and of each text."""
        query_tokens, *text_tokens = self.encoder.tokenize([query, *texts])
        return query_tokens, text_tokens

    def rerank_tokens(
        self, query_tokens: Sequence[int], text_tokens: Sequence[Sequence[int]]
    ) -> list[tuple[int, float]]:
        """``rerank`` for tokenized input."""
        # Equal texts are encoded once: their scores are then equal to the last bit, and the tie is a tie.
        unique = {tokens: row for row, tokens in enumerate(dict.fromkeys(map(tuple, [query_tokens, *text_tokens])))}
        vectors = self.encoder.encode_tokens(list(unique))
        rows = vectors[[unique[tuple(tokens)] for tokens in text_tokens]]
        # A sum per row, and no matrix product, whose rounding would depend on the number of rows.
        scores = (rows * vectors[0]).sum(axis=1, dtype=np.float64).clip(-1, 1)
        return [(int(i), float(scores[i])) for i in np.argsort(-scores, kind="stable")]


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_model(path: Path) -> Path:
    """The ``.onnx`` file that ``path`` names, checked to have its tokenizer beside it; raises ``BadInput``."""
    path = resolve_artifact(path)
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        raise BadInput(f"{file}: no such file; name an .onnx file, or a folder that holds {MODEL_FILE}")
    if not (file.parent / TOKENIZER_FILE).is_file():
        raise BadInput(f"{file.parent / TOKENIZER_FILE}: missing; a model needs its tokenizer beside it")
    return file


def _equal_lengths(tokens: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Rows in batches of one length, longest first so that the threads end together."""
    rows = sorted(range(len(tokens)), key=lambda row: (-len(tokens[row]), row))
    for length, group in groupby(rows, key=lambda row: len(tokens[row])):
        same, size = list(group), max(1, BATCH_TOKENS // max(1, length))
        yield from (same[start : start + size] for start in range(0, len(same), size))


def _open_session(file: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    # One thread a run: runs go side by side, which needs no synchronization within a graph of small products.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no other base
        raise BadInput(f"{file}: not a model that ONNX Runtime can load ({_first_line(error)})") from error
    inputs = {node.name for node in session.get_inputs()}
    outputs = session.get_outputs()
    if inputs != {"input_ids", "attention_mask"} or outputs[0].name != OUTPUT or len(outputs[0].shape) != 2:
        raise BadInput(
            f"{file}: expected inputs input_ids and attention_mask and an output {OUTPUT!r} of shape (n, dimension), "
            f"found inputs {sorted(inputs)} and outputs {[output.name for output in outputs]}; export it with "
            "neuroranker_pipeline.export.onnx.export_student"
        )
    return session


def _open_tokenizer(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises plain Exception
        raise BadInput(f"{file}: not a tokenizer ({_first_line(error)})") from error


def _max_length(settings: dict[str, Any], config: dict[str, Any], tokenizer: Tokenizer) -> int:
    """Tokens per text: as exported, else as the tokenizer says, and never more than there are positions."""
    length = settings.get("max_length") or (tokenizer.truncation or {}).get("max_length") or DEFAULT_MAX_LENGTH
    return min(int(length), int(config.get("max_position_embeddings") or length))


def _check_vocabulary(tokenizer: Tokenizer, config: dict[str, Any], folder: Path) -> None:
    rows, tokens = config.get("vocab_size"), tokenizer.get_vocab_size()
    if rows is not None and tokens > rows:
        raise BadInput(
            f"{folder / TOKENIZER_FILE}: {tokens} tokens, but the model knows {rows}; this is another model's tokenizer"
        )


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a model folder, empty without the file; raises ``BadInput``."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise BadInput(f"{file}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise BadInput(f"{file}: expected a JSON object")
    return value


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
