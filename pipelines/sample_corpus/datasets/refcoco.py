"""RefCOCO, RefCOCO+ and RefCOCOg in MDETR's layout: a COCO file with one phrase per image entry and boxes by id."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines.sample_corpus.world.scenes import POSITIONS, SIZE, SceneImage, SceneObject
from pipelines.sample_corpus.world.writing import LayoutSummary, coco_train2014, write_image, write_json

_FOLDER = Path("refcoco") / "annotations"
_IMAGES = Path("coco") / "images" / "train2014"


def write_refcoco(directory: Path, scene_images: Sequence[SceneImage], rng: random.Random) -> LayoutSummary:
    """Describes the things in every second image by position (RefCOCO), look (RefCOCO+) or sentence (RefCOCOg)."""
    account = LayoutSummary()
    scene_images = scene_images[::2]
    for scene_image in scene_images:
        write_image(directory / _IMAGES / coco_train2014(scene_image.id), scene_image.jpeg)
    for name, phrase in (("refcoco", _by_place), ("refcoco+", _by_look), ("refcocog", _by_sentence)):
        _write_one(directory, name, phrase, scene_images, account)
    return account


def _write_one(
    directory: Path,
    name: str,
    phrase: Callable[[SceneObject, int], str],
    scene_images: Sequence[SceneImage],
    account: LayoutSummary,
) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    file = str(_FOLDER / f"finetune_{name}_train.json")

    def add(scene_image: SceneImage, caption: str, box: Sequence[float], image_id: int) -> int:
        row = len(images)
        images.append(
            {
                "file_name": coco_train2014(image_id),
                "height": SIZE,
                "width": SIZE,
                "id": row,
                "original_id": image_id,
                "caption": caption,
                "dataset_name": name,
                "tokens_negative": [[0, len(caption)]],
            }
        )
        annotations.append(
            {
                "area": box[2] * box[3],
                "iscrowd": 0,
                "image_id": row,
                "category_id": 1,
                "id": row,
                "bbox": list(box),
                "original_id": 10 * image_id + row % 10,
            }
        )
        return row

    for scene_image in scene_images:
        for cell, thing in scene_image.scene.things.items():
            add(scene_image, phrase(thing, cell), scene_image.boxes[cell], scene_image.id)
    first = scene_images[0]
    cell, thing = next(iter(first.scene.things.items()))
    text, box, after = phrase(thing, cell), first.boxes[cell], max(scene_image.id for scene_image in scene_images) + 1
    account.add_broken(file, add(first, text, box, after), "missing image")
    account.add_broken(file, add(first, text, (*box[:2], 0, 0), first.id), "box without area")
    account.add_broken(file, add(first, text, (SIZE, SIZE, *box[2:]), first.id), "box outside the image")
    account.add_broken(file, add(first, "", box, first.id), "empty phrase")
    categories = [{"supercategory": "object", "id": 1, "name": "object"}]
    head: dict[str, Any] = {"info": [], "licenses": []}
    write_json(directory / file, {**head, "images": images, "annotations": annotations, "categories": categories})
    account.rows[file] = len(images)


def _by_place(thing: SceneObject, cell: int) -> str:
    return f"{POSITIONS[cell]} {thing.shape}"


def _by_look(thing: SceneObject, cell: int) -> str:
    return f"{thing.size} {thing.kind}"


def _by_sentence(thing: SceneObject, cell: int) -> str:
    return f"the {thing.kind} that stands at the {POSITIONS[cell]} of the image"
