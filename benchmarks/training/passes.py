"""Compares two implementations of one computation in this process: time and peak memory, on the CPU or a GPU."""

import gc
import statistics
import time
from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

Pass = Callable[[], object]
FORWARD, BOTH, MEMORY = "÷ peer: forward", "÷ peer: forward and backward", "÷ peer: memory"
CPU = "÷ peer: CPU time of both"


def compare(
    ours: Callable[[], Tensor], peer: Callable[[], Tensor], leaves: list[Tensor], rounds: int
) -> dict[str, str]:
    """Ours ÷ the peer's: time forward, time forward and backward, and peak memory of forward and backward.

    Ratios are medians of rounds, in which both run in turn, so that other load on the machine affects both alike. On
    the CPU there is the processor time of forward and backward too, which varies less on a busy machine.
    """
    contenders = {"ours": ours, "peer": peer}
    device = leaves[0].device

    def forward(run: Callable[[], Tensor]) -> None:
        with torch.no_grad():
            run()

    def both(run: Callable[[], Tensor]) -> None:
        run().sum().backward()

    ratios, ours_ms = {}, []
    for kind, step in ((FORWARD, forward), (BOTH, both)):
        seconds: dict[str, list[tuple[float, float]]] = {"ours": [], "peer": []}
        for round in range(rounds + 1):
            for name, run in sorted(contenders.items(), reverse=bool(round % 2)):
                for leaf in leaves:
                    leaf.grad = None
                took = timed(lambda run=run, step=step: step(run), device)
                if round:  # the first warms up
                    seconds[name].append(took)
        pairs = list(zip(seconds["ours"], seconds["peer"], strict=True))
        ratios[kind] = statistics.median(a[0] / b[0] for a, b in pairs)
        ours_ms.append(statistics.median(wall for wall, _ in seconds["ours"]) * 1e3)
        if step is both and device.type == "cpu":
            ratios[CPU] = statistics.median(a[1] / b[1] for a, b in pairs)
    for run in contenders.values():
        both(run)  # so that gradients exist
    peaks = {name: peak(lambda run=run: both(run), device) for name, run in contenders.items()}
    for leaf in leaves:
        leaf.grad = None
    return {
        **{kind: f"{ratio:.2f}" for kind, ratio in ratios.items()},
        MEMORY: f"{peaks['ours'] / peaks['peer']:.2f}",
        "ours ms": ", ".join(f"{each:.0f}" for each in ours_ms),
        "ours MiB": f"{peaks['ours'] / 2**20:.0f}",
    }


def timed(step: Pass, device: torch.device) -> tuple[float, float]:
    """Seconds, and seconds of processor time, of a step."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start, used = time.perf_counter(), time.process_time()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - used


def peak(step: Pass, device: torch.device) -> int:
    """The most bytes that a step allocates beyond what is allocated before it; gradients exist already."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))
