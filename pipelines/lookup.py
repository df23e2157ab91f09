"""What a build would find in the store already. Nothing is made here: `store` is read only, and what is missing is
NotBuilt. (Tables of images and embeddings are shared by datasets, so that an older one may serve as well.)"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.arrow_files import read_table
from pipelines.build import IMAGES_VERSION, DatasetSpec, build_annotations, distinct_images
from pipelines.embed import embedder_fingerprint
from pipelines.images import identities
from pipelines.store import MANIFEST, NotBuilt, Store, read_manifest


def images_at_hand(store: Store, spec: DatasetSpec) -> Path:
    """A table that holds every image of the dataset as its file is now."""
    names = pa.array(sorted(distinct_images(build_annotations(store, spec))), pa.string())
    if not spec.images.is_dir():
        raise NotBuilt(f"there is no directory {spec.images}")
    now = pa.chunked_array([pa.array(identities(spec.images, names.to_pylist()), pa.string())])
    for directory in _newest_first(store, "images"):
        if _key(directory)["version"] != IMAGES_VERSION:
            continue
        table = read_table(directory / "images.arrow").select(["image", "identity"])
        places = pc.index_in(names, value_set=table["image"].combine_chunks())
        if not places.null_count and table["identity"].take(places).equals(now):
            return directory
    raise NotBuilt(f"the images of {spec.name} are not measured")


def embeddings_at_hand(store: Store, model: str, device: str) -> Path | None:
    """The newest table of the embedder, whatever texts it holds; None if there is none."""
    embedder = embedder_fingerprint(model, device)
    for directory in _newest_first(store, "embeddings"):
        if _key(directory)["embedder"] == embedder:
            return directory
    return None


def newest_examples(store: Store, dataset: str) -> Path | None:
    """The newest examples of a dataset of that name, whatever they were built from."""
    for directory in _newest_first(store, "examples"):
        if _key(directory)["dataset"] == dataset:
            return directory
    return None


def _key(directory: Path) -> dict[str, Any]:
    return read_manifest(directory)["key"]


def _newest_first(store: Store, stage: str) -> list[Path]:
    manifests = (store.root / stage).glob(f"*/{MANIFEST}")
    return [path.parent for path in sorted(manifests, key=lambda path: path.stat().st_mtime_ns, reverse=True)]
