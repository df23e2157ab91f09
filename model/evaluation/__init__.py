"""Evaluation: benchmarks, asking a model, scoring and judging its answers."""
