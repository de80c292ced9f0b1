"""The asset graph. ``ASSETS`` lists it in an order in which every asset follows all that it needs."""

from neuroranker_pipeline.assets.corpus import passages, qrels, queries
from neuroranker_pipeline.assets.lake_asset import LakeAsset
from neuroranker_pipeline.assets.retrieval import bm25_candidates, lucene_index

ASSETS: tuple[LakeAsset, ...] = (passages, queries, qrels, lucene_index, bm25_candidates)
