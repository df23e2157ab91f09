"""How likely one of two turns about one image gives the other's answer away: 0 to 1, the same in both directions.

A logistic model of four numbers that can be read: the cosine of what the turns speak of, and three alignments of their
words (`FEATURES`). Everything comes from vectors of single texts and words, so a pair costs no run of a model. Turns
that name opposite properties in the same place ("the left cup" / "the right cup") have similarity 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.embed import Embeddings
from pipelines.wording import (
    ANYONE,
    COLOURS,
    PEOPLE,
    SIDES,
    Answer,
    Question,
    contradict,
    is_opposite,
    new_words,
    read_answer,
    read_question,
    singular,
)

COMPARISONS = ("pair", "question", "answer")
FEATURES = (
    "content",  # cosine of the content words of question and answer, each turn's as one text
    "contained",  # share of one turn's words that the other turn says, in the direction where it is larger
    "told",  # share of one answer's words that the other question says, in the direction where it is larger
    "same question",  # share of one question's words that the other question says, where it is smaller
)
# Fitted by benchmarks/dedup_quality.py on labelled pairs, both classes weighing the same.
WEIGHTS = (6.24, 5.77, 1.62, 2.06)
BIAS = -9.68
# Two words with a cosine under the first are unrelated, over the second they mean the same.
UNRELATED, SAME = 0.55, 0.9
MAX_WORDS = 256  # of a question or an answer; what stands beyond is not compared
NOTHING, QUESTION, SLOT, TOLD = range(4)  # roles of words
OTHER, NUMBER, COLOUR = range(3)  # kinds of answers
VECTORS_AT_ONCE, WORD_PAIRS_AT_ONCE = 1 << 14, 1 << 20  # bound memory


@dataclass(frozen=True)
class Turn:
    question: Question
    answer: Answer
    words: tuple[str, ...]  # content words of the question, without the slot
    slot: tuple[str, ...]
    told: tuple[str, ...]  # content words of the answer that its question does not say

    @property
    def kind(self) -> int:
        if not self.told:
            return OTHER
        return NUMBER if self.told[0][0].isdigit() else COLOUR if self.told[-1] in COLOURS else OTHER

    @property
    def content(self) -> str:
        return " ".join((*self.words, *self.told))


def texts_to_embed(questions: Sequence[str], answers: Sequence[str], compare: str) -> set[str]:
    """The texts whose vectors `Similarity` asks for."""
    if compare != "pair":
        return set(questions if compare == "question" else answers)
    turns = _read(questions, answers)
    return {w for t in turns for w in (*t.words, *t.slot, *t.told)} | {t.content for t in turns}


class Similarity:
    """Similarity of N turns, asked for by their places; a value does not depend on what else is asked."""

    def __init__(self, questions: Sequence[str], answers: Sequence[str], embeddings: Embeddings, compare: str):
        """compare: `pair` as the module says; `question` and `answer` take the cosine of these texts alone.

        Raises KeyError for a text of `texts_to_embed` that `embeddings` lacks.
        """
        self.compare = compare
        self.turns = _read(questions, answers)
        if compare == "pair":
            self._vectors = _Vectors([turn.content for turn in self.turns], embeddings)
            self._words = _Alignment(self.turns, embeddings)
        else:
            self._vectors = _Vectors(questions if compare == "question" else answers, embeddings)

    def __call__(self, first: np.ndarray, second: np.ndarray, at_least: float = 0.0) -> np.ndarray:
        """(P,) float32 of the turns at places first, second: (P,) int. What is under `at_least` may be given as 0."""
        if self.compare == "pair":
            values = self._scores(first, second, at_least)
        else:
            values = self._vectors.cosine(first, second)
        if self.compare != "answer":
            for k in np.flatnonzero((values >= at_least) & (values > 0)):
                a, b = self.turns[first[k]], self.turns[second[k]]
                if contradict(a.question, a.answer, b.question, b.answer):
                    values[k] = 0
        return values

    def features(self, first: np.ndarray, second: np.ndarray, cosine: np.ndarray | None = None) -> np.ndarray:
        """(P, 4) float32: FEATURES of pairs of turns, each 0 to 1 (a cosine may be negative)."""
        if cosine is None:
            cosine = self._vectors.cosine(first, second)
        contained, told, asked = self._words.align(first, second)
        contained_back, told_back, asked_back = self._words.align(second, first)
        low, high = np.minimum(contained, contained_back), np.maximum(contained, contained_back)
        # How many of some, or the colour of a part, is not that of the whole: there both directions count.
        kinds = self._words.kinds
        attributes = (kinds[first] == kinds[second]) & (kinds[first] != OTHER)
        parts = (
            cosine,
            np.where(attributes, (low + high) / 2, high),
            np.maximum(told, told_back),
            np.minimum(asked, asked_back),
        )
        return np.stack(parts, axis=1)

    def _scores(self, first: np.ndarray, second: np.ndarray, at_least: float) -> np.ndarray:
        cosine = self._vectors.cosine(first, second)
        # The words need no look where even a perfect alignment would not do.
        best = logistic(cosine * np.float32(WEIGHTS[0]) + np.float32(sum(WEIGHTS[1:]) + BIAS))
        possible = np.flatnonzero(best >= at_least - 1e-5)
        features = self.features(first[possible], second[possible], cosine[possible])
        values = np.zeros(len(first), np.float32)
        # Summed one by one: a matrix product may round differently for other numbers of pairs.
        logit = np.full(len(possible), BIAS, np.float32)
        for weight, column in zip(WEIGHTS, features.T, strict=True):
            logit += np.float32(weight) * column
        values[possible] = logistic(logit)
        return values


def logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


class _Alignment:
    """The words of N turns, and how well those of one turn are said by another."""

    def __init__(self, turns: Sequence[Turn], embeddings: Embeddings):
        vocabulary: dict[str, int] = {"": 0}  # word 0, in every turn, is like no other: no turn is without words
        words: list[int] = []
        roles: list[int] = []
        counts = np.empty(len(turns), np.int64)
        for k, turn in enumerate(turns):
            parts = ("",), turn.words, turn.slot, turn.told
            for role, part in zip((NOTHING, QUESTION, SLOT, TOLD), parts, strict=True):
                words += [vocabulary.setdefault(word, len(vocabulary)) for word in part]
                # "left" in an answer is no news: other questions say it of other things.
                roles += [NOTHING if role == TOLD and word in SIDES else role for word in part]
            counts[k] = sum(map(len, parts))
        self._words, self._roles, self._counts = np.array(words), np.array(roles, np.int8), counts
        self.kinds = np.array([turn.kind for turn in turns], np.int8)
        self._starts = np.cumsum(counts) - counts
        self._vocabulary = list(vocabulary)
        self._vectors = _Vectors(self._vocabulary[1:], embeddings)
        self._stems = np.array([singular(word) for word in self._vocabulary], dtype=object)
        self._people = np.array([stem in PEOPLE for stem in self._stems])
        self._anyone = np.array([stem in ANYONE for stem in self._stems])
        self._is_word = np.array([word[:1].isalpha() for word in self._vocabulary])

    def align(self, source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How much of each target turn its source turn says: three (P,) float32, each 0 to 1.

        The share of its question and answer that the whole source says; of its answer that the source's question says
        (0 without an answer word); of its question that the source's question says (1 without a question word).
        """
        shares = np.empty((3, len(source)), np.float32)
        work = np.cumsum(self._counts[source] * self._counts[target])
        first = 0
        while first < len(source):
            done = work[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(work, done + WORD_PAIRS_AT_ONCE, "right")))
            shares[:, first:last] = self._align(source[first:last], target[first:last])
            first = last
        return shares[0], shares[1], shares[2]

    def _align(self, source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        # Every word of a target beside every word of its source, the source's running fastest.
        have, pairs = self._counts[source], self._counts[source] * self._counts[target]
        pair = np.repeat(np.arange(len(source)), pairs)
        rank = np.arange(len(pair)) - np.repeat(np.cumsum(pairs) - pairs, pairs)
        target_word = self._starts[target][pair] + rank // have[pair]
        source_word = self._starts[source][pair] + rank % have[pair]
        alike = self._alike(self._words[target_word], self._words[source_word])
        source_role = self._roles[source_word]
        first = np.flatnonzero(rank % have[pair] == 0)  # where each target word's run begins
        said = np.maximum.reduceat(alike, first)
        named = np.maximum.reduceat(alike * (source_role <= SLOT), first)
        asked = np.maximum.reduceat(alike * (source_role == QUESTION), first)
        role, pair = self._roles[target_word[first]], pair[first]

        def share(values: np.ndarray, of: np.ndarray, if_none: float) -> np.ndarray:
            total = np.bincount(pair, weights=of, minlength=len(source))
            sums = np.bincount(pair, weights=values * of, minlength=len(source))
            return np.where(total > 0, sums / np.maximum(total, 1), if_none)

        of_question, of_answer = role == QUESTION, role == TOLD
        return share(said, of_question | of_answer, 1), share(named, of_answer, 0), share(asked, of_question, 1)

    def _alike(self, words: np.ndarray, others: np.ndarray) -> np.ndarray:
        """(K,) float32, 0 to 1, for (K,) word numbers each."""
        size = len(self._vocabulary)
        keys, places = np.unique(np.minimum(words, others) * size + np.maximum(words, others), return_inverse=True)
        low, high = keys // size, keys % size
        alike = np.zeros(len(keys), np.float32)
        known = low > 0
        cosine = self._vectors.cosine(low[known] - 1, high[known] - 1)
        alike[known] = np.clip((cosine - UNRELATED) / (SAME - UNRELATED), 0, 1)
        alike[~(self._is_word[low] & self._is_word[high])] = 0  # numbers and symbols are equal or different
        for k in np.flatnonzero(alike):
            if is_opposite(self._vocabulary[low[k]], self._vocabulary[high[k]]):
                alike[k] = 0
        anyone = (self._people[low] & self._anyone[high]) | (self._people[high] & self._anyone[low])
        alike[anyone] = np.maximum(alike[anyone], 0.5)
        alike[self._stems[low] == self._stems[high]] = 1
        alike[~known] = 0
        return alike[places]


def _read(questions: Sequence[str], answers: Sequence[str]) -> list[Turn]:
    read_questions = {text: read_question(text) for text in set(questions)}
    read_answers = {text: read_answer(text) for text in set(answers)}
    turns = []
    for question_text, answer_text in zip(questions, answers, strict=True):
        question, answer = read_questions[question_text], read_answers[answer_text]
        told = new_words(question, answer)[:MAX_WORDS]
        turns.append(Turn(question, answer, question.words[:MAX_WORDS], question.slot, told))
    return turns


class _Vectors:
    """The vectors of some texts, by their places."""

    def __init__(self, texts: Sequence[str], embeddings: Embeddings):
        distinct = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        self._place = np.array([distinct[text] for text in texts], np.int64)
        self._matrix = embeddings.vectors(list(distinct))

    def cosine(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """(K,) float32 of (K,) places each."""
        values = np.empty(len(first), np.float32)
        for start in range(0, len(first), VECTORS_AT_ONCE):
            a, b = (self._matrix[self._place[places[start : start + VECTORS_AT_ONCE]]] for places in (first, second))
            values[start : start + VECTORS_AT_ONCE] = np.einsum("kd,kd->k", a, b)
        return values
