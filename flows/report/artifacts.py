"""Publishes a run's artifacts in Prefect's UI, under the same keys for every run of a recipe, so each has a history."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.data.stage_data import StageData
from flows.recipe.recipe import Recipe
from flows.report import data_tables, duplicates, gallery, overlaps
from pipelines.core.text_tables import Row

PER_DATASET = 2  # gallery cards per dataset; few, because the images are embedded in the artifact
REPORT_BYTES = 2 << 20  # of the images in the artifact of a report: the UI loads it at once
# The links and images that the reports write themselves; in texts of the data, brackets are escaped.
_LINK = re.compile(r"(?<!\\)(!?)\[([^\[\]\\]*)\]\(([\w.-][\w./-]*)\)")
DUPLICATES = 5  # rows per dataset in the table of duplicates


def publish_data(recipe: Recipe, data: StageData) -> None:
    """Publishes the mixture, rejects, duplicates, benchmark overlaps and gallery of a stage's data."""
    name, stage = recipe.name, data.stage
    mixture = data_tables.mixture(data.shards, recipe.model.projector.num_tokens)
    balance = data_tables.balance(recipe.stage(stage).data.balance.model_dump())
    _table(name, f"{stage} mixture", mixture, f"Training data of {stage}: {data.shards}. {balance}")
    _table(name, f"{stage} rejects", data_tables.losses(data.examples), "Annotation rows without an example, by reason")
    dropped = duplicates.most_surprising(data.examples, DUPLICATES)
    about = "Turns dropped as duplicates of another turn of their example: the pairs that share the fewest words"
    _table(name, f"{stage} duplicates", dropped, about)
    if overlaps.looked_for(data.examples):
        _table(
            name, f"{stage} overlaps", overlaps.summary(data.examples), "Overlap of the training data with benchmarks"
        )
    text = gallery.markdown(gallery.cards(data.shards, PER_DATASET), lambda _, png: gallery.data_uri(png))
    _markdown(name, f"{stage} gallery", f"### First samples of each dataset in {stage}\n\n{text}")


def publish_scores(recipe: str, scores: Sequence[Row], history: Sequence[Row], bars: bytes | None) -> None:
    """Publishes all scores of a run, the main scores of the recipe's runs over time, and a bar chart (PNG)."""
    _table(recipe, "scores", scores, "Scores on the held-out benchmarks")
    _table(recipe, "scores history", history, "Main scores of this recipe's runs, newest first")
    if bars is not None:
        _markdown(recipe, "score bars", f"### Main scores\n\n![scores]({gallery.data_uri(bars)})")


def publish_curve(recipe: str, curve: bytes) -> None:
    """Publishes the loss curve (PNG)."""
    _markdown(recipe, "loss curve", f"### Loss and learning rate\n\n![loss curve]({gallery.data_uri(curve)})")


def publish_report(recipe: str, name: str, report: Path) -> None:
    """Publishes a report.md under the key `name`, with its images inside."""
    _markdown(recipe, name, self_contained(report))


def self_contained(report: Path, limit: int = REPORT_BYTES) -> str:
    """Returns the text of a report.md without anything that only its directory has: an image is embedded, as long as
    all fit into `limit` bytes, and a link to a file becomes its name. The first line says where the directory is."""
    left = limit

    def inside(found: re.Match[str]) -> str:
        nonlocal left
        image, text, target = found.groups()
        path = report.parent / target
        if ".." in Path(target).parts or not path.exists():
            return found[0]
        if not image:
            return f"{text} (`{target}`)" if text != target else f"`{target}`"
        data = gallery.data_uri(path.read_bytes())
        if len(data) > left:
            return f"{text}: `{target}`"
        left -= len(data)
        return f"![{text}]({data})"

    return f"Directory: `{report.parent}`\n\n{_LINK.sub(inside, report.read_text())}"


def _table(recipe: str, name: str, rows: Sequence[Row], description: str) -> None:
    shown: Any = list(rows) or [{"": "none"}]
    create_table_artifact(key=artifact_key(recipe, name), table=shown, description=description)


def _markdown(recipe: str, name: str, text: str) -> None:
    create_markdown_artifact(key=artifact_key(recipe, name), markdown=text)


def artifact_key(recipe: str, name: str) -> str:
    """Returns the artifact's key; Prefect allows only lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", f"{recipe} {name}".lower()).strip("-")
