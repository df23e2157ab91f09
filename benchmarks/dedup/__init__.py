"""Benchmarks of de-duplication: quality of its decisions, and cost."""
