"""How full packs of the real-text mix are, and how even the ranks, beside padding and beside packing in order.

    python benchmarks/packing.py REALDATA [--max-tokens 1024 2048 4096] [--window 1024] [--image-tokens 144]

Builds the shards of benchmarks/real_text.yaml, real rows of nine datasets in the paper's proportions, tokenised by a
byte-level vocabulary that is learned from VQAv2's. In order: examples are put into a sequence as they come, until the
next does not fit, as trainers do that pack while they load. A step is 64 sequences, dealt to eight ranks.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from measure import markdown
from vqav2_rows import train_tokenizer

from flows.data.stage_data import dataset_examples, stage_data
from flows.recipe.recipe import load_recipe
from flows.runs.workspace import Workspace
from model.training.data.rank_assignment import PackAssignment
from pipelines import sources
from pipelines.core.store import Store
from pipelines.packing.plan import Lengths, Pack, Packing, make_plan

RECIPE = Path(__file__).parent / "real_text.yaml"
STEP, RANKS = 64, 8  # sequences, of which each rank has eight


def build(realdata: Path, folder: Path) -> Lengths:
    batches = list(sources.get("vqav2").read(realdata / "text/VQAv2"))
    tokenizer = train_tokenizer(pa.Table.from_batches(batches), folder)
    workspace = Workspace(load_recipe(RECIPE), Store(folder / "store"), realdata)

    def examples(workspace: Workspace, *arguments: object) -> Path:
        return dataset_examples(workspace, *arguments, print)  # type: ignore[arg-type]

    return Lengths(stage_data(workspace, "finetune", tokenizer, examples, print).shards / "lengths.parquet")


def in_order(positions: np.ndarray, most: int) -> list[Pack]:
    packs, begin, filled = [], 0, 0
    for place, tokens in enumerate(positions.tolist()):
        if filled + tokens > most:
            packs.append(Pack(np.arange(begin, place), filled, begin))
            begin, filled = place, 0
        filled += tokens
    return [*packs, Pack(np.arange(begin, len(positions)), filled, begin)]


def row(what: str, packs: list[Pack], most: int | None, balanced: bool) -> dict[str, str]:
    """most: positions of a sequence; None: as many as the longest of the eight that a rank has has."""
    deals = [PackAssignment(STEP, 1, rank, RANKS) for rank in range(RANKS)]
    used, spread = [], []
    for first in range(0, len(packs) - STEP + 1, STEP):
        step = packs[first : first + STEP]
        if balanced:
            of_ranks = [[pack.tokens for passes in deal.own(step) for pack in passes] for deal in deals]
        else:
            of_ranks = [[pack.tokens for pack in step[at : at + STEP // RANKS]] for at in range(0, STEP, STEP // RANKS)]
        sums = [sum(tokens) for tokens in of_ranks]
        room = [len(tokens) * (most or max(tokens)) for tokens in of_ranks]
        used.append(sum(sums) / sum(room))
        spread.append((max(sums) - min(sums)) / (sum(sums) / RANKS))
    return {
        "what": what,
        "positions used": f"{np.mean(used):.1%}",
        "samples in a sequence": f"{np.mean([len(pack.samples) for pack in packs]):.1f}",
        "ranks apart, median step": f"{np.median(spread):.2%}",
        "95 % of steps": f"{np.quantile(spread, 0.95):.2%}",
        "steps within 2 %": f"{np.mean(np.array(spread) <= 0.02):.1%}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("realdata", type=Path)
    parser.add_argument("--max-tokens", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--image-tokens", type=int, default=144)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lengths = build(options.realdata.resolve(), Path(folder))
        alone = make_plan(lengths, None, options.image_tokens)
        samples = alone.packs(0, alone.num_packs)
        positions = np.array([pack.tokens for pack in samples])
        print(f"\n{len(positions):,} samples, {positions.mean():.0f} positions in the mean, {positions.max()} at most")
        rows = [row("padded to the longest of a rank's eight", samples, None, False)]
        for most in options.max_tokens:
            if most < positions.max():
                print(f"max_tokens {most} has no room for the longest")
                continue
            plan = make_plan(lengths, Packing(max_tokens=most, window=options.window), options.image_tokens)
            rows.append(row(f"padded to {most}", samples, most, False))
            rows.append(row(f"packed in order, {most}", in_order(positions, most), most, False))
            rows.append(row(f"Honeybee, {most}", plan.packs(0, plan.num_packs), most, True))
    print(markdown(rows))


if __name__ == "__main__":
    main()
