"""How even shards are, and what their plan costs.

    python -m benchmarks.data.shards REALDATA [--samples 100000000]

Builds `REALDATA/text` without images, and `REALDATA/corpus` and a generated corpus with them, into shards of several
sizes. Prints the largest shard against the mean, in bytes and in tokens, and the predicted bytes against the written
ones; then time and memory of the plan of many samples.
"""

import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks import toy
from benchmarks.data.vqav2_rows import good_rows, train_tokenizer
from benchmarks.measure import measure, parser, show, working
from pipelines.core.store import Store, read_manifest
from pipelines.dedup.settings import Dedup
from pipelines.examples.settings import ExampleSettings
from pipelines.jobs.dataset import DatasetSpec, Tables
from pipelines.jobs.examples import build_examples
from pipelines.jobs.images import build_images
from pipelines.jobs.shards import build_shards
from pipelines.mixture.order import make_mixture
from pipelines.mixture.shares import Balance
from pipelines.sample_corpus import write_sample
from pipelines.shards.plan import ImageMode, cut_evenly, cut_groups, in_order, sample_sizes
from pipelines.shards.settings import ShardSettings
from pipelines.templates.sets import load_templates
from pipelines.tokens.chat_style import load_chat_template

TEXT = {
    "vqav2": ("VQAv2", 10),
    "gqa": ("GQA/annotations", 10),
    "refcoco": ("refcoco/annotations", 1),
    "refcoco+": ("refcoco/annotations", 1),
    "refcocog": ("refcoco/annotations", 1),
    "vsr": ("VSR", 1),
    "sharegpt": ("../corpus/Vicuna", 1),
}
CORPUS = {
    "vqav2": ("VQAv2", "VQAv2/images", 10),
    "aokvqa": ("A-OKVQA", "coco/images", 1),
    "vsr": ("VSR", "VSR/images", 1),
    "refcoco": ("refcoco/annotations", "coco/images/train2014", 1),
    "scienceqa": ("ScienceQA", "ScienceQA/images", 1),
    "blipcapfilt": ("BLIP/blip_cc_sbu", "BLIP/blip_cc_sbu", 1),
    "coyo100m": ("coyo/coyo100m", "coyo/coyo100m", 1),
    "llava150k": ("llava_instruct", "llava_instruct/images", 1),
    "sharegpt": ("Vicuna", "Vicuna", 1),
}
SAMPLE = {
    "blipcapfilt": ("BLIP", "BLIP", 1),
    "vqav2": ("VQAv2", "VQAv2/images", 12),
    "aokvqa": ("A-OKVQA", "coco/images", 4),
    "refcoco": ("refcoco/annotations", "coco/images/train2014", 1),
    "llava150k": ("llava_instruct", "coco/images/train2017", 1),
}


def quiet(line: str) -> None:
    """Discards progress lines."""


def settings_of(spec: DatasetSpec, tokenizer: Path) -> ExampleSettings:
    return ExampleSettings(
        dataset=spec.name,
        task=spec.task,
        templates=load_templates("fine", spec.name, spec.task),
        chat=load_chat_template("honeybee"),
        tokenizer=tokenizer,
        max_text_tokens=1023,
        max_turns=spec.max_turns,
        dedup=spec.dedup,
    )


def examples_of(store: Store, specs: list[DatasetSpec], tokenizer: Path, with_images: bool) -> dict[str, Path]:
    images = build_images(store, specs, log=quiet) if with_images else {}
    return {
        spec.name: build_examples(store, spec, settings_of(spec, tokenizer), Tables(images.get(spec.name)), log=quiet)
        for spec in specs
    }


def spread(
    name: str, store: Store, specs, tokenizer: Path, mode: str, num_samples: int, sizes: list[float]
) -> list[dict]:
    examples = examples_of(store, specs, tokenizer, mode != "skip")
    rows = []
    for mib in sizes:
        settings = ShardSettings(
            balance=Balance(strategy="per-dataset"),
            num_samples=num_samples,
            shard_bytes=round(mib * 2**20),
            tokenizer=tokenizer,
            image_mode=ImageMode(mode),
        )
        image_roots = {spec.name: spec.images for spec in specs}
        directory = build_shards(store, examples, image_roots, settings, log=quiet)
        manifest = read_manifest(directory)
        made = manifest["shards"]
        num_bytes, tokens, samples = (
            np.array([shard[key] for shard in made]) for key in ("num_bytes", "num_tokens", "num_samples")
        )
        quotas = manifest["mixture"]["quotas"]
        mixture = make_mixture(quotas, {n: f["examples"] for n, f in manifest["datasets"].items()}, 0)
        each = sample_sizes(mixture, examples, ImageMode(mode))(np.arange(num_samples))
        rows.append(
            {
                "data": name,
                "`shard_mib`": f"{mib:g}",
                "shards": str(len(made)),
                "samples each": f"{samples.min():,}–{samples.max():,}",
                "bytes, largest ÷ mean": f"{num_bytes.max() / num_bytes.mean():.4f}",
                "smallest ÷ mean": f"{num_bytes.min() / num_bytes.mean():.4f}",
                "tokens, largest ÷ mean": f"{tokens.max() / tokens.mean():.4f}",
                "predicted ÷ written": f"{each.sum() / num_bytes.sum():.3f}",
                "heaviest sample ÷ mean shard": f"{each.max() / num_bytes.mean():.4f}",
                "row groups": str(len(cut_groups(each[: samples[0]])) - 1),
            }
        )
        print(rows[-1], file=sys.stderr)
    return rows


def plan(num_samples: int) -> float:
    """Fourteen datasets, of 100 to 50 million examples, in shards of 256 MiB."""
    random = np.random.default_rng(0)
    sizes = {f"d{i:02d}": int(n) for i, n in enumerate(np.geomspace(100, num_samples / 2, 14))}
    tables = [random.integers(200, 200_000, size).astype(np.int32) for size in sizes.values()]
    begin = time.perf_counter()
    mixture = make_mixture(dict.fromkeys(sizes, 1.0), sizes, 0)

    starts = cut_evenly(in_order(mixture, tables), num_samples, 256 << 20)
    took = time.perf_counter() - begin
    print(f"{len(starts) - 1:,} shards; tables {sum(t.nbytes for t in tables) / 2**20:.0f} MiB", file=sys.stderr)
    return took


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("realdata", type=Path, nargs="?", metavar="REALDATA")
    options_of.add_argument("--samples", type=int, default=100_000_000)
    options_of.add_argument("--plan", action="store_true", help="(internal) plan the shards of that many samples")
    options = options_of.parse_args()
    if options.plan:
        print(json.dumps(plan(options.samples)))
        return
    with working(options) as workdir:
        if options.toy:
            options.realdata, options.samples = toy.realdata(workdir), 100_000
        if options.realdata is None:
            options_of.error("REALDATA is required")
        here = workdir / "shards"
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        tokenizer = train_tokenizer(good_rows(options.realdata / "text/VQAv2"), here)
        sets = toy_sets(options.realdata) if options.toy else real_sets(options.realdata, here)
        store = Store(here / "store")
        rows = [row for name, (specs, rest) in sets.items() for row in spread(name, store, specs, tokenizer, *rest)]
    show("Evenness of shards", rows)
    cost = measure({"plan": ["benchmarks.data.shards", "--plan", "--samples", str(options.samples)]}, 1)["plan"]
    print(f"\nThe plan of {options.samples:,} samples: {cost.median:.1f} s, {cost.peak / 2**20:,.0f} MiB")


Sets = dict[str, tuple[list[DatasetSpec], tuple[str, int, list[float]]]]  # datasets; images, samples, MiB of a shard


def real_sets(realdata: Path, here: Path) -> Sets:
    text, corpus, sample = realdata / "text", realdata / "corpus", here / "sample"
    write_sample(sample, scenes=2000, held_out=20, seed=0)
    return {
        "real text": ([spec(text, n, a, a, t) for n, (a, t) in TEXT.items()], ("skip", 200_000, [256, 16, 2, 0.25])),
        "real corpus": ([spec(corpus, n, *each) for n, each in CORPUS.items()], ("embed", 20_000, [256, 64, 16])),
        "generated scenes": ([spec(sample, n, *each) for n, each in SAMPLE.items()], ("embed", 60_000, [256, 16, 2])),
    }


def toy_sets(realdata: Path) -> Sets:
    text = realdata / "text"
    return {
        "text": ([spec(text, "vqav2", "VQAv2", "VQAv2", 10)], ("skip", 200, [0.01])),
        "generated scenes": ([spec(text, n, *SAMPLE[n]) for n in ("vqav2", "refcoco")], ("embed", 200, [0.1])),
    }


def spec(root: Path, name: str, annotations: str, images: str, max_turns: int) -> DatasetSpec:
    return DatasetSpec(name, name, root / annotations, root / images, max_turns, Dedup(rule="off"))


if __name__ == "__main__":
    main()
