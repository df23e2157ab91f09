"""LLaVA-Instruct-150K: every `*.json` file in the annotations directory.

A row is an entry of a file's list; row indices continue across files, sorted by name. Ids are not checked, because they
are not unique in the official files (one image has several conversations). A row without `image` is text only.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.schema import IMAGE_TOKEN
from pipelines.sources.base import COCO_IMAGES, Skips, Source, SourceError, file_batches, matching_files
from pipelines.sources.fields import Reject, optional_text
from pipelines.sources.formats import json_stream
from pipelines.sources.formats.conversations import Shown, sizes, turns, without_placeholder

_MERGED = "llava_instruct_150k.json"
_PARTS = {"complex_reasoning_77k.json", "conversation_58k.json", "detail_23k.json"}


def files(root: Path) -> list[Path]:
    paths = matching_files(root, *json_stream.patterns("*.json"))
    names = {path.name.removesuffix(".gz") for path in paths}
    if _MERGED in names and names & _PARTS:
        parts = ", ".join(sorted(names & _PARTS))
        raise SourceError(f"{root} contains {_MERGED} and parts of it ({parts}): keep either the former or the latter")
    return paths


def _row(record: Any, skips: Skips) -> tuple[Any, ...]:
    image = optional_text(record, "image")
    (question, answer), *rest = turns(record, skips=skips)
    question, has_placeholder = without_placeholder(question)
    if has_placeholder and image is None:
        raise Reject("missing_field", f"image is missing, but conversations[0].value contains {IMAGE_TOKEN}")
    talk = [(question, answer), *rest]
    if any(IMAGE_TOKEN in question for question, _ in talk):  # these files have one placeholder, at the first question
        raise Reject("special_token_in_text", f"the text contains {IMAGE_TOKEN!r}")
    [shown] = sizes(record, [image]) if image is not None else [Shown("")]
    size = [shown.width, shown.height] if shown.width or shown.height else None
    return image, talk, None, size


def read(root: Path) -> Iterator[pa.RecordBatch]:
    skips = Skips()

    def row(record: Any) -> tuple[Any, ...]:
        return _row(record, skips)

    yield from file_batches("conversation", root, files(root), json_stream.array, row, skips)


SOURCE = Source(
    "llava150k",
    "conversation",
    files,
    read,
    licence=f"conversations: CC BY-NC 4.0, and OpenAI's terms of use apply; {COCO_IMAGES}",
)
