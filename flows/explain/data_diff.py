"""`honeybee diff`: shows what changed in the data between two runs, from their recipes and their data's manifests."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from flows.runs.find import Run, RunError, open_run
from flows.runs.workspace import STAGES
from pipelines.core import text_tables
from pipelines.core.integrity import check
from pipelines.core.store import MANIFEST, Store, read_manifest

FILES, LEDGER, TEMPLATES = "annotations.files.", "ledger.", "templates."
_MIXTURE = ("share_wanted", "share", "samples", "epochs", "num_supervised")  # shown as a table
DIGEST_LENGTH = 64  # hex digits of a SHA-256; the output shows the first eight
Change = list[Any]  # [in A, in B]; None where the value is missing

_SETTINGS = ("version", "num_samples", "images")  # the parts of a shards key that are not covered by the recipe
# Display names for the parts of a key and of a manifest.
_WORDS = {
    "chat": "chat style",
    "images": "image bytes or sizes",
    "version": "code version",
    "ledger": "",
    "num_supervised": "supervised tokens",
    "share_wanted": "target share",
    "share": "actual share",
    "limited": "limited by max_epochs",
}


def compare(run_a: str | Run, run_b: str | Run) -> dict[str, Any]:
    """Returns what `honeybee diff --json` prints; every change is [value in A, value in B]. run_a, run_b: as for
    open_run. Raises RunError if a run does not exist or its data is not complete."""
    a, b = _finished(open_run(run_a)), _finished(open_run(run_b))
    recipes = _changes(_recipe(a.directory), _recipe(b.directory))
    found: dict[str, Any] = {"a": str(a.directory), "b": str(b.directory), "recipe": recipes, "stages": {}}
    for stage in STAGES:
        if stage in a.shards and stage in b.shards:
            change = _stage(a, b, stage)
            if change:
                found["stages"][stage] = change
        elif stage in a.shards or stage in b.shards:
            found["stages"][stage] = {"only_in": "a" if stage in a.shards else "b"}
    return found


def _finished(run: Run) -> Run:
    """Returns the run. Raises RunError if it is not finished. A finished run may have built only one stage."""
    missing = [f"data/{stage}" for stage in STAGES if stage not in run.shards]
    if missing and not (run.directory / "report.md").is_file():
        name = run.directory.name
        raise RunError(
            f"{run.directory} is not finished ({', '.join(missing)} not built): run it again with --run-id {name}"
        )
    return run


def _recipe(run: Path) -> dict[str, Any]:
    return _flat(yaml.safe_load((run / "recipe.yaml").read_text()))


def _stage(run_a: Run, run_b: Run, stage: str) -> dict[str, Any] | None:
    """Returns the differences between the shards of two runs, or None if there are none."""
    a, b = run_a.shards[stage], run_b.shards[stage]
    if a == b:
        return None
    old, new = read_manifest(a), read_manifest(b)
    examples_a, examples_b = old["key"]["examples"], new["key"]["examples"]
    datasets: dict[str, Any] = {}
    for name in sorted({*examples_a, *examples_b}):
        if name not in examples_a:
            datasets[name] = {"added": new["datasets"][name]}
        elif name not in examples_b:
            datasets[name] = {"removed": old["datasets"][name]}
        else:
            inputs = _changes(_inputs(run_a.store, examples_a[name]), _inputs(run_b.store, examples_b[name]))
            numbers = _changes(_flat(old["datasets"][name]), _flat(new["datasets"][name]))
            if inputs or numbers:
                datasets[name] = {"inputs": inputs, "numbers": numbers}
    rebuilt = {name for name in examples_a if examples_b.get(name, examples_a[name]) != examples_a[name]}
    hashes_a, hashes_b = ([shard["sha256"] for shard in manifest["shards"]] for manifest in (old, new))
    settings = _changes(*({name: manifest["key"].get(name) for name in _SETTINGS} for manifest in (old, new)))
    if not settings and not datasets and hashes_a == hashes_b:
        return None
    return {
        "settings": settings,
        "datasets": datasets,
        "shards": {"a": len(hashes_a), "b": len(hashes_b), "new": len(set(hashes_b) - set(hashes_a))},
        "samples": _samples(_order(a, old), _order(b, new), rebuilt),
    }


def _inputs(store: Store, examples: str) -> dict[str, Any]:
    """Returns everything that a dataset's examples depend on, down to the digests of its annotation files."""
    directory = store.entry("examples", examples)
    if not (directory / MANIFEST).is_file():
        return {"examples": examples}  # the examples are no longer in the store
    key = dict(read_manifest(directory)["key"])
    annotations = store.entry("annotations", key["annotations"])
    if (annotations / MANIFEST).is_file():
        source = read_manifest(annotations)["key"]
        key["annotations"] = {**source, "files": dict(source["files"])}
    templates = key.get("templates", ())
    key["templates"] = {each["id"]: {side: each[side] for side in ("user", "assistant")} for each in templates}
    return _flat(key)


def _order(shards: Path, manifest: Mapping[str, Any]) -> pa.Table:
    check(shards, pattern="shard-*.parquet")
    files = [shards / shard["file"] for shard in manifest["shards"]]
    return pa.concat_tables([pq.read_table(file, columns=["dataset", "example"]) for file in files])


def _samples(a: pa.Table, b: pa.Table, rebuilt: set[str]) -> dict[str, int]:
    """Counts the positions in training order with a different example, and those with the same example of a rebuilt
    dataset, whose content may have changed."""
    shared = min(len(a), len(b))
    (dataset_a, example_a), (dataset_b, example_b) = (
        (table["dataset"].slice(0, shared).to_numpy(), table["example"].slice(0, shared).to_numpy()) for table in (a, b)
    )
    same = (dataset_a == dataset_b) & (example_a == example_b)
    anew = np.isin(dataset_a.astype(str), sorted(rebuilt)) if rebuilt else np.zeros(shared, dtype=bool)
    return {"a": len(a), "b": len(b), "other": int((~same).sum()), "built_anew": int((same & anew).sum())}


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Flattens nested mappings to dotted names."""
    if not isinstance(value, Mapping) or not value:
        return {name: value} if name else {}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{name}.{key}" if name else str(key))
    return flat


def _changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Change]:
    names = dict.fromkeys([*a, *b])
    # An empty mapping counts as missing: the change {} → {"too_long": 2} is already shown by the new entry.
    pairs = {name: [None if v == {} else v for v in (a.get(name), b.get(name))] for name in names}
    return {name: pair for name, pair in pairs.items() if not _same(*pair)}


def _same(a: Any, b: Any) -> bool:
    """Compares floats with a tolerance: shares are normalised, so changing one weight can move another's last digit."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-12)
    return bool(a == b)


def describe(found: Mapping[str, Any]) -> Iterator[str]:
    """Yields the result of `compare` as lines of text."""
    yield f"A: {found['a']}"
    yield f"B: {found['b']}"
    if not found["recipe"] and not found["stages"]:
        yield "No differences: both runs have the same recipe and the same shards."
        return
    yield ""
    yield "Recipe" if found["recipe"] else "Recipe: identical"
    yield from _lines({f"`{name}`": pair for name, pair in found["recipe"].items()}, "  ")
    for stage in STAGES:
        yield ""
        if stage not in found["stages"]:
            yield f"Data of {stage}: identical shards"
        else:
            yield f"Data of {stage}"
            yield from _describe_stage(found["stages"][stage])


def _describe_stage(change: Mapping[str, Any]) -> Iterator[str]:
    if "only_in" in change:
        yield f"  only in {change['only_in'].upper()}"
        return
    yield from _lines(change["settings"], "  ")
    mixture = []
    for name, dataset in change["datasets"].items():
        for word in ("added", "removed"):
            if word in dataset:
                entry = dataset[word]
                share, samples = f"{entry['share']:.1%}", f"{entry['samples']:,}"
                yield f"  {name}: {word}, {entry['examples']:,} examples, share {share}, {samples} samples"
        numbers = dataset.get("numbers", {})
        rows = {key: pair for key, pair in numbers.items() if key in ("examples", "limited") or key.startswith(LEDGER)}
        if rows or dataset.get("inputs"):
            yield f"  {name}"
            yield from _lines({**dataset["inputs"], **rows}, "    ")
        if any(key in numbers for key in _MIXTURE):
            cells = {_named(key): _arrow(key, numbers[key]) if key in numbers else "" for key in _MIXTURE}
            mixture.append({"": name, **cells})
    yield from text_tables.plain(mixture) if mixture else ()
    shards, samples = change["shards"], change["samples"]
    count = f"{shards['b']:,}" + ("" if shards["a"] == shards["b"] else f" (A: {shards['a']:,})")
    yield f"  shards: {shards['new']:,} of {count} are not in A" if shards["new"] else "  shards: identical"
    shared = min(samples["a"], samples["b"])
    more = "" if samples["a"] == samples["b"] else f"; A has {samples['a']:,} samples, B has {samples['b']:,}"
    anew = f", {samples['built_anew']:,} have the same example, rebuilt" if samples["built_anew"] else ""
    yield f"  samples: {samples['other']:,} of {shared:,} positions have a different example{anew}{more}"


def _lines(changes: Mapping[str, Change], indent: str) -> Iterator[str]:
    rows = [{"what": _named(name), "change": _arrow(name, pair)} for name, pair in changes.items()]
    yield from (indent + line.removeprefix("  ") for line in text_tables.plain(rows)[1:])


def _arrow(name: str, pair: Change) -> str:
    return " → ".join(_value(name, value) for value in pair)


def _named(name: str) -> str:
    if name.startswith("`"):  # a key of the recipe
        return name.strip("`")
    if name.startswith(FILES):
        return f"annotation file {name.removeprefix(FILES)}"
    if name.startswith(TEMPLATES):
        template, _, side = name.removeprefix(TEMPLATES).rpartition(".")
        return f"template {template}, {side}"
    parts = [_WORDS.get(part, part.replace("_", " ")) for part in name.split(".")]
    return " ".join(part for part in parts if part)


def _value(name: str, value: Any) -> str:
    if value is None:
        return "0" if ".rejects." in name else "none"
    if isinstance(value, str) and len(value) == DIGEST_LENGTH:
        return value[:8]
    if name.startswith(TEMPLATES) or name == "chat":
        return json.dumps(value, ensure_ascii=False)  # on one line
    if name.startswith("share"):
        return f"{value:.2%}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
