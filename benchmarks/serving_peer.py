"""One peer of ``serving.py`` in a process of its own: prints the milliseconds of each request as JSON.

    python serving_peer.py torch|onnx|infinity|onnxruntime MODEL REQUESTS.json

A request is a list of texts, the query first; its answer is the cosines of the others with it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import numpy as np


def sentence_transformers(backend: str, model: str):
    from sentence_transformers import SentenceTransformer

    extra = {"model_kwargs": {"export": True, "provider": "CPUExecutionProvider"}} if backend == "onnx" else {}
    encoder = SentenceTransformer(model, backend=backend, device="cpu", **extra)
    return lambda texts: encoder.encode(texts, normalize_embeddings=True, show_progress_bar=False)


def infinity(model: str):
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    engine = AsyncEmbeddingEngine.from_args(
        EngineArgs(model_name_or_path=model, engine="torch", device="cpu", dtype="float32", bettertransformer=False)
    )
    loop = asyncio.new_event_loop()
    loop.run_until_complete(engine.astart())
    return lambda texts: np.array(loop.run_until_complete(engine.embed(sentences=texts))[0])


def onnxruntime(named: str):
    """A plain export with ``last_hidden_state``, or one that pools by itself, over padded batches of 32."""
    import onnxruntime as ort
    from tokenizers import Tokenizer

    file, folder = named.split(":")
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding()
    names = {node.name for node in session.get_inputs()}

    def encode(texts: list[str]) -> np.ndarray:
        vectors = []
        for start in range(0, len(texts), 32):
            batch = tokenizer.encode_batch(texts[start : start + 32])
            fed = {
                "input_ids": np.array([e.ids for e in batch]), "attention_mask": np.array([e.attention_mask for e in batch]),
                "token_type_ids": np.array([e.type_ids for e in batch]),
            }  # fmt: skip
            hidden = session.run(None, {name: fed[name] for name in names})[0]
            if hidden.ndim == 3:
                mask = fed["attention_mask"][..., None]
                hidden = (hidden * mask).sum(1) / mask.sum(1)
            vectors.append(hidden / np.linalg.norm(hidden, axis=1, keepdims=True))
        return np.concatenate(vectors)

    return encode


def main() -> None:
    backend, model, file = sys.argv[1:]
    encode = {"infinity": infinity, "onnxruntime": onnxruntime}.get(backend)
    encode = encode(model) if encode else sentence_transformers(backend, model)
    taken = []
    for texts in json.loads(Path(file).read_text()):
        start = time.perf_counter()
        vectors = encode(texts)
        np.argsort(-(vectors[1:] @ vectors[0]))
        taken.append(1000 * (time.perf_counter() - start))
    print(json.dumps(taken), flush=True)
    os._exit(0)  # infinity's threads never end


if __name__ == "__main__":
    main()
