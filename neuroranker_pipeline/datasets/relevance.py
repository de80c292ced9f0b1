"""From which grade on a passage is relevant: by collection and split, as the settings say."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.datasets.joined import collection_of

Levels = Mapping[str, Mapping[str, int]]
"""The lowest grade that counts as relevant: {collection: {split: grade}}; 1 for splits that are not named."""


def levelled(qrels: pa.Table, levels: Levels) -> pa.Table:
    """``QRELS`` as training and choosing read them: a grade below its split's level is 0, so that relevant is 1 or more.

    Measures do not read this table: nDCG needs the grades as they are, and binary measures take the level themselves.
    """
    grades, level = qrels["grade"].to_numpy(), _level_of_each(qrels, levels)
    kept = np.where(grades >= level, grades, 0).astype(np.int32)
    return qrels.set_column(qrels.schema.get_field_index("grade"), "grade", pa.array(kept))


def _level_of_each(qrels: pa.Table, levels: Levels) -> np.ndarray:
    found = np.ones(qrels.num_rows, np.int64)
    for name, by_split in levels.items():
        mine = collection_of(qrels["qid"], name, [other for other in levels if other != name])
        for split, level in by_split.items():
            if level != 1:
                found[pc.and_(mine, pc.equal(qrels["split"], split)).to_numpy()] = level
    return found
