"""MS MARCO's raw files, with their real names and layouts, made of this Python's own documentation."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pyarrow.compute as pc

from neuroranker_pipeline.datasets.pydocs import PydocsSettings, PydocsSource
from neuroranker_pipeline.datasets.rejects import Rejects

TRAIN, DEV, TEST = 120, 60, 20
SETTINGS = PydocsSettings(
    packages=("stdlib",), dev_queries=DEV, gate_queries=1, test_queries=TEST, max_train_queries=TRAIN
)


def write_raw_msmarco(folder: Path) -> int:
    """Write the published files for a few thousand passages into ``folder``; returns the number of passages."""
    source, rejects = PydocsSource(SETTINGS), Rejects()
    pids: dict[str, str] = {}
    collection = []
    for batch in source.passages(rejects):
        for pid, text in zip(batch["pid"].to_pylist(), batch["text"].to_pylist(), strict=True):
            pids[pid] = str(7 * len(pids))  # MS MARCO's pids are numbers
            collection.append(f"{pids[pid]}\t{text}")
    asked = {split: [] for split in ("train", "dev", "test")}
    numbers: dict[str, str] = {}
    for batch in source.queries(rejects):
        for qid, text, split in zip(*(batch[name].to_pylist() for name in ("qid", "text", "split")), strict=True):
            numbers[qid] = str(1_000 + len(numbers))
            if split in asked:
                asked[split].append(f"{numbers[qid]}\t{text}")
    judged = {split: [] for split in asked}
    for batch in source.qrels(rejects):
        for split in asked:
            rows = batch.filter(pc.equal(batch["split"], split))
            judged[split] += zip(rows["qid"].to_pylist(), rows["pid"].to_pylist(), strict=True)
    folder.mkdir(parents=True)
    _archive(folder / "collection.tar.gz", {"collection.tsv": collection})
    _archive(folder / "queries.tar.gz", {f"queries.{s}.tsv": asked[s] for s in ("train", "dev")})
    for split, name in (("train", "qrels.train.tsv"), ("dev", "qrels.dev.small.tsv")):
        (folder / name).write_text(_lines([f"{numbers[q]}\t0\t{pids[p]}\t1" for q, p in judged[split]]))
    (folder / "msmarco-test2019-queries.tsv.gz").write_bytes(gzip.compress(_lines(asked["test"]).encode()))
    graded = [f"{numbers[q]} Q0 {pids[p]} 3" for q, p in judged["test"]]
    graded += [f"{numbers[q]} Q0 99999999 2" for q, _ in judged["test"]]  # judged, and not in the collection
    (folder / "2019qrels-pass.txt").write_text(_lines(graded))
    return len(collection)


def _lines(rows: list[str]) -> str:
    return "".join(f"{row}\n" for row in rows)


def _archive(path: Path, members: dict[str, list[str]]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, rows in members.items():
            content = _lines(rows).encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
