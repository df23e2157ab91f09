"""Table rows for the report, the UI and the terminal, from the manifests of a stage's data and from scores.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines.store import read_manifest

Row = dict[str, Any]
NO_BENCHMARKS = ("shuffled", "settings")  # keys of scores.json that are not benchmarks
MAIN = ("score", "accuracy")  # the main measure of a part of a benchmark, in order of preference
BARE = "capabilities"  # MM-Vet's groups, whose values are plain numbers
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
    """Returns a sentence that describes a balancing strategy (pipelines/balance.py) and its parameters."""
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


def scores(summary: Mapping[str, Any], every: bool = False, decimals: int = 1) -> list[Row]:
    """Returns scores.json as rows: each benchmark's scores, in total and by group, next to those of the shuffled-image
    control. every: show all measures of a group instead of only its main one."""
    control = summary.get("shuffled", {})
    rows: list[Row] = []
    for benchmark, entry in summary.items():
        shuffled = measures(benchmark, control.get(benchmark, {}), every)
        for (part, measure), value in measures(benchmark, entry, every).items():
            row = {"benchmark": benchmark, "part": part, "measure": measure, "score": f"{value:.{decimals}f}"}
            if control:
                row["shuffled images"] = (
                    f"{shuffled[part, measure]:.{decimals}f}" if (part, measure) in shuffled else ""
                )
            rows.append(row)
    return rows


def measures(benchmark: str, entry: Mapping[str, Any], every: bool = False) -> dict[tuple[str, str], float]:
    """Returns (part, measure) → value for one benchmark in scores.json: all measures in total, and of each group the
    main measure or, with `every`, all."""
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
    """Returns a Markdown table with the columns of the first row."""
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
    """Returns reason → row and detail of its first reject."""
    first: dict[str, str] = {}
    for path in sorted(directory.glob("rejects-*.parquet")):
        for entry in pq.read_table(path).to_pylist():
            first.setdefault(entry["reason"], f"row {entry['row']}: {entry['detail'] or ''}".rstrip(": "))
    return first


def plain(rows: Sequence[Row]) -> list[str]:
    """Returns a table as lines of aligned columns, for a terminal."""
    if not rows:
        return []
    columns = list(rows[0])
    lines = [columns, *([f"{v:,}" if isinstance(v, int) else str(v) for v in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return ["  " + "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
