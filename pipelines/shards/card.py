"""Writes the dataset card: a README.md next to the shards that describes them to people, `datasets` and hub viewers."""

from collections.abc import Mapping
from typing import Any

from pipelines import sources
from pipelines.core.text_tables import markdown

CARD = "README.md"
_UNKNOWN = "see the dataset's own page"
_HEAD = """\
---
license: other
license_name: of-each-dataset
license_link: README.md
task_categories: [visual-question-answering, image-to-text]
configs:
- config_name: default
  data_files:
  - split: train
    path: shard-*.parquet
---
"""
_IMAGES = {
    "embed": "Images are embedded: `images` contains their bytes and `image_sha256` their SHA-256 checksums.",
    "reference": "Images are not stored in these files: `images` contains their paths below each dataset's image "
    "directory and `image_sha256` the SHA-256 checksums of the image files.",
    "skip": "Images are not included: `images` contains only their paths.",
}


def card(manifest: Mapping[str, Any], examples: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the text of the card for a shards manifest. examples: dataset → the manifest of its examples."""
    tokens, supervised = manifest["num_tokens"], manifest["num_supervised"]
    size = sum(shard["num_bytes"] for shard in manifest["shards"])
    parts = [
        f"{_HEAD}\n# Vision-language instruction data\n",
        f"This dataset has {manifest['num_samples']:,} samples from {_names(manifest)} in training order, with "
        f"{tokens:,} tokens (an image counts as one token), of which {supervised:,} are supervised. It consists of "
        f"{_files(manifest)} ({_mib(size)}) and was built by Honeybee. {_IMAGES[manifest['images']['mode']]}"
        f"{_shrunk(manifest['images'])}\n",
        f"## Mixture\n\n{_mixture(manifest)}\nIn every prefix of the order, the number of samples of each dataset is "
        "within one sample of its share. Epochs are the average number of times that an example is used.\n",
        f"## Row counts\n\n{_ledger(manifest)}\nRows read = rows in examples + duplicates + rejects.\n",
        f"## Templates\n\n{_templates(examples)}",
        f"## Usage\n\n{_reading(manifest)}\n",
        f"## Licences\n\nEach dataset keeps its own licence; data that is built from several datasets is subject to "
        f"all of their licences.\n\n{_licences(examples)}",
    ]
    return "\n".join(parts)


def _names(manifest: Mapping[str, Any]) -> str:
    count = len(manifest["datasets"])
    return f"{count} datasets" if count > 1 else "one dataset"


def _files(manifest: Mapping[str, Any]) -> str:
    count = len(manifest["shards"])
    return f"{count:,} Parquet files" if count > 1 else "one Parquet file"


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _shrunk(images: Mapping[str, Any]) -> str:
    made = images["shrink"]
    if made is None:
        return ""
    side, quality = made["side"], made["quality"]
    return f" Images with a side of more than {side} pixels were downscaled to it and saved as JPEG, quality {quality}."


def _mixture(manifest: Mapping[str, Any]) -> str:
    period = manifest["mixture"]["period"]
    rows = []
    for name, facts in manifest["datasets"].items():
        rows.append(
            {
                "dataset": name,
                "share of samples": f"{manifest['mixture']['quotas'][name] / period:.2%}",
                "samples": facts["samples"],
                "examples": facts["examples"],
                "epochs": f"{facts['epochs']:.2f}",
                "images": facts["num_images"],
                "tokens": facts["num_tokens"],
                "supervised tokens": facts["num_supervised"],
            }
        )
    return markdown(rows)


def _ledger(manifest: Mapping[str, Any]) -> str:
    rows = []
    for name, facts in manifest["datasets"].items():
        ledger = facts["ledger"]["rows"]
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in ledger["rejects"].items())
        rows.append(
            {
                "dataset": name,
                "rows read": ledger["read"],
                "rows in examples": ledger["examples"],
                "duplicates": ledger["duplicates"],
                "rejects": reasons or "none",
            }
        )
    return markdown(rows)


def _templates(examples: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name in sorted(examples):
        for template in examples[name].get("templates", ()):
            texts = {side: template[side].replace("\n", " ⏎ ") for side in ("user", "assistant")}
            rows.append({"dataset": name, "id": template["id"], **texts})
    return markdown(rows)


def _reading(manifest: Mapping[str, Any]) -> str:
    shards = "shard-*.parquet"
    return f"""\
```python
import datasets
train = datasets.load_dataset("PATH OR NAME OF THIS FOLDER", split="train")
train[0]["turns"]       # the conversation as text, with each turn's template and its row in the official file
train[0]["input_ids"]   # the conversation as token ids; loss_mask marks the supervised ones
```
```sql
SELECT dataset, count(*), sum(num_tokens) FROM '{shards}' GROUP BY dataset;  -- DuckDB
```

The token ids come from the tokenizer with the fingerprint `{manifest["tokenizer"]}`; each image is represented by the
single token {manifest["image_token_id"]}. `{manifest["lengths"]["file"]}` lists the lengths of all samples in order.
`manifest.json` lists every file with its SHA-256 checksum, and `honeybee verify FOLDER` checks all files."""


def _licences(examples: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name in sorted(examples):
        source = sources.SOURCES.get(examples[name].get("source", name))
        rows.append({"dataset": name, "licence": source.licence if source else _UNKNOWN})
    return markdown(rows)
