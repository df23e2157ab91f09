"""From a training token back to its source: official file and row, template, de-duplication decision (promise 7)."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from flows.recipe import load_recipe
from flows.runs import find_run, stage_shards
from flows.workspace import Workspace, locate_workspace
from pipelines.arrow_files import open_batches
from pipelines.store import MANIFEST, read_manifest
from pipelines.tokenizer import load_tokenizer


class TraceError(ValueError):
    """A place that is not there, or data that the store no longer holds; the message says what to do."""


def trace(
    run: str, stage: str, shard: int, row: int, turn: int | None = None, token: int | None = None
) -> dict[str, Any]:
    """run: see find_run; shard: its number; row: in the shard, from 0. turn: only that turn of the sample; token: only
    the turn that this token (a place in input_ids) belongs to. Raises TraceError; RunError for a run that is none.
    """
    directory = find_run(run)
    found = stage_shards(directory)
    if stage not in found:
        raise TraceError(f"no data of stage {stage!r} in {directory}: there are {', '.join(found)}")
    shards = found[stage]
    workspace = locate_workspace(load_recipe(directory / "recipe.yaml"))
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
    """What `trace` returned, for a terminal."""
    images = ", ".join(found["images"]) or "no picture"
    text = [
        f"Sample {found['sample']} of {found['stage']}: row {found['row']} of {found['shard']}",
        f"Example {found['example']} of {found['dataset']}, {found['tokens']} tokens, {images}",
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
            f"  learned    tokens {first} to {last - 1}: {turn['supervised']['text']!r}",
            f"  file       {turn['file']}",
            f"  row        {turn['row_in_file']} of it, counted from 0 ({turn['row']} of the dataset)"
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
        raise TraceError(f"there is no shard {shard}: {shards} has {count}, counted from 0")
    facts = manifest["shards"][shard]
    if not 0 <= row < facts["num_samples"]:
        raise TraceError(f"there is no row {row}: {facts['file']} has {facts['num_samples']}, counted from 0")
    file = pq.ParquetFile(shards / facts["file"])
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if row < rows:
            return file.read_row_group(group).slice(row, 1).to_pylist()[0]
        row -= rows
    raise TraceError(
        f"{shards / facts['file']} holds fewer rows than its manifest says: honeybee verify finds out more"
    )


def _turn_ends(mask: np.ndarray) -> list[int]:
    """After the last token of each turn: a turn ends where its supervised tokens end."""
    return (np.flatnonzero(np.diff(np.append(mask, False).astype(np.int8)) == -1) + 1).tolist()


def _wanted_turns(count: int, ends: list[int], turn: int | None, token: int | None) -> list[int]:
    if turn is not None and not 0 <= turn < count:
        raise TraceError(f"there is no turn {turn}: the sample has {count}, counted from 0")
    if token is not None:
        if not 0 <= token < ends[-1]:
            raise TraceError(f"there is no token {token}: the turns of the sample end at {ends[-1] - 1}")
        turn = int(np.searchsorted(ends, token, side="right"))
    return list(range(count)) if turn is None else [turn]


def _supervised(workspace: Workspace, examples: Path, sample: dict[str, Any], begin: int, end: int) -> dict[str, Any]:
    key = read_manifest(examples)["key"]
    made = sorted(path.parent for path in (workspace.store.root / "tokenizers").glob(f"*/{MANIFEST}"))
    prepared = next((found for found in map(load_tokenizer, made) if found.fingerprint == key["tokenizer"]), None)
    if prepared is None:
        raise TraceError(f"the tokenizer {key['tokenizer']} is gone from the store: build the recipe again")
    first = begin + sample["loss_mask"][begin:end].index(True)
    text = prepared.tokenizer.decode(sample["input_ids"][first:end], skip_special_tokens=False)
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
    for path in sorted(directory.glob("*.arrow")):
        reader = open_batches(path)
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            first = batch.column("row")[0].as_py()
            if first <= row < first + batch.num_rows:
                found = batch.slice(row - first, 1).to_pylist()[0]
                return {name: value for name, value in found.items() if value is not None and name != "row"}
    raise TraceError(f"{directory} has no row {row}: build again")


def _deduplication(examples: Path, rule: dict[str, Any] | None, row: int) -> dict[str, Any]:
    if rule is None:
        return {
            "decision": "not compared: the dataset's turns stand alone, or de-duplication is off",
            "dropped for it": [],
        }
    names = {"semantic": "meaning", "answer": "answer", "semantic+answer": "meaning and answer"}
    threshold = "the default threshold" if rule["threshold"] is None else f"threshold {rule['threshold']}"
    decision = f"kept: compared by {names[rule['rule']]} ({rule['compare']}, {threshold}) with the turns kept before it"
    files = sorted(examples.glob("duplicates-*.parquet"))
    found = ds.dataset(files, format="parquet").to_table(filter=ds.field("kept_row") == row).to_pylist()
    dropped = [
        f"dropped for it: row {each['row']} {each['text']!r}, {each['rule']}"
        + ("" if each["similarity"] is None else f" {each['similarity']:.3f}")
        for each in found
    ]
    return {"decision": decision, "dropped for it": dropped}


def _entry(workspace: Workspace, stage: str, name: str) -> Path:
    directory = workspace.store.root / stage / name
    if not directory.is_dir():
        raise TraceError(f"{directory} is gone from the store: build the recipe again")
    return directory
