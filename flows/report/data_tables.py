"""Tables about data and training: mixture, balance and loss curve."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines.core.store import read_manifest
from pipelines.core.text_tables import Row

AT_LIMIT = " (limit)"  # marks the epochs of a dataset that max_epochs limits


def mixture(shards: Path, image_tokens: int) -> list[Row]:
    """Returns one row per dataset of a stage: its rows, examples, share, samples, epochs and tokens. image_tokens:
    visual tokens per image."""
    return [
        {
            "dataset": name,
            "rows": entry["ledger"]["rows"]["read"],
            "examples": entry["examples"],
            "turns per example": f"{entry['ledger']['turns']['examples'] / entry['examples']:.1f}",
            "target share": f"{entry['share_wanted']:.1%}",
            "actual share": f"{entry['share']:.1%}",
            "samples": entry["samples"],
            "epochs": f"{entry['epochs']:.2f}" + (AT_LIMIT if entry["limited"] else ""),
            "supervised tokens": entry["num_supervised"],
            "visual tokens": entry["num_images"] * image_tokens,
        }
        for name, entry in sorted(read_manifest(shards)["datasets"].items())
    ]


def balance(chosen: Mapping[str, Any]) -> str:
    """Returns a sentence that describes a balancing strategy (pipelines/mixture/shares.py) and its parameters."""
    numbers = [f"{name} {chosen[name]}" for name in ("cap", "temperature") if chosen[name] is not None]
    epochs = chosen["max_epochs"]
    if isinstance(epochs, Mapping):
        numbers += [f"at most {limit:g} epochs of {name}" for name, limit in epochs.items()]
    elif epochs is not None:
        numbers.append(f"at most {epochs:g} epochs of each dataset")
    named = ", ".join([chosen["strategy"], *numbers])
    return f"Balancing strategy (in shares of {chosen['unit'].replace('_', ' ')}): {named}."


def losses(examples: Mapping[str, Path]) -> list[Row]:
    """Returns one row per dataset and reason for the annotation rows without an example."""
    rows: list[Row] = []
    for name, directory in sorted(examples.items()):
        built = read_manifest(directory)
        counts = {**built["rows"]["rejects"], "duplicate": built["rows"]["duplicates"]}
        samples = _first_details(directory)
        rows += [
            {"dataset": name, "reason": reason, "rows": count, "first row": samples.get(reason, "")}
            for reason, count in sorted(counts.items())
            if count
        ]
    return rows


def _first_details(directory: Path) -> dict[str, str]:
    """Returns reason → row and detail of its first reject."""
    first: dict[str, str] = {}
    for path in sorted(directory.glob("rejects-*.parquet")):
        for entry in pq.read_table(path).to_pylist():
            first.setdefault(entry["reason"], f"row {entry['row']}: {entry['detail'] or ''}".rstrip(": "))
    return first
