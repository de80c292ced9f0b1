"""What mending MS MARCO's damaged encoding (``data.repair_encoding``) does to retrieval.

    python benchmarks/encoding.py DATA_ROOT [--profile slice]

Both runs index the profile's main collection and search its development and gate queries (never the test split): the
queries stay as they are, the passages are mended in one run. The measures are compared query by query with a paired
randomization test.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from measured import table

from neuroranker_pipeline.config.load import load_settings
from neuroranker_pipeline.datasets.rejects import Rejects
from neuroranker_pipeline.datasets.source import open_source
from neuroranker_pipeline.datasets.tables import JUDGMENTS, QUERIES
from neuroranker_pipeline.evaluation.measures import measure_vectors, ranked
from neuroranker_pipeline.evaluation.significance import paired_randomization
from neuroranker_pipeline.evaluation.tables import p_number
from neuroranker_pipeline.retrieval.bm25 import BM25Settings, Searcher, build_index

MEASURES = ("R@100", "MRR@10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the data root below which the profile's folder lies")
    parser.add_argument("--profile", default="slice")
    arguments = parser.parse_args()
    values, changed = {}, 0
    with tempfile.TemporaryDirectory() as scratch:
        texts: dict[bool, pa.ChunkedArray] = {}
        for repair in (False, True):
            settings = load_settings(arguments.profile, [f"data.repair_encoding={str(repair).lower()}"])
            source = open_source(settings.data, arguments.data)
            batches = list(source.passages(Rejects(1.0)))
            texts[repair] = pa.chunked_array([batch["text"] for batch in batches])
            index = Path(scratch) / str(repair)
            build_index(batches, index, settings.bm25)
            values[repair] = _measured(source, index, settings.bm25)
        changed = pc.sum(pc.not_equal(texts[False], texts[True])).as_py()
    print(f"{changed:,} of {len(texts[False]):,} passages were mended; {len(values[False][0])} queries\n")
    rows = []
    for name in MEASURES:
        before, after = values[False][1][name], values[True][1][name]
        test = paired_randomization(after, before)
        rows.append([name, f"{before.mean():.4f}", f"{after.mean():.4f}", f"{after.mean() - before.mean():+.4f}",
                     int((after > before).sum()), int((after < before).sum()), p_number(test)])  # fmt: skip
    print(table(["", "as published", "mended", "change", "queries won", "lost", "p"], rows))


def _measured(source, index: Path, bm25: BM25Settings):
    asked = pa.Table.from_batches(source.queries(Rejects(1.0)), QUERIES)
    asked = asked.filter(pc.is_in(asked["split"], pa.array(["dev", "gate"])))
    judged = pa.Table.from_batches(source.qrels(Rejects(1.0)), JUDGMENTS)
    judged = judged.filter(pc.is_in(judged["split"], pa.array(["dev", "gate"])))
    with closing(Searcher(index, bm25)) as searcher:
        run = searcher.search(dict(zip(asked["qid"].to_pylist(), asked["text"].to_pylist(), strict=True)))
    return measure_vectors(ranked(run), judged, MEASURES)


if __name__ == "__main__":
    main()
