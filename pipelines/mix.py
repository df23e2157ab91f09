"""Beam job 2: examples of all datasets → balanced shards. Every shard is written on its own from the order."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.build import BEAM_OPTIONS
from pipelines.mixture import PERIOD, make_mixture
from pipelines.shards import ShardPlan, verify_examples, write_shard
from pipelines.store import Store, read_manifest
from pipelines.tokenizer import load_tokenizer

VERSION = 3  # raise it when the same key gives other bytes


def build_shards(
    store: Store,
    *,
    examples: Mapping[str, Path],
    image_roots: Mapping[str, Path],
    weights: Mapping[str, float],
    num_samples: int,
    shard_samples: int,
    tokenizer: Path,
    seed: int,
    embed_images: bool = True,
    beam_options: Sequence[str] = BEAM_OPTIONS,
    log: Callable[[str], None] = print,
) -> Path:
    """Writes the first `num_samples` samples of the mixture as shards; returns their directory.

    examples: dataset → what build_examples returned; weights: dataset → share, normalised here.
    Raises ValueError for a mixture that cannot be (see make_mixture), ShardError for images or examples that changed.
    """
    prepared = load_tokenizer(tokenizer)
    key = {
        "version": VERSION,
        "examples": {name: examples[name].name for name in sorted(weights)},
        "weights": {name: weights[name] for name in sorted(weights)},
        "num_samples": num_samples,
        "shard_samples": shard_samples,
        "embed_images": embed_images,
        "seed": seed,
    }

    def make(out: Path) -> dict[str, Any]:
        for name in weights:
            verify_examples(examples[name])
        sizes = {name: read_manifest(examples[name])["num_examples"] for name in weights}
        mixture = make_mixture(weights, sizes, seed)
        roots = {name: Path(image_roots[name]) for name in weights}
        plan = ShardPlan(out, dict(examples), roots, embed_images, mixture, num_samples, shard_samples)
        log(f"{num_samples:,} samples in {plan.num_shards} shards")
        _run(plan, list(beam_options))
        facts = [json.loads(plan.facts_file(shard).read_text()) for shard in range(plan.num_shards)]
        for shard in range(plan.num_shards):
            plan.facts_file(shard).unlink()
        counts = mixture.counts(num_samples)
        datasets = {
            name: {
                "samples": counts[name],
                "examples": sizes[name],
                "share": mixture.quotas[mixture.names.index(name)] / PERIOD,
                "epochs": counts[name] / sizes[name],
            }
            for name in mixture.names
        }
        return {
            "num_samples": num_samples,
            "datasets": datasets,
            "image_token_id": prepared.image_token_id,
            "tokenizer": prepared.fingerprint,
            "num_tokens": sum(shard["num_tokens"] for shard in facts),
            "num_supervised": sum(shard["num_supervised"] for shard in facts),
            "shards": facts,
        }

    return store.produce("shards", key, make)


def _run(plan: ShardPlan, beam_options: list[str]) -> None:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    class Write(beam.DoFn):
        def process(self, shard: int):
            write_shard(plan, shard)
            yield shard

    with beam.Pipeline(options=PipelineOptions(beam_options)) as pipeline:
        _ = (
            pipeline
            | "name the shards" >> beam.Create(range(plan.num_shards))
            | "spread" >> beam.Reshuffle()
            | "write" >> beam.ParDo(Write()).with_output_types(int)
        )
    lost = [shard for shard in range(plan.num_shards) if not plan.facts_file(shard).is_file()]
    if lost:
        raise RuntimeError(f"the runner lost the shards {lost}; run again with FnApiRunner")
