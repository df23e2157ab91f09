"""ShareGPT: text-only conversations, `[{id, conversations: [{from, value}, …]}, …]` in every `*.json` of the directory.

Row indices continue across files, which are sorted by name.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.sources.base import Skips, Source, file_batches, matching_files
from pipelines.sources.formats import json_stream
from pipelines.sources.formats.conversations import turns


def _files(root: Path) -> list[Path]:
    return matching_files(root, *json_stream.patterns("*.json"))


def read(root: Path) -> Iterator[pa.RecordBatch]:
    skips = Skips()

    def row(record: Any) -> tuple[Any, ...]:
        return None, turns(record, skips=skips), None, None

    yield from file_batches("conversation", root, _files(root), json_stream.array, row, skips)


SOURCE = Source(
    "sharegpt",
    "conversation",
    _files,
    read,
    licence="unclear: the conversations were shared by users of ChatGPT, and OpenAI's terms of use apply",
)
