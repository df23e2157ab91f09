"""A recipe's shards at a URL, with image references and with shrunk images."""

from pathlib import Path

import pyarrow.parquet as pq

from flows.report.gallery import cards
from flows.runs.find import is_run, shards_at
from pipelines.core.store import read_manifest
from pipelines.shards.remote import push, shards_url
from pipelines.shards.verify import verify


def quiet(line: str) -> None:
    """Discards progress messages."""


def test_built_shards_are_pushed_and_referenced_images_exist(recipe_of, build_data, corpus, tmp_path):
    remote = f"file://{tmp_path}/remote"
    paths = {"store": str(corpus / "store"), "runs": str(tmp_path / "runs"), "data": str(corpus / "data")}
    data = build_data(recipe_of({"paths": {**paths, "remote": remote}, "images": "reference"}))
    for stage in ("pretrain", "finetune"):
        shards = data[stage].shards
        assert verify(shards_url(remote, shards), quiet) == []
        manifest = read_manifest(shards)
        assert manifest["images"] == {"mode": "reference", "shrink": None}
    table = pq.read_table(shards / manifest["shards"][0]["file"]).to_pylist()
    images = {"vqav2": corpus / "data/VQAv2/images", "refcoco": corpus / "data/coco/images/train2014"}
    for row in table:
        assert all((images[row["dataset"]] / image["path"]).is_file() for image in row["images"])
    first = cards(shards, 1)[0]
    assert first.images == () and "; images not embedded in the shards: " in first.text


def test_image_side_is_part_of_the_fingerprint_of_shards(recipe_of, build_data):
    full = build_data(recipe_of())["finetune"].shards
    small = build_data(recipe_of({"finetune/data/image_side": 16}))["finetune"].shards
    assert full != small and verify(str(small), quiet) == []
    assert read_manifest(small)["key"]["images"]["shrink"]["side"] == 16


def test_a_run_a_directory_and_a_url_are_distinguished(recipe_of, build_data, tmp_path):
    shards = build_data(recipe_of())["finetune"].shards
    run = tmp_path / "runs/tiny/one"
    (run / "data").mkdir(parents=True)
    (run / "recipe.yaml").write_text("")
    (run / "data/finetune").symlink_to(shards)
    assert shards_at(str(run)) == [str(shards)] and is_run(str(run))
    for location in (str(shards), f"{run}/data/finetune", "s3://bucket/shards"):
        assert shards_at(location) == [location] and not is_run(location)
    push(Path(f"{run}/data/finetune"), f"file://{tmp_path}/out", quiet)
    assert verify(f"file://{tmp_path}/out", quiet) == []
