"""First-stage retrieval: BM25 over a Lucene index, through Pyserini."""
