"""Image references: read safely below an image root, and decoded, measured and hashed once.

A reference is a path relative to the image root (`train2017/000000000009.jpg`), a byte range of a tar
(`00000.tar#<offset>:<size>`; tars are never unpacked), or a cell of a Parquet or Arrow file by column and row
(`data/train-0.parquet#<column>:<row>`, or `…:<row>[<element>]` if the cell is a list). A cell that holds a path
instead of bytes refers to the file at that path.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.errors import ImageRefError
from pipelines.images.decode import measure
from pipelines.images.doubts import settle
from pipelines.images.references import ImageRoot, Links, Location, reading_order
from pipelines.schema import IMAGES

log = logging.getLogger(__name__)
_CHUNK = 64  # images per task of a thread
_LOG_EVERY = 20_000  # images


def identities(
    root: Path, images: Iterable[str], links: Links = "follow", doubted: frozenset[str] = frozenset()
) -> list[str | None]:
    """Returns each image's identity (see Location.identity), or None if there is no file. Only files of `doubted`
    images (doubts.py) are opened."""
    image_root, names = ImageRoot(root, links), list(images)
    located = {image: _locate(image_root, doubted, image) for image in sorted(set(names), key=reading_order)}
    return [each.identity if isinstance(each, Location) else None for each in map(located.__getitem__, names)]


def images_table(
    root: Path,
    images: Iterable[str],
    known: pa.Table | None = None,
    threads: int | None = None,
    links: Links = "follow",
    doubted: frozenset[str] = frozenset(),
) -> pa.Table:
    """Measures images. Returns one row per distinct image, schema IMAGES, sorted by `image`; an unusable image has
    `reject` and `detail`.

    known: the concatenated tables of earlier passes, of any root or dataset, schema IMAGES. An image whose `identity`
    is in them is not reopened, since its real path, inode, size and times have not changed. A changed file has a
    different identity and is measured again; a missing file has none and is looked up again.
    threads: the number of decoding threads; None uses one per core. doubted: as for `identities`.
    Raises FileNotFoundError without a root, and PermissionError or another OSError that no reference causes.
    """
    names = sorted(set(images), key=reading_order)
    image_root = ImageRoot(root, links)
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        located = list(_map(pool, lambda image: _locate(image_root, doubted, image), names))
        identities = pa.array([each.identity if isinstance(each, Location) else None for each in located], pa.string())
        seen = _lookup(identities, known)
        new = [i for i, index in enumerate(seen.to_pylist()) if index is None]
        if known is not None:
            log.info("images: %d of %d were measured before", len(names) - len(new), len(names))
        rows = []
        for row in _map(pool, lambda i: _row(image_root, names[i], located[i]), new):
            rows.append(row)
            if len(rows) % _LOG_EVERY == 0:
                log.info("images: %d of %d measured", len(rows), len(new))
    table = pa.Table.from_pylist(rows, schema=IMAGES)
    if known is not None and len(new) < len(names):
        old = known.select(IMAGES.names).take(seen.drop_null())
        renamed = pa.array(names, pa.string()).filter(seen.is_valid())
        table = pa.concat_tables([table, old.set_column(0, IMAGES.field("image"), renamed).cast(IMAGES)])
    return table.sort_by("image").combine_chunks()


def _lookup(identities: pa.Array, known: pa.Table | None) -> pa.Array:
    """Returns the row of each identity in `known`, or null."""
    if known is None:
        return pa.nulls(len(identities), pa.int32())
    return pc.index_in(identities, value_set=known["identity"].combine_chunks(), skip_nulls=True)


def _locate(image_root: ImageRoot, doubted: frozenset[str], image: str) -> Location | ImageRefError:
    try:
        return settle(image_root, image_root.locate(image), doubted)
    except ImageRefError as error:
        return error


def _row(image_root: ImageRoot, image: str, location: Location | ImageRefError) -> dict[str, Any]:
    row: dict[str, Any] = {"image": image}
    try:
        if isinstance(location, ImageRefError):
            raise location
        row["identity"] = location.identity
        data = image_root.read_at(location)
        row["num_bytes"], row["sha256"] = len(data), hashlib.sha256(data).hexdigest()
        row["width"], row["height"], row["phash"] = measure(data)
    except ImageRefError as error:
        row["reject"], row["detail"] = error.reason, error.detail
    return row


def _map(pool: ThreadPoolExecutor, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[Any]:
    """`pool.map` over chunks, since dispatching a task costs more than decoding a small image."""
    chunks = (items[i : i + _CHUNK] for i in range(0, len(items), _CHUNK))
    for results in pool.map(lambda chunk: [function(item) for item in chunk], chunks):
        yield from results
