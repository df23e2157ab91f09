"""Tests of `honeybee verify` on shards that are each damaged in one way."""

import hashlib
import io
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.shard_world import with_settings

from pipelines.core.errors import ShardError
from pipelines.core.files import file_sha256
from pipelines.core.integrity import seal
from pipelines.core.store import Store, read_manifest
from pipelines.jobs.shards import build_shards
from pipelines.schema import SHARD
from pipelines.shards.plan import ImageMode
from pipelines.shards.remote import push
from pipelines.shards.verify import verify


@pytest.fixture
def copied(shards, tmp_path) -> Path:
    """Shards that were copied to a location outside their store."""
    return Path(shutil.copytree(shards, tmp_path / "elsewhere"))


def faults_of(directory: Path, processes: int = 1) -> list[str]:
    return verify(str(directory), lambda line: None, processes)


def write(directory: Path, manifest: dict) -> None:
    (directory / "manifest.json").write_text(seal(manifest))


def shard(directory: Path, number: int = 0) -> Path:
    return directory / read_manifest(directory)["shards"][number]["file"]


def rewrite(directory: Path, change, number: int = 0) -> None:
    """Changes the rows of a shard; updates its checksum and size in the manifest, so that only the rows are wrong."""
    path, manifest = shard(directory, number), read_manifest(directory)
    rows = pq.read_table(path).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, SHARD), path)
    manifest["shards"][number] |= {"num_bytes": path.stat().st_size, "sha256": file_sha256(path)}
    write(directory, manifest)


def test_undamaged_shards_have_no_faults_and_every_shard_is_logged(copied):
    lines: list[str] = []
    assert verify(str(copied), lines.append) == []
    shards = read_manifest(copied)["shards"]
    assert len(lines) == len(shards) > 2
    for number, (line, facts) in enumerate(zip(lines, shards, strict=True)):
        assert line.startswith(f"{number + 1} of {len(shards)} {facts['file']}: {facts['num_samples']} samples")
        assert line.endswith(": OK")


@pytest.mark.parametrize("mode", ["reference", "skip"])
def test_shards_without_image_bytes_have_no_faults(world, tmp_path, mode):
    directory = build_shards(Store(tmp_path / "store"), **with_settings(world, image_mode=ImageMode(mode)))
    assert faults_of(directory) == []


def test_several_processes_find_the_same_faults(copied):
    shard(copied, 1).unlink()
    assert faults_of(copied, 2) == faults_of(copied) == [f"{shard(copied, 1).name}: missing"]


def test_a_truncated_shard(copied):
    path = shard(copied)
    path.write_bytes(path.read_bytes()[:-100])
    size, unreadable = faults_of(copied)
    assert f"{path.name}: " in size and "bytes, but the manifest says" in size
    assert f"{path.name}: cannot be read" in unreadable


def test_a_flipped_bit_is_traced_to_its_row_and_image(copied):
    path = shard(copied)
    content = bytearray(path.read_bytes())
    rows = pq.read_table(path).to_pylist()
    row = next(row for row in range(50, len(rows)) if rows[row]["images"])
    offset = 0
    for each in rows[: row + 1]:  # images are stored consecutively
        for image in each["images"]:
            offset = content.index(image["bytes"], offset) + len(image["bytes"])
    content[offset - 20] ^= 1
    path.write_bytes(content)
    found = faults_of(copied)
    assert "its checksum is" in found[0] and "CRC" in found[1]
    assert f"{path.name}: row {row}: image 0 ({rows[row]['images'][0]['path']}): its checksum is" in found[2]
    assert len(found) == 3


def test_swapped_shards(copied):
    first, second = shard(copied), shard(copied, 1)
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    found = "\n".join(faults_of(copied))
    count = read_manifest(copied)["shards"][0]["num_samples"]
    assert f"{first.name}: its checksum is" in found or f"{first.name}: {len(two):,} bytes" in found
    assert f"{first.name}: row 0: " in found
    assert f"samples starting at index {count}, but index 0 is expected here" in found
    assert f"{second.name}: row 0: " in found


def test_an_unlisted_shard(copied):
    shutil.copy(shard(copied), copied / "shard-00000-of-00009.parquet")
    assert faults_of(copied) == [
        "shard-00000-of-00009.parquet: not listed in the manifest, but readers of shard-*.parquet would include it"
    ]


def invalid_image(row: dict) -> None:
    row["images"][0] = {"bytes": b"not image!", "path": "x"}
    row["image_sha256"][0] = hashlib.sha256(b"not image!").hexdigest()


def different_image(row: dict) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (9, 9)).save(stream, "PNG")
    row["images"][0] = {"bytes": stream.getvalue(), "path": "x"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (invalid_image, "row {row}: image 0 (x): does not decode: 10 bytes"),
        (different_image, "row {row}: image 0 (x): its checksum is"),
        (lambda row: row["images"][0].update(bytes=None), "row {row}: image 0 ({image}): no bytes"),
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
def test_a_changed_row(copied, change, message):
    rows = pq.read_table(shard(copied)).to_pylist()
    index = next(n for n, row in enumerate(rows) if row["dataset"] == "a" and row["images"])
    rewrite(copied, lambda rows: change(rows[index]))
    assert message.format(row=index, image=rows[index]["images"][0]["path"]) in "\n".join(faults_of(copied))


def test_a_missing_row(copied):
    rewrite(copied, lambda rows: rows.pop())
    assert "rows, but the manifest says" in "\n".join(faults_of(copied))


def test_a_prefix_that_violates_the_quotas(copied):
    """Only the order of the samples is wrong."""

    def change(rows: list[dict]) -> None:
        rows.sort(key=lambda row: row["dataset"])
        for number, row in enumerate(rows):
            row["index"] = number

    rewrite(copied, change)
    found = [fault for fault in faults_of(copied) if "its share is" in fault]
    assert len(found) == 2 and "the first 4 samples contain 4 of a, but its share is 3.00" in found[0]


@pytest.mark.parametrize("damage", ["edited", "missing", "wrong checksum"])
def test_lengths_that_do_not_match_the_shards(copied, damage):
    path, manifest = copied / "lengths.parquet", read_manifest(copied)
    if damage == "missing":
        path.unlink()
    else:
        table = pq.read_table(path)
        tokens = table["num_tokens"].to_pylist()
        tokens[1000] += 1 if damage == "edited" else 0
        pq.write_table(table.set_column(0, table.schema.field(0), pa.array(tokens, pa.int32())), path)
        if damage == "edited":
            manifest["lengths"] |= {"num_bytes": path.stat().st_size, "sha256": file_sha256(path)}
            write(copied, manifest)
    (fault,) = faults_of(copied)
    assert fault.startswith("lengths.parquet: ")
    expected = {"missing": "missing", "wrong checksum": "but the manifest says"}
    assert {**expected, "edited": "row 1000: num_tokens is 4, but 3 in shard-"}[damage] in fault


@pytest.mark.parametrize("found", [0, None, 2])
def test_a_manifest_of_a_different_format(copied, found):
    manifest = read_manifest(copied)
    manifest["format"] = found
    write(copied, manifest)
    message = f"shards of format {found}, but this version reads format 1: build them again"
    with pytest.raises(ShardError, match=message):
        faults_of(copied)


@pytest.mark.parametrize("key", ["mixture", "images", "datasets"])
def test_a_manifest_without_a_required_key(copied, key):
    manifest = read_manifest(copied)
    del manifest[key]
    write(copied, manifest)
    with pytest.raises(ShardError, match=rf"manifest\.json is incomplete or invalid \('{key}'\)"):
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
def test_a_manifest_with_an_invalid_list_of_files(copied, change):
    manifest = read_manifest(copied)
    change(manifest)
    write(copied, manifest)
    with pytest.raises(ShardError, match=r"manifest\.json does not list its shards and lengths file correctly"):
        faults_of(copied)
    with pytest.raises(ShardError, match=r"manifest\.json does not list its shards and lengths file correctly"):
        push(copied, f"file://{copied}/remote", lambda line: None)


def test_a_directory_without_shards(tmp_path):
    with pytest.raises(ShardError, match=r"holds no finished shards: there is no manifest\.json"):
        faults_of(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ShardError, match="is not valid JSON"):
        faults_of(tmp_path)


def test_the_command_prints_faults_and_exits_with_1(copied):
    command = [
        sys.executable,
        "-c",
        "from flows.cli.main import main; main()",
        "verify",
        str(copied),
        "--processes",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.endswith("No errors found.\n")
    shard(copied).unlink()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and f"{shard(copied).name}: missing" in done.stdout and "Errors found: 1" in done.stdout
