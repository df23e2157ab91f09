"""How likely one of two turns about one image gives the other's answer away: 0 to 1, the same in both directions.

A logistic model of four numbers that can be read: the cosine of what the turns speak of, and three alignments of their
words (`FEATURES`). Everything comes from vectors of single texts and words, so a pair costs no run of a model. Two
rules come before it: turns that name opposite properties in the same place ("the left cup" / "the right cup") have
similarity 0, yes-or-no questions that say opposite things of one and are answered so ("is it open" / "is it closed") 1.

The words come first: they alone rule most pairs out, so that few contents need a vector (`Similarity.contents`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.embed import Embeddings
from pipelines.english import ANYONE, COLOURS, PEOPLE, SIDES, is_opposite, singular
from pipelines.ragged import places
from pipelines.wording import Answer, Question, contradict, new_words, read_answer, read_question, restate

COMPARISONS = ("pair", "question", "answer")
FEATURES = (
    "content",  # cosine of the content words of question and answer, each turn's as one text
    "contained",  # share of one turn's words that the other turn says, in the direction where it is larger
    "told",  # share of one answer's words that the other question says, in the direction where it is larger
    "same question",  # share of one question's words that the other question says, where it is smaller
)
# Fitted by benchmarks/dedup_quality.py on labelled pairs, both classes weighing the same.
WEIGHTS = (5.98, 5.87, 1.71, 2.14)
BIAS = -9.65
# Two words with a cosine under the first are unrelated, over the second they mean the same.
UNRELATED, SAME = 0.55, 0.9
MAX_WORDS = 256  # of a question or an answer; what stands beyond is not compared
NOTHING, QUESTION, SLOT, TOLD = range(4)  # roles of words
OTHER, NUMBER, COLOUR = range(3)  # kinds of answers
HIGHEST_COSINE = 1.01  # of vectors that are stored as float16
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
        if self.told[0][0].isdigit():
            return NUMBER if self.question.measures else OTHER  # a time, or what stands on a jersey, counts nothing
        return COLOUR if self.told[-1] in COLOURS else OTHER

    @property
    def content(self) -> str:
        return " ".join((*self.words, *self.told))


def texts_to_embed(questions: Sequence[str], answers: Sequence[str], compare: str) -> set[str]:
    """The texts whose vectors a `Similarity` asks for at once; of a pair, the single words."""
    if compare != "pair":
        return set(questions if compare == "question" else answers)
    return {word for turn in _read(questions, answers) for word in (*turn.words, *turn.slot, *turn.told)}


class Similarity:
    """Similarity of N turns, asked for by their places; a value does not depend on what else is asked."""

    def __init__(self, questions: Sequence[str], answers: Sequence[str], embeddings: Embeddings, compare: str):
        """compare: `pair` as the module says; `question` and `answer` take the cosine of these texts alone.

        Raises KeyError for a text of `texts_to_embed` that `embeddings` lacks; the methods do so for one of `contents`.
        """
        self.compare = compare
        self.turns = _read(questions, answers)
        self._polarity = np.array([turn.answer.polarity for turn in self.turns], np.int8)
        if compare == "pair":
            self._vectors = _Vectors([turn.content for turn in self.turns], embeddings)
            self._words = _Alignment(self.turns, embeddings)
        else:
            self._vectors = _Vectors(questions if compare == "question" else answers, embeddings)
            self._vectors.load()

    def __call__(self, first: np.ndarray, second: np.ndarray, at_least: float = 0.0) -> np.ndarray:
        """(P,) float32 of the turns at places first, second: (P,) int. What is under `at_least` may be given as 0."""
        if self.compare == "pair":
            values = self._scores(first, second, at_least)
        else:
            values = self._vectors.cosine(first, second)
        if self.compare == "pair":
            for k in np.flatnonzero(self._polarity[first] * self._polarity[second] == -1):
                if self._of(restate, first[k], second[k]):
                    values[k] = 1
        if self.compare != "answer":
            for k in np.flatnonzero((values >= at_least) & (values > 0) & (values < 1)):
                if self._of(contradict, first[k], second[k]):
                    values[k] = 0
        return values

    def contents(self, first: np.ndarray, second: np.ndarray, at_least: float) -> set[str]:
        """The contents whose vectors a call with the same arguments asks for."""
        if self.compare != "pair":
            return set()
        possible, _ = self._possible(first, second, at_least)
        return {self.turns[k].content for k in np.unique([first[possible], second[possible]])}

    def features(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """(P, 4) float32: FEATURES of pairs of turns, each 0 to 1 (a cosine may be negative)."""
        return np.column_stack([self._vectors.cosine(first, second), self._words.features(first, second)])

    def _scores(self, first: np.ndarray, second: np.ndarray, at_least: float) -> np.ndarray:
        possible, aligned = self._possible(first, second, at_least)
        values = np.zeros(len(first), np.float32)
        values[possible] = _score(self._vectors.cosine(first[possible], second[possible]), aligned)
        return values

    def _possible(self, first: np.ndarray, second: np.ndarray, at_least: float) -> tuple[np.ndarray, np.ndarray]:
        """Which of the pairs can reach `at_least` with whatever contents, and the features of their words."""
        aligned = self._words.features(first, second)
        best = _score(np.full(len(first), HIGHEST_COSINE, np.float32), aligned)
        possible = np.flatnonzero(best >= at_least)
        return possible, aligned[possible]

    def _of(self, rule: Callable[[Question, Answer, Question, Answer], bool], first: int, second: int) -> bool:
        a, b = self.turns[first], self.turns[second]
        return rule(a.question, a.answer, b.question, b.answer)


def _score(cosine: np.ndarray, aligned: np.ndarray) -> np.ndarray:
    # Summed one by one: a matrix product may round differently for other numbers of pairs.
    logit = np.full(len(cosine), BIAS, np.float32)
    for weight, column in zip(WEIGHTS, (cosine, *aligned.T), strict=True):
        logit += np.float32(weight) * column
    return 1 / (1 + np.exp(-logit))


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
        self._vectors.load()
        self._stems = np.array([singular(word) for word in self._vocabulary], dtype=object)
        self._people = np.array([stem in PEOPLE for stem in self._stems])
        self._anyone = np.array([stem in ANYONE for stem in self._stems])
        self._is_word = np.array([word[:1].isalpha() for word in self._vocabulary])

    def features(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """(P, 3) float32: FEATURES without the first."""
        values = np.empty((len(first), 3), np.float32)
        work = np.cumsum(self._counts[first] * self._counts[second])
        begin = 0
        while begin < len(first):
            done = work[begin - 1] if begin else 0
            end = max(begin + 1, int(np.searchsorted(work, done + WORD_PAIRS_AT_ONCE, "right")))
            values[begin:end] = self._features(first[begin:end], second[begin:end])
            begin = end
        return values

    def _features(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        # Every word of a second turn beside every word of its first, the first's running fastest; then turned round.
        sizes = self._counts[first], self._counts[second]
        word = places(self._starts[second], sizes[1])
        beside = np.repeat(sizes[0], sizes[1])
        first_word = places(np.repeat(self._starts[first], sizes[1]), beside)
        alike = self._alike(first_word, np.repeat(word, beside))
        there = self._shares(alike, first_word, word, beside, sizes[1])
        turned = _turned(*sizes)
        word, beside = places(self._starts[first], sizes[0]), np.repeat(sizes[1], sizes[0])
        second_word = places(np.repeat(self._starts[second], sizes[0]), beside)
        back = self._shares(alike[turned], second_word, word, beside, sizes[0])
        (contained, told, asked), (contained_back, told_back, asked_back) = there, back
        low, high = np.minimum(contained, contained_back), np.maximum(contained, contained_back)
        # How many of some, or the colour of a part, is not that of the whole: there both directions count.
        attributes = (self.kinds[first] == self.kinds[second]) & (self.kinds[first] != OTHER)
        return np.column_stack(
            [
                np.where(attributes, (low + high) / 2, high),
                np.maximum(told, told_back),
                np.minimum(asked, asked_back),
            ]
        )

    def _shares(
        self, alike: np.ndarray, source_word: np.ndarray, word: np.ndarray, beside: np.ndarray, sizes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How much of each target turn its source turn says: three (P,), each 0 to 1.

        alike: of each target word (`word`) to the words of its source, `beside` many, `source_word`; sizes: words of
        each target. The share of its question and answer that the whole source says; of its answer that the source's
        question says (0 without an answer word); of its question that the source's question says (1 without one).
        """
        begins = np.cumsum(beside) - beside
        source_role, role = self._roles[source_word], self._roles[word]
        turn = np.repeat(np.arange(len(sizes)), sizes)

        def share(said: np.ndarray, of: np.ndarray, if_none: float) -> np.ndarray:
            most = np.maximum.reduceat(said, begins)
            total = np.bincount(turn, weights=of, minlength=len(sizes))
            sums = np.bincount(turn, weights=most * of, minlength=len(sizes))
            return np.where(total > 0, sums / np.maximum(total, 1), if_none)

        of_question, of_answer = role == QUESTION, role == TOLD
        return (
            share(alike, of_question | of_answer, 1),
            share(alike * (source_role <= SLOT), of_answer, 0),
            share(alike * (source_role == QUESTION), of_question, 1),
        )

    def _alike(self, first_word: np.ndarray, second_word: np.ndarray) -> np.ndarray:
        """(K,) float32, 0 to 1, of words at (K,) places each."""
        size = len(self._vocabulary)
        words, others = self._words[first_word], self._words[second_word]
        keys, where = np.unique(np.minimum(words, others) * size + np.maximum(words, others), return_inverse=True)
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
        return alike[where]


def _turned(fast: np.ndarray, slow: np.ndarray) -> np.ndarray:
    """Tables of slow × fast entries, one after another: the places of their entries, each table transposed."""
    sizes = fast * slow
    table = np.repeat(np.arange(len(sizes)), sizes)
    rank = np.arange(len(table)) - (np.cumsum(sizes) - sizes)[table]
    return (np.cumsum(sizes) - sizes)[table] + rank % slow[table] * fast[table] + rank // slow[table]


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
    """The vectors of some texts, by their places; looked up when they are first needed."""

    def __init__(self, texts: Sequence[str], embeddings: Embeddings):
        distinct = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        self._texts = np.array(list(distinct), dtype=object)
        self._place = np.array([distinct[text] for text in texts], np.int64)
        self._embeddings = embeddings
        self._is_here = np.zeros(len(distinct), bool)
        self._matrix = np.zeros((len(distinct), embeddings.dim), np.float32)

    def load(self) -> None:
        self._look_up(np.arange(len(self._texts)))

    def cosine(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """(K,) float32 of (K,) places each."""
        first, second = self._place[first], self._place[second]
        self._look_up(np.union1d(first[~self._is_here[first]], second[~self._is_here[second]]))
        values = np.empty(len(first), np.float32)
        for start in range(0, len(first), VECTORS_AT_ONCE):
            part = slice(start, start + VECTORS_AT_ONCE)
            values[part] = np.einsum("kd,kd->k", self._matrix[first[part]], self._matrix[second[part]])
        return values

    def _look_up(self, new: np.ndarray) -> None:
        if len(new):
            self._matrix[new] = self._embeddings.vectors(self._texts[new].tolist())
            self._is_here[new] = True
