"""MM-Vet's official `mm-vet.json` and its images, on held-out scenes.

Questions with the same wording come in groups of four images with four different answers, as in mmbench.py. In
addition, some images are to be described; the answer to these is every thing, joined by <AND>.
"""

import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from pipelines.sample_corpus.world.four_way import groups_of_four
from pipelines.sample_corpus.world.scenes import SceneImage
from pipelines.sample_corpus.world.writing import LayoutSummary, write_image, write_json

_FOLDER = Path("MM-Vet")
_GROUPS = 3  # of four questions, for each family
_DESCRIBED = 24
_CAPABILITIES = {
    "color": ["rec"],
    "shape": ["rec"],
    "where": ["rec", "spat"],
    "what": ["rec", "spat"],
    "count": ["rec", "math"],
    "word": ["ocr"],
}


def write_mm_vet(directory: Path, scene_images: Sequence[SceneImage], rng: random.Random) -> LayoutSummary:
    """Writes at most 96 questions."""
    asked: list[tuple[SceneImage, str, str, list[str]]] = []
    for family, needed in _CAPABILITIES.items():
        for group in islice(groups_of_four(family, scene_images, rng), _GROUPS):
            asked += [(scene_image, question.text, question.answer, needed) for scene_image, question in group]
    for scene_image in rng.sample(list(scene_images), min(_DESCRIBED, len(scene_images))):
        things = [thing.kind for thing in scene_image.scene.things.values()]
        asked.append((scene_image, "Say in one sentence what the image shows.", "<AND>".join(things), ["rec", "gen"]))
    rows = {}
    for number, (scene_image, text, answer, needed) in enumerate(asked):
        name = f"v1_{scene_image.id}.jpg"
        write_image(directory / _FOLDER / "images" / name, scene_image.jpeg)
        rows[f"v1_{number}"] = {"imagename": name, "question": text, "answer": answer, "capability": needed}
    write_json(directory / _FOLDER / "mm-vet.json", rows)
    return LayoutSummary(rows={str(_FOLDER / "mm-vet.json"): len(rows)})
