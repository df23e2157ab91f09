"""De-duplication within images without this project: the same rule over sentence-transformers, and semhash.

Each function takes turns (offsets of the images, questions, answers). It returns which turns are kept, as (N,) bool,
and the highest similarity of each turn to an earlier kept turn, as (N,) float (NaN where there is none).
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from pipelines.dedup.embeddings import PACKAGED_MODEL, embedder_path
from pipelines.dedup.settings import DEFAULT_THRESHOLD
from pipelines.dedup.similarity import Similarity, texts_to_embed

Turns = tuple[np.ndarray, list[str], list[str]]
Kept = tuple[np.ndarray, np.ndarray]
SEMHASH_THRESHOLD = 0.9  # its default


class Vectors:
    """A dictionary with the interface of the embeddings table."""

    def __init__(self, texts: Sequence[str], vectors: np.ndarray):
        self.dim = vectors.shape[1]
        self._vectors = dict(zip(texts, vectors, strict=True))

    def vectors(self, texts: list[str]) -> np.ndarray:
        return np.stack([self._vectors[text] for text in texts]) if texts else np.zeros((0, self.dim), np.float32)


def plain(turns: Turns) -> Kept:
    """Encodes every text of every turn, then compares all turns of an image in a double loop."""
    return _plain(turns, distinct=False)


def plain_distinct(turns: Turns) -> Kept:
    """The same, but encodes each distinct text once."""
    return _plain(turns, distinct=True)


def semhash(turns: Turns) -> Kept:
    """Plain cosine of question and answer. All texts are encoded at once; each image has its own index."""
    from semhash import SemHash

    offsets, questions, answers = turns
    texts = [f"{question} {answer}" for question, answer in zip(questions, answers, strict=True)]
    chosen = _accompanied(offsets)
    model = _model()
    vectors = np.zeros((len(texts), model.get_embedding_dimension()), np.float32)
    vectors[chosen] = model.encode([texts[k] for k in chosen])
    keep = np.ones(len(texts), bool)
    for begin, end in pairwise(offsets.tolist()):
        if end - begin > 1:
            records = [{"turn": str(k), "text": texts[k]} for k in range(begin, end)]
            index = SemHash.from_embeddings(vectors[begin:end], records, model, columns=["text"])
            dropped = index.self_deduplicate(SEMHASH_THRESHOLD).filtered
            keep[[int(each.record["turn"]) for each in dropped]] = False
    return keep, np.full(len(texts), np.nan)


def _plain(turns: Turns, distinct: bool) -> Kept:
    offsets, questions, answers = turns
    chosen = _accompanied(offsets)
    words = [w for k in chosen for w in texts_to_embed([questions[k]], [answers[k]], "pair")]
    contents = _contents([questions[k] for k in chosen], [answers[k] for k in chosen])
    texts = words + contents
    if distinct:
        texts = sorted(set(texts))
    embeddings = Vectors(texts, _model().encode(texts))
    keep, best = np.ones(len(questions), bool), np.full(len(questions), np.nan)
    for begin, end in pairwise(offsets.tolist()):
        if end - begin < 2:
            continue
        score = Similarity(questions[begin:end], answers[begin:end], embeddings, "pair")
        for later in range(1, end - begin):
            for earlier in range(later):
                if keep[begin + earlier]:
                    [value] = score(np.array([earlier]), np.array([later]))
                    best[begin + later] = np.fmax(best[begin + later], value)
                    if value >= DEFAULT_THRESHOLD["pair"]:
                        keep[begin + later] = False
    return keep, best


def _contents(questions: list[str], answers: list[str]) -> list[str]:
    nothing = Vectors(words := sorted(texts_to_embed(questions, answers, "pair")), np.zeros((len(words), 1)))
    return [turn.content for turn in Similarity(questions, answers, nothing, "pair").turns]


def _accompanied(offsets: np.ndarray) -> list[int]:
    sizes = np.diff(offsets)
    return np.flatnonzero(np.repeat(sizes > 1, sizes)).tolist()


def _model():
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(embedder_path(PACKAGED_MODEL)), device="cpu", local_files_only=True)
