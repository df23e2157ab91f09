"""Lists the turns that deduplication dropped from their examples, the most surprising ones first."""

import heapq
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from flows.runs.find import Run, RunError, open_run
from pipelines.core.integrity import check, listed
from pipelines.core.store import read_manifest
from pipelines.core.text_tables import Row
from pipelines.dedup.english import tokens

COLUMNS = ("dropped", "kept", "similarity", "rule", "row", "kept row")


def most_surprising(examples: Mapping[str, Path], limit: int) -> list[Row]:
    """Returns, per dataset, the `limit` dropped turns that share the smallest part of their words with the kept turn;
    ties go to the lower similarity. Wrong drops, and those that no string comparison finds, are probably among them."""
    return [
        {"dataset": name, **_shown(drop)}
        for name, directory in sorted(examples.items())
        for drop in heapq.nsmallest(limit, _drops(directory), key=_likeness)
    ]


def show(run: str | Run, dataset: str | None, limit: int) -> Iterator[str]:
    """Yields the lines of `honeybee show --duplicates`. run: as for open_run. dataset: show only this one.
    Raises RunError if the run or the dataset does not exist."""
    found = open_run(run)
    known: set[str] = set()
    for stage in found.shards:
        built = found.examples_of(stage)
        known |= set(built)
        for name in sorted(built if dataset is None else {dataset} & set(built)):
            examples = built[name]
            turns = read_manifest(examples)["turns"]
            head = f"{stage}, {name}: dropped {turns['duplicates']:,} of {turns['read']:,} turns"
            yield head + (f"; the {limit} most surprising:" if turns["duplicates"] > limit else "")
            for drop in most_surprising({name: examples}, limit):
                similarity = f" {drop['similarity']}" if drop["similarity"] else ""
                yield f"  {drop['rule']}{similarity}"
                yield f"    kept     row {drop['kept row']}: {drop['kept']}"
                yield f"    dropped  row {drop['row']}: {drop['dropped']}"
    if dataset is not None and dataset not in known:
        raise RunError(f"{found.directory} has no dataset {dataset!r}; it has {', '.join(sorted(known))}")


def _drops(examples: Path) -> Iterator[dict[str, Any]]:
    check(examples, pattern="duplicates-*.parquet")
    for path in listed(examples, "duplicates-*.parquet"):
        for batch in pq.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()


def _likeness(drop: dict[str, Any]) -> tuple[float, float, int]:
    words, others = (set(tokens(text)) for text in (drop["text"], drop["kept_text"]))
    return len(words & others) / max(1, len(words | others)), drop["similarity"] or 0.0, drop["row"]


def _shown(drop: dict[str, Any]) -> Row:
    similarity = "" if drop["similarity"] is None else f"{drop['similarity']:.3f}"
    values = drop["text"], drop["kept_text"], similarity, drop["rule"], drop["row"], drop["kept_row"]
    return dict(zip(COLUMNS, values, strict=True))
