"""NeuroRanker: from a passage collection with relevance judgments to a served neural re-ranker."""

__version__ = "0.1.0"
