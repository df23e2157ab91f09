"""A sample of a dataset's images is opened before a build."""

import io
import json

import pytest
from PIL import Image

from flows.preflight.images import IMAGES, check_images, sample
from flows.preflight.outcome import Status
from pipelines.jobs.dataset import DatasetSpec


@pytest.fixture
def dataset(tmp_path):
    """dataset(count, good, name) → a dataset whose rows show `count` images, of which the first `good` exist."""

    def make(count: int, good: int, name: str = "{}.png") -> DatasetSpec:
        rows = [
            {"image": name.format(n), "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]}
            for n in range(count)
        ]
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
        for n in range(good):
            (tmp_path / name.format(n)).write_bytes(buffer.getvalue())
        return DatasetSpec(name="mine", source="llava", annotations=tmp_path, images=tmp_path)

    return make


def test_usable_images_pass(dataset):
    check = check_images(dataset(40, 40))
    assert (check.item, check.status, check.reason) == ("datasets.mine.images", Status.OK, f"opened {IMAGES} images")


def test_the_sample_is_the_same_every_time_and_spread_over_the_rows(dataset):
    spec = dataset(1000, 0)
    first, second = (sample(spec.reader.read(spec.annotations)) for _ in range(2))
    assert first == second and len(set(first)) == IMAGES
    assert sum(int(name.removesuffix(".png")) >= 500 for name in first) > 5


def test_reasons_are_counted_with_an_example(dataset, tmp_path):
    spec = dataset(6, 6)
    (tmp_path / "0.png").unlink()
    (tmp_path / "1.png").unlink()
    (tmp_path / "2.png").write_bytes((tmp_path / "3.png").read_bytes()[:40])
    check = check_images(spec)
    assert check.status is Status.WARNING
    assert check.reason.startswith("3 of 6 sampled images cannot be used: 2 image_missing, e.g. 0.png: there is no")
    assert "1 image_corrupt, e.g. 2.png: " in check.reason


def test_a_dataset_without_a_usable_image_fails(dataset, tmp_path):
    check = check_images(dataset(3, 0, name="../{}.png"))
    assert check.status is Status.FAILED
    assert check.reason.startswith(f"none of 3 sampled images can be used below {tmp_path}: 3 image_outside_root, e.g.")


def test_rows_without_images_pass(dataset, tmp_path):
    spec = dataset(1, 0)
    rows = json.loads((tmp_path / "rows.json").read_text())
    del rows[0]["image"]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert check_images(spec).status is Status.OK
