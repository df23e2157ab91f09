"""Estimates how likely one of two turns about an image gives the other's answer away: 0 to 1, symmetric.

The score is a logistic model of four interpretable features (`FEATURES`): the cosine of the turns' contents and three
alignments of their words. All features derive from vectors of single texts and words, so scoring a pair needs no model
inference. Two rules override the model. Turns that name opposite properties in the same position ("the left cup" /
"the right cup") have similarity 0. Yes-or-no questions that claim opposite things of the same object and have opposite
answers ("is it open" yes / "is it closed" no) have similarity 1.

The word features are computed first: they rule out most pairs, so few contents need a vector (`Similarity.contents`).
"""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.core.ragged import flat_indices
from pipelines.dedup.embeddings import Embeddings
from pipelines.dedup.english import COLOURS, PEOPLE, WORDS, is_opposite, singular
from pipelines.dedup.fact_rules import FACT_RULES
from pipelines.dedup.question_rules import (
    ParsedAnswer,
    ParsedQuestion,
    are_contradictory,
    are_opposite_claims,
    new_words,
    read_answer,
    read_question,
)

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
# Two words are unrelated if their cosine is below the first value, and synonyms if it is above the second.
UNRELATED, SAME = 0.55, 0.9
MISSING = 0.5  # from this number of words on, a question about a quantity lacks a word of another one
MAX_WORDS = 256  # of a question or an answer; further words are ignored
NOTHING, QUESTION, SLOT, TOLD = range(4)  # roles of words
OTHER, NUMBER, COLOUR = range(3)  # kinds of answers
HIGHEST_COSINE = 1.01  # upper bound for vectors that are stored as float16
VECTORS_AT_ONCE, WORD_PAIRS_AT_ONCE = 1 << 14, 1 << 20  # bound memory


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
    def is_english(self) -> bool:
        return self.question.is_english


def texts_to_embed(questions: Sequence[str], answers: Sequence[str], compare: str) -> set[str]:
    """Returns the texts whose vectors the constructor of `Similarity` looks up; for `pair`, these are single words."""
    if compare != "pair":
        return set(questions if compare == "question" else answers)
    turns = _read(questions, answers)
    return {word for turn in turns if turn.is_english for word in (*turn.words, *turn.slot, *turn.told)}


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
        self.turns = _read(questions, answers)
        self._polarity = np.array([turn.answer.polarity for turn in self.turns], np.int8)
        texts = [questions] if compare == "question" else [answers] if compare == "answer" else [questions, answers]
        self._same = _equal_texts(texts)
        self.unread = np.zeros(len(questions), bool)  # (N,)
        if compare == "pair" or embeddings.reads_only_english:
            self.unread |= np.array([not turn.is_english for turn in self.turns], bool)
        if compare == "pair":
            self._vectors = _Vectors([turn.content for turn in self.turns], embeddings)
            self._words = _Alignment(self.turns, self.unread, embeddings)
            self.unread |= ~self._words.known
        else:
            self._vectors = _Vectors(texts[0], embeddings)
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
        if self.compare == "pair":
            for k in np.flatnonzero(self._polarity[first] * self._polarity[second] == -1):
                if self._of(are_opposite_claims, first[k], second[k]):
                    values[k] = 1
        if self.compare != "answer":
            for k in np.flatnonzero((values >= at_least) & (values > 0) & (values < 1)):
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


class _Alignment:
    """Aligns the words of one turn with those of another, for N turns."""

    def __init__(self, turns: Sequence[ParsedTurn], without_words: np.ndarray, embeddings: Embeddings):
        """without_words: (N,) bool, the turns whose words need no vectors and are not aligned."""
        # Word 0 is in every turn, so that none is empty, and matches no word. Numbers that are labels are other words.
        vocabulary: dict[tuple[str, bool], int] = {("", False): 0}
        words: list[int] = []
        roles: list[int] = []
        counts = np.empty(len(turns), np.int64)
        for k, turn in enumerate(turns):
            parts = (("",), (), (), ()) if without_words[k] else (("",), turn.words, turn.slot, turn.told)
            for role, part in zip((NOTHING, QUESTION, SLOT, TOLD), parts, strict=True):
                tagged = ((word, word[:1].isdigit() and turn.is_label(word, role == TOLD)) for word in part)
                words += [vocabulary.setdefault(word, len(vocabulary)) for word in tagged]
                # "left" in an answer carries no weight: other questions contain it about other objects.
                roles += [NOTHING if role == TOLD and word in WORDS.sides else role for word in part]
            counts[k] = sum(map(len, parts))
        self._words, self._roles, self._counts = np.array(words), np.array(roles, np.int8), counts
        self.kinds = np.array([turn.kind for turn in turns], np.int8)
        self._quantity = np.array([turn.told[0] if turn.told else "" for turn in turns], dtype=object)
        self._starts = np.cumsum(counts) - counts
        self._vocabulary = [word for word, _ in vocabulary]
        self._vectors = _Vectors(self._vocabulary[1:], embeddings)
        self._vectors.load()
        is_known = np.append(True, self._vectors.known(np.arange(len(vocabulary) - 1)))
        self.known = (
            np.logical_and.reduceat(is_known[self._words], self._starts) if turns else np.zeros(0, bool)
        )  # (N,)
        self._stems = np.array([singular(word) + " as a label" * label for word, label in vocabulary], dtype=object)
        self._people = np.array([stem in PEOPLE for stem in self._stems])
        self._anyone = np.array([stem in WORDS.anyone for stem in self._stems])
        self._is_word = np.array([word[:1].isalpha() for word in self._vocabulary])

    def features(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Returns (P, 3) float32: all FEATURES but the first."""
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
        # Pairs every word of `second` with every word of `first`, which varies fastest; then transposes the tables.
        sizes = self._counts[first], self._counts[second]
        word = flat_indices(self._starts[second], sizes[1])
        partners = np.repeat(sizes[0], sizes[1])
        first_word = flat_indices(np.repeat(self._starts[first], sizes[1]), partners)
        alike = self._alike(first_word, np.repeat(word, partners))
        forward = self._shares(alike, first_word, word, partners, sizes[1])
        transposed = _transposed(*sizes)
        word, partners = flat_indices(self._starts[first], sizes[0]), np.repeat(sizes[1], sizes[0])
        second_word = flat_indices(np.repeat(self._starts[second], sizes[0]), partners)
        backward = self._shares(alike[transposed], second_word, word, partners, sizes[0])
        (contained, told, asked, missing), (contained_back, told_back, asked_back, missing_back) = forward, backward
        low, high = np.minimum(contained, contained_back), np.maximum(contained, contained_back)
        # The count of a subset or the colour of a part is not that of the whole, so here both directions count.
        attributes = (self.kinds[first] == self.kinds[second]) & (self.kinds[first] != OTHER)
        values = np.column_stack(
            [
                np.where(attributes, (low + high) / 2, high),
                np.maximum(told, told_back),
                np.minimum(asked, asked_back),
            ]
        )
        values[self._count_others(first, second, missing, missing_back)] = 0
        return values

    def _count_others(
        self, first: np.ndarray, second: np.ndarray, missing: np.ndarray, missing_back: np.ndarray
    ) -> np.ndarray:
        """Returns (P,) bool: pairs of quantities of different sets. With equal answers, one question must contain the
        other ("how many people are there" / "in the boat", but not "on the bridge" / "in the boat"); with different
        answers, each must contain the other. missing, missing_back: the number of words of each question that the other
        one lacks."""
        quantities = (self.kinds[first] == NUMBER) & (self.kinds[second] == NUMBER)
        equal = self._quantity[first] == self._quantity[second]
        least = np.where(equal, np.minimum(missing, missing_back), np.maximum(missing, missing_back))
        return quantities & (least >= MISSING)

    def _shares(
        self, alike: np.ndarray, source_word: np.ndarray, word: np.ndarray, partners: np.ndarray, sizes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Returns how much of each target turn its source turn contains: three arrays (P,), each 0 to 1, and the number
        of words of the target's question that the source's question lacks.

        The first is the share of the target's question and answer that the source contains; the second, the share of
        its answer that the source's question contains (0 if the answer has no words); the third, the share of its
        question that the source's question contains (1 if the question has no words).
        alike: similarity of each target word (`word`) to each word of its source (`source_word`); partners: number of
        source words per target word; sizes: number of words per target.
        """
        begins = np.cumsum(partners) - partners
        source_role, role = self._roles[source_word], self._roles[word]
        turn = np.repeat(np.arange(len(sizes)), sizes)

        def share(similarity: np.ndarray, of: np.ndarray, if_none: float) -> np.ndarray:
            most = np.maximum.reduceat(similarity, begins)
            total = np.bincount(turn, weights=of, minlength=len(sizes))
            sums = np.bincount(turn, weights=most * of, minlength=len(sizes))
            return np.where(total > 0, sums / np.maximum(total, 1), if_none)

        of_question, of_answer = role == QUESTION, role == TOLD
        asked = share(alike * (source_role == QUESTION), of_question, 1)
        return (
            share(alike, of_question | of_answer, 1),
            share(alike * (source_role <= SLOT), of_answer, 0),
            asked,
            (1 - asked) * np.bincount(turn, weights=of_question, minlength=len(sizes)),
        )

    def _alike(self, first_word: np.ndarray, second_word: np.ndarray) -> np.ndarray:
        """Returns the similarity of words at two arrays of indices (K,): (K,) float32, 0 to 1."""
        size = len(self._vocabulary)
        words, others = self._words[first_word], self._words[second_word]
        keys, where = np.unique(np.minimum(words, others) * size + np.maximum(words, others), return_inverse=True)
        low, high = keys // size, keys % size
        alike = np.zeros(len(keys), np.float32)
        known = low > 0
        cosine = self._vectors.cosine(low[known] - 1, high[known] - 1)
        alike[known] = np.clip((cosine - UNRELATED) / (SAME - UNRELATED), 0, 1)
        alike[~(self._is_word[low] & self._is_word[high])] = 0  # numbers and symbols only match themselves
        for k in np.flatnonzero(alike):
            if is_opposite(self._vocabulary[low[k]], self._vocabulary[high[k]]):
                alike[k] = 0
        anyone = (self._people[low] & self._anyone[high]) | (self._people[high] & self._anyone[low])
        alike[anyone] = np.maximum(alike[anyone], 0.5)
        alike[self._stems[low] == self._stems[high]] = 1
        alike[~known] = 0
        return alike[where]


def _transposed(fast: np.ndarray, slow: np.ndarray) -> np.ndarray:
    """Returns the indices that transpose each of the concatenated tables of slow × fast entries."""
    sizes = fast * slow
    table = np.repeat(np.arange(len(sizes)), sizes)
    rank = np.arange(len(table)) - (np.cumsum(sizes) - sizes)[table]
    return (np.cumsum(sizes) - sizes)[table] + rank % slow[table] * fast[table] + rank // slow[table]


def _read(questions: Sequence[str], answers: Sequence[str]) -> list[ParsedTurn]:
    read_questions = {text: read_question(text) for text in set(questions)}
    read_answers = {text: read_answer(text) for text in set(answers)}
    turns = []
    for question_text, answer_text in zip(questions, answers, strict=True):
        question, answer = read_questions[question_text], read_answers[answer_text]
        told = new_words(question, answer)[:MAX_WORDS]
        turns.append(ParsedTurn(question, answer, question.words[:MAX_WORDS], question.slot, told))
    return turns


def _equal_texts(columns: Sequence[Sequence[str]]) -> np.ndarray:
    """Numbers N turns, (N,) int64, such that turns with equal texts, apart from case and spaces, have equal numbers."""
    numbers: dict[tuple[str, ...], int] = {}
    rows = (
        tuple(" ".join(unicodedata.normalize("NFC", t).casefold().split()) for t in row)
        for row in zip(*columns, strict=True)
    )
    return np.array([numbers.setdefault(row, len(numbers)) for row in rows], np.int64)


class _Vectors:
    """The vectors of some texts, addressed by index and looked up on first use."""

    def __init__(self, texts: Sequence[str], embeddings: Embeddings):
        distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        self._texts = np.array(list(distinct), dtype=object)
        self._row = np.array([distinct[text] for text in texts], np.int64)
        self._embeddings = embeddings
        self._is_loaded = np.zeros(len(distinct), bool)
        self._matrix = np.zeros((len(distinct), embeddings.dim), np.float32)
        self._known = np.zeros(len(distinct), bool)

    def load(self) -> None:
        self._look_up(np.arange(len(self._texts)))

    def known(self, indices: np.ndarray) -> np.ndarray:
        """Returns whether the embedder knows the texts at an array of indices, which were looked up before."""
        return self._known[self._row[indices]]

    def cosine(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Returns the cosines (K,) float32 of texts at two arrays of indices (K,)."""
        first, second = self._row[first], self._row[second]
        self._look_up(np.union1d(first[~self._is_loaded[first]], second[~self._is_loaded[second]]))
        values = np.empty(len(first), np.float32)
        for start in range(0, len(first), VECTORS_AT_ONCE):
            part = slice(start, start + VECTORS_AT_ONCE)
            values[part] = np.einsum("kd,kd->k", self._matrix[first[part]], self._matrix[second[part]])
        return values

    def _look_up(self, new: np.ndarray) -> None:
        if len(new):
            self._matrix[new], self._known[new] = self._embeddings.look_up(self._texts[new].tolist())
            self._is_loaded[new] = True
