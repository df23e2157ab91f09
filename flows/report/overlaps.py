"""Tables of the overlap between training data and benchmarks, for `honeybee overlaps` and the report."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flows.runs.find import Run, RunError, open_run
from pipelines.core import text_tables
from pipelines.core.integrity import check, listed
from pipelines.core.store import read_manifest
from pipelines.core.text_tables import Row
from pipelines.decontamination.match import KINDS
from pipelines.schema import OVERLAPS

EXAMPLES = 3  # overlaps listed per dataset, benchmark and kind


def looked_for(examples: Mapping[str, Path]) -> bool:
    """Whether these examples were compared with benchmarks. examples: dataset → directory in the store."""
    return any("overlaps" in read_manifest(directory) for directory in examples.values())


def summary(examples: Mapping[str, Path]) -> list[Row]:
    """Returns one row for each dataset and benchmark that overlap. Images are the dataset's, each counted once; the
    benchmark items are its images and questions that were found in the dataset."""
    rows: list[Row] = []
    for name, directory in sorted(examples.items()):
        built, table = read_manifest(directory), _listed(directory)
        dropped = (built["key"]["decontamination"] or {}).get("action") == "drop"
        for benchmark, counts in sorted(built.get("overlaps", {}).items()):
            if counts["rows"]:
                met = table.filter(pc.equal(table["benchmark"], benchmark))
                rows.append(
                    {
                        "dataset": name,
                        "benchmark": benchmark,
                        "identical images": counts["bytes"],
                        "similar images": counts["perceptual"],
                        "questions": counts["question"],
                        "benchmark items": pc.count_distinct(met["item"]).as_py(),
                        "rows": counts["rows"],
                        "share of all rows": f"{counts['rows'] / built['rows']['read']:.1%}",
                        "action": "dropped" if dropped else "reported only",
                    }
                )
    return rows


def listing(examples: Mapping[str, Path], limit: int) -> list[Row]:
    """Returns the first `limit` overlaps of each dataset, benchmark and kind."""
    rows: list[Row] = []
    for name, directory in sorted(examples.items()):
        table = _listed(directory)
        for benchmark in sorted(pc.unique(table["benchmark"]).to_pylist()):
            for kind in KINDS:
                chosen = pc.and_(pc.equal(table["benchmark"], benchmark), pc.equal(table["kind"], kind))
                for entry in (
                    table.filter(chosen).sort_by([("row", "ascending"), ("turn", "ascending")])[:limit].to_pylist()
                ):
                    rows.append({"dataset": name, **_shown(entry)})
    return rows


def report(run: str | Run, limit: int = EXAMPLES) -> Iterator[str]:
    """Yields the lines of `honeybee overlaps`. run: as for open_run. Raises RunError, also if nothing was compared."""
    found = open_run(run)
    for stage in found.shards:
        examples = found.examples_of(stage)
        if not looked_for(examples):
            raise RunError(
                f"{found.directory}: its data was not compared with benchmarks: its recipe has no `decontamination`"
            )
        yield f"{stage}:"
        rows = summary(examples)
        if not rows:
            yield "  No row overlaps with a benchmark."
            continue
        yield from text_tables.plain(rows)
        yield ""
        yield from text_tables.plain(listing(examples, limit))
        yield "All overlaps are listed in:"
        for name in sorted({row["dataset"] for row in rows}):
            yield f"  {name}: {examples[name]}/overlaps-*.parquet"


def _shown(entry: Mapping[str, Any]) -> Row:
    question = entry["kind"] == "question"
    return {
        "row": entry["row"],
        "turn": entry["turn"] if question else "",
        "kind": entry["kind"],
        "training data": entry["words"] if question else entry["image"],
        "benchmark": entry["benchmark"],
        "benchmark item": entry["item"],
        "hash distance": "" if question else entry["distance"],
    }


def _listed(directory: Path) -> pa.Table:
    check(directory, pattern="overlaps-*.parquet")
    parts = [pq.read_table(path) for path in listed(directory, "overlaps-*.parquet")]
    return pa.concat_tables([OVERLAPS.empty_table(), *parts])
