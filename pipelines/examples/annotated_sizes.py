"""Finds rows that were annotated for another size or orientation of their image than the one that is trained on."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.ragged import flat_indices, offsets_of
from pipelines.examples.image_slots import image_counts, more_images

REASON = "image_size_mismatch"


def contradictions(batch: pa.RecordBatch, images: pa.Table) -> tuple[pa.Array, pa.Array]:
    """Returns (reason, detail) for each row one of whose annotated `sizes` differs from that of the image as displayed,
    else null. images: the images table rows of the images of the batch."""
    reason, detail = (np.full(batch.num_rows, None, dtype=object) for _ in range(2))
    if "sizes" in batch.schema.names and batch.column("sizes").null_count < batch.num_rows:
        known = batch.column("sizes").is_valid()
        rows = np.flatnonzero(known.to_numpy(zero_copy_only=False))
        names, counts = _names(batch.filter(known))
        annotated = batch.column("sizes").drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, 2)
        at = pc.index_in(names, value_set=images["image"].combine_chunks())
        measured = np.column_stack(
            [
                images[side].combine_chunks().take(at).cast(pa.float64()).to_numpy(zero_copy_only=False)
                for side in ("width", "height")
            ]
        )
        differs = (np.abs(annotated - measured) >= 1).any(axis=1)  # false where either is unknown (NaN)
        parent = np.repeat(rows, counts)
        for i in np.flatnonzero(differs)[::-1].tolist():  # reversed, so the first one wins
            reason[parent[i]] = REASON
            (width, height), (real_width, real_height) = annotated[i], measured[i]
            detail[parent[i]] = (
                f"{names[i].as_py()!r} was annotated as {width:g} by {height:g} pixels, but is {real_width:g} by "
                f"{real_height:g} as displayed: use the images that were annotated"
            )
    return pa.array(reason, pa.string()), pa.array(detail, pa.string())


def _names(batch: pa.RecordBatch) -> tuple[pa.Array, np.ndarray]:
    """Returns the images of all rows, in order, and their number in each row."""
    first, others = batch.column("image"), more_images(batch)
    has_first = first.is_valid().to_numpy(zero_copy_only=False)
    counts = image_counts(batch)
    starts = offsets_of(counts)[:-1]
    order = np.empty(counts.sum(), np.int64)
    order[starts[has_first]] = np.arange(has_first.sum())
    order[flat_indices(starts + has_first, counts - has_first)] = np.arange(has_first.sum(), len(order))
    return pa.concat_arrays([first.drop_null(), others.flatten()]).take(pa.array(order)), counts
