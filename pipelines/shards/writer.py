"""Writes shards: Parquet files of examples in training order with their images, and the lengths of all samples."""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.core.errors import ShardError
from pipelines.core.files import atomic_file, explain_full_disk, file_sha256, write_atomic
from pipelines.core.integrity import CHECKSUM, DamagedError, seal, unseal
from pipelines.examples.reader import ExampleFiles
from pipelines.images.references import ImageRoot, reading_order
from pipelines.schema import EXAMPLES, LENGTHS, SHARD
from pipelines.shards.plan import SIZE_COLUMNS, ShardPlan, byte_sizes, cut_groups

LENGTHS_FILE = "lengths.parquet"
LENGTHS_PER_GROUP = 1 << 20
# Feature types that let the `datasets` library decode the images.
_FEATURES: dict[str, Any] = {
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
# For images without bytes, which cannot be decoded.
_REFERENCES = {"bytes": {"dtype": "binary", "_type": "Value"}, "path": {"dtype": "string", "_type": "Value"}}


def write_shard(plan: ShardPlan, shard: int) -> None:
    """Writes one shard, then its facts file. Keeps an existing shard whose checksum matches its facts file.
    Raises ShardError if an image has changed since it was measured or if the disk is full."""
    if _is_complete(plan, shard):
        return
    features = _FEATURES if plan.image_mode.mode == "embed" else {**_FEATURES, "images": [_REFERENCES]}
    schema = SHARD.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    sums: dict[str, Counter[str]] = {}
    with explain_full_disk(plan.file(shard)):
        with atomic_file(plan.file(shard)) as partial:
            with pq.ParquetWriter(
                partial,
                schema,
                write_page_checksum=True,  # lets readers detect bit rot instead of decoding a damaged image
                use_dictionary=["dataset"],
                # Encoded images do not compress further; the other columns do.
                compression={name: "none" if "bytes" in name else "zstd" for name in _leaf_names(schema)},
            ) as writer:
                for table in _groups(plan, plan.samples(shard)):
                    writer.write_table(table.cast(schema), row_group_size=len(table))
                    add_sums(sums, table)
            sha256 = file_sha256(partial)
            num_bytes = partial.stat().st_size
        first, end = plan.starts[shard : shard + 2].tolist()
        total = {name: sum(each[name] for each in sums.values()) for name in ("num_tokens", "num_supervised")}
        facts = {"file": plan.file(shard).name, "first": first, "num_samples": end - first, "num_bytes": num_bytes}
        facts |= {"sha256": sha256, **total, "datasets": sums}
        write_atomic(plan.facts_file(shard), seal(facts))


def read_facts(plan: ShardPlan, shard: int) -> dict[str, Any]:
    """Returns what `write_shard` noted about a shard. Raises DamagedError if the file is not as it was written."""
    facts = unseal(plan.facts_file(shard).read_bytes(), plan.facts_file(shard))
    del facts[CHECKSUM]
    return facts


def write_lengths(plan: ShardPlan) -> dict[str, Any]:
    """Writes the lengths of all samples, read from the shards; returns the manifest's entry for the file."""
    path = plan.out / LENGTHS_FILE
    with explain_full_disk(path), atomic_file(path) as partial:
        with pq.ParquetWriter(partial, LENGTHS, compression="zstd", write_page_checksum=True) as writer:
            waiting: list[pa.Table] = []
            for shard in range(plan.num_shards):
                waiting.append(pq.read_table(plan.file(shard), columns=LENGTHS.names).select(LENGTHS.names))
                if shard == plan.num_shards - 1 or sum(map(len, waiting)) >= LENGTHS_PER_GROUP:
                    writer.write_table(pa.concat_tables(waiting).cast(LENGTHS), row_group_size=LENGTHS_PER_GROUP)
                    waiting = []
        return {"file": path.name, "num_bytes": partial.stat().st_size, "sha256": file_sha256(partial)}


def _is_complete(plan: ShardPlan, shard: int) -> bool:
    try:
        return file_sha256(plan.file(shard)) == read_facts(plan, shard)["sha256"]
    except (FileNotFoundError, DamagedError):
        return False


def _groups(plan: ShardPlan, indices: np.ndarray) -> Iterator[pa.Table]:
    """Yields the row groups of a shard, with one in memory at a time."""
    datasets, examples = plan.mixture.locate(indices)
    each = np.empty(len(indices), np.int64)
    for number, name in enumerate(plan.mixture.names):
        mine = np.flatnonzero(datasets == number)
        if len(mine):
            rows = ExampleFiles.of(plan.examples[name]).take(examples[mine], SIZE_COLUMNS)
            each[mine] = byte_sizes(rows, plan.image_mode)
    roots = {name: ImageRoot(root) for name, root in plan.image_roots.items() if plan.image_mode.mode == "embed"}
    cuts = cut_groups(each)
    for start, end in itertools.pairwise(cuts.tolist()):
        yield _rows(plan, roots, *(column[start:end] for column in (indices, datasets, examples)))


def _rows(
    plan: ShardPlan, roots: dict[str, ImageRoot], indices: np.ndarray, datasets: np.ndarray, examples: np.ndarray
) -> pa.Table:
    tables, positions = [], []
    for number, name in enumerate(plan.mixture.names):
        mine = np.flatnonzero(datasets == number)
        if not len(mine):
            continue
        rows = ExampleFiles.of(plan.examples[name]).take(examples[mine], EXAMPLES.names)
        images, sha256 = _image_columns(plan, name, roots.get(name), rows)
        rows = rows.drop_columns(["images", "image_sha256"])
        columns = {
            "index": pa.array(indices[mine]),
            "dataset": pa.array([name] * len(mine)),
            "example": pa.array(examples[mine]),
            "images": images,
            "image_sha256": sha256,
            "num_images": pc.list_value_length(images).cast(pa.int16()),
        }
        for column, values in columns.items():
            rows = rows.append_column(column, values)
        tables.append(rows.select(SHARD.names))
        positions.append(mine)
    order = np.argsort(np.concatenate(positions), kind="stable")
    return pa.concat_tables(tables).combine_chunks().take(pa.array(order))


def add_sums(sums: dict[str, Counter[str]], table: pa.Table) -> None:
    """Adds the totals of a shard's samples to `sums`: dataset → column → total."""
    columns = {
        "dataset": table["dataset"],
        "samples": pa.array(np.ones(len(table), dtype=np.int64)),
        "num_turns": pc.list_value_length(table["turns"]),
        **{name: table[name] for name in ("num_images", "num_tokens", "num_supervised")},
    }
    names = [name for name in columns if name != "dataset"]
    grouped = pa.table(columns).group_by("dataset").aggregate([(name, "sum") for name in names])
    for row in grouped.sort_by("dataset").to_pylist():
        sums.setdefault(row["dataset"], Counter()).update({name: row[f"{name}_sum"] or 0 for name in names})


def _image_columns(plan: ShardPlan, dataset: str, root: ImageRoot | None, rows: pa.Table) -> tuple[pa.Array, pa.Array]:
    """Returns the columns `images` and `image_sha256` for rows of a dataset."""
    data: dict[str, bytes] = {}
    checksums: dict[str, str] = {}
    if root is not None:
        names, measured = (pc.list_flatten(rows[column]).to_pylist() for column in ("images", "image_sha256"))
        for name, sha256 in sorted(set(zip(names, measured, strict=True)), key=lambda pair: reading_order(pair[0])):
            location = root.locate(name)
            data[name], checksums[name] = root.read_at(location), sha256
            if hashlib.sha256(data[name]).hexdigest() != sha256:
                plan.doubts.add(location.identity)
                raise ShardError(
                    f"{dataset}: image {name} under {plan.image_roots[dataset]} has changed since the examples were "
                    "built: build again, which measures it anew"
                )
            if plan.image_mode.shrink is not None:
                data[name] = plan.image_mode.shrink(data[name])
                checksums[name] = hashlib.sha256(data[name]).hexdigest()
    names_of_rows = rows["images"].to_pylist()
    column = [[{"bytes": data.get(name), "path": name} for name in names] for names in names_of_rows]
    sha256_column = rows["image_sha256"].combine_chunks()
    if plan.image_mode.shrink is not None:
        lists = [[checksums[name] for name in names] for names in names_of_rows]
        sha256_column = pa.array(lists, SHARD.field("image_sha256").type)
    return pa.array(column, SHARD.field("images").type), sha256_column


def _leaf_names(schema: pa.Schema) -> list[str]:
    """Returns Parquet's names for the leaf columns of a schema."""

    def leaves(name: str, kind: pa.DataType) -> list[str]:
        if pa.types.is_list(kind):
            return leaves(f"{name}.list.element", kind.value_type)
        if pa.types.is_struct(kind):
            return [leaf for field in kind for leaf in leaves(f"{name}.{field.name}", field.type)]
        return [name]

    return [leaf for field in schema for leaf in leaves(field.name, field.type)]
