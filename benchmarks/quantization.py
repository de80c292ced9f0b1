"""Schemes of int8 for one student: size, processor time, closeness to float32, and quality of re-ranking a TREC run.

    python benchmarks/quantization.py MODEL --queries Q.tsv --passages P.tsv --qrels QRELS --run RUN.trec

``MODEL`` is a student's folder, a Hub id, or ``package:<module>``. The peers are ONNX Runtime's ``quantize_dynamic`` and
``quantize_static`` on the same float32 weights, in the graph before its fusions, whose operators they do not know; the
latter is calibrated on ``--calibration`` passages that are not of the run.
Time is of one thread and one passage at a time. Quality is per query, against float32 by a paired randomization test.
"""

from __future__ import annotations

import argparse
import platform
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from unittest.mock import patch

import numpy as np
from measured import table
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from neuroranker_pipeline.datasets.trec import read_qrels, read_run
from neuroranker_pipeline.datasets.tsv import read_passages, read_queries_tsv
from neuroranker_pipeline.evaluation.measures import measure_vectors, ranked
from neuroranker_pipeline.evaluation.significance import paired_randomization
from neuroranker_pipeline.evaluation.tables import p_value
from neuroranker_pipeline.export import onnx as exporting
from neuroranker_pipeline.export.onnx import copy_companions, export_student, write_settings
from neuroranker_pipeline.export.quantize import QuantizationSettings, batch_sensitivity, quantize_student
from neuroranker_pipeline.ranking.rerank import VectorRanker
from neuroranker_pipeline.serving.onnx_model import MODEL_FILE, SETTINGS_FILE, OnnxEncoder, read_json

MEASURES = ("MRR@10", "nDCG@10")
# Products with weights alone, and a scale for every column of them.
COMMON = {
    "op_types_to_quantize": ["MatMul"],
    "per_channel": True,
    "weight_type": QuantType.QInt8,
    "extra_options": {"MatMulConstBOnly": True},
}


class Texts(CalibrationDataReader):
    """What ``quantize_static`` observes activations on: texts one at a time."""

    def __init__(self, encoder: OnnxEncoder, texts: list[str]) -> None:
        self.left: Iterator[list[int]] = iter(encoder.tokenize(texts))

    def get_next(self) -> dict[str, np.ndarray] | None:
        ids = next(self.left, None)
        return (
            None if ids is None else {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
        )


def schemes(float32: Path, plain: Path, work: Path, calibration: list[str]) -> Iterator[tuple[str, Path]]:
    """Every scheme's name and ONNX folder, made as it is asked for."""

    def dynamic(out: Path, **settings: bool) -> None:
        quantize_dynamic(plain / MODEL_FILE, out / MODEL_FILE, **COMMON, **settings)

    def static(out: Path) -> None:
        reader = Texts(OnnxEncoder(float32), calibration)
        quantize_static(
            plain / MODEL_FILE, out / MODEL_FILE, reader, quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8, **COMMON,
        )  # fmt: skip

    def ours(bits: int) -> Callable[[Path], object]:
        return lambda out: quantize_student(
            float32, out, QuantizationSettings(weight_bits=bits, min_cosine=0.5), calibration
        )

    makers: dict[str, Callable[[Path], object]] = {
        "ours": ours(8),
        "ours, 7 bits": ours(7),
        "quantize_dynamic": dynamic,
        "quantize_dynamic, 7 bits": lambda out: dynamic(out, reduce_range=True),
        "quantize_static": static,
    }
    for name, make in makers.items():
        out = work / name.replace(" ", "_")
        out.mkdir()
        make(out)
        copy_companions(float32, out)
        write_settings(out, **{**read_json(float32 / SETTINGS_FILE), "precision": "int8"})
        yield name, out


def seconds(encoder: OnnxEncoder, texts: list[str]) -> float:
    """Processor seconds of one thread for texts one at a time; the best of three rounds."""
    tokens, taken = encoder.tokenize(texts), []
    for _ in range(3):
        start = time.process_time()
        for ids in tokens:
            encoder.run([ids])
        taken.append(time.process_time() - start)
    return min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    for name in ("queries", "passages", "qrels", "run"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--calibration", type=int, default=256, help="passages")
    parser.add_argument("--relevance-level", type=int, default=1, help="least grade for MRR (TREC DL: 2)")
    arguments = parser.parse_args()

    run, qrels, queries = read_run(arguments.run), read_qrels(arguments.qrels), read_queries_tsv(arguments.queries)
    pids = set(run["pid"].to_pylist())
    passages = read_passages(arguments.passages, pids)
    rng = random.Random(13)
    every = read_passages(arguments.passages)
    calibration = rng.sample([every[pid] for pid in sorted(every.keys() - pids)], arguments.calibration)
    sample = rng.sample([passages[pid] for pid in sorted(pids)], min(400, len(pids)))

    rows, reference = [], {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        export_student(arguments.model, work / "float32")
        with patch.object(exporting, "fuse"):
            export_student(arguments.model, work / "plain")
        for name, onnx_dir in chain(
            [("float32", work / "float32")], schemes(work / "float32", work / "plain", work, calibration)
        ):
            encoder = OnnxEncoder(onnx_dir)
            scores = VectorRanker(encoder).rerank(run, queries, passages)
            _, values = measure_vectors(ranked(scores), qrels, MEASURES, arguments.relevance_level)
            vectors, taken = encoder.encode(sample), seconds(encoder, sample[:100])
            size = (onnx_dir / MODEL_FILE).stat().st_size
            if not reference:
                reference = {"values": values, "vectors": vectors, "seconds": taken, "size": size}
            row = [name, f"{size / reference['size']:.2f}", f"{taken / reference['seconds']:.2f}"]
            row.append(f"{(vectors * reference['vectors']).sum(axis=1).mean():.4f}")
            row.append(f"{batch_sensitivity(onnx_dir, sample):.0e}")
            for measure in MEASURES:
                change = (values[measure] - reference["values"][measure]).mean()
                p = paired_randomization(values[measure], reference["values"][measure])
                row.append(f"{values[measure].mean():.4f} ({change:+.4f}, {p_value(p)})")
            rows.append(row)
            print(row, flush=True)
    print(f"\n{platform.processor() or platform.machine()}, {len(queries)} queries\n")
    print(table(("scheme", "size", "time", "mean cosine", "change with the batch", *MEASURES), rows))


if __name__ == "__main__":
    main()
