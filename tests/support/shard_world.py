"""Examples in the store's layout, with real images on disk, for the tests of shards."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from pipelines.core.arrow_files import write_batches
from pipelines.core.integrity import write_manifest
from pipelines.mixture.shares import Balance
from pipelines.schema import EXAMPLES
from pipelines.shards.settings import ShardSettings
from pipelines.tokens.tokenizer import load_tokenizer

SIZES = {"a": 700, "b": 31}
COUNT = 1500


def make_world(tmp_path: Path, tokenizer_dir: Path) -> dict[str, Any]:
    """Writes the examples and images of two datasets; returns the arguments of build_shards."""
    examples = {}
    image_token = load_tokenizer(tokenizer_dir).image_token_id
    for name, size in SIZES.items():
        root = tmp_path / "images" / name
        root.mkdir(parents=True)
        rows = []
        for i in range(size):
            file = root / f"{i % 20}.png"
            if not file.exists():
                Image.new("RGB", (4, 3), (i, 0, 50 if name == "a" else 200)).save(file)
            turn = {"user": f"question {i}", "assistant": f"{name}{i}", "template": "t", "row": i}
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            text_only = i % 10 == 9
            rows.append(
                {
                    "images": [] if text_only else [file.name],
                    "image_sha256": [] if text_only else [digest],
                    "image_bytes": [] if text_only else [file.stat().st_size],
                    "image_side": [] if text_only else [4],
                    "turns": [turn],
                    "input_ids": [1, 2 if text_only else image_token, i % 100],
                    "loss_mask": [False, False, True],
                    "num_tokens": 3,
                    "num_supervised": 1,
                }
            )
        directory = tmp_path / "examples" / name
        directory.mkdir(parents=True)
        half = size // 2
        for number, part in enumerate((rows[:half], rows[half:])):
            table = pa.Table.from_pylist(part, EXAMPLES)
            write_batches(directory / f"examples-{number:05d}.arrow", EXAMPLES, table.to_batches(64))
        names = ["examples-00000.arrow", "examples-00001.arrow"]
        files = [[n, c] for n, c in zip(names, (half, size - half), strict=True)]
        ledger = {"read": size + 3, "examples": size, "duplicates": 1, "rejects": {"too_long": 2}}
        manifest = {"files": files, "num_examples": size, "num_supervised": size, "task": "open_question"}
        write_manifest(directory, {**manifest, "rows": ledger, "turns": ledger})
        examples[name] = directory
    return {
        "examples": examples,
        "image_roots": {name: tmp_path / "images" / name for name in SIZES},
        "settings": ShardSettings(
            balance=Balance(strategy="tuned"),
            weights={"a": 3, "b": 1},
            num_samples=COUNT,
            shard_bytes=60_000,
            tokenizer=tokenizer_dir,
            seed=5,
        ),
        "log": lambda line: None,
    }


def with_settings(world: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The same arguments with some shard settings changed."""
    return {**world, "settings": dataclasses.replace(world["settings"], **changes)}
