"""The re-ranking service and its Bento."""
