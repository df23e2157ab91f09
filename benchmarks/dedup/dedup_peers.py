"""De-duplication within images without this project: the same rule over sentence-transformers, and semhash.

Each function takes turns (offsets of the images, questions, answers). It returns which turns are kept, as (N,) bool,
and the highest similarity of each turn to an earlier kept turn, as (N,) float (NaN where there is none).
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from pipelines.dedup.embeddings import PACKAGED_MODEL, embedder_path
from pipelines.dedup.known_texts import KnownTexts
from pipelines.dedup.settings import DEFAULT_THRESHOLD
from pipelines.dedup.similarity import Similarity, texts_to_embed

Turns = tuple[np.ndarray, list[str], list[str]]
Kept = tuple[np.ndarray, np.ndarray]
SEMHASH_THRESHOLD = 0.9  # its default


class Vectors:
    """A dictionary with the interface of the embeddings table."""

    def __init__(self, texts: Sequence[str], vectors: np.ndarray, known: Sequence[bool]):
        self.dim, self.reads_only_english = vectors.shape[1], True
        self._rows = {text: row for row, text in enumerate(texts)}
        self._vectors, self._known = vectors, np.array(known, bool)

    def look_up(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        rows = [self._rows[text] for text in texts]
        return self._vectors[rows], self._known[rows]


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
    model = _model()
    _, known = KnownTexts(model.tokenizer, model.max_seq_length).encode(texts)
    embeddings = Vectors(texts, model.encode(texts), known)
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
    words = sorted(texts_to_embed(questions, answers, "pair"))
    nothing = Vectors(words, np.zeros((len(words), 1)), [True] * len(words))
    return [turn.content for turn in Similarity(questions, answers, nothing, "pair").turns]


def _accompanied(offsets: np.ndarray) -> list[int]:
    sizes = np.diff(offsets)
    return np.flatnonzero(np.repeat(sizes > 1, sizes)).tolist()


def _model():
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(embedder_path(PACKAGED_MODEL)), device="cpu", local_files_only=True)
