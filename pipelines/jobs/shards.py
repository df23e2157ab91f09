"""Beam job 2: mixes the examples of all datasets into balanced shards. Each shard is written independently."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.core.beam import BEAM_OPTIONS
from pipelines.core.errors import ShardError
from pipelines.core.files import explain_full_disk, write_atomic
from pipelines.core.store import FileDigests, Store, read_manifest
from pipelines.examples.ledger import check_ledger
from pipelines.examples.reader import verify_examples
from pipelines.mixture.order import PERIOD, mix
from pipelines.mixture.shares import Balance, Shares
from pipelines.shards.beam_job import write_all_shards
from pipelines.shards.card import CARD, card
from pipelines.shards.manifest import FORMAT, check_sizes, read_shards_manifest
from pipelines.shards.plan import ImageMode, ShardPlan, cut_shards
from pipelines.shards.writer import write_lengths
from pipelines.tokens.tokenizer import load_tokenizer

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
    image_mode: ImageMode = ImageMode(),
    beam_options: Sequence[str] = BEAM_OPTIONS,
    log: Callable[[str], None] = print,
) -> Path:
    """Writes the first `num_samples` samples of the mixture as shards; returns their directory.

    examples: dataset → directory returned by build_examples; balance: the strategy that sets the shares; weights:
    dataset → share, for `tuned`; shard_bytes: approximate maximum size of a shard (pipelines/shards/plan.py). Raises
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
        "images": image_mode.facts(),
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
        starts = cut_shards(mixture, examples, num_samples, shard_bytes, image_mode)
        plan = ShardPlan(out, dict(examples), dict(image_roots), image_mode, mixture, starts)
        log(f"{num_samples:,} samples in {plan.num_shards} shards")
        write_all_shards(plan, list(beam_options))
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
            "images": image_mode.facts(),
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
        with explain_full_disk(out / CARD):
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
        "limited": name in got.capped,
        "examples": built["num_examples"],
        "epochs": mine["samples"] / built["num_examples"],
        "samples": mine["samples"],
        **{key: mine[key] for key in ("num_turns", "num_images", "num_tokens", "num_supervised")},
        "ledger": {unit: built[unit] for unit in ("rows", "turns")},
    }
