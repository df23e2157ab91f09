"""Benchmark evaluation: each benchmark's module reads its official files and scores answers; ask.py asks a model."""

from model.evaluation.benchmarks import llava_bench, mm_vet, mmbench, mme, mmmu, owleval, pope, scienceqa, seed_bench
from model.evaluation.interface import Benchmark, EvaluationError

BENCHMARKS: dict[str, Benchmark] = {
    module.BENCHMARK.name: module.BENCHMARK
    for module in (
        pope,
        mmbench,
        mme,
        scienceqa,
        seed_bench,
        llava_bench,
        mm_vet,
        mmmu,
        owleval,
    )
}


def get(name: str) -> Benchmark:
    """Returns the benchmark of that name. Raises EvaluationError, listing the known benchmarks, if there is none."""
    if name not in BENCHMARKS:
        raise EvaluationError(f"no benchmark {name!r}; known: {', '.join(sorted(BENCHMARKS))}")
    return BENCHMARKS[name]
