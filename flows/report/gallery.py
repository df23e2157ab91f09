"""Renders training examples with their images for inspection: the first samples of each dataset in training order."""

import base64
import io
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from pipelines.core.store import read_manifest

THUMBNAIL = 224  # pixels of the longer side
_BOX = re.compile(r"(?<![\d.,])" + ",".join([r"([01]\.\d{3})"] * 4) + r"(?![\d,])")
_COLUMNS = ["index", "dataset", "example", "images", "turns", "num_tokens", "num_supervised"]


@dataclass(frozen=True)
class Card:
    """One sample: its images as PNG, in order, and its conversation. The boxes in the text are drawn into the image if
    there is only one."""

    title: str
    images: tuple[bytes, ...]
    text: str


def cards(shards: Path, per_dataset: int) -> list[Card]:
    """Returns the first samples of each dataset, grouped by dataset. Reads at most 32 row groups."""
    wanted = {name: min(per_dataset, d["samples"]) for name, d in read_manifest(shards)["datasets"].items()}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sorted(wanted)}
    for group in _row_groups(shards, limit=32):
        for row in group:
            if len(found[row["dataset"]]) < wanted[row["dataset"]]:
                found[row["dataset"]].append(row)
        if all(len(rows) >= wanted[name] for name, rows in found.items()):
            break
    return [_card(row) for rows in found.values() for row in rows]


def markdown(gallery: list[Card], address: Callable[[int, bytes], str]) -> str:
    """Renders cards as Markdown. address: (index of the image, PNG) → target of the image's link."""
    blocks = []
    number = itertools.count()
    for card in gallery:
        images = "".join(f"![{card.title}]({address(next(number), png)})\n" for png in card.images)
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", card.text)), default=0))
        blocks.append(f"#### {card.title}\n\n{images}\n{fence}text\n{card.text}\n{fence}\n")
    return "\n".join(blocks)


def data_uri(png: bytes) -> str:
    """Returns an image as a data: URI, as PNG or JPEG, whichever is smaller: the size of an artifact is limited."""
    with Image.open(io.BytesIO(png)) as image:
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, format="JPEG", quality=75)
    kind, data = min(("png", png), ("jpeg", buffer.getvalue()), key=lambda each: len(each[1]))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _row_groups(shards: Path, limit: int):
    for entry in read_manifest(shards)["shards"]:
        file = pq.ParquetFile(shards / entry["file"])
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=_COLUMNS).to_pylist()
            limit -= 1
            if not limit:
                return


def _card(row: dict[str, Any]) -> Card:
    text = "\n".join(f"Human: {turn['user']}\nAI: {turn['assistant']}".strip() for turn in row["turns"])
    sources = ", ".join(sorted({f"row {turn['row']} with template {turn['template']}" for turn in row["turns"]}))
    counts = f"{row['num_tokens']} tokens, {row['num_supervised']} supervised"
    encoded = [image["bytes"] for image in row["images"] or () if image["bytes"]]
    referenced = [image["path"] for image in row["images"] or () if image["path"] and not image["bytes"]]
    outside = f"; images not embedded in the shards: {', '.join(referenced)}" if referenced else ""
    boxes = _BOX.findall(text) if len(encoded) == 1 else []
    return Card(
        title=f"{row['dataset']}, sample {row['index']} (example {row['example']})",
        images=tuple(draw_boxes(data, boxes) for data in encoded),
        text=f"{text}\n\n({counts}; {sources}{outside})",
    )


def draw_boxes(data: bytes, boxes: Sequence[tuple[str, ...]] = ()) -> bytes:
    """Returns a PNG thumbnail of an encoded image, THUMBNAIL pixels on the longer side, with boxes drawn in. boxes: x1,
    y1, x2, y2 relative to the image's width and height."""
    with Image.open(io.BytesIO(data)) as opened:
        shown = opened.convert("RGB")
    scale = THUMBNAIL / max(shown.size)
    size = tuple(max(1, round(side * scale)) for side in shown.size)
    # Nearest-neighbour interpolation keeps small drawn scenes sharp.
    shown = shown.resize((size[0], size[1]), Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(shown)
    for box in boxes:
        x1, y1, x2, y2 = (float(v) * side for v, side in zip(box, (*size, *size), strict=True))
        if x1 <= x2 and y1 <= y2:
            draw.rectangle((x1, y1, x2, y2), outline=(255, 0, 160), width=2)
    buffer = io.BytesIO()
    shown.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
