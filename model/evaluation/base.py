"""The types and helpers that all benchmarks share: questions, answers, prompts, marks and scores.

Asking (ask.py) and scoring are separate: a benchmark's `score` sees only questions and answers, regardless of where the
answers come from. A new benchmark needs one module that defines `BENCHMARK`, one line in __init__.py and one prompt
file in templates/eval/.
"""

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml
from pydantic import BaseModel, ConfigDict

from pipelines.templates import ROOT, TemplateError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NAMED = 20  # the most ids that are listed next to a count of problems


class EvaluationError(ValueError):
    """Questions or predictions are unusable; the message names the file, row and field and says what to do."""


class Place(BaseModel):
    """Where a benchmark is stored. path: its official file or directory; images: the root of its image files, by
    default `path` itself or its directory."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    path: Path
    images: Path | None = None

    @property
    def root(self) -> Path:
        return self.images or (self.path if self.path.is_dir() else self.path.parent)


@dataclass(frozen=True)
class QuestionImage:
    """One image of a question. name: identifies the image in messages and files, uniquely within a benchmark.
    read: returns the encoded bytes; raises pipelines.images.ImageRefError if they cannot be read."""

    name: str
    read: Callable[[], bytes] = field(compare=False, repr=False)


@dataclass(frozen=True)
class Question:
    """One question of a benchmark.

    fields: the texts that the prompt may use, by name. options: the choices in letter order, if there are any.
    truth: the correct answer in the benchmark's own notation ("yes", "B"); None if it is not public.
    groups: the groups by which scores are broken down ({"split": "random"}, {"category": …}).
    """

    id: str
    fields: Mapping[str, str]
    truth: str | None
    options: tuple[str, ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict)
    images: tuple[QuestionImage, ...] = ()


@dataclass(frozen=True)
class Answer:
    """The text that the model answered, or the reason why there is none (`error`: reason and detail)."""

    text: str | None
    error: str | None = None


@dataclass(frozen=True)
class Judging:
    """A judge's verdicts on answers.

    by: who judged and how, as reported in the scores. verdicts: by question id, in the form that the benchmark's module
    describes. unjudged: by question id, why a question that should have been judged has no verdict.
    """

    by: Mapping[str, Any]
    verdicts: Mapping[str, Any]
    unjudged: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Predictions:
    """Answers with the questions they belong to.

    settings: how the answers were generated, as far as their file records it. judging: the verdicts of a judge, or
    those that an official file contains; None if there are none.
    """

    questions: Sequence[Question]
    answers: Mapping[str, Answer]
    settings: Mapping[str, Any] = field(default_factory=dict)
    judging: Judging | None = None


@dataclass(frozen=True)
class Mark:
    """How one answer was marked. read: the answer as parsed by the benchmark's rule ("yes", "B"), None if it cannot be
    parsed. credit: from 0 (wrong) to 1 (correct)."""

    read: str | None
    credit: float


Messages = Sequence[Mapping[str, str]]  # the messages of a chat, each with role and content


class Judge(Protocol):
    """The interface of a judge; judge.py implements it for an HTTP endpoint."""

    @property
    def by(self) -> Mapping[str, Any]:
        """The judge's model and request settings, as reported in the scores."""

    def ask(self, conversations: Mapping[str, Messages], max_tokens: int) -> dict[str, Answer]:
        """Returns by key a reply of at most `max_tokens` to each conversation, or the reason why there is none."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    read(path, images): reads its questions from its official files; `images` is the root of its image files.
    read_predictions(path, truth, questions): reads predictions in the benchmark's official formats; its module
    documents the meaning of `truth` and `questions`.
    mark(predictions): returns a mark for each question that can be scored, in the order of the questions.
    score(predictions): returns its scores, in the benchmark's own units.
    judge(predictions, judge), only if answers need a judge: returns the verdicts for Predictions.judging.
    """

    name: str
    read: Callable[[Path, Path | None], list[Question]]
    read_predictions: Callable[[Path, Path | None, Path | None], Predictions]
    mark: Callable[[Predictions], dict[str, Mark]]
    score: Callable[[Predictions], dict[str, Any]]
    judge: Callable[[Predictions, Judge], Judging] | None = None
    choices: tuple[str, ...] = ()  # the possible answers to questions without options, such as Yes and No
    needs: tuple[str, ...] = ()  # the groups without which a question cannot be scored

    def choices_of(self, question: Question) -> Sequence[str]:
        """Returns the possible answers: the letters of the question's options, else `choices`; () for free text."""
        return LETTERS[: len(question.options)] or self.choices


# Both spellings of yes and no: one that the training data lacks (VQAv2 has lower case) is unlikely for any image, which
# would bias the choice.
YES_NO = ("Yes", "No", "yes", "no")


@dataclass(frozen=True)
class Prompt:
    """A benchmark's prompt: a text with `{field}` placeholders and the most tokens that an answer may have.
    without_options: the text for questions without options, if the benchmark has both kinds."""

    text: str
    max_new_tokens: int
    without_options: str | None = None

    def render(self, question: Question) -> str:
        """Returns the user's text; `{options}` becomes one lettered line per option, as in training."""
        text = self.text if question.options or self.without_options is None else self.without_options
        try:
            return text.format_map({"options": lettered(question.options), **question.fields})
        except KeyError as error:
            known = ", ".join(["options", *question.fields])
            name = error.args[0]
            raise TemplateError(f"the prompt uses {{{name}}}, but question {question.id} has only {known}") from None


def load_prompt(benchmark: str) -> Prompt:
    """Reads templates/eval/<benchmark>.yaml. Raises TemplateError, naming the file and key, if it is invalid."""
    path = ROOT / "eval" / f"{benchmark}.yaml"
    second = "prompt_without_options"
    content = load_texts(path, ("prompt", second), "max_new_tokens", optional=second)
    return Prompt(content["prompt"], content["max_new_tokens"], content.get(second))


def load_texts(path: Path, texts: Sequence[str], length: str, optional: str | None = None) -> dict[str, Any]:
    """Reads a YAML file of texts with plain `{field}` placeholders and one length in tokens; the key `optional` may be
    absent. Raises TemplateError, naming the file and key, if the file is invalid."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TemplateError(f"{path} is missing: write the benchmark's prompt there") from None
    except yaml.YAMLError as error:
        raise TemplateError(f"{path}: not valid YAML: {error}") from None
    needed = [key for key in (*texts, length) if key != optional]
    if not isinstance(content, dict) or not set(needed) <= set(content) <= {*texts, length}:
        allowed = f" (and may have {optional})" if optional else ""
        raise TemplateError(f"{path}: must have exactly the keys {', '.join(needed)}{allowed}")
    for key in texts:
        if key in content:
            _check_text(path, key, content[key])
    if type(content[length]) is not int or content[length] < 1:
        raise TemplateError(f"{path}: `{length}` must be a positive integer")
    return content


def _check_text(path: Path, key: str, text: Any) -> None:
    if not isinstance(text, str) or not text.strip():
        raise TemplateError(f"{path}: `{key}` must be a non-empty string")
    try:
        placeholders = [(name, spec, conversion) for _, name, spec, conversion in string.Formatter().parse(text)]
    except ValueError as error:
        raise TemplateError(f"{path}: `{key}`: {error}; write a literal brace as {{{{ or }}}}") from None
    for name, spec, conversion in placeholders:
        if name is not None and (not name.isidentifier() or spec or conversion):
            raise TemplateError(f"{path}: `{key}`: {{{name}}} is not a plain field name")


def lettered(options: Sequence[str]) -> str:
    """Returns one lettered line per option, such as "A. a dog"."""
    return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))


def named(ids: Sequence[str]) -> dict[str, Any]:
    """Returns the number of ids and the first few of them, to report next to a score."""
    return {"count": len(ids), "ids": list(ids[:NAMED])}


def unique(questions: Sequence[Question], where: Path) -> list[Question]:
    """Returns the questions. Raises EvaluationError if there are none or if an id occurs more than once."""
    seen: set[str] = set()
    repeated = [q.id for q in questions if q.id in seen or seen.add(q.id)]  # type: ignore[func-returns-value]
    if repeated:
        raise EvaluationError(f"{where}: {len(repeated)} duplicate question ids: {', '.join(repeated[:NAMED])}")
    if not questions:
        raise EvaluationError(f"{where}: contains no questions")
    return list(questions)


def percent(part: float, whole: float) -> float | None:
    """Returns `part` as a percentage of `whole`, or None if `whole` is 0."""
    return 100 * part / whole if whole else None


def accuracy(marks: Sequence[Mark]) -> dict[str, Any]:
    """Returns {"accuracy": in percent, "num_scored": number of marks}."""
    return {"accuracy": percent(sum(mark.credit for mark in marks), len(marks)), "num_scored": len(marks)}


def accuracy_by(group: str, questions: Sequence[Question], marks: Mapping[str, Mark]) -> dict[str, dict[str, Any]]:
    """Returns `accuracy` for each value of a group, over the marked questions that have that group."""
    members: dict[str, list[Mark]] = {}
    for question in questions:
        if question.id in marks and group in question.groups:
            members.setdefault(question.groups[group], []).append(marks[question.id])
    return {value: accuracy(own) for value, own in sorted(members.items())}


def answered(predictions: Predictions, needs_truth: bool = True) -> tuple[list[tuple[Question, str]], dict[str, Any]]:
    """Returns (the questions that can be scored, with their answers; the part of the scores that reports the others).

    A question without an answer counts as neither correct nor wrong: it is excluded from the scores and reported in
    them. The same holds for a question without truth if the score `needs_truth`.
    Raises EvaluationError if an answer belongs to no question or if no question can be scored.
    """
    questions, answers = predictions.questions, predictions.answers
    known = {question.id for question in questions}
    foreign = [key for key in answers if key not in known]
    if foreign:
        raise EvaluationError(
            f"{len(foreign)} answers belong to no question ({', '.join(foreign[:5])}): "
            "the predictions are for a different split or version of the benchmark"
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
        elif question.truth is None and needs_truth:
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
