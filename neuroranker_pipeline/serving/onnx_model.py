"""A model exported to ONNX: its folder, its tokenizer and its runs; and the student, from texts to unit vectors.

What a cross-encoder has in common with the student is here; the rest is in
:mod:`neuroranker_pipeline.serving.cross_encoder`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

from neuroranker_pipeline.errors import BadInput
from neuroranker_pipeline.pointer import resolve_artifact
from neuroranker_pipeline.serving.batcher import run_alike, run_size

MODEL_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "neuroranker.json"
BI_ENCODER, CROSS_ENCODER = "bi-encoder", "cross-encoder"  # the ``kind`` in the settings

DEFAULT_MAX_LENGTH = 256
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
MAX_WINDOWS = 64

# What to do with a text of more than ``max_length`` tokens: cut it, or read it in windows and take the best one.
Long = Literal["truncate", "windows"]


@dataclass(frozen=True)
class Reading:
    """What the model reads of a text: token sequences, special tokens included, and whether the text goes on."""

    sequences: list[list[int]]
    truncated: bool


class OnnxModel:
    """A graph over token ids, beside its tokenizer.

    Only short sequences share a run, and only those of one length, so nothing is ever padded, and each thread runs its
    own batches: what comes out for a sequence depends on that sequence alone, to the last bit.
    """

    INPUTS: ClassVar = frozenset({"input_ids", "attention_mask"})
    OPTIONAL: ClassVar[frozenset[str]] = frozenset()  # inputs that only some graphs have
    OUTPUT: ClassVar[str]
    SHAPE: ClassVar[tuple[str, ...]]

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        """Open a model folder (``model.onnx``, ``tokenizer.json``), or an ``.onnx`` file beside its tokenizer.

        ``threads`` defaults to the cores this process may use. Raises ``BadInput`` when a file is missing or is
        not what it should be.
        """
        self.model_file = find_model(Path(path))
        folder = self.model_file.parent
        self.threads = threads or available_cores()
        self.session = _open_session(self.model_file)
        self._check_graph()
        self.tokenizer = _open_tokenizer(folder / TOKENIZER_FILE)
        config = read_json(folder / "config.json")
        self.max_length = _max_length(read_json(folder / SETTINGS_FILE), config, self.tokenizer)
        self.pad_id = int(config.get("pad_token_id") or 0)
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self.max_length)
        _check_vocabulary(self.tokenizer, config, folder)
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="onnx")

    def run_all(self, tokens: Sequence[Sequence[int]]) -> np.ndarray:
        """What the graph gives, (n, ...) float32, for n token sequences, in their order."""
        results = np.empty((len(tokens), *self.session.get_outputs()[0].shape[1:]), np.float32)
        batches = list(_equal_lengths(tokens))
        runs = self._pool.map(lambda rows: run_alike(self.run, [tokens[row] for row in rows]), batches)
        for rows, result in zip(batches, runs, strict=True):
            results[rows] = result
        return results

    def run(self, tokens: Sequence[Sequence[int]]) -> np.ndarray:
        """One run of the graph: its output, (n, ...) float32, for n >= 1 token sequences of one length."""
        ids = np.array(tokens, np.int64)
        return self._run(ids, np.ones_like(ids))

    def run_padded(self, tokens: Sequence[Sequence[int]]) -> np.ndarray:
        """One run over one padded batch: what the graph itself computes, for checks of its padding mask."""
        lengths = np.array([len(ids) for ids in tokens])
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        ids = np.full(mask.shape, self.pad_id, np.int64)
        ids[mask == 1] = np.concatenate([np.asarray(t, np.int64) for t in tokens])
        return self._run(ids, mask)

    def works(self) -> bool:
        """Whether a run gives finite numbers."""
        return bool(np.isfinite(self.run([self.tokenizer.encode("ready").ids])).all())

    def _run(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return self.session.run([self.OUTPUT], {"input_ids": ids, "attention_mask": mask})[0]

    def _check_graph(self) -> None:
        inputs = {node.name for node in self.session.get_inputs()}
        outputs = self.session.get_outputs()
        expected = (self.OUTPUT, len(self.SHAPE))
        if inputs - self.OPTIONAL != self.INPUTS or (outputs[0].name, len(outputs[0].shape)) != expected:
            raise BadInput(
                f"{self.model_file}: expected inputs input_ids and attention_mask and an output {self.OUTPUT!r} of shape "
                f"({', '.join(self.SHAPE)}), found inputs {sorted(inputs)} and outputs "
                f"{[output.name for output in outputs]}; make the folder with `neuroranker export`"
            )


class OnnxEncoder(OnnxModel):
    """A student exported to ONNX: texts to unit vectors."""

    OUTPUT = "embedding"
    SHAPE = ("n", "dimension")

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

    def read(self, texts: Sequence[str], long: Long = "truncate") -> list[Reading]:
        """What to run for each text: its tokens cut to ``max_length``, or windows of that length.

        Windows overlap by half; a text gets at most ``MAX_WINDOWS``, and is truncated if they do not reach its end.
        """
        if long == "truncate":
            return [Reading([e.ids], bool(e.overflowing)) for e in self.tokenizer.encode_batch_fast(list(texts))]
        readings = []
        for encoding in self._windows.encode_batch_fast(list(texts)):
            more = encoding.overflowing
            ids = [encoding.ids, *(window.ids for window in more[: MAX_WINDOWS - 1])]
            readings.append(Reading(ids, len(more) >= MAX_WINDOWS))
        return readings

    @cached_property
    def _windows(self) -> Tokenizer:
        """A tokenizer of its own, for how to cut is a tokenizer's state, which all threads share."""
        tokenizer = Tokenizer.from_str(self.tokenizer.to_str())
        content = self.max_length - tokenizer.num_special_tokens_to_add(False)
        tokenizer.enable_truncation(self.max_length, stride=content // 2)
        return tokenizer

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, (n, dimension) float32, in the order of ``texts``."""
        return self.run_all(self.tokenize(texts))

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """As ``encode``, each text in a run of its own: the bits of the vector that the service compares passages with."""
        vectors = [np.empty((0, self.dimension), np.float32)]
        return np.concatenate([*vectors, *self._pool.map(lambda ids: self.run([ids]), self.tokenize(texts))])


def available_cores() -> int:
    """Cores that this process may run on, and no more than its container has time for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_QUOTA.read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no control group, or no quota: "max"
        return cores


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
        same, size = list(group), run_size(length)
        yield from (same[start : start + size] for start in range(0, len(same), size))


def _open_session(file: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    # One thread a run: runs go side by side, which needs no synchronization within a graph of small products.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no other base
        raise BadInput(f"{file}: not a model that ONNX Runtime can load ({_first_line(error)})") from error


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
