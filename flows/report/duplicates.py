"""Lists the turns that deduplication dropped from their examples, the most surprising ones first."""

from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from flows.runs.find import Run, RunError, open_run
from pipelines.core.integrity import check, listed
from pipelines.core.store import read_manifest
from pipelines.core.text_tables import Row
from pipelines.dedup.english import tokens

Pair = tuple[str, str]
Rank = tuple[float, float, Pair]
COLUMNS = ("dropped", "kept", "similarity", "rule", "times", "row", "kept row")


def most_surprising(examples: Mapping[str, Path], limit: int) -> list[Row]:
    """Returns, per dataset, the `limit` distinct pairs of dropped and kept turns that share the smallest part of their
    words; ties go to the lower similarity. Wrong drops, and those that no string comparison finds, are probably among
    them. `times` counts the drops of a pair, whichever of the two was kept; the rows are those of its first drop."""
    return [
        {"dataset": name, **_shown(drop, times)}
        for name, directory in sorted(examples.items())
        for drop, times in _distinct(_drops(directory), limit)
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
                times = f" ({drop['times']} times)" if drop["times"] > 1 else ""
                yield f"  {drop['rule']}{similarity}{times}"
                yield f"    kept     row {drop['kept row']}: {drop['kept']}"
                yield f"    dropped  row {drop['row']}: {drop['dropped']}"
    if dataset is not None and dataset not in known:
        raise RunError(f"{found.directory} has no dataset {dataset!r}; it has {', '.join(sorted(known))}")


def _drops(examples: Path) -> Iterator[dict[str, Any]]:
    check(examples, pattern="duplicates-*.parquet")
    for path in listed(examples, "duplicates-*.parquet"):
        for batch in pq.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()


def _distinct(drops: Iterable[dict[str, Any]], limit: int) -> list[tuple[dict[str, Any], int]]:
    """Returns the first drop of each of the `limit` least alike pairs, and the number of its drops.

    Keeps only these pairs in memory: a pair's rank depends only on its texts, so one that was worse than `limit` others
    stays worse."""
    best: dict[Pair, tuple[Rank, dict[str, Any], int]] = {}
    for drop in drops:
        pair, rank = _ranked(drop)
        if pair in best:
            earlier, times = best[pair][1:]
            best[pair] = rank, min(earlier, drop, key=itemgetter("row")), times + 1
        elif len(best) < limit or rank < max(entry[0] for entry in best.values()):
            best[pair] = rank, drop, 1
            if len(best) > limit:
                del best[max(best, key=lambda pair: best[pair][0])]
    return [(drop, times) for _, drop, times in sorted(best.values(), key=itemgetter(0))]


def _ranked(drop: dict[str, Any]) -> tuple[Pair, Rank]:
    """Returns a drop's texts as word sequences in either order, and its rank: the share of common words, the
    similarity, and the texts."""
    words, others = (tokens(text) for text in (drop["text"], drop["kept_text"]))
    pair = min((text := " ".join(words), kept := " ".join(others)), (kept, text))
    common = len({*words} & {*others}) / max(1, len({*words, *others}))
    return pair, (common, round(drop["similarity"] or 0.0, 3), pair)


def _shown(drop: dict[str, Any], times: int) -> Row:
    similarity = "" if drop["similarity"] is None else f"{drop['similarity']:.3f}"
    values = drop["text"], drop["kept_text"], similarity, drop["rule"], times, drop["row"], drop["kept_row"]
    return dict(zip(COLUMNS, values, strict=True))
