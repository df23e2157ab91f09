"""store/shards/: the examples of all datasets → balanced shards, by Beam job 2.

Raise VERSION when a change to pipelines/shards/, pipelines/mixture/ or pipelines/images/shrink.py changes the bytes
that are written.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.core.beam import BEAM_OPTIONS
from pipelines.core.files import explain_full_disk, write_atomic
from pipelines.core.store import Store, read_manifest
from pipelines.examples.ledger import check_ledger
from pipelines.jobs.dataset import Log
from pipelines.mixture.order import PERIOD, mix
from pipelines.mixture.shares import Balance, Shares
from pipelines.shards.beam_job import write_all_shards
from pipelines.shards.card import CARD, card
from pipelines.shards.manifest import FORMAT, read_shards_manifest
from pipelines.shards.plan import ShardPlan, cut_shards
from pipelines.shards.settings import ShardSettings
from pipelines.shards.writer import read_facts, write_lengths
from pipelines.tokens.tokenizer import load_tokenizer

VERSION = 6


def build_shards(
    store: Store,
    examples: Mapping[str, Path],
    image_roots: Mapping[str, Path],
    settings: ShardSettings,
    beam_options: Sequence[str] = BEAM_OPTIONS,
    log: Log = print,
) -> Path:
    """Writes the first `num_samples` samples of the mixture as shards; returns their directory.

    examples: dataset → directory returned by build_examples. Raises BalanceError or MixtureError for an impossible
    mixture, ShardError if images have changed, DamagedError if examples have, StoreError or ShardError if the disk is
    full, RuntimeError if the examples' ledgers do not add up.
    """
    key = {
        "version": VERSION,
        "examples": {name: examples[name].name for name in sorted(examples)},
        **settings.key(),
    }

    def make(out: Path) -> dict[str, Any]:
        for directory in examples.values():
            store.check(directory)
        built = {name: read_manifest(directory) for name, directory in examples.items()}
        for name, manifest in built.items():
            for unit in ("rows", "turns"):
                check_ledger(f"{unit} of {name}", manifest[unit])
        got, mixture = mix(settings.balance, settings.weights, built, settings.num_samples, settings.seed)
        starts = cut_shards(mixture, examples, settings.num_samples, settings.shard_bytes, settings.image_mode)
        plan = ShardPlan(out, dict(examples), dict(image_roots), settings.image_mode, mixture, starts)
        log(f"{settings.num_samples:,} samples in {plan.num_shards} shards")
        write_all_shards(plan, list(beam_options))
        facts = [read_facts(plan, shard) for shard in range(plan.num_shards)]
        lengths = write_lengths(plan)
        for shard in range(plan.num_shards):
            plan.facts_file(shard).unlink()
        sums: dict[str, Counter[str]] = {name: Counter() for name in mixture.names}
        for each in facts:
            for name, values in each.pop("datasets").items():
                sums[name].update(values)
        total = {name: sum(s[name] for s in sums.values()) for name in ("num_tokens", "num_supervised")}
        tokenizer = load_tokenizer(settings.tokenizer)
        manifest = {
            "format": FORMAT,
            "num_samples": settings.num_samples,
            "images": settings.image_mode.facts(),
            # Determines the order of the samples, together with the number of examples of each dataset.
            "mixture": {
                "period": PERIOD,
                "quotas": dict(zip(mixture.names, mixture.quotas, strict=True)),
                "seed": settings.seed,
            },
            "datasets": {name: _facts(name, settings.balance, got, built[name], sums) for name in mixture.names},
            "image_token_id": tokenizer.image_token_id,
            "tokenizer": tokenizer.fingerprint,
            **total,
            "lengths": lengths,
            "shards": facts,
        }
        with explain_full_disk(out / CARD):
            write_atomic(out / CARD, card(manifest, built))
        return manifest

    directory = store.produce("shards", key, make)
    read_shards_manifest(directory)
    return directory


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
