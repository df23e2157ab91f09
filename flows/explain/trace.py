"""Traces a training token back to its source: official file and row, template and deduplication decision."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from flows.runs.find import Run, open_run
from flows.runs.workspace import Workspace
from pipelines.core.arrow_files import open_batches
from pipelines.core.integrity import check, listed
from pipelines.core.store import read_manifest
from pipelines.tokens.tokenizer import load_tokenizer


class TraceError(ValueError):
    """A shard, row, turn or token does not exist, or data is gone from the store; the message says what to do."""


def trace(
    run: str | Run, stage: str, shard: int, row: int, turn: int | None = None, token: int | None = None
) -> dict[str, Any]:
    """Returns the origin of a sample and its turns, as printed by `honeybee trace --json`.

    run: as for open_run. shard, row: index of the shard, and of the row in it. turn: include only this turn of the
    sample. token: include only the turn of the token at this position of input_ids. Raises TraceError or RunError.
    """
    found = open_run(run)
    if stage not in found.shards:
        raise TraceError(f"{found.directory} has no data of stage {stage!r}; it has {', '.join(found.shards)}")
    shards = found.shards[stage]
    workspace = found.workspace()
    manifest = read_manifest(shards)
    sample = _sample(shards, manifest, shard, row)
    dataset = sample["dataset"]
    examples = _entry(workspace, "examples", manifest["key"]["examples"][dataset])
    ends = _turn_ends(np.array(sample["loss_mask"]))
    wanted = _wanted_turns(len(sample["turns"]), ends, turn, token)
    starts = [0, *ends[:-1]]
    return {
        "sample": sample["index"],
        "stage": stage,
        "shard": str(shards / manifest["shards"][shard]["file"]),
        "row": row,
        "dataset": dataset,
        "example": sample["example"],
        "images": [image["path"] for image in sample["images"]],
        "tokens": sample["num_tokens"],
        "turns": [
            {"turn": number, "tokens": [starts[number], ends[number]]}
            | _supervised(workspace, examples, sample, starts[number], ends[number])
            | _turn(workspace, dataset, examples, sample["turns"][number])
            for number in wanted
        ],
    }


def lines(found: dict[str, Any]) -> list[str]:
    """Formats the result of `trace` for a terminal."""
    images = ", ".join(found["images"]) or "no image"
    text = [
        f"Sample {found['sample']} of {found['stage']}: row {found['row']} of {found['shard']}",
        f"Example {found['example']} of {found['dataset']}: {found['tokens']} tokens, {images}",
    ]
    for turn in found["turns"]:
        begin, end = turn["tokens"]
        first, last = turn["supervised"]["tokens"]
        template, duplicates = turn["template"], turn["deduplication"]
        text += [
            "",
            f"Turn {turn['turn']}: tokens {begin} to {end - 1}",
            f"  user       {turn['user']!r}",
            f"  assistant  {turn['assistant']!r}",
            f"  supervised tokens {first} to {last - 1}: {turn['supervised']['text']!r}",
            f"  file       {turn['file']}",
            f"  row        {turn['row_in_file']} of the file, counted from 0 (row {turn['row']} of the dataset)"
            + (f", turn {turn['turn_in_row']}" if turn["turn_in_row"] else ""),
            *(f"  {name:10} {value!r}" for name, value in turn["annotation"].items()),
            f"  template   {template['id']}: {template['user']!r} → {template['assistant']!r}",
            f"  duplicates {duplicates['decision']}",
            *(f"             {line}" for line in duplicates["dropped for it"]),
        ]
    return text


def _sample(shards: Path, manifest: dict[str, Any], shard: int, row: int) -> dict[str, Any]:
    count = len(manifest["shards"])
    if not 0 <= shard < count:
        raise TraceError(f"there is no shard {shard}: {shards} has {count} shards, counted from 0")
    facts = manifest["shards"][shard]
    if not 0 <= row < facts["num_samples"]:
        raise TraceError(f"there is no row {row}: {facts['file']} has {facts['num_samples']} rows, counted from 0")
    check(shards, pattern=facts["file"])
    file = pq.ParquetFile(shards / facts["file"])
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if row < rows:
            return file.read_row_group(group).slice(row, 1).to_pylist()[0]
        row -= rows
    raise TraceError(
        f"{shards / facts['file']} has fewer rows than its manifest states: check the shards with `honeybee verify`"
    )


def _turn_ends(mask: np.ndarray) -> list[int]:
    """Returns the end position (exclusive) of each turn: a turn ends with its last supervised token."""
    return (np.flatnonzero(np.diff(np.append(mask, False).astype(np.int8)) == -1) + 1).tolist()


def _wanted_turns(count: int, ends: list[int], turn: int | None, token: int | None) -> list[int]:
    if turn is not None and not 0 <= turn < count:
        raise TraceError(f"there is no turn {turn}: the sample has {count} turns, counted from 0")
    if token is not None:
        if not 0 <= token < ends[-1]:
            raise TraceError(f"there is no token {token}: the last token of the sample's turns is {ends[-1] - 1}")
        turn = int(np.searchsorted(ends, token, side="right"))
    return list(range(count)) if turn is None else [turn]


def _supervised(workspace: Workspace, examples: Path, sample: dict[str, Any], begin: int, end: int) -> dict[str, Any]:
    key = read_manifest(examples)["key"]
    made = workspace.store.entries("tokenizers")
    found = next((directory for directory, facts in made if facts["fingerprint"] == key["tokenizer"]), None)
    if found is None:
        raise TraceError(f"the store no longer has tokenizer {key['tokenizer']}: build the recipe again")
    first = begin + sample["loss_mask"][begin:end].index(True)
    text = load_tokenizer(found).tokenizer.decode(sample["input_ids"][first:end], skip_special_tokens=False)
    return {"supervised": {"tokens": [first, end], "text": text}}


def _turn(workspace: Workspace, dataset: str, examples: Path, turn: dict[str, Any]) -> dict[str, Any]:
    built = read_manifest(examples)
    annotations = _entry(workspace, "annotations", built["key"]["annotations"])
    row = turn["row"]
    file, first = [entry for entry in read_manifest(annotations)["files_rows"] if entry[1] <= row][-1]
    template = next(each for each in built["templates"] if each["id"] == turn["template"])
    return {
        "user": turn["user"],
        "assistant": turn["assistant"],
        "file": str(workspace.spec(dataset).annotations / file),
        "row": row,
        "row_in_file": row - first,
        "turn_in_row": turn["turn"],
        "annotation": _annotation(annotations, row),
        "template": template,
        "deduplication": _deduplication(examples, built["key"]["dedup"], row),
    }


def _annotation(directory: Path, row: int) -> dict[str, Any]:
    for path in listed(directory, "*.arrow"):
        check(directory, pattern=path.name)
        reader = open_batches(path)
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            first = batch.column("row")[0].as_py()
            if first <= row < first + batch.num_rows:
                found = batch.slice(row - first, 1).to_pylist()[0]
                return {name: value for name, value in found.items() if value is not None and name != "row"}
    raise TraceError(f"{directory} has no row {row}: build the recipe again")


def _deduplication(examples: Path, rule: dict[str, Any] | None, row: int) -> dict[str, Any]:
    if rule is None:
        return {
            "decision": "not compared: the dataset has one turn per example, or deduplication is off",
            "dropped for it": [],
        }
    names = {"semantic": "meaning", "answer": "answer", "semantic+answer": "meaning and answer"}
    threshold = "the default threshold" if rule["threshold"] is None else f"threshold {rule['threshold']}"
    decision = f"kept after comparing the {names[rule['rule']]} with earlier turns ({rule['compare']}, {threshold})"
    check(examples, pattern="duplicates-*.parquet")
    files = listed(examples, "duplicates-*.parquet")
    found = ds.dataset(files, format="parquet").to_table(filter=ds.field("kept_row") == row).to_pylist()
    dropped = [
        f"dropped as its duplicate: row {each['row']} {each['text']!r}, {each['rule']}"
        + ("" if each["similarity"] is None else f" {each['similarity']:.3f}")
        for each in found
    ]
    return {"decision": decision, "dropped for it": dropped}


def _entry(workspace: Workspace, kind: str, name: str) -> Path:
    directory = workspace.store.entry(kind, name)
    if not directory.is_dir():
        raise TraceError(f"the store no longer has {directory}: build the recipe again")
    return directory
