"""Tests of how samples are cut into shards and row groups."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shard_world import with_settings

from pipelines.core.store import Store, read_manifest
from pipelines.images.shrink import Shrink
from pipelines.jobs.shards import build_shards
from pipelines.schema import EXAMPLES
from pipelines.shards import plan
from pipelines.shards.plan import GROUP_BYTES, ImageMode, byte_sizes, cut_evenly, cut_groups

ITEMS = st.lists(st.integers(1, 5000), min_size=1, max_size=700)


@settings(deadline=None)
@given(ITEMS, st.integers(1, 30_000), st.sampled_from([64, 128, 4096]))
def test_no_run_deviates_from_the_mean_by_more_than_the_heaviest_item(each, most, chunk):
    each = np.array(each)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "_CHUNK", chunk)
        cuts = cut_evenly(lambda items: each[items], len(each), most)
    assert cuts[0] == 0 and cuts[-1] == len(each) and (np.diff(cuts) > 0).all()
    wanted = min(-(-each.sum() // most), len(each))
    runs = np.add.reduceat(each, cuts[:-1])
    if each.max() < each.sum() / wanted:  # otherwise a run may be empty
        assert len(runs) == wanted
    if len(runs) == wanted:
        assert np.abs(runs - each.sum() / wanted).max() <= each.max()
        assert runs.max() <= most + each.max()


def test_shards_are_even_in_bytes_and_similar_in_tokens():
    random = np.random.default_rng(0)
    each = random.lognormal(11, 0.8, 200_000).astype(np.int64)  # realistic file sizes of photographs
    tokens = random.integers(20, 600, len(each))
    cuts = cut_evenly(lambda items: each[items], len(each), 256 << 20)
    num_bytes, num_tokens = (np.add.reduceat(values, cuts[:-1]) for values in (each, tokens))
    assert len(num_bytes) > 50
    assert num_bytes.max() / num_bytes.mean() < 1.01 and num_bytes.min() / num_bytes.mean() > 0.99
    assert num_tokens.max() / num_tokens.mean() < 1.08


def test_row_groups_have_enough_rows_of_text_and_not_too_many_bytes_of_images():
    photographs, text = np.full(3000, 100_000), np.full(50_000, 400)
    groups = np.diff(cut_groups(photographs))
    assert groups.max() * 100_000 <= GROUP_BYTES + 100_000 and groups.min() > 100
    groups = np.diff(cut_groups(text))
    assert groups.min() > 2000 and groups.max() <= 4097


def test_image_bytes_count_towards_the_weight_only_if_images_are_embedded():
    row = {"images": ["a", "b"], "image_bytes": [1000, 40_000], "image_side": [100, 800], "num_tokens": 100}
    rows = pa.Table.from_pylist([row, {"num_tokens": 100, "images": [], "image_bytes": [], "image_side": []}], EXAMPLES)
    first, second = byte_sizes(rows, ImageMode("embed")).tolist()
    assert first - second == 41_000 + 2 * plan.BYTES_PER_IMAGE
    smaller, _ = byte_sizes(rows, ImageMode("embed", Shrink(400))).tolist()
    assert first - smaller == 30_000
    first, second = byte_sizes(rows, ImageMode("reference")).tolist()
    assert first - second == 2 * plan.BYTES_PER_IMAGE


def test_the_shards_of_a_build_are_even(shards):
    made = read_manifest(shards)["shards"]
    samples, num_bytes = (np.array([shard[key] for shard in made]) for key in ("num_samples", "num_bytes"))
    assert len(made) > 2
    assert samples.max() - samples.min() <= samples.mean() * 0.1  # the last shard is as large as the others
    assert num_bytes.max() / num_bytes.mean() < 1.05


def test_the_row_groups_of_a_shard_are_cut_by_bytes(world, tmp_path, monkeypatch):
    world = with_settings(world, shard_bytes=1 << 20)
    monkeypatch.setattr(plan, "GROUP_BYTES", 50_000)
    monkeypatch.setattr(plan, "GROUP_BYTES_PER_ROW", 50_000 // 1000)
    directory = build_shards(Store(tmp_path / "store"), **world)
    (shard,) = read_manifest(directory)["shards"]
    metadata = pq.read_metadata(directory / shard["file"])
    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    assert len(rows) > 3 and sum(rows) == shard["num_samples"]
    assert max(rows) - min(rows) <= 0.2 * max(rows)
