"""OCR-VQA's official file: books by id, with the URL of the cover, questions, answers and split."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.sample_corpus.world.facts import Question, cover_questions, short_caption
from pipelines.sample_corpus.world.scenes import SceneImage
from pipelines.sample_corpus.world.writing import LayoutSummary, subsample, write_image, write_json

_FOLDER = Path("OCR-VQA")
_FILE = _FOLDER / "dataset.json"
_TRAINING, _VALIDATION, _TEST = 1, 2, 3


def write_ocrvqa(directory: Path, scene_images: Sequence[SceneImage], rng: random.Random) -> LayoutSummary:
    """Writes the images with a printed word as covers. A row is a question, or an entire book that yields none."""
    books: dict[str, dict[str, Any]] = {}
    account = LayoutSummary(rows={str(_FILE): 0})

    def add(scene_image: SceneImage, questions: list[Question], rows: int, key: str = "", **changed: Any) -> int:
        """Adds a book and returns the index of its first row."""
        books[key or f"{scene_image.id:09d}"] = {
            "imageURL": f"http://example.org/covers/{scene_image.id}.jpg",
            "questions": [question.text for question in questions],
            "answers": [question.answer for question in questions],
            "title": scene_image.scene.word or "",
            "authorName": "",
            "genre": short_caption(scene_image.scene),
            "split": _TRAINING,
            **changed,
        }
        account.rows[str(_FILE)] += rows
        return account.rows[str(_FILE)] - rows

    for scene_image in subsample([scene_image for scene_image in scene_images if scene_image.scene.word], 2):
        questions = cover_questions(scene_image.scene, rng)
        write_image(directory / _FOLDER / "images" / f"{scene_image.id:09d}.jpg", scene_image.jpeg)
        add(scene_image, questions, len(questions))

    first = scene_images[0]
    asked = Question("What is the title of this book?", "GO", ())
    empty = Question("What is the title of this book?", "", ())
    broken: list[tuple[str, Question, dict[str, Any]]] = [
        ("another split", asked, {"split": _VALIDATION}),
        ("another split", asked, {"split": _TEST}),
        ("a question without answer", asked, {"answers": []}),
        ("missing image", asked, {}),
        ("empty answer", empty, {}),
    ]
    after = max(scene_image.id for scene_image in scene_images) + 1
    for number, (what, question, changed) in enumerate(broken, start=after):
        account.add_broken(str(_FILE), add(first, [question], 1, key=f"{number:09d}", **changed), what)
    write_json(directory / _FILE, books)
    return account
