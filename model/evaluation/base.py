"""What every benchmark is made of: questions, answers, a prompt, a score.

Asking (ask.py) and scoring are separate: a benchmark's `score` sees questions and answers only, wherever the answers
come from. A new benchmark is one new file with a `BENCHMARK`, one line in __init__.py and one prompt in
templates/eval/.
"""

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from pipelines.templates import ROOT, TemplateError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NAMED = 20  # so many ids stand beside a count of what went wrong


class EvaluationError(ValueError):
    """Questions or predictions that cannot be used; the message names file, row, field and remedy."""


class Place(BaseModel):
    """`path`: the official file or directory; `images`: the root of its images, `path`'s directory where absent."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    path: Path
    images: Path | None = None

    @property
    def root(self) -> Path:
        return self.images or (self.path if self.path.is_dir() else self.path.parent)


@dataclass(frozen=True)
class QuestionImage:
    """`name`: what messages and files call it, one name for one image. `read`: its encoded bytes; raises
    pipelines.images.ImageRefError where there are none."""

    name: str
    read: Callable[[], bytes] = field(compare=False, repr=False)


@dataclass(frozen=True)
class Question:
    """One question of a benchmark.

    fields: texts by name, those that the prompt may use. options: the choices in letter order, where it has some.
    truth: the right answer in the benchmark's own words ("yes", "B"); None where it is not public.
    groups: what the score is split by ({"split": "random"}, {"category": …}).
    """

    id: str
    fields: Mapping[str, str]
    truth: str | None
    options: tuple[str, ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict)
    images: tuple[QuestionImage, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What the model said, or why it was not asked (`error`: reason and detail)."""

    text: str | None
    error: str | None = None


@dataclass(frozen=True)
class Predictions:
    """Answers with the questions they belong to.

    settings: how they were made, as far as their file tells. verdicts: what a judge said of an answer, by question id,
    in the form that the benchmark's file describes; an official file that holds verdicts gives them too.
    """

    questions: Sequence[Question]
    answers: Mapping[str, Answer]
    settings: Mapping[str, Any] = field(default_factory=dict)
    verdicts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Mark:
    """What one answer was taken for. `read`: as the benchmark's rule reads it ("yes", "B"), None where it cannot;
    `credit`: from 0, wrong, to 1, right."""

    read: str | None
    credit: float


Asker = Callable[[Mapping[str, Sequence[Mapping[str, str]]]], dict[str, str]]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    read(path, images): its questions from its official files; `images` is the root of its image files.
    read_predictions(path, truth, questions): predictions in the benchmark's official format(s); what `truth` and
    `questions` are is said by its file.
    mark(predictions): a mark for each question that can be scored, in the order of the questions.
    score(predictions): its scores, in the benchmark's own units.
    judge(predictions, ask), where answers need a judge: verdicts by question id. `ask` takes chat messages (role,
    content) under keys of the benchmark's own, and returns the replies that came: some may be missing.
    """

    name: str
    read: Callable[[Path, Path | None], list[Question]]
    read_predictions: Callable[[Path, Path | None, Path | None], Predictions]
    mark: Callable[[Predictions], dict[str, Mark]]
    score: Callable[[Predictions], dict[str, Any]]
    choices: tuple[str, ...] = ()  # what an answer may be, where all questions are of one kind, as Yes and No
    judge: Callable[[Predictions, Asker], dict[str, Any]] | None = None

    def choices_of(self, question: Question) -> Sequence[str]:
        """What the answer may be: the letters of the question's options, or the benchmark's own; () if it is free."""
        return LETTERS[: len(question.options)] or self.choices


@dataclass(frozen=True)
class Prompt:
    """How a benchmark is asked: a text with `{field}` places, and how long an answer may become, in tokens."""

    text: str
    max_new_tokens: int

    def render(self, question: Question) -> str:
        """The user's text; `{options}` are the choices, one lettered line each, as in training."""
        options = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, question.options, strict=False))
        try:
            return self.text.format_map({"options": options, **question.fields})
        except KeyError as error:
            known = ", ".join(["options", *question.fields])
            raise TemplateError(f"the prompt names {{{error.args[0]}}}; question {question.id} has {known}") from None


def load_prompt(benchmark: str) -> Prompt:
    """Reads templates/eval/<benchmark>.yaml. Raises TemplateError naming file and key."""
    path = ROOT / "eval" / f"{benchmark}.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TemplateError(f"{path} is missing: write the benchmark's prompt there") from None
    except yaml.YAMLError as error:
        raise TemplateError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict) or set(content) != {"prompt", "max_new_tokens"}:
        raise TemplateError(f"{path}: must have exactly the keys prompt, max_new_tokens")
    text, max_new_tokens = content["prompt"], content["max_new_tokens"]
    if not isinstance(text, str) or not text.strip():
        raise TemplateError(f"{path}: `prompt` must be a text that is not empty")
    if type(max_new_tokens) is not int or max_new_tokens < 1:
        raise TemplateError(f"{path}: `max_new_tokens` must be a whole number above zero")
    try:
        places = [(name, spec, conversion) for _, name, spec, conversion in string.Formatter().parse(text)]
    except ValueError as error:
        raise TemplateError(f"{path}: `prompt`: {error}; write a brace that is text as {{{{ or }}}}") from None
    for name, spec, conversion in places:
        if name is not None and (not name.isidentifier() or spec or conversion):
            raise TemplateError(f"{path}: `prompt`: {{{name}}} is not a plain field name")
    return Prompt(text, max_new_tokens)


def named(ids: Sequence[str]) -> dict[str, Any]:
    """A count with the first ids, for what a score must not hide."""
    return {"count": len(ids), "ids": list(ids[:NAMED])}


def unique(questions: Sequence[Question], where: Path) -> list[Question]:
    """The questions, if no id stands twice and there is one at all. Raises EvaluationError."""
    seen: set[str] = set()
    twice = [q.id for q in questions if q.id in seen or seen.add(q.id)]  # type: ignore[func-returns-value]
    if twice:
        raise EvaluationError(f"{where}: {len(twice)} question ids stand twice: {', '.join(twice[:NAMED])}")
    if not questions:
        raise EvaluationError(f"{where}: holds no question")
    return list(questions)


def percent(part: float, whole: float) -> float | None:
    """None of nothing."""
    return 100 * part / whole if whole else None


def answered(predictions: Predictions) -> tuple[list[tuple[Question, str]], dict[str, Any]]:
    """(the questions that can be scored, with their answers; what the scores say of the others).

    A question without an answer is left out of the scores and named in them: it is neither right nor wrong.
    Raises EvaluationError for answers to questions that are not there, or if nothing can be scored.
    """
    questions, answers = predictions.questions, predictions.answers
    known = {question.id for question in questions}
    foreign = [key for key in answers if key not in known]
    if foreign:
        raise EvaluationError(
            f"{len(foreign)} answers belong to no question ({', '.join(foreign[:5])}): "
            "the predictions are of another split or version of the benchmark"
        )
    scored: list[tuple[Question, str]] = []
    missing: list[str] = []
    without_truth: list[str] = []
    errors: dict[str, str] = {}
    for question in questions:
        answer = answers.get(question.id)
        if answer is None:
            missing.append(question.id)
        elif answer.text is None:
            errors[question.id] = answer.error or "no answer"
        elif question.truth is None:
            without_truth.append(question.id)
        else:
            scored.append((question, answer.text))
    report: dict[str, Any] = {"num_questions": len(questions), "num_scored": len(scored)}
    if missing:
        report["without_answer"] = named(missing)
    if without_truth:
        report["without_truth"] = named(without_truth)
    if errors:
        report["not_asked"] = {"count": len(errors), "errors": dict(list(errors.items())[:NAMED])}
    if not scored:
        raise EvaluationError(f"none of {len(questions)} questions can be scored: {report}")
    return scored, report
