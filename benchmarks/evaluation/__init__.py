"""Benchmark of the evaluation loop."""
