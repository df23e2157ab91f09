"""Visual Genome's official files: phrases with their regions, and the size and URL of every image."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.sample_corpus.world.facts import region_phrase
from pipelines.sample_corpus.world.scenes import SIZE, SceneImage
from pipelines.sample_corpus.world.writing import LayoutSummary, subsample, write_image, write_json

_FOLDER = Path("VisualGenome")
_REGIONS = _FOLDER / "metadata" / "region_descriptions.json"
_IMAGES = _FOLDER / "metadata" / "image_data.json"
_PART = "VG_100K"
_SLACK = 2  # px by which a box may be too large on each side, like boxes drawn by hand, even beyond the image


def write_visual_genome(directory: Path, scene_images: Sequence[SceneImage], rng: random.Random) -> LayoutSummary:
    """Writes one phrase for each thing. The last entry holds the broken regions."""
    described: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    account = LayoutSummary(rows={str(_REGIONS): 0})

    def region(image_id: int, phrase: str, box: Sequence[int]) -> dict[str, Any]:
        account.rows[str(_REGIONS)] += 1
        fields = dict(zip(("x", "y", "width", "height"), box, strict=True))
        return {"region_id": account.rows[str(_REGIONS)], **fields, "image_id": image_id, "phrase": phrase}

    scene_images = subsample(scene_images, 5)
    for scene_image in scene_images:
        name = f"{_PART}/{scene_image.id}.jpg"
        write_image(directory / _FOLDER / name, scene_image.jpeg)
        address = {"url": f"https://example.org/{name}", "image_id": scene_image.id, "coco_id": None, "flickr_id": None}
        images.append({"width": SIZE, "height": SIZE, **address})
        regions = []
        for cell, thing in scene_image.scene.things.items():
            left, up, right, down = (rng.randint(0, _SLACK) for _ in range(4))
            x, y, width, height = scene_image.boxes[cell]
            box = (x - left, y - up, width + left + right, height + up + down)
            regions.append(region(scene_image.id, region_phrase(thing, cell, rng), box))
        described.append({"regions": regions, "id": scene_image.id})

    first = scene_images[0]
    box = next(iter(first.boxes.values()))
    after = max(scene_image.id for scene_image in scene_images) + 1
    broken = []
    for what, image_id, phrase, corners in (
        ("box without area", first.id, "a shape", (*box[:2], 0, 0)),
        ("box outside the image", first.id, "a shape", (SIZE, SIZE, *box[2:])),
        ("empty phrase", first.id, "", box),
        ("image that no file describes", after, "a shape", box),
    ):
        broken.append(region(image_id, phrase, corners))
        account.add_broken(str(_REGIONS), account.rows[str(_REGIONS)] - 1, what)
    described.append({"regions": broken, "id": after})
    write_json(directory / _REGIONS, described)
    write_json(directory / _IMAGES, images)
    account.rows[str(_IMAGES)] = len(images)
    return account
