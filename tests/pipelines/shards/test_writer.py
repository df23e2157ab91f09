"""Tests of Beam job 2 on hand-made examples with real images on disk."""

import hashlib
import io

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image
from support.shard_world import COUNT, with_settings

from pipelines.core.files import file_sha256
from pipelines.core.integrity import DamagedError, write_manifest
from pipelines.core.store import Store, read_manifest
from pipelines.examples.reader import ExampleFiles
from pipelines.jobs.shards import build_shards
from pipelines.mixture.shares import Balance
from pipelines.schema import LENGTHS


def rows_of(directory):
    shards = read_manifest(directory)["shards"]
    return pa.concat_tables([pq.read_table(directory / shard["file"]) for shard in shards])


def test_samples_are_in_the_order_of_the_mixture_with_their_own_images(world, tmp_path):
    directory = build_shards(Store(tmp_path / "store"), **world)
    table = rows_of(directory).to_pylist()
    assert [row["index"] for row in table] == list(range(COUNT))
    assert [row["dataset"] for row in table].count("a") == COUNT * 3 // 4
    for row in table:
        assert row["turns"][0]["assistant"] == f"{row['dataset']}{row['example']}"
        assert row["turns"][0]["row"] == row["example"]
        assert len(row["images"]) == (row["example"] % 10 != 9)
        assert row["num_images"] == len(row["images"])
        assert row["image_sha256"] == [hashlib.sha256(image["bytes"]).hexdigest() for image in row["images"]]
        for image in row["images"]:
            assert image["path"] == f"{row['example'] % 20}.png"
            colour = Image.open(io.BytesIO(image["bytes"])).getpixel((0, 0))
            assert colour[2] == (50 if row["dataset"] == "a" else 200)
    of_b = [row for row in table if row["dataset"] == "b"]
    ledger = {"read": 34, "examples": 31, "duplicates": 1, "rejects": {"too_long": 2}}
    assert read_manifest(directory)["datasets"]["b"] == {
        "share_wanted": 0.25,
        "share": 0.25,
        "limited": False,
        "examples": 31,
        "epochs": 375 / 31,
        "samples": 375,
        "num_turns": 375,
        "num_images": sum(len(row["images"]) for row in of_b),
        "num_tokens": 3 * 375,
        "num_supervised": 375,
        "ledger": {"rows": ledger, "turns": ledger},
    }


def test_the_lengths_file_has_the_lengths_of_all_samples(shards):
    named = read_manifest(shards)["lengths"]
    path = shards / "lengths.parquet"
    assert named == {"file": path.name, "num_bytes": path.stat().st_size, "sha256": file_sha256(path)}
    lengths = pq.read_table(shards / "lengths.parquet")
    assert lengths.schema.equals(LENGTHS)
    assert lengths.equals(rows_of(shards).select(LENGTHS.names).cast(LENGTHS))
    assert len(lengths) == COUNT


def test_the_manifest_records_shares_and_limits_on_epochs(world, tmp_path):
    world = with_settings(world, balance=Balance(strategy="per-dataset", max_epochs={"b": 2}), weights=None)
    datasets = read_manifest(build_shards(Store(tmp_path / "store"), **world))["datasets"]
    assert datasets["b"]["samples"] in (61, 62)
    assert datasets["b"]["limited"] and not datasets["a"]["limited"]
    assert datasets["b"]["share_wanted"] == 0.5
    assert datasets["b"]["share"] == datasets["b"]["samples"] / COUNT


def test_a_ledger_that_does_not_add_up_is_an_error(world, tmp_path):
    manifest = read_manifest(world["examples"]["b"])
    manifest["rows"]["rejects"] = {"too_long": 1}
    write_manifest(world["examples"]["b"], manifest)
    with pytest.raises(RuntimeError, match="34 rows of b read, but 33 accounted for"):
        build_shards(Store(tmp_path / "store"), **world)
    assert not list((tmp_path / "store").rglob("manifest.json"))


def test_the_same_recipe_gives_the_same_bytes(world, tmp_path):
    one = build_shards(Store(tmp_path / "one"), **world)
    workers = ["--runner=FnApiRunner", "--direct_num_workers=2", "--direct_running_mode=multi_processing"]
    two = build_shards(Store(tmp_path / "two"), **world, beam_options=workers)
    assert (one / "manifest.json").read_bytes() == (two / "manifest.json").read_bytes()
    for shard in read_manifest(one)["shards"]:
        assert (one / shard["file"]).read_bytes() == (two / shard["file"]).read_bytes()


def test_a_killed_build_resumes_with_the_same_bytes(world, tmp_path):
    store = Store(tmp_path / "store")
    directory = build_shards(store, **world)
    before = {p.name: p.read_bytes() for p in directory.iterdir()}
    # Simulates a kill: no manifest, one shard missing, and one truncated under its final name.
    (directory / "manifest.json").unlink()
    shards = sorted(directory.glob("shard-*.parquet"))
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:100])
    assert build_shards(store, **world) == directory
    assert {p.name: p.read_bytes() for p in directory.iterdir()} == before


def test_an_image_that_changed_since_it_was_measured_is_an_error(world, tmp_path):
    Image.new("RGB", (9, 9)).save(world["image_roots"]["b"] / "3.png")
    with pytest.raises(Exception, match=r"b: image 3.png .* has changed since the examples were built: build again"):
        build_shards(Store(tmp_path / "store"), **world)
    assert not list((tmp_path / "store").rglob("manifest.json"))


@pytest.mark.parametrize("damage", ["edited", "missing"])
def test_damaged_examples_are_an_error(world, tmp_path, damage):
    path = world["examples"]["a"] / "examples-00001.arrow"
    if damage == "edited":  # the same number of bytes
        path.write_bytes(path.read_bytes().replace(b"question 400", b"QUESTION 400"))
    else:
        path.unlink()
    with pytest.raises(DamagedError, match=r"examples-00001.arrow is (missing|damaged).*: build its recipe again"):
        build_shards(Store(tmp_path / "store"), **world)
    assert not list((tmp_path / "store").rglob("manifest.json"))


def test_datasets_and_duckdb_can_read_the_shards(shards, tmp_path):
    pattern = str(shards / "shard-*.parquet")
    dataset = load_dataset("parquet", data_files=pattern, split="train", cache_dir=str(tmp_path / "cache"))
    assert dataset[0]["images"][0].size == (4, 3)
    assert dataset[0]["turns"][0]["user"].startswith("question")
    counts = duckdb.sql(f"select dataset, count(*) from '{pattern}' group by 1 order by 1").fetchall()
    assert counts == [("a", 1125), ("b", 375)]


def test_a_flipped_bit_in_an_image_fails_the_page_checksum(shards):
    path = next(shards.glob("shard-*.parquet"))
    content = bytearray(path.read_bytes())
    image = pq.read_table(path)["images"].combine_chunks().values.field("bytes")[0].as_py()
    content[content.index(image) + len(image) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match="CRC"):
        pq.ParquetFile(path, page_checksum_verification=True).read()


def test_examples_can_be_read_in_any_order(world):
    files = ExampleFiles(world["examples"]["a"])
    indices = np.array([699, 0, 5, 350, 5, 349])
    assert [turns[0]["row"] for turns in files.take(indices)["turns"].to_pylist()] == indices.tolist()


def test_no_shard_is_written_for_a_dataset_without_examples(world, tmp_path):
    none = {"read": 0, "examples": 0, "duplicates": 0, "rejects": {}}
    empty = {"files": [], "num_examples": 0, "num_supervised": 0, "task": "caption", "rows": none, "turns": none}
    write_manifest(world["examples"]["b"], empty)
    with pytest.raises(ValueError, match="b: in the mixture, but has no examples"):
        build_shards(Store(tmp_path / "store"), **world)
