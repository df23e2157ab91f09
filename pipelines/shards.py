"""Shards: Parquet files of examples in training order with their images embedded."""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.arrow_files import open_batches, whole_file
from pipelines.images import ImageRoot, reading_order
from pipelines.mixture import Mixture
from pipelines.schema import LENGTHS, SHARD
from pipelines.store import file_sha256, read_manifest

ROWS_PER_GROUP = 256  # a reader holds one row group at a time
LENGTHS_FILE = "lengths.parquet"
LENGTHS_PER_GROUP = 1 << 20

# What `datasets` needs to show the pictures.
_FEATURES = {
    "index": {"dtype": "int64", "_type": "Value"},
    "dataset": {"dtype": "string", "_type": "Value"},
    "example": {"dtype": "int64", "_type": "Value"},
    "images": {"feature": {"_type": "Image"}, "_type": "List"},
    "image_sha256": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
    "turns": {
        "feature": {
            "user": {"dtype": "string", "_type": "Value"},
            "assistant": {"dtype": "string", "_type": "Value"},
            "template": {"dtype": "string", "_type": "Value"},
            "row": {"dtype": "int64", "_type": "Value"},
            "turn": {"dtype": "int32", "_type": "Value"},
        },
        "_type": "List",
    },
    "input_ids": {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "List"},
    "loss_mask": {"feature": {"dtype": "bool", "_type": "Value"}, "_type": "List"},
    "num_images": {"dtype": "int16", "_type": "Value"},
    "num_tokens": {"dtype": "int32", "_type": "Value"},
    "num_supervised": {"dtype": "int32", "_type": "Value"},
}


class ShardError(ValueError):
    """A shard, or what it is made of, that is not as its manifest says."""


class ExampleFiles:
    """Random access to the examples of a dataset, through the memory map: nothing is loaded but what is asked for."""

    def __init__(self, directory: Path):
        self.directory = directory
        manifest = read_manifest(directory)
        self._readers = [open_batches(directory / file) for file, count, _ in manifest["files"] if count]
        starts = [0]
        self._places: list[tuple[int, int]] = []
        for number, reader in enumerate(self._readers):
            for batch in range(reader.num_record_batches):
                self._places.append((number, batch))
                starts.append(starts[-1] + reader.get_batch(batch).num_rows)
        self._starts = np.array(starts)
        if starts[-1] != manifest["num_examples"]:
            raise ShardError(f"{directory}: {starts[-1]} examples, its manifest says {manifest['num_examples']}")

    @staticmethod
    @functools.lru_cache(maxsize=64)
    def of(directory: Path) -> "ExampleFiles":
        return ExampleFiles(directory)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, examples: np.ndarray) -> pa.Table:
        """The rows of the given examples, (n,) integers in any order, in that order."""
        order = np.argsort(examples, kind="stable")
        batch_of = np.searchsorted(self._starts, examples[order], side="right") - 1
        pieces = []
        for batch in np.unique(batch_of):
            number, inner = self._places[batch]
            local = examples[order][batch_of == batch] - self._starts[batch]
            pieces.append(self._readers[number].get_batch(inner).take(pa.array(local)))
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return pa.Table.from_batches(pieces).combine_chunks().take(pa.array(back))


def verify_examples(directory: Path) -> None:
    """Raises ShardError unless every examples file is the one that was built."""
    for name, _, digest in read_manifest(directory)["files"]:
        path = directory / name
        if not path.is_file() or file_sha256(path) != digest:
            raise ShardError(f"{path} is not what was built: remove {directory} and build again")


@dataclass(frozen=True)
class ShardPlan:
    """What a worker needs to write any shard of a stage."""

    out: Path
    examples: Mapping[str, Path]
    image_roots: Mapping[str, Path]
    embed_images: bool
    mixture: Mixture
    num_samples: int
    shard_samples: int

    @property
    def num_shards(self) -> int:
        return -(-self.num_samples // self.shard_samples)

    def file(self, shard: int) -> Path:
        return self.out / f"shard-{shard:05d}-of-{self.num_shards:05d}.parquet"

    def facts_file(self, shard: int) -> Path:
        return self.out / f"shard-{shard:05d}.json"


def write_shard(plan: ShardPlan, shard: int) -> None:
    """Writes one shard, then its facts. A shard whose facts are there and whose file has that sum is kept.
    Raises ShardError when an image's bytes are not those that were measured."""
    if _is_whole(plan, shard):
        return
    first = shard * plan.shard_samples
    indices = np.arange(first, min(first + plan.shard_samples, plan.num_samples))
    table = _rows(plan, indices)
    schema = SHARD.with_metadata({"huggingface": json.dumps({"info": {"features": _FEATURES}})})
    with whole_file(plan.file(shard)) as partial:
        pq.write_table(
            table.cast(schema),
            partial,
            row_group_size=ROWS_PER_GROUP,
            write_page_checksum=True,  # the loader verifies them: a bit that rots in a shard is an error, not a picture
            use_dictionary=["dataset"],
            # Encoded images do not shrink further; all else does.
            compression={name: "none" if "bytes" in name else "zstd" for name in _leaf_names(schema)},
        )
        sha256 = file_sha256(partial)
        num_bytes = partial.stat().st_size
    facts = {"file": plan.file(shard).name, "first": first, "num_samples": len(indices), "num_bytes": num_bytes}
    facts |= {"sha256": sha256, "num_tokens": int(pc.sum(table["num_tokens"]).as_py())}
    facts |= {"num_supervised": int(pc.sum(table["num_supervised"]).as_py())}
    facts |= {"datasets": _sums(table)}
    with whole_file(plan.facts_file(shard)) as partial:
        partial.write_text(json.dumps(facts))


def write_lengths(plan: ShardPlan) -> dict[str, str]:
    """Writes the lengths of all samples, from the shards; returns what the manifest says of them."""
    path = plan.out / LENGTHS_FILE
    with whole_file(path) as partial:
        with pq.ParquetWriter(partial, LENGTHS, compression="zstd") as writer:
            waiting: list[pa.Table] = []
            for shard in range(plan.num_shards):
                waiting.append(pq.read_table(plan.file(shard), columns=LENGTHS.names).select(LENGTHS.names))
                if shard == plan.num_shards - 1 or sum(map(len, waiting)) >= LENGTHS_PER_GROUP:
                    writer.write_table(pa.concat_tables(waiting).cast(LENGTHS), row_group_size=LENGTHS_PER_GROUP)
                    waiting = []
        sha256 = file_sha256(partial)
    return {"file": path.name, "sha256": sha256}


def _is_whole(plan: ShardPlan, shard: int) -> bool:
    if not plan.facts_file(shard).is_file() or not plan.file(shard).is_file():
        return False
    with plan.file(shard).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return digest == json.loads(plan.facts_file(shard).read_text())["sha256"]


def _rows(plan: ShardPlan, indices: np.ndarray) -> pa.Table:
    datasets, examples = plan.mixture.locate(indices)
    tables, places = [], []
    for number, name in enumerate(plan.mixture.names):
        mine = np.flatnonzero(datasets == number)
        if not len(mine):
            continue
        rows = ExampleFiles.of(plan.examples[name]).take(examples[mine])
        images = _embedded(plan, name, rows)
        rows = rows.drop_columns(["images"]).append_column("images", images)
        rows = rows.append_column("num_images", pc.list_value_length(images).cast(pa.int16()))
        rows = rows.append_column("index", pa.array(indices[mine]))
        rows = rows.append_column("dataset", pa.array([name] * len(mine)))
        tables.append(rows.append_column("example", pa.array(examples[mine])).select(SHARD.names))
        places.append(mine)
    back = np.argsort(np.concatenate(places), kind="stable")
    return pa.concat_tables(tables).combine_chunks().take(pa.array(back))


def _sums(table: pa.Table) -> dict[str, dict[str, int]]:
    """dataset → what its samples of a shard hold."""
    columns = {
        "dataset": table["dataset"],
        "samples": pa.array(np.ones(len(table), dtype=np.int64)),
        "num_turns": pc.list_value_length(table["turns"]),
        "num_images": pc.list_value_length(table["images"]),
        "num_tokens": table["num_tokens"],
        "num_supervised": table["num_supervised"],
    }
    sums = [(name, "sum") for name in columns if name != "dataset"]
    rows = pa.table(columns).group_by("dataset").aggregate(sums).to_pylist()
    return {row["dataset"]: {name: row[f"{name}_sum"] for name, _ in sums} for row in rows}


def _embedded(plan: ShardPlan, dataset: str, rows: pa.Table) -> pa.Array:
    data: dict[str, bytes] = {}
    if plan.embed_images:
        root = ImageRoot(plan.image_roots[dataset])
        names, sums = (pc.list_flatten(rows[column]).to_pylist() for column in ("images", "image_sha256"))
        for name, sha256 in sorted(set(zip(names, sums, strict=True)), key=lambda pair: reading_order(pair[0])):
            data[name] = root.read(name)
            if hashlib.sha256(data[name]).hexdigest() != sha256:
                raise ShardError(
                    f"{dataset}: image {name} under {plan.image_roots[dataset]} is not what it was when the "
                    "examples were built: build again"
                )
    column = [[{"bytes": data.get(name), "path": name} for name in names] for names in rows["images"].to_pylist()]
    return pa.array(column, SHARD.field("images").type)


def _leaf_names(schema: pa.Schema) -> list[str]:
    """Parquet's names of the leaf columns of a schema."""

    def leaves(name: str, kind: pa.DataType) -> list[str]:
        if pa.types.is_list(kind):
            return leaves(f"{name}.list.element", kind.value_type)
        if pa.types.is_struct(kind):
            return [leaf for field in kind for leaf in leaves(f"{name}.{field.name}", field.type)]
        return [name]

    return [leaf for field in schema for leaf in leaves(field.name, field.type)]


def verify_shards(directory: Path) -> dict[str, Any]:
    """Checks every shard's sum, count and places against the manifest, which it returns. Raises ShardError."""
    manifest = read_manifest(directory)
    at = 0
    for facts in manifest["shards"]:
        path = directory / facts["file"]
        if not path.is_file():
            raise ShardError(f"{path} is missing: build again")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
                raise ShardError(f"{path} is not the file that the manifest names: delete {directory} and build again")
        if facts["first"] != at or pq.read_metadata(path).num_rows != facts["num_samples"]:
            raise ShardError(f"{path}: its rows are not {at} to {at + facts['num_samples']}")
        at += facts["num_samples"]
    if at != manifest["num_samples"]:
        raise ShardError(f"{directory}: {at} samples in its shards, {manifest['num_samples']} in the manifest")
    return manifest
