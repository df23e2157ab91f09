"""The two generic sources on generated images, from their files to shards."""

import io
import json

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pillow
from support.example_settings import settings_of

from pipelines.core.store import Store, read_manifest
from pipelines.jobs.dataset import DatasetSpec, Tables
from pipelines.jobs.examples import build_examples
from pipelines.jobs.images import build_images
from pipelines.jobs.shards import build_shards
from pipelines.mixture.shares import Balance
from pipelines.shards.settings import ShardSettings
from pipelines.sources import SourceError, SourceOptions
from pipelines.sources.generic import hub

MESSAGE = {"role": Value("string"), "content": Value("string")}
CONVERSATION = {"images": List(Image()), "talk": List(MESSAGE)}
COLUMNS = {"task": "conversation", "image": "images", "conversations": "talk"}


def drawn(number):
    buffer = io.BytesIO()
    Pillow.new("RGB", (8, 6), (number, 100, 3 * number)).save(buffer, "PNG")
    return buffer.getvalue()


def talk(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def conversations(count):
    """Returns rows with 0, 1, 2, 3, 0, … images; row i has the images 10 i, 10 i + 1, …"""
    texts = ["Hi", "<image>\nQ?", "Is <image> as <image>?", "All three?"]
    return Dataset.from_dict(
        {
            "images": [
                [{"bytes": drawn(10 * i + n), "path": None} for n in range(i % 4)] if i % 4 else None
                for i in range(count)
            ],
            "talk": [talk(texts[i % 4], f"Answer {i}.") for i in range(count)],
        },
        Features(CONVERSATION),
    )


def shards_of(tmp_path, tokenizer_dir, *specs):
    store, log = Store(tmp_path / "store"), lambda line: None
    images = build_images(store, specs, log)
    examples = {
        spec.name: build_examples(
            store, spec, settings_of(spec, tokenizer_dir, max_text_tokens=500), Tables(images[spec.name]), log=log
        )
        for spec in specs
    }  # fmt: skip
    settings = ShardSettings(
        balance=Balance(strategy="tuned"),
        weights=dict.fromkeys(examples, 1.0),
        num_samples=64,
        shard_bytes=1 << 16,
        tokenizer=tokenizer_dir,
    )
    directory = build_shards(store, examples, {spec.name: spec.images for spec in specs}, settings, log=log)
    files = [directory / shard["file"] for shard in read_manifest(directory)["shards"]]
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    return {name: read_manifest(path)["rows"] for name, path in examples.items()}, rows


def spec(name, root, source="datasets", images=None, **options):
    return DatasetSpec(name, source, root, images or root, options=SourceOptions(**options))


def test_images_from_parquet_and_arrow_are_embedded_unchanged(tmp_path, tokenizer_dir):
    (tmp_path / "parquet").mkdir()
    conversations(20).to_parquet(tmp_path / "parquet" / "a.parquet", batch_size=3)
    conversations(20).save_to_disk(tmp_path / "arrow", num_shards=3)
    (tmp_path / "llava" / "deep").mkdir(parents=True)
    lines = []
    for i, row in enumerate(conversations(20).to_list()):
        names = [f"deep/{10 * i + n}.png" for n in range(i % 4)]
        for name, image in zip(names, row["images"] or (), strict=True):
            (tmp_path / "llava" / name).write_bytes(image["bytes"])
        lines.append({"messages": row["talk"], "images": names})
    (tmp_path / "llava" / "deep" / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    ledgers, rows = shards_of(
        tmp_path,
        tokenizer_dir,
        spec("parquet", tmp_path / "parquet", columns=COLUMNS),
        spec("arrow", tmp_path / "arrow", columns=COLUMNS),
        spec("chats", tmp_path / "llava", source="llava"),
    )
    assert all(rows == {"read": 20, "examples": 20, "duplicates": 0, "rejects": {}} for rows in ledgers.values())
    assert {row["dataset"] for row in rows} == {"parquet", "arrow", "chats"}
    seen = set()
    for row in rows:
        i = row["turns"][0]["row"]
        seen.add((row["dataset"], i))
        assert row["turns"][0]["assistant"] == f"Answer {i}."
        assert [image["bytes"] for image in row["images"]] == [drawn(10 * i + n) for n in range(i % 4)]
    assert len(seen) > 50
    # The same row gives the same sample regardless of where its images are stored.
    tokens = {(row["dataset"], row["turns"][0]["row"]): row["input_ids"] for row in rows}
    assert all(ids == tokens.get(("arrow", i), ids) == tokens.get(("chats", i), ids) for (_, i), ids in tokens.items())


def test_an_embedded_image_that_changes_is_measured_again(tmp_path, tokenizer_dir):
    (tmp_path / "data").mkdir()
    captions = {"image": [{"bytes": drawn(1), "path": "x.png"}], "text": ["A field."]}
    options = {"columns": {"task": "caption", "image": "image", "caption": "text"}}
    features = Features({"image": Image(), "text": Value("string")})
    for number in (1, 2):
        captions["image"][0]["bytes"] = drawn(number)
        Dataset.from_dict(captions, features).to_parquet(tmp_path / "data" / "a.parquet")
        _, rows = shards_of(tmp_path, tokenizer_dir, spec("blipcapfilt", tmp_path / "data", **options))
        assert rows[0]["images"][0]["bytes"] == drawn(number)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache as the hub's client writes it: snapshots that are links into blobs."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    root = tmp_path / "hub" / "datasets--owner--name"
    data = root / "snapshots" / ("0" * 40) / "data"
    for directory in (data, root / "blobs", root / "refs"):
        directory.mkdir(parents=True)
    conversations(8).to_parquet(root / "blobs" / "abc")
    (data / "train-0.parquet").symlink_to("../../../blobs/abc")
    (root / "refs" / "main").write_text("0" * 40)
    hub.snapshot.cache_clear()
    yield root
    hub.snapshot.cache_clear()


def test_a_cached_hub_dataset_needs_no_network(cache, tmp_path, tokenizer_dir):
    root, files = hub.snapshot("owner/name", None, None)
    assert root == cache
    ledgers, rows = shards_of(tmp_path, tokenizer_dir, spec("chats", root, columns=COLUMNS, files=files))
    assert ledgers["chats"]["examples"] == 8
    assert {image["bytes"] for row in rows for image in row["images"]} <= {drawn(n) for n in range(80)}
    assert hub.snapshot("owner/name", "main", "data/*.parquet")[1] == f"snapshots/{'0' * 40}/data/*.parquet"
    for name, revision in (("owner/other", None), ("owner/name", "v2")):
        with pytest.raises(SourceError, match=rf"hub: the dataset {name}.* cannot be fetched"):
            hub.snapshot(name, revision, None)
