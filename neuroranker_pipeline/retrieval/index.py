"""Building a Lucene index from record batches, with the Java classes behind Pyserini's ``LuceneIndexer``.

A batch crosses into Java in one call, as lines of ASCII JSON that Anserini parses in its own threads: no copy of the
collection on disk, and no Java call for each passage. While Java indexes a batch, Python prepares the next.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any

import pyarrow as pa

from neuroranker_pipeline.errors import BadInput, NotReady
from neuroranker_pipeline.progress import Progress, silent
from neuroranker_pipeline.retrieval.jvm import java_class, one_ahead, root_cause, start_jvm
from neuroranker_pipeline.retrieval.settings import BM25Settings

PASSAGES_A_BATCH = 5_000
BYTES_A_BATCH = 8 << 20
BUFFER_SHARE = 0.4
"""Of the Java heap, for Lucene's buffers; the rest is for flushing and merging them."""
LARGEST_BUFFER = 1024
"""MiB. More gains nothing: the larger the buffers, the fewer of their terms are in the processor's cache."""
WHITE_SPACE = "".join(map(chr, range(33)))
"""What Java's ``String.trim`` removes; Anserini refuses a text of nothing else."""


def build_index(
    passages: Iterable[pa.RecordBatch],
    out: Path,
    settings: BM25Settings,
    progress: Progress = silent,
    total: int = 0,
) -> int:
    """Index passages (pid, text) into ``out``, an empty or absent folder; returns their number.

    The index is one segment, its checksums and its number of documents verified. Memory is bounded by three batches and
    the Java heap. ``total`` is for ``progress`` alone. Raises ``BadInput`` when a passage cannot be indexed and
    ``NotReady`` when the index cannot be written; ``out`` is removed then.
    """
    if out.exists() and any(out.iterdir()):
        raise BadInput(f"{out}: not empty; an index is only built in a new folder")
    start_jvm(settings.heap_mb, settings.threads)
    from jnius import JavaException

    out.mkdir(parents=True, exist_ok=True)
    writer = None
    try:
        indexer = _indexer(out, settings)
        writer = indexer.writer
        count = _add(indexer, passages, out, progress, total)
        progress("optimizing the index", count, total)
        _finish(writer, settings.threads)
        verify_index(out, count)
    except BaseException as error:
        reason = root_cause(error) if isinstance(error, JavaException) else ""
        if writer is not None:
            with suppress(JavaException):  # of a writer that could not go on; the folder goes in any case
                writer.rollback()
        shutil.rmtree(out, ignore_errors=True)
        if reason:
            raise _unwritable(out, reason) from error
        raise
    return count


def verify_index(folder: Path, passages: int) -> None:
    """Check every file's checksum with Lucene's CheckIndex, and that the index holds this many passages in one segment.

    Reads the index once. Raises ``NotReady`` naming the folder otherwise.
    """
    from jnius import JavaException

    directory = java_class("org.apache.lucene.store.FSDirectory").open(java_class("java.io.File")(str(folder)).toPath())
    try:
        check = java_class("org.apache.lucene.index.CheckIndex")(directory)
        check.setChecksumsOnly(True)
        status = check.checkIndex()
        check.close()
        if not status.clean:
            raise NotReady(f"{folder}: Lucene finds the index damaged; build it again")
        reader = java_class("org.apache.lucene.index.DirectoryReader").open(directory)
        found, segments = reader.numDocs(), status.numSegments
        reader.close()
    except JavaException as error:
        raise NotReady(f"{folder}: not a readable Lucene index ({root_cause(error)}); build it again") from error
    finally:
        directory.close()
    if found != passages or segments > 1:
        raise NotReady(
            f"{folder}: the index holds {found} passages in {segments} segments, not {passages} in one; build it again"
        )


def _indexer(out: Path, settings: BM25Settings) -> Any:
    """Anserini's ``SimpleIndexer``, whose private writer is then set up for one bulk load.

    Its buffer of 2 GiB would outgrow the heap, and merging before the end would write postings more than once.
    """
    from jnius import cast

    arguments = ["-collection", "JsonCollection", "-input", "", "-index", str(out), "-threads", str(settings.threads)]
    arguments += ["-language", settings.language, "-stemmer", settings.stemmer]
    arguments += ["-keepStopwords"] if settings.keep_stopwords else []
    indexer = java_class("io.anserini.index.SimpleIndexer")(arguments)
    config = indexer.writer.getConfig()
    config.setRAMBufferSizeMB(min(LARGEST_BUFFER, BUFFER_SHARE * settings.heap_mb))
    config.setMergePolicy(java_class("org.apache.lucene.index.NoMergePolicy").INSTANCE)
    scheduler = cast("org.apache.lucene.index.ConcurrentMergeScheduler", config.getMergeScheduler())
    scheduler.setSuppressExceptions()  # they reach us through forceMerge, not as traces on stderr
    return indexer


def _add(indexer: Any, passages: Iterable[pa.RecordBatch], out: Path, progress: Progress, total: int) -> int:
    def add(batch: tuple[pa.RecordBatch, list[str]]) -> tuple[pa.RecordBatch, int]:
        rows, lines = batch
        return rows, indexer.addRawDocuments(lines, pass_by_reference=False)

    count = 0
    for rows, added in one_ahead(add, ((rows, _json_lines(rows)) for rows in _slices(passages))):
        if added != rows.num_rows:
            raise _refused(indexer.writer, rows, rows.num_rows - added, out)
        count += added
        progress("indexing passages", count, total)
    return count


def _finish(writer: Any, threads: int) -> None:
    """Flush the indexing threads' buffers in parallel, merge all segments into one, and commit."""
    from jnius import detach

    def flush(_: int) -> None:
        try:
            writer.flushNextBuffer()
        finally:
            detach()

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(flush, range(threads)))
    config = writer.getConfig()
    config.setMergePolicy(java_class("org.apache.lucene.index.TieredMergePolicy")())
    writer.forceMerge(1)
    writer.commit()
    writer.close()


def _refused(writer: Any, rows: pa.RecordBatch, missing: int, out: Path) -> Exception:
    """The error for passages that Java did not take; it tells how many, not which."""
    cause = writer.getTragicException()
    if cause is not None:
        while cause.getCause() is not None:
            cause = cause.getCause()
        return _unwritable(out, str(cause.toString()).partition("\n")[0])
    pids, texts = rows.column("pid").to_pylist(), rows.column("text").to_pylist()
    empty = [pid for pid, text in zip(pids, texts, strict=True) if not text.strip(WHITE_SPACE)]
    if not empty:
        return BadInput(
            f"Lucene refuses {missing} passages between {pids[0]} and {pids[-1]}; is an id above 32766 bytes?"
        )
    more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
    return BadInput(f"passages without text cannot be indexed: {', '.join(empty[:5])}{more}")


def _unwritable(out: Path, reason: str) -> NotReady:
    short_of_memory = "OutOfMemoryError" in reason
    remedy = "give Java more memory (heap_mb)" if short_of_memory else "see that the disk has room"
    return NotReady(f"{out}: Lucene could not write the index ({reason}); {remedy} and build it again")


def _json_lines(rows: pa.RecordBatch) -> list[str]:
    pids, texts = rows.column("pid").to_pylist(), rows.column("text").to_pylist()
    quoted = encode_basestring_ascii  # ASCII also because pyjnius' way of passing NUL and emoji is not to be relied on
    return [f'{{"id":{quoted(pid)},"contents":{quoted(text)}}}' for pid, text in zip(pids, texts, strict=True)]


def _slices(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        a_row = max(1, batch.nbytes // max(1, batch.num_rows))
        size = max(1, min(PASSAGES_A_BATCH, BYTES_A_BATCH // a_row))
        for start in range(0, batch.num_rows, size):
            yield batch.slice(start, size)
