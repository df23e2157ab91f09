"""ScienceQA's official files (problems by id, and the ids of each split), and their conversion by LLaVA's script.

Every second problem has an image, a PNG; the others describe one in their hint.
"""

import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.sample_corpus.world.facts import FOUR_WAY, four_options, full_caption, listed
from pipelines.sample_corpus.world.scenes import POSITIONS, SceneImage
from pipelines.sample_corpus.world.writing import LayoutSummary, subsample, write_image, write_json

_FOLDER = Path("ScienceQA")
_PROBLEMS, _SPLITS = _FOLDER / "problems.json", _FOLDER / "pid_splits.json"
_LLAVA = _FOLDER / "llava_train_QCM-LEPA.json"
_LETTERS = "ABCD"
_LECTURE = f"A picture has four places: {listed(list(POSITIONS))}."

Problem = dict[str, Any]


def write_scienceqa(directory: Path, scene_images: Sequence[SceneImage], rng: random.Random) -> LayoutSummary:
    problems: dict[str, Problem] = {}

    def add(problem: Problem) -> int:
        problems[str(len(problems) + 1)] = problem
        return len(problems) - 1

    for number, scene_image in enumerate(subsample(scene_images, 9)):
        has_image = number % 2 == 0
        row = add(_problem(scene_image, has_image, rng))
        if has_image:
            write_image(directory / _FOLDER / "images" / "train" / str(row + 1) / "image.png", png(scene_image))
    llava = [_llava_entry(pid, problem) for pid, problem in problems.items()]

    account = LayoutSummary()
    good = problems["1"]
    broken: dict[str, Problem] = {
        "missing image": {},
        "another split": {"split": "test"},
        "answer out of range": {"answer": len(good["choices"])},
        "empty question": {"question": ""},
    }
    for what, changed in broken.items():
        account.add_broken(str(_PROBLEMS), add({**good, **changed}), what)
    splits = {
        split: [pid for pid, problem in problems.items() if problem["split"] == split]
        for split in ("train", "val", "test")
    }
    _add_broken_llava_entries(llava, account)
    for file, content in ((_PROBLEMS, problems), (_SPLITS, splits), (_LLAVA, llava)):
        write_json(directory / file, content)
    account.rows = {str(_PROBLEMS): len(problems), str(_LLAVA): len(llava)}
    return account


def png(scene_image: SceneImage) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(scene_image.jpeg)).save(buffer, "PNG")
    return buffer.getvalue()


def _problem(scene_image: SceneImage, has_image: bool, rng: random.Random) -> Problem:
    families = {family: ask(scene_image.scene, rng) for family, ask in FOUR_WAY.items()}
    family = rng.choice([family for family, questions in families.items() if questions])
    question = rng.choice(families[family])
    choices, right = four_options(question, rng)
    if not has_image:
        hint = f"The text below describes a picture.\nThe picture shows {full_caption(scene_image.scene)}."
    else:
        hint = rng.choice(("", "Look at the picture."))
    return {
        "question": question.text,
        "choices": choices,
        "answer": right,
        "hint": hint,
        "image": "image.png" if has_image else None,
        "task": "closed choice",
        "grade": "grade1",
        "subject": "natural science",
        "topic": "shapes",
        "category": family,
        "skill": f"Tell the {family} from a {'picture' if has_image else 'text'}",
        "lecture": rng.choice(("", _LECTURE)),
        "solution": f"The answer is {question.answer}.",
        "split": "train",
    }


def _llava_entry(pid: str, problem: Problem) -> dict[str, Any]:
    """Returns an entry as LLaVA's convert_sqa_to_llava.py writes it in the form QCM-LEPA: question, context, options;
    then lecture, explanation, answer."""
    options = " ".join(f"({letter}) {choice}" for letter, choice in zip(_LETTERS, problem["choices"], strict=True))
    asked = f"{problem['question']}\nContext: {problem['hint'] or 'N/A'}\nOptions: {options}"
    lecture = f"LECTURE: {problem['lecture']}\n" if problem["lecture"] else ""
    answer = f"{lecture}SOLUTION: {problem['solution']}\n###\nANSWER: {_LETTERS[problem['answer']]}."
    image = {"image": f"{pid}/{problem['image']}"} if problem["image"] else {}
    asked += "\n<image>" if image else ""
    return {"id": pid, **image, "conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]}


def _add_broken_llava_entries(rows: list[dict[str, Any]], account: LayoutSummary) -> None:
    asked, answered = (message["value"] for message in rows[0]["conversations"])
    for what, question, answer in (
        ("no options", asked.split("\nOptions:")[0], answered),
        ("no answer", asked, answered.split("\n###")[0]),
        ("answer out of range", asked, f"{answered[:-2]}E."),
    ):
        account.add_broken(str(_LLAVA), len(rows), what)
        messages = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        rows.append({**rows[0], "id": f"0{len(rows)}", "conversations": messages})
