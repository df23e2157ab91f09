"""Imports what most benchmarks use, for processes that are forked from this one (tests/benchmarks/test_toy.py)."""

# ruff: noqa: F401
from flows.data.stage_data import stage_data
from flows.preflight.memory import rank_bytes
from model.training.stage import run
