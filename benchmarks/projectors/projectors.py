"""What projectors cost.

    python -m benchmarks.projectors.projectors [--device cuda] [--dtype fp32 bf16] [--batch 2] [--rounds 5]
        [--features 256 576] [--tokens 64 144 256 576] [--only operator peers types profile]

C- and D-Abstractor against the same networks built from the authors' parts (projector_peers.py), with the same weights;
the deformable attention operator against `grid_sample`; and all types against the C-Abstractor of the same N and M.
Width 1024, output 4096, training mode without dropout. Contenders alternate, so that other load on the machine affects
all alike; ratios are medians over the rounds. Memory is what a pass allocates beyond weights, gradients and inputs.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import parser, show
from benchmarks.projectors.projector_peers import PEERS, RegStage, dense, detr
from benchmarks.training.passes import BOTH, compare
from model.projectors import Projector, Shape, build_projector
from model.projectors.d_abstractor import read_map

FEATURES, TOKENS = (256, 576), (64, 144, 256, 576)
WIDTH, OUTPUT_WIDTH = 1024, 4096
HEADS, POINTS = 8, 4
PRODUCTS = r"^aten::(mm|addmm|bmm|_slow_conv2d_(forward|backward)|mkldnn_convolution|convolution_backward)$"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Setup:
    device: torch.device
    dtype: torch.dtype
    batch: int
    rounds: int
    shapes: list[tuple[int, int]]  # N, M
    width: int
    output_width: int
    projectors: list[str]  # that have a peer


Rows = list[dict[str, str]]


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options_of.add_argument("--dtype", nargs="+", default=["fp32"], choices=list(DTYPES))
    options_of.add_argument("--batch", type=int, default=2)
    options_of.add_argument("--rounds", type=int, default=5)
    options_of.add_argument("--features", type=int, nargs="+", default=FEATURES, metavar="N")
    options_of.add_argument("--tokens", type=int, nargs="+", default=TOKENS, metavar="M")
    options_of.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    options_of.add_argument(
        "--projectors", nargs="+", choices=list(PEERS), default=list(PEERS), help="of peers, profile"
    )
    options = options_of.parse_args()
    width, output_width = WIDTH, OUTPUT_WIDTH
    if options.toy:
        options.device, options.batch, options.rounds, width, output_width = "cpu", 2, 1, 64, 128
        options.features, options.tokens = [16], [4]
    if RegStage is None:
        print("skipped: timm (not installed, or without a matching torchvision); transformers' RegNet takes its place")
    device = torch.device(options.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    shapes = [(n, m) for n in options.features for m in options.tokens]
    for dtype in options.dtype:
        sizes = options.batch, options.rounds, shapes, width, output_width
        setup = Setup(device, DTYPES[dtype], *sizes, options.projectors)
        for part in options.only:
            if part == "profile" and device.type != "cpu":
                continue  # it counts the time of CPU threads
            show(f"{part}, {name}, {dtype}, batch {options.batch}, {options.rounds} rounds", PARTS[part](setup))


def operator_rows(setup: Setup) -> Rows:
    """The operator of the D-Abstractor."""
    theirs = detr.MultiScaleDeformableAttention()
    batch, device, dtype = setup.batch, setup.device, setup.dtype
    rows = []
    for features, count in setup.shapes:
        side, depth = round(features**0.5), setup.width // HEADS
        values = torch.randn(batch, features, HEADS, depth, device=device, dtype=dtype, requires_grad=True)
        points = (torch.rand(batch, count, HEADS, POINTS, 2, device=device) * (side + 2) - 1.5).requires_grad_()
        weights = torch.rand(batch, count, HEADS, POINTS, device=device).softmax(-1).requires_grad_()

        def ours(values=values, points=points, weights=weights, side=side) -> Tensor:
            return read_map(values, points, weights, side).flatten(2)

        def grid_sample(values=values, points=points, weights=weights, side=side) -> Tensor:
            locations = ((points + 0.5) / side)[:, :, :, None].to(values.dtype)
            shapes = torch.tensor([[side, side]], device=values.device)
            weights = weights[:, :, :, None].to(values.dtype)
            return theirs(values, shapes, [(side, side)], shapes[:, 0] * 0, locations, weights, 64)

        near = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.5}
        torch.testing.assert_close(ours(), grid_sample(), **near)
        leaves = [values, points, weights]
        found = compare(ours, grid_sample, leaves, setup.rounds)
        product = compare(
            ours, lambda v=values, p=points, w=weights, s=side: dense(v, p, w, s).flatten(2), leaves, setup.rounds
        )
        ratio = {"÷ dense product: forward and backward": product[BOTH]}
        rows.append({"N": str(features), "M": str(count), **found, **ratio})
    return rows


def peer_rows(setup: Setup) -> Rows:
    """C- and D-Abstractor ÷ the same from the authors' parts."""
    rows = []
    for type in setup.projectors:
        for features, count in setup.shapes:
            ours = projector(type, features, count, setup)
            peer = PEERS[type](ours).to(setup.device, setup.dtype).train()
            x = noise(features, setup)
            if setup.dtype == torch.float32:
                torch.testing.assert_close(ours(x), peer(x), rtol=1e-3, atol=1e-3)
            both = [*ours.parameters(), *peer.parameters()]
            found = compare(lambda o=ours, x=x: o(x), lambda p=peer, x=x: p(x), both, setup.rounds)
            rows.append({"projector": type, "N": str(features), "M": str(count), **found})
    return rows


def type_rows(setup: Setup) -> Rows:
    """All types ÷ the C-Abstractor."""
    rows = []
    for features, count in setup.shapes:
        x = noise(features, setup)
        base = projector("c-abstractor", features, count, setup)
        for type in ("d-abstractor", "resampler", *(("linear", "mlp") if features == count else ())):
            ours = projector(type, features, count, setup)
            both = [*ours.parameters(), *base.parameters()]
            found = compare(lambda o=ours, x=x: o(x), lambda b=base, x=x: b(x), both, setup.rounds)
            rows.append({"projector": type, "N": str(features), "M": str(count), **found})
    return rows


def profile_rows(setup: Setup) -> Rows:
    """CPU time of forward and backward: the share of matrix products and convolutions, and the largest operators."""
    rows = []
    few = setup.shapes if len(setup.shapes) < 2 else [(256, 144), (576, 576)]
    for type, features, count in ((type, *shape) for type in setup.projectors for shape in few):
        ours = projector(type, features, count, setup)
        x = noise(features, setup)
        for name, module in (("ours", ours), ("peer", PEERS[type](ours).to(setup.device, setup.dtype).train())):
            module(x).sum().backward()
            with profile(activities=[ProfilerActivity.CPU]) as profiled:
                module(x).sum().backward()
            spent = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
            products = sum(time for key, time in spent.items() if re.search(PRODUCTS, key))
            largest = sorted(spent, key=lambda key: -spent[key])[:6]
            rows.append(
                {
                    "projector": type,
                    "N": str(features),
                    "M": str(count),
                    "whose": name,
                    "ms": f"{sum(spent.values()) / 1e3:.0f}",
                    "products and convolutions ÷ all": f"{products / sum(spent.values()):.0%}",
                    "largest, ms": ", ".join(f"{key.removeprefix('aten::')} {spent[key] / 1e3:.0f}" for key in largest),
                }
            )
    return rows


def projector(type: str, features: int, tokens: int, setup: Setup) -> Projector:
    """In training mode and without dropout, so that contenders give the same output."""
    settings = {"dropout": 0.0} if type in ("d-abstractor", "resampler") else {}
    if setup.width != WIDTH and type not in ("linear", "mlp"):  # a toy
        settings |= {"hidden_size": setup.width}
    torch.manual_seed(0)
    made = build_projector(type, Shape(features, tokens, setup.width, setup.output_width), settings)
    return made.to(setup.device, setup.dtype).train()


def noise(features: int, setup: Setup) -> Tensor:
    return torch.randn(setup.batch, features, setup.width, device=setup.device, dtype=setup.dtype)


PARTS: dict[str, Callable[[Setup], Rows]] = {
    "operator": operator_rows,
    "peers": peer_rows,
    "types": type_rows,
    "profile": profile_rows,
}

if __name__ == "__main__":
    main()
