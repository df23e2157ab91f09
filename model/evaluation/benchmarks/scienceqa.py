"""ScienceQA, test split: multiple-choice questions on school science, about half of them with an image. (Lu et al.,
"Learn to Explain", NeurIPS 2022)

Official files: problems.json (problems by id), pid_splits.json (the ids of each split), images/<split>/<id>/image.png.
Predictions: LLaVA's answers, JSON lines with question_id and text; or the output of LLaVA's evaluation script, one JSON
object with the lists `correct` and `incorrect`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from model.evaluation.files.json_files import image_root, question_images, read_object, starts_with_key
from model.evaluation.files.jsonl import Fields, check_fields, read_rows
from model.evaluation.interface import Answer, Benchmark, EvaluationError, Mark, Predictions, Question
from model.evaluation.scoring.common import accuracy, check_unique, count_and_ids, split_scorable
from pipelines.images.references import ImageRoot
from pipelines.schema import LETTERS

SPLIT = "test"
Groups = Mapping[str, str]
# The paper's question classes. Context: TXT has a hint, IMG has an image, NO has neither; a question can be in both.
SUBJECTS: dict[str, Callable[[Groups], bool]] = {
    "NAT": lambda groups: groups.get("subject") == "natural science",
    "SOC": lambda groups: groups.get("subject") == "social science",
    "LAN": lambda groups: groups.get("subject") == "language science",
}
CONTEXTS: dict[str, Callable[[Groups], bool]] = {
    "TXT": lambda groups: groups.get("text") == "yes",
    "IMG": lambda groups: groups.get("image") == "yes",
    "NO": lambda groups: (groups.get("text"), groups.get("image")) == ("no", "no"),
}
GRADES: dict[str, Callable[[Groups], bool]] = {
    "G1-6": lambda groups: groups.get("grade") in {f"grade{number}" for number in range(1, 7)},
    "G7-12": lambda groups: groups.get("grade") in {f"grade{number}" for number in range(7, 13)},
}
_ANSWER_IS = re.compile(r"The answer is ([A-E])")
_PROBLEM: Fields = {
    "question": str,
    "choices": list,
    "answer": int,
    "hint": (str, type(None)),
    "image": (str, type(None)),
    "subject": str,
    "grade": str,
}


def read(path: Path, images: Path | None) -> list[Question]:
    """Reads the test questions of a folder with problems.json and pid_splits.json; the ids are those of the problems.

    images: the folder that contains images/test or test; None if only scores are needed.
    """
    folder = path if path.is_dir() else path.parent
    problems = read_object(folder / "problems.json")
    ids = read_object(folder / "pid_splits.json", (SPLIT,))[SPLIT]
    if not isinstance(ids, list) or not all(isinstance(pid, str) for pid in ids):
        raise EvaluationError(f"{folder / 'pid_splits.json'}: {SPLIT!r} must be a list of problem ids, as strings")
    below = "images/test" if images is not None and (images / "images").is_dir() else "test"
    root = image_root(images)
    return check_unique(
        [_question(folder / "problems.json", problems, pid, root, below) for pid in ids], folder / "pid_splits.json"
    )


def _question(file: Path, problems: Mapping[str, Any], pid: str, root: ImageRoot | None, below: str) -> Question:
    where, problem = f"{file}: problem {pid}", problems.get(pid)
    if not isinstance(problem, dict):
        raise EvaluationError(f"{where}: is missing, although pid_splits.json lists it")
    check_fields(where, problem, _PROBLEM)
    choices, right = problem["choices"], problem["answer"]
    if not 2 <= len(choices) <= len(LETTERS) or not all(isinstance(choice, str) for choice in choices):
        raise EvaluationError(f"{where}: field `choices` must be 2 to {len(LETTERS)} strings, found {choices!r}")
    if not 0 <= right < len(choices):
        raise EvaluationError(
            f"{where}: field `answer` must be the index of a choice, from 0 to {len(choices) - 1}, found {right}"
        )
    hint, question = (problem["hint"] or "").strip(), problem["question"].strip()
    if not question:
        raise EvaluationError(f"{where}: field `question` is empty")
    return Question(
        id=pid,
        fields={"question": question, "context": f"{hint}\n" if hint else ""},
        truth=LETTERS[right],
        options=tuple(choices),
        groups={
            "subject": problem["subject"],
            "grade": problem["grade"],
            "text": "yes" if hint else "no",
            "image": "yes" if problem["image"] else "no",
        },
        images=question_images(root, f"{below}/{pid}/{problem['image']}") if problem["image"] else (),
    )


def read_predictions(path: Path, truth: Path | None, questions: Path | None) -> Predictions:
    """Reads LLaVA's answers or the output of its evaluation script. truth: the folder with problems.json. Answers
    require it; the output contains the correct answers, but needs it for subjects, grades and hints. questions: not
    used."""
    official = None if truth is None else {question.id: question for question in read(truth, None)}
    output = read_object(path, ("correct", "incorrect")) if starts_with_key(path, r'"(in)?correct"\s*:') else None
    if output is None and official is None:
        raise EvaluationError(f"{path}: ScienceQA answers in JSON lines require the folder with problems.json (truth)")
    asked: list[Question] = []
    answers: dict[str, Answer] = {}
    seen: set[str] = set()
    for where, question, text in _from_output(path, output) if output is not None else _from_lines(path):
        if official is not None:
            match = official.get(question.id)
            if match is None:
                hint = "is it from another split?"
                raise EvaluationError(f"{where}: question_id {question.id} is not in {truth}: {hint}")
            if question.truth not in (None, match.truth):
                raise EvaluationError(f"{where}: ground_truth is {question.truth}, but {match.truth} in {truth}")
        if question.id in seen:
            raise EvaluationError(f"{where}: question_id {question.id} is answered twice")
        seen.add(question.id)
        asked.append(question)
        if text is not None:
            answers[question.id] = Answer(text)
    return Predictions(check_unique(asked if official is None else list(official.values()), path), answers)


AnsweredRow = tuple[str, Question, str | None]  # where it was found, question as far as known, answer if there is one


def _from_output(path: Path, output: Mapping[str, Any]) -> Iterator[AnsweredRow]:
    for name in ("correct", "incorrect"):
        if not isinstance(output[name], list):
            raise EvaluationError(f"{path}: {name} must be a list, not {type(output[name]).__name__}")
        for number, row in enumerate(output[name]):
            where = f"{path}: {name}[{number}]"
            if not isinstance(row, dict):
                raise EvaluationError(f"{where}: must be an object, not {type(row).__name__}")
            check_fields(where, row, {"question_id": str, "ground_truth": str, "question": str, "pred": str})
            if type(row.get("is_multimodal")) is not bool:
                raise EvaluationError(
                    f"{where}: field `is_multimodal` must be true or false, found {row.get('is_multimodal')!r}"
                )
            if len(row["ground_truth"]) != 1 or row["ground_truth"] not in LETTERS:
                raise EvaluationError(f"{where}: field `ground_truth` must be a letter, found {row['ground_truth']!r}")
            question = Question(
                row["question_id"],
                {"question": row["question"]},
                row["ground_truth"],
                groups={"image": "yes" if row["is_multimodal"] else "no"},
            )
            # This is how LLaVA's script writes a question without answer.
            unanswered = (row["pred"], row["question"]) == ("FAILED", "Unknown")
            yield where, question, None if unanswered else row["pred"]


def _from_lines(path: Path) -> Iterator[AnsweredRow]:
    for where, row in read_rows(path, {"question_id": (int, str), "text": str}):
        yield where, Question(str(row["question_id"]), {}, None), row["text"]


def parse(text: str) -> str | None:
    """Parses the letter of an answer by the rule of LLaVA's evaluation script: "B"; "B. …"; "… The answer is B …"; None
    for everything else. The letters are A to E, regardless of the number of choices."""
    text = text.replace("\n", ". ")
    if text.strip() in tuple("ABCDE"):
        return text.strip()
    if len(text) >= 3 and text[0] in "ABCDE" and text[1:3] == ". ":
        return text[0]
    found = re.search(_ANSWER_IS.pattern + r"\.", text) or _ANSWER_IS.search(text)
    return found[1] if found else None


def mark(predictions: Predictions) -> dict[str, Mark]:
    """Marks each answer; `read` is a letter."""
    scored, _ = split_scorable(predictions)
    marks = {}
    for question, text in scored:
        letter = parse(text)
        marks[question.id] = Mark(letter, float(letter == question.truth))
    return marks


def score(predictions: Predictions) -> dict[str, Any]:
    """Returns accuracies in percent: overall, over the questions with an image and, if the predictions contain them, by
    subject, context and grade. An answer without a parsed letter is wrong; such answers are counted and listed."""
    _, report = split_scorable(predictions)
    marks = mark(predictions)
    scored = [question for question in predictions.questions if question.id in marks]

    def of(belongs: Callable[[Groups], bool]) -> dict[str, Any]:
        return accuracy([marks[question.id] for question in scored if belongs(question.groups)])

    result: dict[str, Any] = {"accuracy": accuracy(list(marks.values()))["accuracy"]}
    result["accuracy_image"] = of(CONTEXTS["IMG"])["accuracy"]
    known = all("subject" in question.groups for question in scored)
    for name, classes in (("subjects", SUBJECTS), ("contexts", CONTEXTS), ("grades", GRADES)) if known else ():
        result[name] = {key: of(belongs) for key, belongs in classes.items()}
    result |= report
    result["unread_answers"] = count_and_ids([key for key, mark in marks.items() if mark.read is None])
    result["split"] = SPLIT
    result["parsing"] = "LLaVA: `X`, `X. …` or `The answer is X` with a letter X; everything else is wrong"
    return result


BENCHMARK = Benchmark("scienceqa", read, read_predictions, mark, score)
