"""Benchmark of the projectors against the authors' parts."""
