"""What all layout writers share: JSON files, image files, and the account of what was written."""

import dataclasses
import json
from pathlib import Path
from typing import Any


@dataclasses.dataclass
class Account:
    """What a layout holds, for the corpus manifest: rows by official file, and the rows broken on purpose."""

    rows: dict[str, int] = dataclasses.field(default_factory=dict)
    broken: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def broke(self, file: str, row: int, what: str) -> None:
        """Notes that row `row` (from 0) of the official file `file` was broken on purpose."""
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
