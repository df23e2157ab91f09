"""Rows that were annotated for another size or orientation of their image."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.example_settings import example_settings
from support.official_files import official, write_official

from pipelines.examples.annotated_sizes import contradictions
from pipelines.examples.render import Renderer
from pipelines.images.table import images_table
from pipelines.schema import ANNOTATIONS
from pipelines.sources import SourceOptions, get


def save(root, name, size, orientation=1):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.linear_gradient("L").resize(size).save(buffer, "JPEG", exif=exif)
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(buffer.getvalue())


# The stored size and EXIF orientation of an image → whether boxes for 100 by 50 pixels are right.
IMAGES = {
    ((100, 50), 1): True, ((50, 100), 6): True, ((100, 50), 3): True,
    ((100, 50), 6): False, ((50, 100), 1): False, ((50, 25), 1): False, ((101, 50), 1): False,
}  # fmt: skip


@pytest.mark.parametrize(("size", "orientation"), IMAGES, ids=str)
@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog", "visual_genome"])
def test_boxes_for_another_image_size_are_rejected(tmp_path, tokenizer_dir, name, size, orientation):
    write_official(tmp_path, official(name))
    annotations = pa.Table.from_batches(get(name).read(tmp_path), ANNOTATIONS["referring"])
    names = annotations["image"].to_pylist()
    for image, stored in zip(names, [((100, 50), 1), (size, orientation)], strict=True):
        save(tmp_path, image, *stored)
    settings = example_settings(tokenizer_dir, name, "referring", max_text_tokens=1000)
    result = Renderer(settings).render(annotations, images_table(tmp_path, names))
    fits = IMAGES[size, orientation]
    assert result.counts["rows"]["rejects"] == ({} if fits else {"image_size_mismatch": 1})
    if not fits:
        width, height = size if orientation == 1 else size[::-1]
        [row] = result.rejects.to_pylist()
        assert (
            f"'{names[1]}' was annotated as 100 by 50 pixels, but is {width} by {height} as displayed" in row["detail"]
        )


def test_sizes_of_conversations_are_compared_image_by_image(tmp_path):
    for name, size in (("a", (4, 3)), ("b", (6, 5))):
        save(tmp_path, name, size)
    talk = [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}]
    rows = [
        {"image": "a", "width": 4, "height": 3},
        {"image": "a", "width": 3, "height": 4},
        {"images": ["a", "b"], "width": [4, 6], "height": [3, 5]},
        {"images": ["a", "b"], "width": [4, 6], "height": [3, 6]},
        {"image": "a"},
        {"image": "b", "width": 6},
        {"width": 9, "height": 9},
        {"image": "missing", "width": 9, "height": 9},
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({**row, "conversations": talk}) for row in rows))
    [batch] = get("llava").read(tmp_path)
    assert batch.column("reject").null_count == len(rows)
    reason, _ = contradictions(batch, images_table(tmp_path, ["a", "b", "missing"]))
    assert [i for i, each in enumerate(reason.to_pylist()) if each] == [1, 3]


def test_normalised_boxes_in_pixels_are_rejected(tmp_path):
    table = {
        "image": ["a"] * 3,
        "phrase": ["it"] * 3,
        "box": [[0.1, 0.1, 0.5, 0.5], [0.5, 0.5, 1.2, 1.1], [0.1, 0.2, 30, 20]],
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    columns = {"task": "referring", "image": "image", "phrase": "phrase", "box": "box", "box_format": "xyxy"}
    [batch] = get("datasets", SourceOptions(columns={**columns, "box_unit": "normalised"})).read(tmp_path)
    assert batch.column("reject").to_pylist() == [None, None, "box_outside_image"]
    assert batch.column("box").to_pylist()[1] == [0.5, 0.5, 1.0, 1.0]
