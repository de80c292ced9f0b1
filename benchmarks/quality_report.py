"""The tables of ``quality.py``'s results, as Markdown: measures, paired tests, wins and losses on the untouched halves.

    python benchmarks/quality_report.py WORK --tables TABLES

Every query counts once: a student's value is the mean over its seeds. Fisher's paired randomization test over the queries of
each collection, Holm-corrected over the collections. nDCG@10 on DL 2019, MRR@10 elsewhere. BM25's weight in a sum is chosen
on the MS MARCO choosing half.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from quality import MEMBERS, UNTRAINED, Study
from quality_recipes import CHOSEN_SHARE, FINAL, ONCE, SEEDS, SHARES
from quality_tables import Data, by_collection, of_queries, only

from neuroranker_pipeline.evaluation.measures import measure_vectors, ranked
from neuroranker_pipeline.evaluation.significance import compare_pairs
from neuroranker_pipeline.evaluation.tables import p_number
from neuroranker_pipeline.ranking.ensemble import combine
from neuroranker_pipeline.ranking.lists import positives
from neuroranker_pipeline.ranking.scoring import cascade_run, mean_reciprocal_rank

GRID = (0.0, 0.1, 0.2, 0.3, 0.5)


class Report:
    def __init__(self, study: Study) -> None:
        self.study, self.data = study, study.data
        groups = by_collection([qid for qid in self.data.report if qid not in set(self.data.dl19)])
        self.untouched = {"DL 2019": self.data.dl19, **groups}
        self.groups = self.untouched

    def run(self, name: str) -> pa.Table:
        """A ranker's scores of all evaluated candidates; those of what reads the best alone as a cascade over the base
        student."""
        if name == "BM25":
            return self.study.evaluated
        scores = self.study.scores(name)
        base = only(self.study.scores("base"), self.study.evaluated)
        if name not in UNTRAINED and name in MEMBERS:
            return cascade_run(base, only(scores, self.study.cascade()))
        return only(scores, self.study.evaluated)

    def ensemble(self) -> pa.Table:
        base = only(self.study.scores("base"), self.study.evaluated)
        return cascade_run(base, only(self.study.scores("teacher"), self.study.cascade()))

    def values(self, run: pa.Table, group: str) -> np.ndarray:
        """The measure of every query of a group, in the order of their qids."""
        qids, level = self.groups[group], 2 if group == "DL 2019" else 1
        measure = "nDCG@10" if group == "DL 2019" else "MRR@10"
        _, found = measure_vectors(ranked(of_queries(run, qids)), self.data.judged_of(qids), [measure], level)
        return found[measure]

    def students(self, name: str, share: float = CHOSEN_SHARE) -> list[pa.Table]:
        seeds = SEEDS if name in FINAL else SEEDS[:1]
        return [self.run(f"{name}~{seed}~{share:g}") for seed in seeds]

    def mean(self, runs: Sequence[pa.Table], group: str) -> np.ndarray:
        return np.mean([self.values(run, group) for run in runs], axis=0)

    # interpolation

    def with_bm25(self, run: pa.Table, weight: float) -> pa.Table:
        if not weight:
            return run
        return combine({"model": run, "BM25": only(self.study.evaluated, run)}, {"model": 1.0, "BM25": weight})

    def weight(self, runs: Sequence[pa.Table]) -> float:
        """BM25's weight with the highest MRR@10 on the choosing half of the MS MARCO slice, the smallest of equals."""
        qids = [qid for qid in self.data.choose if qid.startswith("slice/")]
        relevant = positives(self.data.judged_of(qids))

        def value(weight: float) -> float:
            return float(
                np.mean([mean_reciprocal_rank(of_queries(self.with_bm25(run, weight), qids), relevant) for run in runs])
            )

        return max(GRID, key=lambda weight: (round(value(weight), 6), -weight))

    # tables

    def means(self, rows: dict[str, Sequence[pa.Table]]) -> None:
        names = list(self.groups)
        print("| ranker | " + " | ".join(names) + " |\n| --- |" + " ---: |" * len(names))
        for name, runs in rows.items():
            print(f"| {name} | " + " | ".join(f"{self.mean(runs, group).mean():.4f}" for group in names) + " |")
        print("| queries | " + " | ".join(str(len(self.groups[group])) for group in names) + " |\n")

    def compare(self, title: str, ours: Sequence[pa.Table], theirs: Sequence[pa.Table]) -> None:
        """Per-query means over the seeds, paired; Holm over the collections."""
        pairs = [(self.mean(ours, group), self.mean(theirs, group)) for group in self.groups]
        print(f"{title}\n\n| collection | first | second | difference | 95% | p | Holm | wins, losses, ties |")
        print("| --- | ---: | ---: | ---: | --- | ---: | ---: | --- |")
        for group, (a, b), found in zip(self.groups, pairs, compare_pairs(pairs), strict=True):
            means = f"{a.mean():.4f} | {b.mean():.4f} | {found.difference:+.4f}"
            tested = f"{found.low:+.4f} to {found.high:+.4f} | {p_number(found.p)} | {p_number(found.p_holm, found.p)}"
            print(f"| {group} | {means} | {tested} | {found.wins}, {found.losses}, {found.ties} |")
        print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--tables", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    report = Report(Study(arguments.work, Data(arguments.tables, arguments.tiny), "", ""))
    regimes, weights = (json.loads((arguments.work / f"{name}.json").read_text()) for name in ("regimes", "weights"))
    print("## The regimes on the choosing halves, one seed\n")
    columns = list(regimes["base"])
    print("| regime~seed~share | " + " | ".join(columns) + " |\n| --- |" + " ---: |" * len(columns))
    for name, row in regimes.items():
        print(f"| {name} | " + " | ".join(f"{row[column]:.4f}" for column in columns) + " |")
    print("\nEnsemble: " + ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items()) + "\n")
    teacher, base = report.ensemble(), report.run("base")
    students = {name: report.students(name) for name in (*FINAL, *ONCE)}
    # What reads the best alone is summed over those.
    best = {name: [only(report.study.scores(name), report.study.cascade())] for name in ("large-tuned", "teacher")}
    sums = {}
    for name, runs in {"base": [base], "large": [report.run("large")], **best, **students}.items():
        weight = report.weight(runs)
        sums[f"{name} + {weight:g} BM25"] = [report.with_bm25(run, weight) for run in runs]
    members = {name: [report.run(name)] for name in ("BM25", *MEMBERS)}
    report.groups = by_collection(report.data.choose)
    print("## On the choosing halves, which flatter what was chosen there\n")
    report.means({**members, "ensemble": [teacher], **students})
    report.groups = report.untouched
    print("## On the untouched halves\n")
    other = {f"{n}, share {s:g}": report.students(n, s) for n in students for s in SHARES if s != CHOSEN_SHARE}
    report.means({**members, "ensemble": [teacher], **students, **sums, **other})
    report.compare("Ensemble against the untouched student", [teacher], [base])
    report.compare("Distilled against hard labels, means over three seeds", students["distilled"], students["hard"])
    for share in (share for share in SHARES if share != CHOSEN_SHARE):
        pair = (report.students(name, share) for name in ("distilled", "hard"))
        report.compare(f"The same with share {share:g} of the trained weights", *pair)
    for name, runs in students.items():
        report.compare(f"{name} against the untouched student", runs, [base])
    for title, runs in sums.items():
        if title.startswith(("large", "distilled")):
            report.compare(f"{title} against the untouched student", runs, [base])


if __name__ == "__main__":
    main()
