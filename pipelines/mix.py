"""Beam job 2: mixes the examples of all datasets into balanced shards. Each shard is written independently."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.balance import Balance, BalanceError, Shares, Size, shares
from pipelines.beam import BEAM_OPTIONS
from pipelines.card import CARD, card
from pipelines.example_files import verify_examples
from pipelines.ledger import check_ledger
from pipelines.mixture import PERIOD, Mixture, make_mixture
from pipelines.shard_error import ShardError
from pipelines.shard_plan import Pictures, ShardPlan, cut_shards
from pipelines.shards import FORMAT, check_sizes, read_shards_manifest, says_if_full, write_lengths, write_shard
from pipelines.store import FileDigests, Store, read_manifest, write_atomic
from pipelines.tokenizer import load_tokenizer

VERSION = 6  # raise it when the same key gives different bytes


def build_shards(
    store: Store,
    *,
    examples: Mapping[str, Path],
    image_roots: Mapping[str, Path],
    balance: Balance,
    weights: Mapping[str, float] | None,
    num_samples: int,
    shard_bytes: int,
    tokenizer: Path,
    seed: int,
    pictures: Pictures = Pictures(),
    beam_options: Sequence[str] = BEAM_OPTIONS,
    log: Callable[[str], None] = print,
) -> Path:
    """Writes the first `num_samples` samples of the mixture as shards; returns their directory.

    examples: dataset → directory returned by build_examples; balance: the strategy that sets the shares; weights:
    dataset → share, for `tuned`; shard_bytes: approximate maximum size of a shard (pipelines/shard_plan.py). Raises
    BalanceError or MixtureError for an impossible mixture, ShardError if images, examples or shards have changed or
    the disk is full, RuntimeError if the examples' ledgers do not add up.
    """
    prepared = load_tokenizer(tokenizer)
    key = {
        "version": VERSION,
        "examples": {name: examples[name].name for name in sorted(examples)},
        "balance": balance.model_dump(),
        "weights": weights and {name: weights[name] for name in sorted(weights)},
        "num_samples": num_samples,
        "shard_bytes": shard_bytes,
        "images": pictures.facts(),
        "seed": seed,
    }

    def make(out: Path) -> dict[str, Any]:
        for directory in examples.values():
            verify_examples(directory)
        built = {name: read_manifest(directory) for name, directory in examples.items()}
        for name, manifest in built.items():
            for unit in ("rows", "turns"):
                check_ledger(f"{unit} of {name}", manifest[unit])
        got, mixture = mix(balance, weights, built, num_samples, seed)
        starts = cut_shards(mixture, examples, num_samples, shard_bytes, pictures)
        plan = ShardPlan(out, dict(examples), dict(image_roots), pictures, mixture, starts)
        log(f"{num_samples:,} samples in {plan.num_shards} shards")
        _run(plan, list(beam_options))
        facts = [json.loads(plan.facts_file(shard).read_text()) for shard in range(plan.num_shards)]
        lengths = write_lengths(plan)
        FileDigests(store).remember({out / each["file"]: each["sha256"] for each in [*facts, lengths]})
        for shard in range(plan.num_shards):
            plan.facts_file(shard).unlink()
        sums: dict[str, Counter[str]] = {name: Counter() for name in mixture.names}
        for shard in facts:
            for name, values in shard.pop("datasets").items():
                sums[name].update(values)
        total = {name: sum(s[name] for s in sums.values()) for name in ("num_tokens", "num_supervised")}
        manifest = {
            "format": FORMAT,
            "num_samples": num_samples,
            "images": pictures.facts(),
            # Determines the order of the samples, together with the number of examples of each dataset.
            "mixture": {
                "period": PERIOD,
                "quotas": dict(zip(mixture.names, mixture.quotas, strict=True)),
                "seed": seed,
            },
            "datasets": {name: _facts(name, balance, got, built[name], sums) for name in mixture.names},
            "image_token_id": prepared.image_token_id,
            "tokenizer": prepared.fingerprint,
            **total,
            "lengths": lengths,
            "shards": facts,
        }
        with says_if_full(out / CARD):
            write_atomic(out / CARD, card(manifest, built))
        return manifest

    directory = store.produce("shards", key, make)
    _check_unchanged(store, directory)
    return directory


def _check_unchanged(store: Store, directory: Path) -> None:
    """Raises ShardError if a file differs from what was built. A file is only read if its modification time has changed
    since it was last checked."""
    manifest = read_shards_manifest(directory)
    check_sizes(directory, manifest)
    named = [*manifest["shards"], manifest["lengths"]]
    digests = FileDigests(store).digests(directory / facts["file"] for facts in named)
    for facts, digest in zip(named, digests, strict=True):
        if digest != facts["sha256"]:
            raise ShardError(
                f"{directory / facts['file']} has changed since it was built: delete {directory} and build again "
                f"(`honeybee verify {directory}` checks all files)"
            )


def mix(
    balance: Balance,
    weights: Mapping[str, float] | None,
    built: Mapping[str, Mapping[str, Any]],
    num_samples: int,
    seed: int,
) -> tuple[Shares, Mixture]:
    """Returns the shares and the mixture of a stage. built: dataset → the manifest of its examples, or a stand-in with
    `task`, `num_examples` and `num_supervised`. Raises BalanceError or MixtureError if there is no such mixture."""
    for name, m in built.items():
        if not m["num_examples"] and m.get("rows", {}).get("rejects"):
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in m["rows"]["rejects"].items())
            raise BalanceError(f"{name}: in the mixture, but has no examples: of {m['rows']['read']:,} rows, {reasons}")
    sizes = {name: Size(m["task"], m["num_examples"], m["num_supervised"]) for name, m in built.items()}
    got = shares(balance, weights, sizes, num_samples)
    counts = {name: size.examples for name, size in sizes.items()}
    return got, make_mixture(got.examples, counts, seed, got.limits, num_samples)


def _facts(
    name: str, balance: Balance, got: Shares, built: Mapping[str, Any], sums: Mapping[str, Counter[str]]
) -> dict[str, Any]:
    """Returns the manifest's entry for a dataset: its shares in the strategy's unit, the totals of its samples and the
    ledger of its examples."""
    unit = "samples" if balance.unit == "examples" else "num_supervised"
    mine = sums[name]
    return {
        "share_wanted": got.wanted[name],
        "share": mine[unit] / sum(each[unit] for each in sums.values()),
        "limited": name in got.limited,
        "examples": built["num_examples"],
        "epochs": mine["samples"] / built["num_examples"],
        "samples": mine["samples"],
        **{key: mine[key] for key in ("num_turns", "num_images", "num_tokens", "num_supervised")},
        "ledger": {unit: built[unit] for unit in ("rows", "turns")},
    }


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
        raise RuntimeError(f"the Beam runner did not write the shards {lost}; run again with FnApiRunner")
