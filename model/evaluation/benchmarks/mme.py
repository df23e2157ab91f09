"""MME: two yes-no questions about each image, in fourteen tasks. (Fu et al., "MME: A Comprehensive Evaluation Benchmark
for Multimodal Large Language Models", 2023)

Official release: a folder per task; each image has a .txt file with the same stem and two lines question<TAB>answer
next to it, or, in some tasks, the two are split into images/ and questions_answers_YN/. Ground truth: a file <task>.txt
per task with lines image<TAB>question<TAB>answer. Official results: the same with the model's answer as fourth field.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from model.evaluation.files.json_files import image_root, question_images
from model.evaluation.files.jsonl import read_rows
from model.evaluation.files.listing import entries, files_like
from model.evaluation.interface import (
    YES_NO,
    Answer,
    Benchmark,
    EvaluationError,
    Mark,
    Predictions,
    Question,
    QuestionImage,
)
from model.evaluation.scoring.common import check_unique, count_and_ids, percent, split_scorable
from pipelines.schema import IMAGE_TOKEN

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
TASKS = PERCEPTION + COGNITION
TASK_MAXIMUM = 200  # accuracy plus accuracy+, each in percent
_PER_IMAGE = 2
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
_ENDING = re.compile(r"\s*Please answer yes or no\.?$")  # ends every official question


def read(path: Path, images: Path | None) -> list[Question]:
    """Reads the questions of a release folder or of a ground-truth folder; both give the same ids, task/image
    stem/question. The field `question` does not include the ending "Please answer yes or no.".

    images: the root of the task folders with the images; None if only scores are needed.
    """
    rows = list(_release_rows(path) if _task_folders(path) else _table_rows(path, fields=3))
    if images is None:
        return check_unique([_question(*row) for row in rows], path)
    root = image_root(images)
    files = {task: _images(images, task) for task in {task for _, task, _, _ in rows}}
    questions = []
    for where, task, image, texts in rows:
        name = files[task].get(Path(image).stem, f"{task}/{image}")
        questions.append(_question(where, task, image, texts, question_images(root, name)))
    return check_unique(questions, path)


Row = tuple[str, str, str, list[str]]  # file:line, task, image, the fields after the image


def _task_folders(path: Path) -> list[Path]:
    """Returns the folders of a release that contain questions. Raises EvaluationError if only some of its tasks do."""
    if not path.is_dir():
        raise EvaluationError(f"{path}: there is no such folder")
    folders = [folder for folder in entries(path) if folder.is_dir() and folder.name != "eval_tool"]
    found = [folder for folder in folders if _question_files(folder)]
    if found and (missing := [folder for folder in folders if folder.name in TASKS and folder not in found]):
        raise EvaluationError(f"{missing[0]}: contains no .txt file with questions, although {found[0]} does")
    return found


def _question_files(folder: Path) -> list[Path]:
    separate = folder / "questions_answers_YN"
    return files_like(separate if separate.is_dir() else folder, "*.txt")


def _release_rows(path: Path) -> Iterator[Row]:
    for folder in _task_folders(path):
        for file in _question_files(folder):
            for where, fields in _lines(file, 2, "question, answer"):
                yield where, _task(folder.name, where), f"{file.stem}.jpg", fields


def _table_rows(path: Path, fields: int) -> Iterator[Row]:
    """Yields the rows of a folder of <task>.txt files, which have three fields in a ground truth, four in results."""
    files = files_like(path, "*.txt")
    if not files:
        raise EvaluationError(f"{path}: contains neither task folders nor files such as existence.txt")
    names = "image, question, truth, answer" if fields == 4 else "image, question, answer"
    for file in files:
        task = _task(file.stem, str(file))
        for where, (image, *rest) in _lines(file, fields, names):
            yield where, task, image.strip(), rest


def _task(name: str, where: str) -> str:
    if name not in TASKS:
        raise EvaluationError(f"{where}: {name!r} is not a task of MME; its tasks are {', '.join(TASKS)}")
    return name


def _lines(file: Path, number: int, names: str) -> Iterator[tuple[str, list[str]]]:
    """Yields (`file:line`, tab-separated fields) for each line that is not blank."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except IsADirectoryError:
        raise EvaluationError(f"{file}: must be a file, not a folder") from None
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{file}: not UTF-8 text: {error}") from None
    for line_number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            fields = line.rstrip("\r").split("\t")
            if len(fields) != number:
                raise EvaluationError(
                    f"{file}:{line_number}: must have {number} tab-separated fields ({names}), found {len(fields)}"
                )
            yield f"{file}:{line_number}", fields


def _question(
    where: str, task: str, image: str, texts: Sequence[str], images: tuple[QuestionImage, ...] = ()
) -> Question:
    """Builds a question. texts: question, correct answer."""
    question, truth = _ENDING.sub("", _spaced(texts[0])), texts[1].strip().lower()
    if truth not in ("yes", "no"):
        raise EvaluationError(f"{where}: the correct answer must be Yes or No, found {texts[1]!r}")
    if not question or not image:
        raise EvaluationError(f"{where}: has no {'image' if question else 'question'}")
    image_id = f"{task}/{Path(image).stem}"
    groups = {"task": task, "image": image_id}
    return Question(f"{image_id}/{question}", {"question": question}, truth, groups=groups, images=images)


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _images(root: Path, task: str) -> dict[str, str]:
    """Returns a mapping from image stem to path below the root."""
    found: dict[str, str] = {}
    for folder in (root / task, root / task / "images"):
        for file in entries(folder) if folder.is_dir() else ():
            if file.suffix.lower() in _IMAGE_SUFFIXES:
                name = file.relative_to(root).as_posix()
                if found.setdefault(file.stem, name) != name:
                    raise EvaluationError(f"{root}: {found[file.stem]} and {name} both match the same question")
    return found


def read_predictions(path: Path, truth: Path | None, questions: Path | None) -> Predictions:
    """Reads a folder of official results or LLaVA's JSON lines (question_id as task/image, prompt, text).

    truth: a release or ground-truth folder, required for JSON lines; for a results folder, it defines which questions
    should have been answered. questions: not used.
    """
    official = None if truth is None else {question.id: question for question in read(truth, None)}
    if path.is_dir():
        pairs = _from_results(path)
    elif official is None:
        raise EvaluationError(f"{path}: MME answers in JSON lines require the ground-truth folder (truth)")
    else:
        pairs = _from_lines(path, official.values())
    asked: list[Question] = []
    answers: dict[str, Answer] = {}
    for where, question, text in pairs:
        if official is not None:
            match = official.get(question.id)
            if match is None:
                raise EvaluationError(f"{where}: {question.id!r} is not in {truth}: is it from another version?")
            if match.truth != question.truth:
                raise EvaluationError(f"{where}: the correct answer is {question.truth}, but {match.truth} in {truth}")
        if question.id in answers:
            raise EvaluationError(f"{where}: {question.id!r} is answered twice")
        asked.append(question)
        answers[question.id] = Answer(text)
    return Predictions(check_unique(asked if official is None else list(official.values()), path), answers)


AnsweredRow = tuple[str, Question, str]  # file:line, question, answer


def _from_results(path: Path) -> Iterator[AnsweredRow]:
    for where, task, image, texts in _table_rows(path, fields=4):
        yield where, _question(where, task, image, texts), texts[2]


def _from_lines(path: Path, official: Iterable[Question]) -> Iterator[AnsweredRow]:
    by_image: dict[str, list[Question]] = {}
    for question in official:
        by_image.setdefault(question.groups["image"], []).append(question)
    for where, row in read_rows(path, {"question_id": str, "prompt": str, "text": str}):
        task, *rest = row["question_id"].split("/")  # artwork/images/1.jpg or color/1.jpg
        image = f"{task}/{Path(rest[-1]).stem}" if rest else task
        prompt = _spaced(row["prompt"].replace(IMAGE_TOKEN, ""))
        # A prompt is the question with added text; one question of an image may be a prefix of the other.
        matching = [each for each in by_image.get(image, []) if prompt.startswith(each.fields["question"])]
        if not matching:
            raise EvaluationError(f"{where}: the ground truth has no question {prompt!r} for {row['question_id']}")
        yield where, max(matching, key=lambda question: len(question.fields["question"])), row["text"]


def parse(text: str) -> str:
    """Parses an answer as "yes", "no" or "other" by the official rule: "yes", else "no", if the first four characters,
    in lower case, contain it."""
    start = text.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def _is_clear(text: str) -> bool:
    """Returns whether a person would agree with the rule, which parses "Norway" as no and "I see none" as other."""
    words = set(re.findall(r"[a-z]+", text.lower()))
    yes, no = "yes" in words, bool(words & {"no", "not"})
    return parse(text) == ("other" if yes == no else "yes" if yes else "no")


def mark(predictions: Predictions) -> dict[str, Mark]:
    """Marks each answer; `read` is yes or no, or None for the official "other"."""
    scored, _ = split_scorable(predictions)
    marks = {}
    for question, text in scored:
        found = parse(text)
        marks[question.id] = Mark(None if found == "other" else found, float(found == question.truth))
    return marks


def score(predictions: Predictions) -> dict[str, Any]:
    """Returns for each task accuracy and accuracy+ (both questions of an image are correct) in percent and their sum,
    the task's score out of 200. perception, cognition and total are sums of scores, out of perception_of, cognition_of
    and total_of: 2000, 800 and 2800 if no task is missing."""
    _, report = split_scorable(predictions)
    marks = mark(predictions)
    by_task: dict[str, dict[str, list[Question]]] = {}
    for question in predictions.questions:
        images = by_task.setdefault(question.groups["task"], {})
        images.setdefault(question.groups["image"], []).append(question)
    tasks = {task: _task_scores(by_task[task], marks) for task in TASKS if task in by_task}
    result: dict[str, Any] = {}
    for name, members in (("perception", PERCEPTION), ("cognition", COGNITION), ("total", TASKS)):
        scores = [tasks[task]["score"] for task in members if task in tasks]
        known = [value for value in scores if value is not None]
        result[name] = float(sum(known)) if known and len(known) == len(scores) else None
        result[f"{name}_of"] = TASK_MAXIMUM * len(scores)
    all_images = {image: asked for images in by_task.values() for image, asked in images.items()}
    result |= {key: value for key, value in _task_scores(all_images, marks).items() if key.startswith("accuracy")}
    for values in tasks.values():
        values["score"] = None if values["score"] is None else float(values["score"])
    result |= {"tasks": tasks, "missing_tasks": [task for task in TASKS if task not in tasks], **report}
    if incomplete := [image for image, asked in all_images.items() if not _is_complete(asked, marks)]:
        result["incomplete_images"] = count_and_ids(incomplete)  # excluded from accuracy+
    texts = {key: predictions.answers[key].text or "" for key in marks}
    result["other_answers"] = count_and_ids([key for key, text in texts.items() if parse(text) == "other"])
    result["unclear_answers"] = count_and_ids([key for key, text in texts.items() if not _is_clear(text)])
    result["parsing"] = "official: yes or no within the first four characters; everything else is other and wrong"
    return result


def _task_scores(images: Mapping[str, Sequence[Question]], marks: Mapping[str, Mark]) -> dict[str, Any]:
    """Computes the scores of one task. `score` is a Fraction, because rounding errors would show in a sum of tasks."""
    right = [marks[question.id].credit == 1 for asked in images.values() for question in asked if question.id in marks]
    both = [
        all(marks[question.id].credit == 1 for question in asked)
        for asked in images.values()
        if _is_complete(asked, marks)
    ]
    score = None if not both else Fraction(100 * sum(right), len(right)) + Fraction(100 * sum(both), len(both))
    return {
        "score": score,
        "accuracy": percent(sum(right), len(right)),
        "accuracy_plus": percent(sum(both), len(both)),
        "num_scored": len(right),
        "num_images": len(both),
    }


def _is_complete(asked: Sequence[Question], marks: Mapping[str, Mark]) -> bool:
    return len(asked) == _PER_IMAGE and all(question.id in marks for question in asked)


BENCHMARK = Benchmark("mme", read, read_predictions, mark, score, choices=YES_NO, needs=("task", "image"))
