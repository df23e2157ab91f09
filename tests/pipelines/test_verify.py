"""`honeybee verify`: what it finds in shards that were harmed in one way each."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.mix import build_shards
from pipelines.remote import push
from pipelines.schema import SHARD
from pipelines.shard_error import ShardError
from pipelines.shard_plan import Pictures
from pipelines.store import Store, file_sha256, read_manifest
from pipelines.verify import verify


@pytest.fixture
def copied(world, tmp_path) -> Path:
    """Shards that were copied away from their store."""
    return Path(shutil.copytree(build_shards(Store(tmp_path / "store"), **world), tmp_path / "elsewhere"))


def faults_of(directory: Path, processes: int = 1) -> list[str]:
    return verify(str(directory), lambda line: None, processes)


def write(directory: Path, manifest: dict) -> None:
    (directory / "manifest.json").write_text(json.dumps(manifest))


def shard(directory: Path, number: int = 0) -> Path:
    return directory / read_manifest(directory)["shards"][number]["file"]


def rewrite(directory: Path, change, number: int = 0) -> None:
    """Changes the rows of a shard, and its sum and length in the manifest, so that only its content tells."""
    path, manifest = shard(directory, number), read_manifest(directory)
    rows = pq.read_table(path).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, SHARD), path)
    manifest["shards"][number] |= {"num_bytes": path.stat().st_size, "sha256": file_sha256(path)}
    write(directory, manifest)


def test_whole_shards_have_no_fault_and_every_shard_is_told(copied):
    lines: list[str] = []
    assert verify(str(copied), lines.append) == []
    shards = read_manifest(copied)["shards"]
    assert len(lines) == len(shards) > 2
    for number, (line, facts) in enumerate(zip(lines, shards, strict=True)):
        assert line.startswith(f"{number + 1} of {len(shards)} {facts['file']}: {facts['num_samples']} samples")
        assert line.endswith("fine")


@pytest.mark.parametrize("mode", ["reference", "skip"])
def test_shards_without_bytes_have_no_fault(world, tmp_path, mode):
    directory = build_shards(Store(tmp_path / "store"), **world, pictures=Pictures(mode))
    assert faults_of(directory) == []


def test_several_processes_find_the_same(copied):
    shard(copied, 1).unlink()
    assert faults_of(copied, 2) == faults_of(copied) == [f"{shard(copied, 1).name}: missing"]


def test_a_truncated_shard(copied):
    path = shard(copied)
    path.write_bytes(path.read_bytes()[:-100])
    length, unreadable = faults_of(copied)
    assert f"{path.name}: " in length and "bytes, the manifest says" in length
    assert f"{path.name}: cannot be read" in unreadable


def test_a_flipped_bit_leads_to_its_row_and_picture(copied):
    path = shard(copied)
    content = bytearray(path.read_bytes())
    rows = pq.read_table(path).to_pylist()
    row = next(row for row in range(50, len(rows)) if rows[row]["images"])
    place = 0
    for each in rows[: row + 1]:  # pictures stand one after the other
        for image in each["images"]:
            place = content.index(image["bytes"], place) + len(image["bytes"])
    content[place - 20] ^= 1
    path.write_bytes(content)
    found = faults_of(copied)
    assert "its sum is" in found[0] and "CRC" in found[1]
    assert f"{path.name}: row {row}: picture 0 ({rows[row]['images'][0]['path']}): its sum is" in found[2]
    assert len(found) == 3


def test_swapped_shards(copied):
    first, second = shard(copied), shard(copied, 1)
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    found = "\n".join(faults_of(copied))
    count = read_manifest(copied)["shards"][0]["num_samples"]
    assert f"{first.name}: its sum is" in found or f"{first.name}: {len(two):,} bytes" in found
    assert f"{first.name}: row 0: " in found and f"samples from {count} on stand where those from 0 on should" in found
    assert f"{second.name}: row 0: " in found


def test_a_shard_too_many(copied):
    shutil.copy(shard(copied), copied / "shard-00000-of-00009.parquet")
    assert faults_of(copied) == [
        "shard-00000-of-00009.parquet: not one of these shards, though whoever reads shard-*.parquet reads it"
    ]


def no_picture(row: dict) -> None:
    row["images"][0] = {"bytes": b"no picture", "path": "x"}
    row["image_sha256"][0] = hashlib.sha256(b"no picture").hexdigest()


def other_picture(row: dict) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (9, 9)).save(stream, "PNG")
    row["images"][0] = {"bytes": stream.getvalue(), "path": "x"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_picture, "row {row}: picture 0 (x): does not decode: 10 bytes"),
        (other_picture, "row {row}: picture 0 (x): its sum is"),
        (lambda row: row["images"][0].update(bytes=None), "row {row}: picture 0 ({picture}): no bytes"),
        (lambda row: row.update(images=[], image_sha256=[]), "row {row}: 0 images, but num_images is 1"),
        (lambda row: row["loss_mask"].append(True), "row {row}: 4 loss_mask, but num_tokens is 3"),
        (lambda row: row.update(loss_mask=[False] * 3), "row {row}: 0 supervised tokens, but num_supervised is 1"),
        (lambda row: row.update(input_ids=[1, 0, 2]), "row {row}: 0 image tokens, but num_images is 1"),
        (lambda row: row.update(num_tokens=7), "num_tokens sums to"),
        (lambda row: row.update(example=row["example"] + 1), "row {row}: a example"),
        (lambda row: row.update(dataset="b"), "row {row}: b example"),
        (lambda row: row.update(turns=[]), "num_turns, but"),
    ],
)
def test_a_row_that_is_not_what_was_built(copied, change, message):
    rows = pq.read_table(shard(copied)).to_pylist()
    place = next(n for n, row in enumerate(rows) if row["dataset"] == "a" and row["images"])
    rewrite(copied, lambda rows: change(rows[place]))
    assert message.format(row=place, picture=rows[place]["images"][0]["path"]) in "\n".join(faults_of(copied))


def test_a_row_that_is_gone(copied):
    rewrite(copied, lambda rows: rows.pop())
    assert "rows, the manifest says" in "\n".join(faults_of(copied))


def test_quotas_that_a_prefix_breaks(copied):
    """The samples are what they should be by every other measure but their order."""

    def change(rows: list[dict]) -> None:
        rows.sort(key=lambda row: row["dataset"])
        for number, row in enumerate(rows):
            row["index"] = number

    rewrite(copied, change)
    found = [fault for fault in faults_of(copied) if "its share is" in fault]
    assert len(found) == 2 and "the first 4 samples hold 4 of a, its share is 3.00" in found[0]


@pytest.mark.parametrize("harm", ["edited", "missing", "other sum"])
def test_lengths_that_are_not_those_of_the_shards(copied, harm):
    path, manifest = copied / "lengths.parquet", read_manifest(copied)
    if harm == "missing":
        path.unlink()
    else:
        table = pq.read_table(path)
        tokens = table["num_tokens"].to_pylist()
        tokens[1000] += 1 if harm == "edited" else 0
        pq.write_table(table.set_column(0, table.schema.field(0), pa.array(tokens, pa.int32())), path)
        if harm == "edited":
            manifest["lengths"] |= {"num_bytes": path.stat().st_size, "sha256": file_sha256(path)}
            write(copied, manifest)
    (fault,) = faults_of(copied)
    assert fault.startswith("lengths.parquet: ")
    assert {"edited": "row 1000: num_tokens 4, 3 in shard-", "missing": "missing", "other sum": "the manifest says"}[
        harm
    ] in fault


@pytest.mark.parametrize("found", [0, None, 2])
def test_a_manifest_of_another_version(copied, found):
    manifest = read_manifest(copied)
    manifest["format"] = found
    write(copied, manifest)
    with pytest.raises(ShardError, match=f"shards of format {found}, this version reads format 1: build them again"):
        faults_of(copied)


@pytest.mark.parametrize("key", ["mixture", "images", "datasets"])
def test_a_manifest_that_lacks_something(copied, key):
    manifest = read_manifest(copied)
    del manifest[key]
    write(copied, manifest)
    with pytest.raises(ShardError, match=rf"manifest.json lacks or misstates '{key}'"):
        faults_of(copied)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.pop("shards"),
        lambda manifest: manifest.update(shards=[]),
        lambda manifest: manifest["shards"][0].pop("sha256"),
        lambda manifest: manifest["shards"][0].update(first="0"),
        lambda manifest: manifest["shards"][0].update(num_samples=-1),
        lambda manifest: manifest["shards"][0].update(file="../shard-00000-of-00001.parquet"),
        lambda manifest: manifest.pop("lengths"),
        lambda manifest: manifest.update(num_samples=None),
    ],
)
def test_a_manifest_that_names_no_files(copied, change):
    manifest = read_manifest(copied)
    change(manifest)
    write(copied, manifest)
    with pytest.raises(ShardError, match=r"manifest\.json does not name files as shards do"):
        faults_of(copied)
    with pytest.raises(ShardError, match=r"manifest\.json does not name files as shards do"):
        push(copied, f"file://{copied}/remote", lambda line: None)


def test_no_shards_at_all(tmp_path):
    with pytest.raises(ShardError, match=r"holds no finished shards: there is no manifest\.json"):
        faults_of(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ShardError, match="is no JSON"):
        faults_of(tmp_path)


def test_the_command_prints_faults_and_exits_with_1(copied):
    command = [sys.executable, "-c", "from flows.cli import main; main()", "verify", str(copied), "--processes", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.endswith("No errors found.\n")
    shard(copied).unlink()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and f"{shard(copied).name}: missing" in done.stdout and "Errors found: 1" in done.stdout
