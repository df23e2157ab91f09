"""Opens a sample of the images of each dataset with the code of the images job, and counts why some cannot be used."""

import zlib
from collections import Counter
from collections.abc import Iterable
from itertools import islice

import numpy as np
import pyarrow as pa

from flows.preflight.outcome import Check, Status, failed
from pipelines.core.hashing import mix64
from pipelines.examples.image_slots import named_images
from pipelines.images.table import images_table
from pipelines.jobs.dataset import DatasetSpec

IMAGES = 32  # opened per dataset
ROWS = 20_000  # rows whose images are candidates


def check_images(spec: DatasetSpec) -> Check:
    """Opens a sample of a dataset's images, which depends only on its annotations. Fails if none can be used, and warns
    if some cannot."""
    item = f"datasets.{spec.name}.images"
    if not spec.images.is_dir():
        return failed(item, f"{spec.images} is not a directory")
    try:
        names = sample(spec.reader.read(spec.annotations))
        if not names:
            return Check(item, Status.OK, "its rows show no images")
        table = images_table(spec.images, names)
    except (ValueError, OSError) as error:  # unreadable annotations, or a directory without permission
        return failed(item, error)
    reasons = Counter(reason for reason in table["reject"].to_pylist() if reason)
    count = sum(reasons.values())
    if not count:
        return Check(item, Status.OK, f"opened {len(names)} images")
    first = {row["reject"]: row for row in reversed(table.to_pylist())}
    found = "; ".join(
        f"{n} {reason}, e.g. {first[reason]['image']}: {first[reason]['detail']}" for reason, n in reasons.most_common()
    )
    if count == len(names):
        return failed(item, f"none of {len(names)} sampled images can be used below {spec.images}: {found}")
    return Check(item, Status.WARNING, f"{count} of {len(names)} sampled images cannot be used: {found}")


def sample(batches: Iterable[pa.RecordBatch]) -> list[str]:
    """Returns at most IMAGES of the images that the first ROWS rows show, chosen by a hash of their names."""
    names: set[str] = set()
    rows = 0
    for batch in batches:
        names |= named_images(batch)
        rows += batch.num_rows
        if rows >= ROWS:
            break
    ordered = sorted(names)
    keys = mix64(np.array([zlib.crc32(name.encode()) for name in ordered], dtype=np.uint64), 0)
    return sorted(ordered[i] for i in islice(np.argsort(keys, kind="stable"), IMAGES))
