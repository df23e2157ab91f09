"""store/images/: the table of distinct images of one image root.

Raise VERSION when a change to pipelines/images/ changes the table.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from pipelines.core.arrow_files import read_table, write_batches
from pipelines.core.store import Store, digest_of
from pipelines.examples.image_slots import named_images
from pipelines.images.doubts import Doubts
from pipelines.images.references import Links
from pipelines.images.table import identities, images_table
from pipelines.jobs.annotations import ROWS_PER_BATCH, annotation_batches, build_annotations
from pipelines.jobs.dataset import DatasetSpec, Log
from pipelines.schema import IMAGES

VERSION = 3


class ImagesOfRoot(NamedTuple):
    root: Path
    links: Links
    names: list[str]


def build_images(store: Store, specs: Sequence[DatasetSpec], log: Log = print) -> dict[str, Path]:
    """Measures every distinct image of the datasets, building one images table per image root. Returns dataset name →
    directory of its table. An image is reopened only if its path, inode, size or times have changed, or if its bytes
    were found to have changed (pipelines/images/doubts.py)."""
    tables: dict[str, Path] = {}
    for root, links in sorted({(spec.images.resolve(), spec.image_links) for spec in specs}):
        users = [spec for spec in specs if (spec.images.resolve(), spec.image_links) == (root, links)]
        names: set[str] = set()
        for spec in users:
            names |= distinct_images(build_annotations(store, spec, log))
        tables |= dict.fromkeys(
            (s.name for s in users), _images_of_root(store, ImagesOfRoot(root, links, sorted(names)), log)
        )
    return tables


def _images_of_root(store: Store, wanted: ImagesOfRoot, log: Log) -> Path:
    root, links, names = wanted
    doubted = Doubts.of(store.root).read()
    states = identities(root, names, links, doubted)
    key = {"version": VERSION, "links": links, "images": digest_of(zip(names, states, strict=True))}

    def make(out: Path) -> dict[str, Any]:
        known = [
            read_table(entry / "images.arrow")
            for entry, manifest in store.entries("images", "images.arrow")
            if manifest["key"]["version"] == VERSION
        ]
        table = images_table(root, names, pa.concat_tables(known) if known else None, links=links, doubted=doubted)
        write_batches(out / "images.arrow", IMAGES, table.to_batches(ROWS_PER_BATCH))
        rejects = Counter(reason for reason in table["reject"].to_pylist() if reason)
        log(f"{root}: {table.num_rows:,} images, of which {sum(rejects.values())} are unusable")
        return {"num_images": table.num_rows, "rejects": dict(sorted(rejects.items()))}

    return store.produce("images", key, make)


def distinct_images(annotations: Path) -> set[str]:
    names: set[str] = set()
    for batch in annotation_batches(annotations):
        names |= named_images(batch)
    return names
