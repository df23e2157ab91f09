"""What projectors cost: `python benchmarks/projectors.py [--device cuda] [--dtype fp32 bf16] [--batch 2] [--rounds 5]`.

C- and D-Abstractor beside the same networks built from the authors' parts (projector_peers.py), with the same weights;
the deformable attention operator by itself; and all types beside the C-Abstractor of the same N and M. Width 1024,
output 4096, training mode without dropout. Contenders alternate, so that other load on the machine meets all alike;
ratios are medians over the rounds. Peak memory is what a pass takes beyond weights, gradients and inputs.
"""

import argparse
import re

import torch
from measure import markdown
from passes import compare
from projector_peers import PEERS, dense, detr
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from model.projectors import Projector, Shape, build_projector
from model.projectors.d_abstractor import read_map

FEATURES, TOKENS = (256, 576), (64, 144, 256, 576)
WIDTH, OUTPUT_WIDTH = 1024, 4096
HEADS, POINTS = 8, 4
PRODUCTS = r"^aten::(mm|addmm|bmm|_slow_conv2d_(forward|backward)|mkldnn_convolution|convolution_backward)$"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", nargs="+", default=["fp32"], choices=list(DTYPES))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--only", nargs="+", default=["operator", "peers", "types", "profile"])
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}, batch {arguments.batch}, {arguments.rounds} rounds\n")
    parts = {"operator": operator_rows, "peers": peer_rows, "types": type_rows, "profile": profile_rows}
    for dtype in arguments.dtype:
        for part in arguments.only:
            if part == "profile" and device.type != "cpu":
                continue  # it counts the time of CPU threads
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
        leaves = [values, places, weights]
        found = compare(ours, grid_sample, leaves, rounds)
        product = compare(
            ours, lambda v=values, p=places, w=weights, s=side: dense(v, p, w, s).flatten(2), leaves, rounds
        )
        both = "forward and backward"
        rows.append({"N": str(features), "M": str(count), **found, f"{both}, ÷ the dense product": product[both]})
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


def profile_rows(
    device: torch.device, dtype: torch.dtype, batch: int, rounds: int, tokens: list[int]
) -> list[dict[str, str]]:
    """Of a step forward and backward on the CPU, what matrix products and convolutions take."""
    rows = []
    for type, features, count in (("c-abstractor", 256, 144), ("d-abstractor", 576, 576)):
        ours = projector(type, features, count).to(device, dtype).train()
        x = torch.randn(batch, features, WIDTH, device=device, dtype=dtype)
        for name, module in (("ours", ours), ("peer", PEERS[type](ours).to(device, dtype).train())):
            module(x).sum().backward()
            with profile(activities=[ProfilerActivity.CPU]) as profiled:
                module(x).sum().backward()
            spent = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
            products = sum(time for key, time in spent.items() if re.search(PRODUCTS, key))
            share = f"{products / sum(spent.values()):.0%}"
            rows.append(
                {"projector": type, "N": str(features), "M": str(count), "whose": name, "products, convolutions": share}
            )
    return rows


def projector(type: str, features: int, tokens: int) -> Projector:
    """Without dropout, so that contenders can be compared in training mode."""
    settings = {"dropout": 0.0} if type in ("d-abstractor", "resampler") else {}
    torch.manual_seed(0)
    return build_projector(type, Shape(features, tokens, WIDTH, OUTPUT_WIDTH), settings)


if __name__ == "__main__":
    main()
