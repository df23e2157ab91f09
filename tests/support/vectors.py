"""Test helper that embeds all texts that the deduplication of some turns needs."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa

from pipelines.dedup.decide import contents_to_embed, texts_to_embed
from pipelines.dedup.embeddings import PACKAGED_MODEL, Embeddings, embed_texts
from pipelines.dedup.settings import Dedup


def embed_turns(
    questions: Sequence[str],
    answers: Sequence[str],
    offsets: Sequence[int] | None = None,
    dedup: Dedup = Dedup(),
) -> pa.Table:
    """Returns the table of embeddings. offsets: those of the groups; None means one group."""
    return _embed(tuple(questions), tuple(answers), None if offsets is None else tuple(map(int, offsets)), dedup)


@lru_cache
def _embed(
    questions: tuple[str, ...], answers: tuple[str, ...], offsets: tuple[int, ...] | None, dedup: Dedup
) -> pa.Table:
    texts = texts_to_embed(questions, answers, dedup)
    words = embed_texts(texts, PACKAGED_MODEL)
    bounds = np.array([0, len(questions)] if offsets is None else offsets)
    contents = contents_to_embed(bounds, questions, answers, Embeddings(words), dedup)
    return embed_texts(texts | contents, PACKAGED_MODEL, known=words)
