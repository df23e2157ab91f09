"""What the manifests of a stage's data say, as table rows for the report and the UI."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines.store import read_manifest

Row = dict[str, Any]
NO_BENCHMARKS = ("shuffled", "settings")  # what scores.json holds besides
MAIN = ("score", "accuracy")  # the measure that a part of a benchmark is known by
BARE = "capabilities"  # groups of MM-Vet, whose values are scores
AT_LIMIT = " (limit)"  # beside the epochs of a dataset that max_epochs holds back


def mixture(shards: Path, image_tokens: int) -> list[Row]:
    """One row for each dataset of a stage: rows read, examples, its share, and how often and how much of it is seen.
    image_tokens: visual tokens of an image."""
    return [
        {
            "dataset": name,
            "rows": entry["ledger"]["rows"]["read"],
            "examples": entry["examples"],
            "turns each": f"{entry['ledger']['turns']['examples'] / entry['examples']:.1f}",
            "share wanted": f"{entry['share_wanted']:.1%}",
            "share got": f"{entry['share']:.1%}",
            "samples": entry["samples"],
            "epochs": f"{entry['epochs']:.2f}" + (AT_LIMIT if entry["limited"] else ""),
            "supervised tokens": entry["num_supervised"],
            "visual tokens": entry["num_images"] * image_tokens,
        }
        for name, entry in sorted(read_manifest(shards)["datasets"].items())
    ]


def balance(chosen: Mapping[str, Any]) -> str:
    """The sentence about a strategy (pipelines/balance.py) and its numbers."""
    numbers = [f"{name} {chosen[name]}" for name in ("cap", "temperature") if chosen[name] is not None]
    epochs = chosen["max_epochs"]
    if isinstance(epochs, Mapping):
        numbers += [f"at most {limit:g} epochs of {name}" for name, limit in epochs.items()]
    elif epochs is not None:
        numbers.append(f"at most {epochs:g} epochs of each")
    named = ", ".join([chosen["strategy"], *numbers])
    return f"Shares of {chosen['unit'].replace('_', ' ')} by the strategy {named}."


def losses(examples: Mapping[str, Path]) -> list[Row]:
    """Where the rows that are in no example went: one row for each dataset and reason."""
    rows: list[Row] = []
    for name, directory in sorted(examples.items()):
        built = read_manifest(directory)
        counts = {**built["rows"]["rejects"], "duplicate": built["rows"]["duplicates"]}
        samples = _first_details(directory)
        rows += [
            {"dataset": name, "reason": reason, "rows": count, "for example": samples.get(reason, "")}
            for reason, count in sorted(counts.items())
            if count
        ]
    return rows


def scores(summary: Mapping[str, Any], every: bool = False, decimals: int = 1) -> list[Row]:
    """scores.json as rows: each benchmark's numbers, over all and by group, beside those of the control. every: all
    measures of a group instead of its main one."""
    control = summary.get("shuffled", {})
    rows: list[Row] = []
    for benchmark, entry in summary.items():
        shuffled = measures(benchmark, control.get(benchmark, {}), every)
        for (part, measure), value in measures(benchmark, entry, every).items():
            row = {"benchmark": benchmark, "part": part, "measure": measure, "score": f"{value:.{decimals}f}"}
            if control:
                row["images shuffled"] = (
                    f"{shuffled[part, measure]:.{decimals}f}" if (part, measure) in shuffled else ""
                )
            rows.append(row)
    return rows


def measures(benchmark: str, entry: Mapping[str, Any], every: bool = False) -> dict[tuple[str, str], float]:
    """(part, measure) → value, of one benchmark in scores.json: of the whole every measure, of its groups their main
    one, or all."""
    if benchmark in NO_BENCHMARKS:
        return {}
    found = {("all", measure): value for measure, value in entry.items() if isinstance(value, float)}
    for name, groups in entry.items():
        for part, values in groups.items() if isinstance(groups, dict) else ():
            if name == BARE:
                values = {"score": values}
            known = {k: v for k, v in values.items() if isinstance(v, float)} if isinstance(values, dict) else {}
            main = [key for key in MAIN if key in known][:1]
            found |= {(part, key): known[key] for key in (known if every and main else main)}
    return found


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table; columns are those of the first row."""
    if not rows:
        return "None.\n"
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([_cell(row[column]) for column in columns] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    for mark in "\\`*[]<>|":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def _first_details(directory: Path) -> dict[str, str]:
    """reason → row and detail of its first reject."""
    first: dict[str, str] = {}
    for path in sorted(directory.glob("rejects-*.parquet")):
        for entry in pq.read_table(path).to_pylist():
            first.setdefault(entry["reason"], f"row {entry['row']}: {entry['detail'] or ''}".rstrip(": "))
    return first


def plain(rows: Sequence[Row]) -> list[str]:
    """Lines of aligned columns, for a terminal."""
    if not rows:
        return []
    columns = list(rows[0])
    lines = [columns, *([f"{v:,}" if isinstance(v, int) else str(v) for v in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return ["  " + "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
