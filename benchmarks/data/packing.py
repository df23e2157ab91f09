"""How full the packs of the real-text mix are and how even the ranks, against padding and against packing in order.

    python -m benchmarks.data.packing REALDATA [--max-tokens 1024 2048 4096] [--window 1024] [--image-tokens 144]

Builds the shards of benchmarks/data/real_text.yaml: real rows of nine datasets in the paper's proportions, tokenised by
a byte-level vocabulary learned from VQAv2's rows. "In order" fills a sequence with examples as they come until the next
does not fit, as trainers do that pack while they load. A step is 64 sequences, dealt to eight ranks.
"""

import shutil
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import toy
from benchmarks.data.vqav2_rows import good_rows, train_tokenizer
from benchmarks.measure import parser, show, working
from flows.data.stage_data import dataset_examples, stage_data
from flows.recipe.recipe import Recipe, load_recipe
from flows.runs.workspace import Workspace
from model.training.data.rank_assignment import PackAssignment
from pipelines.core.store import Store
from pipelines.packing.plan import Lengths, Pack, Packing, make_plan

RECIPE = Path(__file__).parent / "real_text.yaml"
STEP, RANKS = 64, 8  # sequences in a step; each rank has eight
TOY_SAMPLES, TOY_STEP = 200, 16


def build(realdata: Path, folder: Path, samples: int | None = None) -> Lengths:
    """Builds the shards in a store below `folder`; samples: None for as many as the recipe asks for."""
    tokenizer = train_tokenizer(good_rows(realdata / "text/VQAv2"), folder)
    content = load_recipe(RECIPE).model_dump()
    content["finetune"]["data"]["samples"] = samples or content["finetune"]["data"]["samples"]
    workspace = Workspace(Recipe.model_validate(content), Store(folder / "store"), realdata)

    return Lengths(
        stage_data(workspace, "finetune", tokenizer, partial(dataset_examples, log=print), print).shards
        / "lengths.parquet"
    )


def in_order(positions: np.ndarray, most: int) -> list[Pack]:
    packs, begin, filled = [], 0, 0
    for index, tokens in enumerate(positions.tolist()):
        if filled + tokens > most:
            packs.append(Pack(np.arange(begin, index), filled, begin))
            begin, filled = index, 0
        filled += tokens
    return [*packs, Pack(np.arange(begin, len(positions)), filled, begin)]


def row(what: str, packs: list[Pack], most: int | None, balanced: bool, size: int) -> dict[str, str]:
    """most: positions of a sequence; None: those of the longest of the sequences that a rank has. size: of a step."""
    deals = [PackAssignment(size, 1, rank, RANKS) for rank in range(RANKS)]
    used, spread = [], []
    for first in range(0, len(packs) - size + 1, size):
        step = packs[first : first + size]
        if balanced:
            of_ranks = [[pack.tokens for passes in deal.own(step) for pack in passes] for deal in deals]
        else:
            of_ranks = [[pack.tokens for pack in step[at : at + size // RANKS]] for at in range(0, size, size // RANKS)]
        sums = [sum(tokens) for tokens in of_ranks]
        room = [len(tokens) * (most or max(tokens)) for tokens in of_ranks]
        used.append(sum(sums) / sum(room))
        spread.append((max(sums) - min(sums)) / (sum(sums) / RANKS))
    return {
        "what": what,
        "positions used": f"{np.mean(used):.1%}",
        "samples in a sequence": f"{np.mean([len(pack.samples) for pack in packs]):.1f}",
        "ranks apart ÷ mean, median step": f"{np.median(spread):.2%}",
        "95 % of steps": f"{np.quantile(spread, 0.95):.2%}",
        "steps within 2 %": f"{np.mean(np.array(spread) <= 0.02):.1%}",
    }


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("realdata", type=Path, nargs="?", metavar="REALDATA")
    options_of.add_argument("--max-tokens", type=int, nargs="+", default=[1024, 2048, 4096])
    options_of.add_argument("--window", type=int, default=1024)
    options_of.add_argument("--image-tokens", type=int, default=144)
    options = options_of.parse_args()
    size, samples = (TOY_STEP, TOY_SAMPLES) if options.toy else (STEP, None)
    with working(options) as workdir:
        if options.toy:
            options.realdata, options.max_tokens, options.image_tokens = toy.realdata(workdir), [2048], 16
        if options.realdata is None:
            options_of.error("REALDATA is required")
        if not options.toy:
            shutil.rmtree(workdir / "packing", ignore_errors=True)
        folder = workdir / "packing"
        folder.mkdir(exist_ok=True)
        lengths = build(options.realdata.resolve(), folder, samples)
        single = make_plan(lengths, None, options.image_tokens)
        alone = single.packs(0, single.num_packs)
        positions = np.array([pack.tokens for pack in alone])
        rows = [row("padded to the longest of a rank's", alone, None, False, size)]
        for most in options.max_tokens:
            if most < positions.max():
                print(f"skipped: max_tokens {most} (the longest sample has {positions.max()} positions)")
                continue
            plan = make_plan(lengths, Packing(max_tokens=most, window=options.window), options.image_tokens)
            rows.append(row(f"padded to {most}", alone, most, False, size))
            rows.append(row(f"packed in order, {most}", in_order(positions, most), most, False, size))
            rows.append(row(f"Honeybee, {most}", plan.packs(0, plan.num_packs), most, True, size))
    show(
        f"Packing {len(alone):,} samples of {positions.mean():.0f} positions on average, {positions.max()} at most",
        rows,
    )


if __name__ == "__main__":
    main()
