"""Imports what most benchmarks use, for processes that are forked from this one (tests/benchmarks/test_toy.py)."""

# ruff: noqa: F401
from flows.memory import rank_bytes
from flows.stage_data import stage_data
from model.training.stage import run
