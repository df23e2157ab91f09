"""Removes semantic duplicates within a conversation: turns whose answer another turn gives away (paper section 4).

Turns are grouped into conversations, in the order in which they would be asked. A turn is dropped if it duplicates
an earlier turn that was *kept*: with a~b and b~c but not a~c, b is dropped and c is kept.

pipelines/dedup/similarity.py computes how similar two turns are.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.dedup.embeddings import Embeddings
from pipelines.dedup.settings import Dedup
from pipelines.dedup.similarity import Similarity
from pipelines.dedup.similarity import texts_to_embed as texts_to_compare

# Part of a stage's key: raise it when a change here, in similarity.py, question_rules.py or english.py alters a
# decision.
VERSION = 6
PAIRS_AT_ONCE = 1 << 17  # bounds memory


@dataclass(frozen=True)
class Decisions:
    """The decisions for N turns, one entry per turn. A kept turn has partner −1, similarity nan and rule ''."""

    keep: np.ndarray  # (N,) bool
    partner: np.ndarray  # (N,) int64: the kept turn that this turn duplicates
    similarity: np.ndarray  # (N,) float32: similarity to the partner, 0 to 1; nan for the rule `answer`
    rule: list[str]  # "semantic" or "answer"
    unread: np.ndarray  # (N,) bool: turns of which the rule `semantic` compared nothing but their equality


def texts_to_embed(questions: Sequence[str], answers: Sequence[str], dedup: Dedup = Dedup()) -> set[str]:
    """Returns the texts that need a vector before `contents_to_embed` and `deduplicate` can run.

    If pairs are compared, these are single words. Turns that are alone in their group need none."""
    return texts_to_compare(questions, answers, dedup.compare) if dedup.needs_vectors else set()


def contents_to_embed(
    offsets: np.ndarray,
    questions: Sequence[str],
    answers: Sequence[str],
    embeddings: Embeddings,
    dedup: Dedup = Dedup(),
) -> set[str]:
    """Returns the remaining texts whose vectors `deduplicate` looks up: the contents of all turns that, judging by
    their words, may reach the threshold with another turn. The result holds for any order of the turns within their
    groups and for any split of the groups.

    embeddings: holds the texts of `texts_to_embed`; the other arguments are those of `deduplicate`.
    """
    _check_sizes(offsets, questions, answers)
    if not dedup.needs_vectors or dedup.compare != "pair":
        return set()
    score = Similarity(questions, answers, embeddings, dedup.compare)
    found: set[str] = set()
    for later, earlier in _pairs(offsets):
        found |= score.contents(earlier, later, dedup.limit)
    return found


def deduplicate(
    offsets: np.ndarray,
    questions: Sequence[str],
    answers: Sequence[str],
    embeddings: Embeddings | None,
    dedup: Dedup = Dedup(),
) -> Decisions:
    """Decides for each turn whether it is kept.

    offsets: (G + 1,) int; group g is turns offsets[g]:offsets[g + 1], in the order they are asked.
    questions, answers: N annotation texts, not rendered by a template. embeddings: holds the texts of
    `texts_to_embed` and `contents_to_embed`; may be None if these are empty.
    dedup: the rule `answer` ignores case, accents, punctuation and articles, where the authors' released rule compares
    the strings; `pair` scores question and answer together (pipelines/dedup/similarity.py), while `question` and
    `answer` take the cosine of only the questions or only the answers.
    Raises ValueError if the rule needs embeddings and there are none, KeyError for a text without a vector.
    """
    _check_sizes(offsets, questions, answers)
    n = len(questions)
    keep, partner = np.ones(n, bool), np.full(n, -1, np.int64)
    similarity, rules, unread = np.full(n, np.nan, np.float32), [""] * n, np.zeros(n, bool)
    if dedup.rule == "off":
        return Decisions(keep, partner, similarity, rules, unread)
    limit = dedup.limit
    normal = np.array([normalize(a) for a in answers], dtype=object) if "answer" in dedup.rule else None
    score: Similarity | None = None
    if dedup.needs_vectors:
        with_others = np.flatnonzero(np.repeat(np.diff(offsets) > 1, np.diff(offsets)))
        position = np.zeros(n, np.int64)
        position[with_others] = np.arange(len(with_others))
        asked, told = ([texts[k] for k in with_others.tolist()] for texts in (questions, answers))
        if embeddings is None:
            if texts_to_embed(asked, told, dedup):
                raise ValueError(f"rule {dedup.rule!r} needs embeddings")
            embeddings = Embeddings.none()
        score = Similarity(asked, told, embeddings, dedup.compare)
    for later, earlier in _pairs(offsets):
        if score is None:
            values = np.full(len(later), np.nan, np.float32)
        else:
            values = score(position[earlier], position[later], limit)
        same = np.zeros(len(later), bool) if normal is None else normal[earlier] == normal[later]
        for k in np.flatnonzero(same | (values >= limit)):
            i, j = earlier[k], later[k]
            if not keep[i]:
                continue
            # Of several kept partners, record the best explanation: an equal answer, otherwise the most similar turn.
            name = "answer" if same[k] else "semantic"
            if keep[j] or (rules[j] == name == "semantic" and values[k] > similarity[j]):
                keep[j], partner[j], rules[j] = False, i, name
                similarity[j] = values[k] if name == "semantic" else np.nan
    if score is not None:
        unread[with_others] = score.unread
    return Decisions(keep, partner, similarity, rules, unread)


def normalize(text: str) -> str:
    """Strips case, accents, punctuation, articles and extra spaces; returns the text itself if nothing remains."""
    bare = "".join(c for c in unicodedata.normalize("NFKD", text).casefold() if not unicodedata.combining(c))
    words = re.sub(r"[^\w\s]|_", " ", bare).split()
    return " ".join(word for word in words if word not in ("a", "an", "the")) or text.strip()


def _pairs(offsets: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (later, earlier) for all pairs of turns in a group, in ascending order of `later`, in bounded blocks."""
    n = int(offsets[-1])
    starts = np.repeat(offsets[:-1], np.diff(offsets))
    ends = np.cumsum(np.arange(n) - starts)  # number of pairs up to and including each turn
    first = 0
    while first < n:
        before = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + PAIRS_AT_ONCE, "right")))
        turns = np.arange(first, last)
        counts = turns - starts[first:last]
        later = np.repeat(turns, counts)
        rank = np.arange(len(later)) - np.repeat(np.cumsum(counts) - counts, counts)
        yield later, starts[later] + rank
        first = last


def _check_sizes(offsets: np.ndarray, questions: Sequence[str], answers: Sequence[str]) -> None:
    n = len(questions)
    if len(answers) != n or offsets[0] != 0 or offsets[-1] != n:
        raise ValueError(f"{n} questions, {len(answers)} answers and offsets {offsets[0]}…{offsets[-1]} do not match")
