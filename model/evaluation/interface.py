"""The types and helpers that all benchmarks share: questions, answers, prompts, marks and scores.

Asking (ask.py) and scoring are separate: a benchmark's `score` sees only questions and answers, regardless of where the
answers come from. A new benchmark needs one module that defines `BENCHMARK`, one line in __init__.py and one prompt
file in templates/eval/.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from pipelines.schema import LETTERS


class EvaluationError(ValueError):
    """Questions or predictions are unusable; the message names the file, row and field and says what to do."""


class BenchmarkFiles(BaseModel):
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
    read: returns the encoded bytes; raises pipelines.images.table.ImageRefError if they cannot be read."""

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
