"""Estimates how likely one of two turns about an image gives the other's answer away: 0 to 1, symmetric.

The score is a logistic model of four interpretable features (`FEATURES`): the cosine of the turns' contents and three
alignments of their words. All features derive from vectors of single texts and words, so scoring a pair needs no model
inference. Rules override the model. Turns that name opposite properties in the same position ("the left cup" / "the
right cup") have similarity 0, and so have those that fact_rules.py tells apart. Yes-or-no questions that claim opposite
things of the same object and have opposite answers ("is it open" yes / "is it closed" no) have similarity 1, and so
have turns that answer with the same long number.

The word features are computed first: they rule out most pairs, so few contents need a vector (`Similarity.contents`).
"""

import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from pipelines.dedup.alignment import Alignment
from pipelines.dedup.embeddings import Embeddings
from pipelines.dedup.fact_rules import FACT_RULES, is_named_alike
from pipelines.dedup.parsed_turn import read_turns
from pipelines.dedup.question_rules import ParsedAnswer, ParsedQuestion, are_contradictory, are_opposite_claims
from pipelines.dedup.text_vectors import TextVectors

COMPARISONS = ("pair", "question", "answer")
FEATURES = (
    "content",  # cosine of the turns' contents: the content words of question and answer as one text
    "contained",  # share of one turn's words that the other turn contains; the larger of both directions
    "told",  # share of one answer's words that the other question contains; the larger of both directions
    "same question",  # share of one question's words that the other question contains; the smaller of both
)
# Fitted by benchmarks/dedup/dedup_quality.py on labelled pairs, with equal weight for both classes.
WEIGHTS = (5.98, 5.87, 1.71, 2.14)
BIAS = -9.65
HIGHEST_COSINE = 1.01  # upper bound for vectors that are stored as float16


def texts_to_embed(questions: Sequence[str], answers: Sequence[str], compare: str) -> set[str]:
    """Returns the texts whose vectors the constructor of `Similarity` looks up; for `pair`, these are single words."""
    if compare != "pair":
        return set(questions if compare == "question" else answers)
    turns = read_turns(questions, answers)
    return {word for turn in turns if turn.is_readable for word in (*turn.words, *turn.slot, *turn.told)}


class Similarity:
    """Similarity of pairs among N turns, given by their indices. A value does not depend on the other pairs.

    A turn is *unread* if the embedder does not know all of its compared texts, or if it is not English although the
    rules or the embedder are. What cannot be read is not compared: its similarity is 1 to an equal turn and else 0.
    """

    def __init__(self, questions: Sequence[str], answers: Sequence[str], embeddings: Embeddings, compare: str):
        """compare: `pair` scores as the module describes; `question` and `answer` take the cosine of only these texts.

        Raises KeyError if `embeddings` lacks a text of `texts_to_embed`; the methods do if it lacks one of `contents`.
        """
        self.compare = compare
        self.turns = read_turns(questions, answers)
        self._polarity = np.array([turn.answer.polarity for turn in self.turns], np.int8)
        labels = {label: k for k, label in enumerate({turn.answer.label for turn in self.turns} - {""})}
        self._label = np.array([labels.get(turn.answer.label, -1) for turn in self.turns], np.int64)
        texts = [questions] if compare == "question" else [answers] if compare == "answer" else [questions, answers]
        self._same = _equal_texts(texts)
        self.unread = np.zeros(len(questions), bool)  # (N,)
        if embeddings.reads_only_english:
            self.unread |= np.array([not turn.question.is_english for turn in self.turns], bool)
        if compare == "pair":
            self.unread |= np.array([not turn.is_readable for turn in self.turns], bool)
            self._vectors = TextVectors([turn.content for turn in self.turns], embeddings)
            self._words = Alignment(self.turns, self.unread, embeddings)
            self.unread |= ~self._words.known
        else:
            self._vectors = TextVectors(texts[0], embeddings)
            self._vectors.load()
            self.unread |= ~self._vectors.known(np.arange(len(questions)))

    def __call__(self, first: np.ndarray, second: np.ndarray, at_least: float = 0.0) -> np.ndarray:
        """Returns (P,) float32, the similarities of turns `first` and `second`, (P,) int indices each. Values below
        `at_least` may be returned as 0."""
        values = np.zeros(len(first), np.float32)
        readable = np.flatnonzero(~(self.unread[first] | self.unread[second]))
        if self.compare == "pair":
            values[readable] = self._scores(first[readable], second[readable], at_least)
        else:
            values[readable] = self._vectors.cosine(first[readable], second[readable])
        restated = np.zeros(len(first), bool)
        if self.compare == "pair":
            for k in np.flatnonzero(self._polarity[first] * self._polarity[second] == -1):
                restated[k] = self._of(are_opposite_claims, first[k], second[k])
            values[restated] = 1
            named_alike = (self._label[first] == self._label[second]) & (self._label[first] >= 0)
            for k in np.flatnonzero(named_alike):
                if self._of(is_named_alike, first[k], second[k]):
                    values[k] = 1
        if self.compare != "answer":
            for k in np.flatnonzero((values >= at_least) & (values > 0) & ~restated):
                if any(self._of(rule, first[k], second[k]) for rule in (are_contradictory, *FACT_RULES)):
                    values[k] = 0
        unread = self.unread[first] | self.unread[second]
        values[unread] = self._same[first[unread]] == self._same[second[unread]]
        return values

    def contents(self, first: np.ndarray, second: np.ndarray, at_least: float) -> set[str]:
        """Returns the contents whose vectors a call with the same arguments looks up."""
        if self.compare != "pair":
            return set()
        readable = ~(self.unread[first] | self.unread[second])
        first, second = first[readable], second[readable]
        possible, _ = self._possible(first, second, at_least)
        return {self.turns[k].content for k in np.unique([first[possible], second[possible]])}

    def features(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Returns (P, 4) float32: FEATURES of pairs of turns, each 0 to 1 (the cosine may be negative)."""
        return np.column_stack([self._vectors.cosine(first, second), self._words.features(first, second)])

    def _scores(self, first: np.ndarray, second: np.ndarray, at_least: float) -> np.ndarray:
        possible, aligned = self._possible(first, second, at_least)
        values = np.zeros(len(first), np.float32)
        values[possible] = _score(self._vectors.cosine(first[possible], second[possible]), aligned)
        for turns in (first[possible], second[possible]):  # a content may be too long, although each word is known
            self.unread[turns] |= ~self._vectors.known(turns)
        return values

    def _possible(self, first: np.ndarray, second: np.ndarray, at_least: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns the indices of pairs that could reach `at_least` whatever their content, and their word features."""
        aligned = self._words.features(first, second)
        best = _score(np.full(len(first), HIGHEST_COSINE, np.float32), aligned)
        possible = np.flatnonzero(best >= at_least)
        return possible, aligned[possible]

    def _of(
        self,
        rule: Callable[[ParsedQuestion, ParsedAnswer, ParsedQuestion, ParsedAnswer], bool],
        first: int,
        second: int,
    ) -> bool:
        a, b = self.turns[first], self.turns[second]
        return rule(a.question, a.answer, b.question, b.answer)


def _score(cosine: np.ndarray, aligned: np.ndarray) -> np.ndarray:
    # Summed term by term: the rounding of a matrix product may depend on the number of pairs.
    logit = np.full(len(cosine), BIAS, np.float32)
    for weight, column in zip(WEIGHTS, (cosine, *aligned.T), strict=True):
        logit += np.float32(weight) * column
    return 1 / (1 + np.exp(-logit))


def _equal_texts(columns: Sequence[Sequence[str]]) -> np.ndarray:
    """Numbers N turns, (N,) int64, such that turns with equal texts, apart from case and spaces, have equal numbers."""
    numbers: dict[tuple[str, ...], int] = {}
    rows = (
        tuple(" ".join(unicodedata.normalize("NFC", t).casefold().split()) for t in row)
        for row in zip(*columns, strict=True)
    )
    return np.array([numbers.setdefault(row, len(numbers)) for row in rows], np.int64)
