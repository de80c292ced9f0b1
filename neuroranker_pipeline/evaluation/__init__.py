"""Measures, significance tests and the report."""
