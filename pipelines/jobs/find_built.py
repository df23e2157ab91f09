"""Finds store entries that a build can reuse. Nothing is built here: the store is read-only, and a missing entry raises
NotBuilt. Images and embeddings tables are shared by datasets, so an older table may also be usable."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.arrow_files import read_table
from pipelines.core.store import NotBuilt, Store
from pipelines.dedup.embeddings import embedder_fingerprint
from pipelines.images.doubts import Doubts
from pipelines.images.table import identities
from pipelines.jobs import images
from pipelines.jobs.annotations import build_annotations
from pipelines.jobs.dataset import DatasetSpec
from pipelines.jobs.images import distinct_images


def find_images_table(store: Store, spec: DatasetSpec) -> Path:
    """Returns the newest images table that holds every image of the dataset with its current identity. Raises NotBuilt
    if there is none."""
    names = pa.array(sorted(distinct_images(build_annotations(store, spec))), pa.string())
    if not spec.images.is_dir():
        raise NotBuilt(f"the image directory {spec.images} does not exist")
    doubted = Doubts.of(store.root).read()
    states = identities(spec.images, names.to_pylist(), spec.image_links, doubted)
    current = pa.chunked_array([pa.array(states, pa.string())])
    for directory, manifest in store.entries("images", "images.arrow"):
        key = manifest["key"]
        if (key["version"], key.get("links")) != (images.VERSION, spec.image_links):
            continue
        table = read_table(directory / "images.arrow").select(["image", "identity"])
        indices = pc.index_in(names, value_set=table["image"].combine_chunks())
        if not indices.null_count and table["identity"].take(indices).equals(current):
            return directory
    raise NotBuilt(f"the images of {spec.name} have not been measured yet")


def find_embeddings_table(store: Store, model: str, device: str) -> Path | None:
    """Returns the newest embeddings table of the embedder, regardless of its texts, or None if there is none."""
    embedder = embedder_fingerprint(model, device)
    for directory, manifest in store.entries("embeddings", "embeddings.arrow"):
        if manifest["key"]["embedder"] == embedder:
            return directory
    return None


def newest_examples(store: Store, dataset: str) -> Path | None:
    """Returns the newest examples of the dataset, regardless of their settings, or None if there are none."""
    for directory, manifest in store.entries("examples"):
        if manifest["key"]["dataset"] == dataset:
            return directory
    return None
