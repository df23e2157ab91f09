"""Publishes a run's artifacts in Prefect's UI, under the same keys for every run of a recipe, so each has a history."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from flows.data.stage_data import StageData
from flows.recipe.recipe import Recipe
from flows.report import data_tables, duplicates, gallery, overlaps
from pipelines.core.text_tables import Row

PER_DATASET = 2  # gallery cards per dataset; few, because the images are embedded in the artifact
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


def publish_results(recipe: str, curve: bytes, directory: Path) -> None:
    """Publishes the loss curve (PNG) and a link to the results directory."""
    _markdown(recipe, "loss curve", f"### Loss and learning rate\n\n![loss curve]({gallery.data_uri(curve)})")
    create_link_artifact(
        key=artifact_key(recipe, "results"), link=directory.as_uri(), description=f"Results: `{directory}`"
    )


def _table(recipe: str, name: str, rows: Sequence[Row], description: str) -> None:
    shown: Any = list(rows) or [{"": "none"}]
    create_table_artifact(key=artifact_key(recipe, name), table=shown, description=description)


def _markdown(recipe: str, name: str, text: str) -> None:
    create_markdown_artifact(key=artifact_key(recipe, name), markdown=text)


def artifact_key(recipe: str, name: str) -> str:
    """Returns the artifact's key; Prefect allows only lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", f"{recipe} {name}".lower()).strip("-")
