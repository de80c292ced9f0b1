"""Our measures against trec_eval's on one run: the largest difference over all judged queries, measure by measure.

    python benchmarks/trec_eval.py RUN.trec QRELS --level 2

Twice: the file as it stands, and the file that we write of it, with ties moved apart. Exits with 1 above 1e-6.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pytrec_eval

from neuroranker_pipeline.datasets.trec import read_qrels, read_run, write_run
from neuroranker_pipeline.evaluation.measures import DEFAULT_MEASURES, per_query
from neuroranker_pipeline.evaluation.trec_eval import NAMES

ALLOWED = 1e-6


def trec_eval(run: Path, qrels: Path, level: int) -> dict[tuple[str, str], float]:
    """trec_eval's value for each (measure, qid), 0 for a judged query without results; the files read by pytrec_eval."""
    with run.open() as file:
        ranking = pytrec_eval.parse_run(file)
    with qrels.open() as file:
        judged = pytrec_eval.parse_qrel(file)
    # trec_eval has no cut-off for the reciprocal rank: its recip_rank over the top tens, in its own order.
    tens = {
        qid: dict(sorted(pids.items(), key=lambda item: (item[1], item[0]), reverse=True)[:10])
        for qid, pids in ranking.items()
    }
    whole = pytrec_eval.RelevanceEvaluator(judged, set(NAMES.values()), level).evaluate(ranking)
    cut = pytrec_eval.RelevanceEvaluator(judged, {"recip_rank"}, level).evaluate(tens)
    values = {(ours, qid): whole.get(qid, {}).get(theirs, 0.0) for ours, theirs in NAMES.items() for qid in judged}
    return values | {("MRR@10", qid): cut.get(qid, {}).get("recip_rank", 0.0) for qid in judged}


def compare(ours: pa.Table, theirs: dict[tuple[str, str], float], title: str) -> float:
    """Print the means and the largest difference of each measure; returns the largest of all."""
    found = {(row["measure"], row["qid"]): row["value"] for row in ours.to_pylist()}
    if found.keys() != theirs.keys():
        raise SystemExit(f"{title}: not the same queries: {sorted(found.keys() ^ theirs.keys())[:5]}")
    print(f"{title}\n{'measure':10} {'ours':>10} {'trec_eval':>10} {'largest difference':>20}")
    largest = 0.0
    for measure in DEFAULT_MEASURES:
        keys = [key for key in found if key[0] == measure]
        difference = max(abs(found[key] - theirs[key]) for key in keys)
        means = (sum(values[key] for key in keys) / len(keys) for values in (found, theirs))
        print(f"{measure:10} {next(means):10.6f} {next(means):10.6f} {difference:20.1e}")
        largest = max(largest, difference)
    return largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("qrels", type=Path)
    parser.add_argument("--level", type=int, default=1, help="the lowest grade that binary measures count as relevant")
    arguments = parser.parse_args()
    run, judged = read_run(arguments.run), read_qrels(arguments.qrels)
    ties = run.num_rows - run.group_by(["qid", "score"]).aggregate([]).num_rows
    print(f"{run.num_rows:,} rows, {ties} tied with another; {judged.num_rows:,} judgments\n")
    as_it_stands = per_query(run, judged, relevance_level=arguments.level, ties="trec_eval")
    largest = compare(as_it_stands, trec_eval(arguments.run, arguments.qrels, arguments.level), "The file as it stands")
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "run.trec"
        write_run(run, written)
        ours = per_query(run, judged, relevance_level=arguments.level)
        theirs = trec_eval(written, arguments.qrels, arguments.level)
        largest = max(largest, compare(ours, theirs, "\nThe file that we write"))
    print(f"\nlargest difference: {largest:.1e}")
    sys.exit(largest > ALLOWED)


if __name__ == "__main__":
    main()
