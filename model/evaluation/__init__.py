"""Evaluation: one file per benchmark reads its official files and scores answers; ask.py asks a model."""

from model.evaluation import mmbench, pope
from model.evaluation.base import Benchmark, EvaluationError

BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in (pope.BENCHMARK, mmbench.BENCHMARK)}


def get(name: str) -> Benchmark:
    """A benchmark by its name. Raises EvaluationError listing the known ones."""
    if name not in BENCHMARKS:
        raise EvaluationError(f"no benchmark {name!r}; known: {', '.join(sorted(BENCHMARKS))}")
    return BENCHMARKS[name]
