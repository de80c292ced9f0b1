"""Sources of passages, queries and relevance judgments, and the tables that hold them."""
