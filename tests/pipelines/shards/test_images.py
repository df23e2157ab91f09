"""Tests of images in shards: embedded, shrunk or referenced, and how other libraries read them."""

import hashlib
import io

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image
from support.shard_world import COUNT, make_world, with_settings

from pipelines.core.store import Store, read_manifest
from pipelines.images.decode import decode
from pipelines.images.shrink import QUALITY, Shrink
from pipelines.jobs.shards import build_shards
from pipelines.shards.plan import ImageMode
from pipelines.shards.verify import verify


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def drawing(width: int, height: int, box: tuple[float, float, float, float]) -> Image.Image:
    """A white image with a red rectangle at relative coordinates."""
    image = Image.new("RGB", (width, height), "white")
    corners = [round(value * side) for value, side in zip(box, (width, height, width, height), strict=True)]
    image.paste("red", tuple(corners))
    return image


def test_only_larger_images_are_shrunk_and_always_to_the_same_bytes():
    small, large = encoded(drawing(300, 200, (0, 0, 1, 1))), encoded(drawing(301, 200, (0, 0, 1, 1)))
    assert Shrink(300)(small) == small
    made = Shrink(300)(large)
    assert made == Shrink(300)(large) != large
    shrunk = Image.open(io.BytesIO(made))
    assert (shrunk.format, shrunk.size) == ("JPEG", (300, 199))
    assert Image.open(io.BytesIO(Shrink(300)(encoded(Image.new("L", (2, 3000)))))).size == (1, 300)


@pytest.mark.parametrize(("width", "height"), [(1000, 731), (517, 1999)])
def test_shrinking_preserves_relative_boxes(width, height):
    box = (0.25, 0.4, 0.625, 0.9)
    image = decode(Shrink(200)(encoded(drawing(width, height, box), "JPEG", quality=95))).convert("RGB")
    red = np.asarray(image).astype(int)[..., 1] < 128
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    found = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    for value, wanted, side in zip(found, box, (*image.size, *image.size), strict=True):
        assert abs(value - wanted * side) <= 1


def test_a_shrunk_image_is_upright_and_has_no_alpha():
    turned = Image.new("RGB", (400, 100), "blue")
    exif = turned.getexif()
    exif[0x0112] = 6
    assert Image.open(io.BytesIO(Shrink(200)(encoded(turned, "JPEG", exif=exif)))).size == (50, 200)
    glass = Image.new("RGBA", (400, 400), (255, 0, 0, 0))
    assert decode(Shrink(200)(encoded(glass))).convert("RGB").getpixel((100, 100)) == (255, 255, 255)


def test_shards_of_shrunk_images_have_the_checksums_of_the_embedded_bytes(world, tmp_path):
    store = Store(tmp_path / "store")
    for root in world["image_roots"].values():
        assert {Image.open(path).size for path in root.iterdir()} == {(4, 3)}
    directory = build_shards(store, **with_settings(world, image_mode=ImageMode("embed", Shrink(2))))
    assert (
        directory
        != build_shards(store, **world)
        != build_shards(store, **with_settings(world, image_mode=ImageMode("reference")))
    )
    made = read_manifest(directory)["images"]
    assert (made["mode"], made["shrink"]["side"], made["shrink"]["quality"]) == ("embed", 2, QUALITY)
    seen = 0
    for shard in read_manifest(directory)["shards"]:
        for row in pq.read_table(directory / shard["file"], columns=["images", "image_sha256"]).to_pylist():
            for image, sha256 in zip(row["images"], row["image_sha256"], strict=True):
                assert hashlib.sha256(image["bytes"]).hexdigest() == sha256
                assert Image.open(io.BytesIO(image["bytes"])).size == (2, 2)
                seen += 1
    assert seen and verify(str(directory), lambda line: None) == []


@pytest.fixture(scope="module", params=["embed", "reference"])
def built(request, tokenizer_dir, tmp_path_factory):
    """The mode of the images, and shards that the tests only read."""
    root = tmp_path_factory.mktemp(request.param)
    world = with_settings(make_world(root, tokenizer_dir), image_mode=ImageMode(request.param))
    return request.param, build_shards(Store(root / "store"), **world)


def test_references_contain_the_paths_and_checksums_of_the_images(world, tmp_path):
    directory = build_shards(Store(tmp_path / "store"), **with_settings(world, image_mode=ImageMode("reference")))
    names = 0
    for shard in read_manifest(directory)["shards"]:
        for row in pq.read_table(directory / shard["file"]).to_pylist():
            for image, sha256 in zip(row["images"], row["image_sha256"], strict=True):
                data = (world["image_roots"][row["dataset"]] / image["path"]).read_bytes()
                assert image["bytes"] is None and hashlib.sha256(data).hexdigest() == sha256
                names += 1
    assert names > COUNT / 2
    assert str(tmp_path) not in (directory / "manifest.json").read_text() + (directory / "README.md").read_text()


def test_datasets_can_load_the_directory(built, tmp_path):
    mode, directory = built
    dataset = load_dataset(str(directory), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(dataset) == COUNT and dataset[7]["index"] == 7
    assert dataset[0]["turns"][0]["user"].startswith("question")
    shown = next(row for row in dataset.select(range(20)) if row["num_images"])["images"][0]
    if mode == "embed":
        assert shown.size == (4, 3)
    else:
        assert shown["bytes"] is None and shown["path"].endswith(".png")
    streamed = load_dataset(str(directory), split="train", streaming=True)
    assert next(iter(streamed))["input_ids"] == dataset[0]["input_ids"]


def test_duckdb_and_pandas_can_read_the_shards(built):
    _, directory = built
    pattern = str(directory / "shard-*.parquet")
    counts = duckdb.sql(f"select dataset, count(*), sum(num_tokens) from '{pattern}' group by 1 order by 1").fetchall()
    assert counts == [("a", 1125, 3375), ("b", 375, 1125)]
    names = duckdb.sql(f"select images[1].path from '{pattern}' where num_images = 1 limit 1").fetchall()
    assert names[0][0].endswith(".png")
    frame = pd.concat(pd.read_parquet(directory / shard["file"]) for shard in read_manifest(directory)["shards"])
    assert frame["index"].tolist() == list(range(COUNT))
    assert frame["turns"].iloc[0][0]["user"].startswith("question")
    lengths = pd.read_parquet(directory / "lengths.parquet")
    assert lengths["num_tokens"].sum() == frame["num_tokens"].sum()


def test_the_card_agrees_with_the_manifest(built):
    mode, directory = built
    text, manifest = (directory / "README.md").read_text(), read_manifest(directory)
    assert "| a | 75.00% | 1,125 | 700 | 1.61 |" in text and "| b | 25.00% | 375 | 31 | 12.10 |" in text
    assert "| a | 703 | 700 | 1 | 2 too_long |" in text
    assert manifest["tokenizer"] in text and "see the dataset's own page" in text
    assert ("embedded" in text) == (mode == "embed")
