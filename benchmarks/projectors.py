"""What projectors cost: `python benchmarks/projectors.py [--device cuda] [--dtype fp32 bf16] [--batch 2] [--rounds 5]`.

C- and D-Abstractor beside the same networks built from the authors' parts (projector_peers.py), with the same weights;
the deformable attention operator by itself; and all types beside the C-Abstractor of the same N and M. Width 1024,
output 4096, training mode without dropout. Contenders alternate, so that other load on the machine meets all alike;
ratios are medians over the rounds. Peak memory is what a pass takes beyond weights, gradients and inputs.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from itertools import accumulate

import torch
from measure import markdown
from projector_peers import PEERS, detr
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from model.projectors import Projector, Shape, build_projector
from model.projectors.d_abstractor import read_map

FEATURES, TOKENS = (256, 576), (64, 144, 256, 576)
WIDTH, OUTPUT_WIDTH = 1024, 4096
HEADS, POINTS = 8, 4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Pass = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", nargs="+", default=["fp32"], choices=list(DTYPES))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--only", nargs="+", default=["operator", "peers", "types"])
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}, batch {arguments.batch}, {arguments.rounds} rounds\n")
    parts = {"operator": operator_rows, "peers": peer_rows, "types": type_rows}
    for dtype in arguments.dtype:
        for part in arguments.only:
            rows = parts[part](device, DTYPES[dtype], arguments.batch, arguments.rounds, arguments.tokens)
            print(f"{part}, {dtype}\n\n{markdown(rows)}\n", flush=True)


def operator_rows(
    device: torch.device, dtype: torch.dtype, batch: int, rounds: int, tokens: list[int]
) -> list[dict[str, str]]:
    theirs = detr.MultiScaleDeformableAttention()
    rows = []
    for features, count in ((n, m) for n in FEATURES for m in tokens):
        side = round(features**0.5)
        values = torch.randn(batch, features, HEADS, WIDTH // HEADS, device=device, dtype=dtype, requires_grad=True)
        places = (torch.rand(batch, count, HEADS, POINTS, 2, device=device) * (side + 2) - 1.5).requires_grad_()
        weights = torch.rand(batch, count, HEADS, POINTS, device=device).softmax(-1).requires_grad_()

        def ours(values=values, places=places, weights=weights, side=side) -> Tensor:
            return read_map(values, places, weights, side).flatten(2)

        def grid_sample(values=values, places=places, weights=weights, side=side) -> Tensor:
            locations = ((places + 0.5) / side)[:, :, :, None].to(values.dtype)
            shapes = torch.tensor([[side, side]], device=values.device)
            weights = weights[:, :, :, None].to(values.dtype)
            return theirs(values, shapes, [(side, side)], shapes[:, 0] * 0, locations, weights, 64)

        near = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.5}
        torch.testing.assert_close(ours(), grid_sample(), **near)
        found = compare(ours, grid_sample, [values, places, weights], rounds)
        rows.append({"N": str(features), "M": str(count), **found})
    return rows


def peer_rows(
    device: torch.device, dtype: torch.dtype, batch: int, rounds: int, tokens: list[int]
) -> list[dict[str, str]]:
    rows = []
    for type in PEERS:
        for features, count in ((n, m) for n in FEATURES for m in tokens):
            ours = projector(type, features, count)
            peer = PEERS[type](ours).to(device, dtype).train()
            ours = ours.to(device, dtype).train()
            x = torch.randn(batch, features, WIDTH, device=device, dtype=dtype)
            if dtype == torch.float32:
                torch.testing.assert_close(ours(x), peer(x), rtol=1e-3, atol=1e-3)
            both = [*ours.parameters(), *peer.parameters()]
            found = compare(lambda o=ours, x=x: o(x), lambda p=peer, x=x: p(x), both, rounds)
            rows.append({"projector": type, "N": str(features), "M": str(count), **found})
    return rows


def type_rows(
    device: torch.device, dtype: torch.dtype, batch: int, rounds: int, tokens: list[int]
) -> list[dict[str, str]]:
    rows = []
    for features in FEATURES:
        for count in tokens:
            x = torch.randn(batch, features, WIDTH, device=device, dtype=dtype)
            base = projector("c-abstractor", features, count).to(device, dtype).train()
            for type in ("d-abstractor", "resampler", *(("linear", "mlp") if features == count else ())):
                ours = projector(type, features, count).to(device, dtype).train()
                both = [*ours.parameters(), *base.parameters()]
                found = compare(lambda o=ours, x=x: o(x), lambda b=base, x=x: b(x), both, rounds)
                rows.append({"projector": type, "N": str(features), "M": str(count), **found})
    return rows


def projector(type: str, features: int, tokens: int) -> Projector:
    """Without dropout, so that contenders can be compared in training mode."""
    settings = {"dropout": 0.0} if type in ("d-abstractor", "resampler") else {}
    torch.manual_seed(0)
    return build_projector(type, Shape(features, tokens, WIDTH, OUTPUT_WIDTH), settings)


def compare(
    ours: Callable[[], Tensor], peer: Callable[[], Tensor], leaves: list[Tensor], rounds: int
) -> dict[str, str]:
    """Ours ÷ the other: time forward, time forward and backward, peak memory of the latter."""
    contenders = {"ours": ours, "peer": peer}
    device = leaves[0].device

    def forward(run: Callable[[], Tensor]) -> None:
        with torch.no_grad():
            run()

    def both(run: Callable[[], Tensor]) -> None:
        run().sum().backward()

    ratios, ours_ms = {}, {}
    for kind, step in (("forward", forward), ("both", both)):
        seconds: dict[str, list[float]] = {"ours": [], "peer": []}
        for round in range(rounds + 1):
            for name, run in contenders.items():
                for leaf in leaves:
                    leaf.grad = None
                took = timed(lambda run=run, step=step: step(run), device)
                if round:  # the first warms up
                    seconds[name].append(took)
        pairs = zip(seconds["ours"], seconds["peer"], strict=True)
        ratios[kind] = statistics.median(a / b for a, b in pairs)
        ours_ms[kind] = statistics.median(seconds["ours"]) * 1e3
    for run in contenders.values():
        both(run)  # so that gradients are there
    peaks = {name: peak(lambda run=run: both(run), device) for name, run in contenders.items()}
    for leaf in leaves:
        leaf.grad = None
    return {
        "forward": f"{ratios['forward']:.2f}",
        "forward and backward": f"{ratios['both']:.2f}",
        "memory": f"{peaks['ours'] / peaks['peer']:.2f}",
        "ours ms": f"{ours_ms['forward']:.0f}, {ours_ms['both']:.0f}",
        "ours MiB": f"{peaks['ours'] / 2**20:.0f}",
    }


def timed(step: Pass, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak(step: Pass, device: torch.device) -> int:
    """Bytes that a step takes at most beyond what is there before it (gradients exist already)."""
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


if __name__ == "__main__":
    main()
