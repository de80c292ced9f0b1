"""Where MS MARCO's passage ranking files and the TREC Deep Learning test sets are published, and their digests.

Names, sizes and md5 are those of ``ir_datasets`` (``ir_datasets/etc/downloads.json``, "msmarco-passage"). The 2019 files
also agree with the table in the README of microsoft/TREC-2019-Deep-Learning, which gives sizes in whole blocks of 4 KiB, and
``collectionandqueries.tar.gz`` with Anserini's guide (docs/experiments-msmarco-passage.md).
``756e60d714cee28d3b552289d6272f1d``, named for the 2019 queries in some places, is not the digest of the file as served.

``collectionandqueries.tar.gz`` holds collection.tsv, queries.train.tsv, queries.dev.tsv, queries.dev.small.tsv,
queries.eval.tsv, queries.eval.small.tsv, qrels.train.tsv and qrels.dev.small.tsv.
"""

from __future__ import annotations

from collections.abc import Iterable

from neuroranker_pipeline.datasets.download import RemoteFile

MICROSOFT = "https://msmarco.z22.web.core.windows.net/msmarcoranking"
NIST = "https://trec.nist.gov/data/deep"

# Azure answers range requests, without which nothing can be resumed, only to newer protocol versions than its default:
# https://github.com/microsoft/msmarco/issues/7
HEADERS = (("X-Ms-Version", "2019-12-12"),)


def _microsoft(name: str, size: int, md5: str) -> RemoteFile:
    return RemoteFile(name, f"{MICROSOFT}/{name}", size, md5, HEADERS)


def _nist(name: str, size: int, md5: str) -> RemoteFile:
    return RemoteFile(name, f"{NIST}/{name}", size, md5)


COLLECTION_AND_QUERIES = _microsoft("collectionandqueries.tar.gz", 1_057_717_952, "31644046b18952c1386cd4564ba2ae69")

TREC_DL = {
    "dl19": (
        _microsoft("msmarco-test2019-queries.tsv.gz", 4_276, "eda71eccbe4d251af83150abe065368c"),
        _nist("2019qrels-pass.txt", 187_092, "2f4be390198da108f6845c822e5ada14"),
    ),
    "dl20": (
        _microsoft("msmarco-test2020-queries.tsv.gz", 4_131, "00a406fb0d14ed3752d70d1e4eb98600"),
        _nist("2020qrels-pass.txt", 218_617, "0355ccee7509ac0463e8278186cdd8d1"),
    ),
}
TOP_1000 = (
    _microsoft("msmarco-passagetest2019-top1000.tsv.gz", 26_634_062, "ec9e012746aa9763c7ff10b3336a3ce1"),
    _microsoft("msmarco-passagetest2020-top1000.tsv.gz", 26_230_218, "aa6fbc51d66bd1dc745964c0e140a727"),
)


def published_files(tests: Iterable[str], runs: Iterable[str] = ()) -> list[RemoteFile]:
    """What the ``msmarco`` source reads: the collection, queries and judgments, the test sets, and the runs named."""
    wanted = set(runs)
    test_files = [file for name in tests for file in TREC_DL[name]]
    return [COLLECTION_AND_QUERIES, *test_files, *(file for file in TOP_1000 if file.name in wanted)]
