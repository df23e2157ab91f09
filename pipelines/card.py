"""The dataset card: a README.md beside the shards, so that people, `datasets` and a hub's viewer know what they are."""

from collections.abc import Mapping
from typing import Any

from pipelines import sources

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
    "embed": "Pictures are embedded: `images` holds their bytes, `image_sha256` the sum of each.",
    "reference": "Pictures are not in these files: `images` holds their paths below each dataset's image directory, "
    "`image_sha256` the sum of each file.",
    "skip": "There are no pictures: `images` holds only their names.",
}


def card(manifest: Mapping[str, Any], examples: Mapping[str, Mapping[str, Any]]) -> str:
    """The text for a shards' manifest. examples: dataset → the manifest of its examples."""
    tokens, supervised = manifest["num_tokens"], manifest["num_supervised"]
    size = sum(shard["num_bytes"] for shard in manifest["shards"])
    parts = [
        f"{_HEAD}\n# Vision-language instruction data\n",
        f"{manifest['num_samples']:,} samples of {_names(manifest)} in training order, {tokens:,} tokens (a picture "
        f"counts as one), {supervised:,} of them supervised; {_files(manifest)}, {_mib(size)}. Built "
        f"by Honeybee. {_IMAGES[manifest['images']['mode']]}{_shrunk(manifest['images'])}\n",
        f"## Mixture\n\n{_mixture(manifest)}\n\nEvery prefix of the order holds each dataset within one sample of its "
        "share of samples. Epochs: how often each of its examples is seen.\n",
        f"## Where every row went\n\n{_ledger(manifest)}\n\nRows read = in examples + duplicates + rejects.\n",
        f"## Templates\n\n{_templates(examples)}\n",
        f"## Reading it\n\n{_reading(manifest)}\n",
        f"## Licences\n\nEach dataset keeps its own; what is built from several is bound by all of them.\n\n"
        f"{_licences(examples)}\n",
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
    return f" Those with a side of more than {side} pixels were shrunk to it, as JPEG of quality {quality}."


def _table(head: list[str], rows: list[list[Any]]) -> str:
    def line(cells: list[Any]) -> str:
        return "| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


def _mixture(manifest: Mapping[str, Any]) -> str:
    head = ["dataset", "share of samples", "samples", "examples", "epochs", "pictures", "tokens", "supervised"]
    period = manifest["mixture"]["period"]
    rows = []
    for name, facts in manifest["datasets"].items():
        share = f"{manifest['mixture']['quotas'][name] / period:.2%}"
        numbers = [facts[key] for key in ("num_images", "num_tokens", "num_supervised")]
        rows.append([name, share, facts["samples"], facts["examples"], f"{facts['epochs']:.2f}", *numbers])
    return _table(head, rows)


def _ledger(manifest: Mapping[str, Any]) -> str:
    rows = []
    for name, facts in manifest["datasets"].items():
        ledger = facts["ledger"]["rows"]
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in ledger["rejects"].items())
        rows.append([name, ledger["read"], ledger["examples"], ledger["duplicates"], reasons or "none"])
    return _table(["dataset", "rows read", "in examples", "duplicates", "rejects"], rows)


def _templates(examples: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name in sorted(examples):
        for template in examples[name].get("templates", ()):
            rows.append([name, f"`{template['id']}`", *(_cell(template[side]) for side in ("user", "assistant"))])
    return _table(["dataset", "id", "user", "assistant"], rows)


def _cell(text: str) -> str:
    """Text as code in a cell of a table."""
    return f"`{text}`".replace("|", "\\|").replace("\n", " ⏎ ") if text.strip() else ""


def _reading(manifest: Mapping[str, Any]) -> str:
    shards = "shard-*.parquet"
    return f"""\
```python
import datasets
train = datasets.load_dataset("PATH OR NAME OF THIS FOLDER", split="train")
train[0]["turns"]       # the conversation, as text: its template, and its row in the official file
train[0]["input_ids"]   # the same as tokens; loss_mask says which of them are learned
```
```sql
SELECT dataset, count(*), sum(num_tokens) FROM '{shards}' GROUP BY dataset;  -- DuckDB
```

Token ids are of the tokenizer with the fingerprint `{manifest["tokenizer"]}`, in which a picture is the one token
{manifest["image_token_id"]}. `{manifest["lengths"]["file"]}` has the lengths of all samples in order;
`manifest.json` names every file with its SHA-256, and `honeybee verify FOLDER` checks all of it."""


def _licences(examples: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name in sorted(examples):
        source = sources.SOURCES.get(examples[name].get("source", name))
        rows.append([name, source.licence if source else _UNKNOWN])
    return _table(["dataset", "what is known"], rows)
