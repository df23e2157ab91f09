"""OCR-VQA's official file: books by id, with the URL of the cover, questions, answers and split."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.sample_corpus.world.facts import Question, about_the_cover, short_caption
from pipelines.sample_corpus.world.scenes import Picture
from pipelines.sample_corpus.world.writing import Account, spread, write_image, write_json

_FOLDER = Path("OCR-VQA")
_FILE = _FOLDER / "dataset.json"
_TRAINING, _VALIDATION, _TEST = 1, 2, 3


def write_ocrvqa(directory: Path, pictures: Sequence[Picture], rng: random.Random) -> Account:
    """Writes the images with a printed word as covers. A row is a question, or an entire book that yields none."""
    books: dict[str, dict[str, Any]] = {}
    account = Account(rows={str(_FILE): 0})

    def add(picture: Picture, questions: list[Question], rows: int, key: str = "", **changed: Any) -> int:
        """Adds a book and returns the index of its first row."""
        books[key or f"{picture.id:09d}"] = {
            "imageURL": f"http://example.org/covers/{picture.id}.jpg",
            "questions": [question.text for question in questions],
            "answers": [question.answer for question in questions],
            "title": picture.scene.word or "",
            "authorName": "",
            "genre": short_caption(picture.scene),
            "split": _TRAINING,
            **changed,
        }
        account.rows[str(_FILE)] += rows
        return account.rows[str(_FILE)] - rows

    for picture in spread([picture for picture in pictures if picture.scene.word], 2):
        questions = about_the_cover(picture.scene, rng)
        write_image(directory / _FOLDER / "images" / f"{picture.id:09d}.jpg", picture.jpeg)
        add(picture, questions, len(questions))

    first = pictures[0]
    asked = Question("What is the title of this book?", "GO", ())
    empty = Question("What is the title of this book?", "", ())
    broken: list[tuple[str, Question, dict[str, Any]]] = [
        ("another split", asked, {"split": _VALIDATION}),
        ("another split", asked, {"split": _TEST}),
        ("a question without answer", asked, {"answers": []}),
        ("missing image", asked, {}),
        ("empty answer", empty, {}),
    ]
    after = max(picture.id for picture in pictures) + 1
    for number, (what, question, changed) in enumerate(broken, start=after):
        account.broke(str(_FILE), add(first, [question], 1, key=f"{number:09d}", **changed), what)
    write_json(directory / _FILE, books)
    return account
