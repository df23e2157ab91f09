"""VQAv2's two official files: questions, and annotations with ten answers each. Images have COCO train2014 names."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.sample_corpus.world.facts import Question, open_questions
from pipelines.sample_corpus.world.scenes import SceneImage
from pipelines.sample_corpus.world.writing import LayoutSummary, coco_train2014, write_image, write_json

_HEAD = {
    "info": {"description": "Generated scenes in the layout of VQA v2.0", "version": "2.0"},
    "license": {"name": "none needed"},
    "data_subtype": "train2014",
    "data_type": "mscoco",
}
_FOLDER = Path("VQAv2")
_QUESTIONS = _FOLDER / "v2_OpenEnded_mscoco_train2014_questions.json"
_ANNOTATIONS = _FOLDER / "v2_mscoco_train2014_annotations.json"


def write_vqav2(directory: Path, scene_images: Sequence[SceneImage], rng: random.Random) -> LayoutSummary:
    """Writes about eight questions per image."""
    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []

    def add(image_id: int, question: Question, answer: str) -> int:
        row = len(questions)
        question_id = 1000 * image_id + row % 1000
        questions.append({"image_id": image_id, "question": question.text, "question_id": question_id})
        annotations.append(
            {
                "question_type": " ".join(question.text.lower().split()[:3]),
                "multiple_choice_answer": answer,
                "answers": _ten_answers(question, answer, rng),
                "image_id": image_id,
                "answer_type": _answer_type(answer),
                "question_id": question_id,
            }
        )
        return row

    for scene_image in scene_images:
        write_image(directory / _FOLDER / "images" / coco_train2014(scene_image.id), scene_image.jpeg)
        for question in open_questions(scene_image.scene, rng):
            add(scene_image.id, question, question.answer)

    account = LayoutSummary()
    first, after = scene_images[0], max(scene_image.id for scene_image in scene_images) + 1
    asked = open_questions(first.scene, rng)
    write_image(directory / _FOLDER / "images" / coco_train2014(after), first.truncated)
    account.add_broken(str(_QUESTIONS), add(after, asked[0], asked[0].answer), "truncated JPEG")
    account.add_broken(str(_QUESTIONS), add(after + 1, asked[1], asked[1].answer), "missing image")
    account.add_broken(str(_QUESTIONS), add(first.id, asked[2], ""), "empty answer")
    account.add_broken(str(_QUESTIONS), add(first.id, asked[3], asked[3].answer), "no annotation for this question")
    annotations.pop()
    write_json(directory / _QUESTIONS, {**_HEAD, "task_type": "Open-Ended", "questions": questions})
    write_json(directory / _ANNOTATIONS, {**_HEAD, "annotations": annotations})
    account.rows = {str(_QUESTIONS): len(questions), str(_ANNOTATIONS): len(annotations)}
    return account


def _answer_type(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes/no"
    return "number" if answer.isdigit() else "other"


def _ten_answers(question: Question, answer: str, rng: random.Random) -> list[dict[str, Any]]:
    """Returns the answers of ten annotators, of whom at most two are sometimes wrong."""
    wrong = rng.choice((0, 0, 0, 1, 2)) if answer else 0
    others = [option for option in question.options if option != answer]
    answers = [rng.choice(others) for _ in range(wrong)] + [answer] * (10 - wrong)
    return [
        {"answer": text, "answer_confidence": "yes" if text == answer else "maybe", "answer_id": number}
        for number, text in enumerate(answers, start=1)
    ]
