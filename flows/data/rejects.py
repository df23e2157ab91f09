"""Fails a build that rejects most of a dataset: wrong paths and wrong columns must not end as a small dataset."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines.core.integrity import listed
from pipelines.core.store import read_manifest
from pipelines.schema import SKIPS

UNITS = ("rows", "turns")


class TooManyRejects(ValueError):
    """More of a dataset was rejected than its recipe allows; the message names the reasons and the rejects files."""


def rejected(ledger: Mapping[str, Any]) -> tuple[dict[str, int], int]:
    """Returns reason → count, the most frequent first, and the number of rows (or turns) that the counts are a part of.
    Deliberate skips count as neither; duplicates are usable rows.

    ledger: `rows` or `turns` of the manifest of examples.
    """
    counts = {reason: count for reason, count in ledger["rejects"].items() if reason not in SKIPS}
    skipped = sum(count for reason, count in ledger["rejects"].items() if reason in SKIPS)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))), ledger["read"] - skipped


def check_rejects(examples: Mapping[str, Path], limits: Mapping[str, float]) -> None:
    """Raises TooManyRejects, naming every dataset of which more rows or turns were rejected than its limit allows.

    examples: dataset → store entry of its examples. limits: dataset → `max_rejects`, a share from 0 to 1.
    """
    problems = [line for name, directory in examples.items() if (line := _problem(name, directory, limits[name]))]
    if problems:
        raise TooManyRejects("\n".join(problems))


def over_limit(ledgers: Mapping[str, Any], limit: float) -> tuple[str, dict[str, int]] | None:
    """Returns a sentence and reason → count if more than `limit` of the rows or turns were rejected, else None.

    ledgers: `rows` and `turns` of the manifest of examples.
    """
    for unit in UNITS:
        counts, total = rejected(ledgers[unit])
        count = sum(counts.values())
        if count > limit * total:
            share = f"{count:,} of {total:,} {unit} ({count / total:.0%})"
            return f"{share} were rejected, more than the {limit:.0%} that max_rejects allows", counts
    return None


def _problem(dataset: str, examples: Path, limit: float) -> str | None:
    over = over_limit(read_manifest(examples), limit)
    if over is None:
        return None
    what, counts = over
    reasons = "".join(f"\n  {n:,} {reason}{_first(examples, reason)}" for reason, n in counts.items())
    return (
        f"datasets.{dataset}: {what}:{reasons}\nAll rejects are listed in {examples}/rejects-*.parquet. Correct the "
        f"dataset's files or its section of the recipe, or raise datasets.{dataset}.max_rejects"
    )


def _first(examples: Path, reason: str) -> str:
    """Describes the first reject with a reason."""
    for path in listed(examples, "rejects-*.parquet"):
        for entry in pq.read_table(path, filters=[("reason", "=", reason)]).slice(0, 1).to_pylist():
            return f", e.g. row {entry['row']}: {entry['detail'] or reason}"
    return ""
