"""A model run over rows of any number in parts of fixed size: texts are tokenized while the model computes, and finished
parts are kept, so that a run that was killed goes on where it stopped, and several processes can share it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from neuroranker_pipeline.datasets.prefetch import prefetched
from neuroranker_pipeline.errors import BadInput, NotReady
from neuroranker_pipeline.progress import Progress, silent
from neuroranker_pipeline.ranking.batching import Tokens
from neuroranker_pipeline.ranking.device import Compute
from neuroranker_pipeline.ranking.distributed import World
from neuroranker_pipeline.ranking.forward import infer
from neuroranker_pipeline.ranking.models import BiEncoder, CrossEncoder

ROWS_PER_PART = 32_768  # bounds the memory of tokenized texts; batches of similar length form within a part
FOLDER = "parts"  # in the work folder
DIGEST = b"digest"  # in the Parquet metadata of a part: of the model and the texts that it was computed from


@dataclass(frozen=True)
class RowsOfTexts:
    """What a model is run over.

    parts: batches of rows, their ids in the first column, of ``ROWS_PER_PART`` at most; total: rows of all parts together.
    texts: the columns of texts that the model reads, of one part's rows; tokenize: the model's own.
    result: the table to keep of a part's rows and of the model's output for them, (n, ...) float32.
    """

    parts: Iterable[pa.RecordBatch]
    total: int
    texts: Callable[[pa.RecordBatch], tuple[list[str], ...]]
    tokenize: Callable[..., Tokens]
    result: Callable[[pa.RecordBatch, np.ndarray], pa.Table]


@dataclass(frozen=True)
class _Part:
    """A part whose turn it is; ``tokens`` is ``None`` when it is finished, or another process's."""

    index: int
    start: int
    rows: pa.RecordBatch
    digest: str = ""
    tokens: Tokens | None = None


def infer_in_parts(
    model: BiEncoder | CrossEncoder,
    rows: RowsOfTexts,
    compute: Compute,
    label: str,
    progress: Progress = silent,
    work: Path | None = None,
    world: World = World(),
) -> Iterator[pa.Table]:
    """The result of every part, in order; memory is bounded by three parts.

    work: keeps the finished parts below ``parts``, each with a digest of the model, the precision and the part's texts:
    called again after ``kill -9``, only the others are computed. They stay until whoever stores the result removes
    the folder, for until then they are all there is. Without it nothing is kept.
    world: part ``i`` is computed by process ``i % size``; all of them share ``work``, and get all results.

    Raises ``BadInput`` for several processes without a work folder, and ``NotReady`` when it cannot be written to.
    """
    if work is None:
        if world.size > 1:
            raise BadInput("several processes need a work folder that they all reach, to share the parts")
        return (
            result for _, result in _computed(model, rows, compute, label, progress, None, world) if result is not None
        )
    return _kept(model, rows, compute, label, progress, work / FOLDER, world)


def model_digest(model: BiEncoder | CrossEncoder) -> str:
    """A digest of all that a model's output depends on: weights, configuration, tokenizer, length and pooling."""
    state = hashlib.blake2b(digest_size=16)
    tokenizer = json.loads(model.tokenizer.backend_tokenizer.to_str())
    tokenizer["truncation"] = tokenizer["padding"] = None  # these are of the last call, not of the model
    config = {k: v for k, v in model.transformer.config.to_dict().items() if k not in ("_name_or_path", "dtype")}
    described = [type(model).__name__, model.max_length, model.pooling, tokenizer, config]
    state.update(json.dumps(described, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()


class PartFolder:
    """Finished parts on disk: Parquet files that appear whole, in one rename."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def holds(self, index: int, digest: str) -> bool:
        """Whether part ``index`` is there and was computed from what ``digest`` stands for."""
        try:
            return (pq.read_schema(self._file(index)).metadata or {}).get(DIGEST) == digest.encode()
        except (FileNotFoundError, pa.ArrowInvalid):
            return False

    def save(self, index: int, digest: str, table: pa.Table) -> None:
        """Write part ``index`` in the place of whatever was there."""
        unfinished = self.folder / f".{index:06d}.parquet"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(table.replace_schema_metadata({DIGEST: digest}), unfinished, compression="zstd")
            with unfinished.open("rb") as handle:
                os.fsync(handle.fileno())
            os.replace(unfinished, self._file(index))
        except OSError as error:
            raise NotReady(f"{self.folder}: cannot be written ({error})") from None

    def read(self, index: int) -> pa.Table:
        """Part ``index`` as it was saved."""
        return pq.read_table(self._file(index)).replace_schema_metadata(None)

    def trim(self, count: int) -> None:
        """Remove what an earlier, longer run left after the first ``count`` parts."""
        for file in self.folder.glob("*.parquet"):
            if file.stem.isdecimal() and int(file.stem) >= count:
                file.unlink(missing_ok=True)

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:06d}.parquet"


def _kept(
    model: BiEncoder | CrossEncoder,
    rows: RowsOfTexts,
    compute: Compute,
    label: str,
    progress: Progress,
    folder: Path,
    world: World,
) -> Iterator[pa.Table]:
    finished, count = PartFolder(folder), 0
    for part, result in _computed(model, rows, compute, label, progress, finished, world):
        if result is not None:
            finished.save(part.index, part.digest, result)
        count = part.index + 1
    world.barrier()
    if world.main:
        finished.trim(count)
    for index in range(count):
        yield finished.read(index)


def _computed(
    model: BiEncoder | CrossEncoder,
    rows: RowsOfTexts,
    compute: Compute,
    label: str,
    progress: Progress,
    finished: PartFolder | None,
    world: World,
) -> Iterator[tuple[_Part, pa.Table | None]]:
    """Every part, and its result unless it is finished or another process's."""
    run = "" if finished is None else f"{model_digest(model)} {compute.device.type} {compute.dtype}"

    def tokenized() -> Iterator[_Part]:
        start = 0
        for index, part in enumerate(rows.parts):
            if index % world.size != world.rank:
                yield _Part(index, start, part)
            else:
                texts = rows.texts(part)
                digest = "" if finished is None else _digest(run, [part.column(0).to_pylist(), *texts])
                done = finished is not None and finished.holds(index, digest)
                yield _Part(index, start, part, digest, None if done else rows.tokenize(*texts))
            start += part.num_rows

    for part in prefetched(tokenized(), ahead=1):
        result = None
        if part.tokens is not None:
            outputs = infer(model, part.tokens, compute, label, partial(_shifted, progress, part.start, rows.total))
            result = rows.result(part.rows, outputs)
        progress(label, part.start + part.rows.num_rows, rows.total)
        yield part, result


def _shifted(progress: Progress, before: int, total: int, label: str, done: int, _: int) -> None:
    progress(label, before + done, total)


def _digest(run: str, columns: Sequence[list[str]]) -> str:
    """A digest of the model and precision, and of columns of strings."""
    state = hashlib.blake2b(run.encode(), digest_size=16)
    for column in columns:
        state.update(np.array([len(column), *map(len, column)], np.int64).tobytes())
        state.update("".join(column).encode())
    return state.hexdigest()
