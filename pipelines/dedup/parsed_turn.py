"""A parsed turn: the words of its question and answer that are compared."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.dedup.english import COLOURS
from pipelines.dedup.question_rules import ParsedAnswer, ParsedQuestion, new_words, read_answer, read_question

MAX_WORDS = 256  # of a question or an answer; longer turns are only compared for equality
OTHER, NUMBER, COLOUR = range(3)  # kinds of answers


@dataclass(frozen=True)
class ParsedTurn:
    """A parsed question and answer."""

    question: ParsedQuestion
    answer: ParsedAnswer
    words: tuple[str, ...]  # content words of the question, without the slot
    slot: tuple[str, ...]  # see Question.slot
    told: tuple[str, ...]  # content words of the answer that its question does not contain

    @property
    def kind(self) -> int:
        if not self.told:
            return OTHER
        if self.told[0][0].isdigit():
            return NUMBER if self.question.measures else OTHER  # a time or a jersey number is not a quantity
        return COLOUR if self.told[-1] in COLOURS else OTHER

    @property
    def content(self) -> str:
        return " ".join((*self.words, *self.told))

    def is_label(self, word: str, is_told: bool) -> bool:
        """Returns whether a number names a thing ("bus number 12") and therefore equals no number of things."""
        if is_told:
            return word == self.answer.label and not self.question.measures and not self.question.is_closed
        return word in self.question.labels

    @property
    def is_readable(self) -> bool:
        """Whether the rules can compare the turn: its question is English, and it has content words, all of which are
        compared."""
        longest = max(len(self.question.words), len(self.answer.words))
        return self.question.is_english and bool(self.words or self.told) and longest <= MAX_WORDS


def read_turns(questions: Sequence[str], answers: Sequence[str]) -> list[ParsedTurn]:
    read_questions = {text: read_question(text) for text in set(questions)}
    read_answers = {text: read_answer(text) for text in set(answers)}
    turns = []
    for question_text, answer_text in zip(questions, answers, strict=True):
        question, answer = read_questions[question_text], read_answers[answer_text]
        told = new_words(question, answer)[:MAX_WORDS]
        turns.append(ParsedTurn(question, answer, question.words[:MAX_WORDS], question.slot, told))
    return turns
