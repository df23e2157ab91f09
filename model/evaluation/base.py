"""What every benchmark is made of: questions, answers, a prompt, a score.

Asking (ask.py) and scoring are separate: a benchmark's `score` sees questions and answers only, wherever the answers
come from. A new benchmark is one new file with a `BENCHMARK`, one line in __init__.py and one prompt in
templates/eval/.
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
class Judging:
    """What a judge said of answers.

    by: who judged and how, for the scores. verdicts: by question id, in the form that the benchmark's file describes.
    unjudged: of each question that should have been judged and has no verdict, why.
    """

    by: Mapping[str, Any]
    verdicts: Mapping[str, Any]
    unjudged: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Predictions:
    """Answers with the questions they belong to.

    settings: how they were made, as far as their file tells. judging: what a judge said of them, None where none was
    asked; an official file that holds verdicts gives them here too.
    """

    questions: Sequence[Question]
    answers: Mapping[str, Answer]
    settings: Mapping[str, Any] = field(default_factory=dict)
    judging: Judging | None = None


@dataclass(frozen=True)
class Mark:
    """What one answer was taken for. `read`: as the benchmark's rule reads it ("yes", "B"), None where it cannot;
    `credit`: from 0, wrong, to 1, right."""

    read: str | None
    credit: float


Messages = Sequence[Mapping[str, str]]  # of a chat: role, content


class Judge(Protocol):
    """Who can be asked for verdicts: judge.py has the one that asks an endpoint."""

    @property
    def by(self) -> Mapping[str, Any]:
        """Who it is and how it is asked, for the scores."""

    def ask(self, conversations: Mapping[str, Messages], max_tokens: int) -> dict[str, Answer]:
        """The reply to each conversation, of at most max_tokens, or why there is none; keys are the caller's own."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    read(path, images): its questions from its official files; `images` is the root of its image files.
    read_predictions(path, truth, questions): predictions in the benchmark's official format(s); what `truth` and
    `questions` are is said by its file.
    mark(predictions): a mark for each question that can be scored, in the order of the questions.
    score(predictions): its scores, in the benchmark's own units.
    judge(predictions, judge), where answers need a judge: what it says of them, for Predictions.judging.
    """

    name: str
    read: Callable[[Path, Path | None], list[Question]]
    read_predictions: Callable[[Path, Path | None, Path | None], Predictions]
    mark: Callable[[Predictions], dict[str, Mark]]
    score: Callable[[Predictions], dict[str, Any]]
    judge: Callable[[Predictions, Judge], Judging] | None = None
    choices: tuple[str, ...] = ()  # what an answer may be where questions have no options, as Yes and No
    needs: tuple[str, ...] = ()  # the groups that every question must have to be scored

    def choices_of(self, question: Question) -> Sequence[str]:
        """What the answer may be: the letters of the question's options, or the benchmark's own; () if it is free."""
        return LETTERS[: len(question.options)] or self.choices


# Yes or no as models may have learned to write it: VQAv2 has small letters, and a form that training never showed is
# unlikely whatever the picture shows.
YES_NO = ("Yes", "No", "yes", "no")


@dataclass(frozen=True)
class Prompt:
    """How a benchmark is asked: a text with `{field}` places, and how long an answer may become, in tokens.
    `without_options`: the text for questions without choices, where the benchmark has both kinds."""

    text: str
    max_new_tokens: int
    without_options: str | None = None

    def render(self, question: Question) -> str:
        """The user's text; `{options}` are the choices, one lettered line each, as in training."""
        text = self.text if question.options or self.without_options is None else self.without_options
        try:
            return text.format_map({"options": lettered(question.options), **question.fields})
        except KeyError as error:
            known = ", ".join(["options", *question.fields])
            raise TemplateError(f"the prompt names {{{error.args[0]}}}; question {question.id} has {known}") from None


def load_prompt(benchmark: str) -> Prompt:
    """Reads templates/eval/<benchmark>.yaml. Raises TemplateError naming file and key."""
    path = ROOT / "eval" / f"{benchmark}.yaml"
    second = "prompt_without_options"
    content = load_texts(path, ("prompt", second), "max_new_tokens", optional=second)
    return Prompt(content["prompt"], content["max_new_tokens"], content.get(second))


def load_texts(path: Path, texts: Sequence[str], length: str, optional: str | None = None) -> dict[str, Any]:
    """A YAML file of texts with plain `{field}` places and one length in tokens; `optional` may be absent. Raises
    TemplateError naming file and key."""
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
        raise TemplateError(f"{path}: `{length}` must be a whole number above zero")
    return content


def _check_text(path: Path, key: str, text: Any) -> None:
    if not isinstance(text, str) or not text.strip():
        raise TemplateError(f"{path}: `{key}` must be a text that is not empty")
    try:
        places = [(name, spec, conversion) for _, name, spec, conversion in string.Formatter().parse(text)]
    except ValueError as error:
        raise TemplateError(f"{path}: `{key}`: {error}; write a brace that is text as {{{{ or }}}}") from None
    for name, spec, conversion in places:
        if name is not None and (not name.isidentifier() or spec or conversion):
            raise TemplateError(f"{path}: `{key}`: {{{name}}} is not a plain field name")


def lettered(options: Sequence[str]) -> str:
    """One line for each choice: "A. a dog"."""
    return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))


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


def accuracy(marks: Sequence[Mark]) -> dict[str, Any]:
    """{"accuracy": percent, "num_scored": how many}."""
    return {"accuracy": percent(sum(mark.credit for mark in marks), len(marks)), "num_scored": len(marks)}


def accuracy_by(group: str, questions: Sequence[Question], marks: Mapping[str, Mark]) -> dict[str, dict[str, Any]]:
    """`accuracy` of each part of a group, by name, of the marked questions that are in one."""
    parts: dict[str, list[Mark]] = {}
    for question in questions:
        if question.id in marks and group in question.groups:
            parts.setdefault(question.groups[group], []).append(marks[question.id])
    return {name: accuracy(own) for name, own in sorted(parts.items())}


def answered(predictions: Predictions, needs_truth: bool = True) -> tuple[list[tuple[Question, str]], dict[str, Any]]:
    """(the questions that can be scored, with their answers; what the scores say of the others).

    A question without an answer is left out of the scores and named in them: it is neither right nor wrong. So is
    one without truth, if the score needs_truth.
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
