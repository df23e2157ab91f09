"""VSR's official training file, JSON Lines: true or false statements about two things."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.sample_corpus.world.facts import Statement, statements
from pipelines.sample_corpus.world.scenes import SceneImage
from pipelines.sample_corpus.world.writing import LayoutSummary, coco_2017, subsample, write_image

_FOLDER = Path("VSR")
_FILE = _FOLDER / "random" / "train.jsonl"
_MOST = 2  # statements about one image


def write_vsr(directory: Path, scene_images: Sequence[SceneImage], rng: random.Random) -> LayoutSummary:
    """Writes statements about the relative positions of things; an image with only one thing gets none."""
    rows: list[dict[str, Any]] = []

    def add(image_id: int, statement: Statement, **changed: Any) -> int:
        label = int(statement.holds)
        voters = str([rng.randint(1, 20)])
        row = {
            "image": coco_2017(image_id),
            "image_link": f"http://example.org/train2017/{coco_2017(image_id)}",
            "caption": f"The {statement.one.kind} is {statement.relation} the {statement.other.kind}.",
            "label": label,
            "relation": statement.relation,
            "annotator_id": rng.randint(1, 20),
            "vote_true_validator_id": voters if label else "[]",
            "vote_false_validator_id": "[]" if label else voters,
            "reference_frame": None,
        }
        rows.append({**row, **changed})
        return len(rows) - 1

    for scene_image in subsample([scene_image for scene_image in scene_images if len(scene_image.scene.things) > 1], 3):
        write_image(directory / _FOLDER / "images" / "train2017" / coco_2017(scene_image.id), scene_image.jpeg)
        for statement in statements(scene_image.scene, rng)[:_MOST]:
            add(scene_image.id, statement)

    account = LayoutSummary()
    after = max(scene_image.id for scene_image in scene_images) + 1
    thing = next(iter(scene_images[0].scene.things.values()))
    about = Statement(thing, "above", thing, False)
    account.add_broken(str(_FILE), add(after, about), "missing image")
    account.add_broken(str(_FILE), add(after, about, label=2), "label neither true nor false")
    account.add_broken(str(_FILE), add(after, about, caption=""), "empty statement")
    path = directory / _FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    account.rows = {str(_FILE): len(rows)}
    return account
