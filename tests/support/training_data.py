"""Writes small shards directories by hand, in the format that pipelines/shards/writer.py defines."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from transformers import PreTrainedTokenizerBase

from pipelines.core.files import file_sha256
from pipelines.core.integrity import write_manifest
from pipelines.schema import LENGTHS, SHARD
from pipelines.shards.manifest import FORMAT

COLOURS = ["red", "green", "blue", "yellow"]


def encoded_image(colour: str, seed: int, size: int = 32) -> bytes:
    """Returns a PNG image: noise and a square of the colour."""
    random = np.random.default_rng(seed)
    image = Image.fromarray(random.integers(0, 60, (size, size, 3), dtype=np.uint8))
    left, top = random.integers(0, size // 2, 2).tolist()
    image.paste(colour, (left, top, left + size // 2, top + size // 2))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def rows(tokenizer: PreTrainedTokenizerBase, count: int, text_only_every: int = 5) -> list[dict]:
    """Returns samples 0 … count - 1 of two datasets: captions, and questions of various lengths; some have no image."""
    samples = []
    for index in range(count):
        colour = COLOURS[index % 4]
        text_only = index % text_only_every == text_only_every - 1
        if index % 2:
            dataset, prompt, answer = (
                "questions",
                "Human: What colour is the square? AI:",
                f" {colour}" * (index % 3 + 1),
            )
        else:
            dataset, prompt, answer = "captions", "", f"A {colour} square." + " It is here." * (index % 3)
        images = [] if text_only else [{"bytes": encoded_image(colour, index), "path": f"{index}.png"}]
        image = "" if text_only else "<image>"
        before = tokenizer.encode(f"<s>{image}{prompt}", add_special_tokens=False)
        after = tokenizer.encode(f"{answer}</s>", add_special_tokens=False)
        samples.append(
            {
                "index": index,
                "dataset": dataset,
                "example": index // 2,
                "images": images,
                "image_sha256": [hashlib.sha256(each["bytes"]).hexdigest() for each in images],
                "turns": [{"user": prompt, "assistant": answer, "template": "t", "row": index}],
                "input_ids": before + after,
                "loss_mask": [False] * len(before) + [True] * len(after),
                "num_tokens": len(before) + len(after),
                "num_supervised": len(after),
            }
        )
    return samples


def write_shards(
    directory: Path,
    samples: Sequence[dict],
    tokenizer_directory: Path,
    image_token_id: int,
    per_shard: int = 40,
    per_group: int = 16,
) -> Path:
    """Writes the samples as shards with their manifest; returns the directory."""
    samples = [{"num_images": len(sample["images"]), **sample} for sample in samples]
    directory.mkdir(parents=True, exist_ok=True)
    shards = []
    total = -(-len(samples) // per_shard)
    for number in range(total):
        first = number * per_shard
        table = pa.Table.from_pylist(samples[first : first + per_shard], schema=SHARD)
        path = directory / f"shard-{number:05d}-of-{total:05d}.parquet"
        pq.write_table(
            table, path, row_group_size=per_group, compression="none", use_dictionary=False, write_page_checksum=True
        )
        data = path.read_bytes()
        shards.append(
            {
                "file": path.name,
                "first": first,
                "num_samples": table.num_rows,
                "num_bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        )
    lengths = directory / "lengths.parquet"
    columns = [pa.array([sample[name] for sample in samples], LENGTHS.field(name).type) for name in LENGTHS.names]
    pq.write_table(pa.table(columns, schema=LENGTHS), lengths)
    names = [sample["dataset"] for sample in samples]
    manifest = {
        "stage": "shards",
        "format": FORMAT,
        "key": {"made": "by hand", "samples": len(samples)},
        "num_samples": len(samples),
        "datasets": {name: {"samples": names.count(name)} for name in sorted(set(names))},
        "image_token_id": image_token_id,
        "tokenizer": hashlib.sha256((tokenizer_directory / "tokenizer.json").read_bytes()).hexdigest()[:16],
        "lengths": {"file": lengths.name, "sha256": file_sha256(lengths), "num_bytes": lengths.stat().st_size},
        "shards": shards,
    }
    write_manifest(directory, manifest)
    return directory
