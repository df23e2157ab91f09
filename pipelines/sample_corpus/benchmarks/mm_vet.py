"""MM-Vet's official `mm-vet.json` and its images, on held-out scenes.

Questions with the same wording come in groups of four images with four different answers, as in mmbench.py. In
addition, some images are to be described; the answer to these is every thing, joined by <AND>.
"""

import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from pipelines.sample_corpus.world.four_way import groups_of_four
from pipelines.sample_corpus.world.scenes import Picture
from pipelines.sample_corpus.world.writing import Account, write_image, write_json

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


def write_mm_vet(directory: Path, pictures: Sequence[Picture], rng: random.Random) -> Account:
    """Writes at most 96 questions."""
    asked: list[tuple[Picture, str, str, list[str]]] = []
    for family, needed in _CAPABILITIES.items():
        for group in islice(groups_of_four(family, pictures, rng), _GROUPS):
            asked += [(picture, question.text, question.answer, needed) for picture, question in group]
    for picture in rng.sample(list(pictures), min(_DESCRIBED, len(pictures))):
        things = [thing.kind for thing in picture.scene.things.values()]
        asked.append((picture, "Say in one sentence what the image shows.", "<AND>".join(things), ["rec", "gen"]))
    rows = {}
    for number, (picture, text, answer, needed) in enumerate(asked):
        name = f"v1_{picture.id}.jpg"
        write_image(directory / _FOLDER / "images" / name, picture.jpeg)
        rows[f"v1_{number}"] = {"imagename": name, "question": text, "answer": answer, "capability": needed}
    write_json(directory / _FOLDER / "mm-vet.json", rows)
    return Account(rows={str(_FOLDER / "mm-vet.json"): len(rows)})
