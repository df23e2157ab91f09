"""ShareGPT's layout: text-only conversations, some with many turns, some with one long answer."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.sample_corpus.world.facts import arithmetic, counting, full_caption, geometry, open_questions
from pipelines.sample_corpus.world.scenes import SceneImage
from pipelines.sample_corpus.world.writing import LayoutSummary, subsample, write_json

_FILE = Path("Vicuna") / "sharegpt.json"
_MOST_TURNS = 30
_LONGEST_COUNT = 250


def write_sharegpt(directory: Path, scene_images: Sequence[SceneImage], rng: random.Random) -> LayoutSummary:
    """Writes questions about additions and shapes, questions about a scene described in text, and, in every fourth row,
    a conversation that is too long for a short example."""
    rows: list[dict[str, Any]] = []

    def add(turns: list[tuple[str, str]]) -> int:
        texts = [text for turn in turns for text in turn]
        messages = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
        rows.append({"id": f"sample{len(rows):06d}_0", "conversations": messages})
        return len(rows) - 1

    for number, scene_image in enumerate(subsample(scene_images, 7)):
        if number % 4 == 3:
            turns = [rng.choice((arithmetic, geometry))(rng) for _ in range(rng.randint(8, _MOST_TURNS))]
            turns.insert(rng.randrange(len(turns)), counting(rng.randint(10, _LONGEST_COUNT)))
        elif number % 2:
            prompt = f"A picture shows {full_caption(scene_image.scene)}. {{}}"
            asked = [(question.text, question.answer) for question in open_questions(scene_image.scene, rng)]
            turns = [(prompt.format(asked[0][0]), asked[0][1]), *asked[1:]]
        else:
            turns = [rng.choice((arithmetic, geometry))(rng) for _ in range(rng.randint(1, 4))]
        add(turns)

    account = LayoutSummary()
    account.add_broken(str(_FILE), add([arithmetic(rng), ("And then?", "")]), "empty answer")
    account.add_broken(str(_FILE), add([arithmetic(rng), geometry(rng)]), "assistant speaks first")
    del rows[-1]["conversations"][0]
    account.add_broken(str(_FILE), add([arithmetic(rng), geometry(rng)]), "the last question has no answer")
    del rows[-1]["conversations"][-1]
    account.add_broken(str(_FILE), add([]), "no turn")
    write_json(directory / _FILE, rows)
    account.rows = {str(_FILE): len(rows)}
    return account
