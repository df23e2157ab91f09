"""Aligns the words of one turn with those of another by their vectors. Used by pipelines/dedup/similarity.py."""

from collections.abc import Sequence

import numpy as np

from pipelines.core.ragged import flat_indices
from pipelines.dedup.embeddings import Embeddings
from pipelines.dedup.english import PEOPLE, WORDS, is_opposite, singular
from pipelines.dedup.parsed_turn import NUMBER, OTHER, ParsedTurn
from pipelines.dedup.text_vectors import TextVectors

# Two words are unrelated if their cosine is below the first value, and synonyms if it is above the second.
UNRELATED, SAME = 0.55, 0.9
MISSING = 0.5  # from this number of words on, a question about a quantity lacks a word of another one
NOTHING, QUESTION, SLOT, TOLD = range(4)  # roles of words
WORD_PAIRS_AT_ONCE = 1 << 20  # bounds memory


class Alignment:
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
        self._vectors = TextVectors(self._vocabulary[1:], embeddings)
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
