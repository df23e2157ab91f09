"""Functions that all layout writers share: for JSON files, image files, and the account of what was written."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.sample_corpus.world.scenes import SceneImage


@dataclasses.dataclass
class LayoutSummary:
    """The contents of a layout, for the corpus manifest: the number of rows by official file, as its reader counts
    them, and the rows that are broken on purpose."""

    rows: dict[str, int] = dataclasses.field(default_factory=dict)
    broken: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def add_broken(self, file: str, row: int, what: str) -> None:
        """Records that row `row` (from 0) of the official file `file` is broken on purpose."""
        self.broken.append({"file": file, "row": row, "what": what})


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False))


def write_image(path: Path, jpeg: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg)


def coco_train2014(identity: int) -> str:
    return f"COCO_train2014_{identity:012d}.jpg"


def coco_val2014(identity: int) -> str:
    return f"COCO_val2014_{identity:012d}.jpg"


def coco_2017(identity: int) -> str:
    return f"{identity:012d}.jpg"


def subsample(scene_images: Sequence[SceneImage], first: int) -> Sequence[SceneImage]:
    """Returns every tenth image, so that many layouts are written fast; of a small corpus at least 16, if available.

    first: the offset, different for each layout, so that the layouts do not all show the same images.
    """
    step = max(1, min(10, len(scene_images) // 16))
    return scene_images[first % step :: step]
