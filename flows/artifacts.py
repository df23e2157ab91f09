"""What a run shows in Prefect's UI. Keys are the same for every run of a recipe, so that each has a history."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from flows import duplicates, gallery, overlaps, tables
from flows.recipe import Recipe
from flows.stage_data import StageData

PER_DATASET = 2  # cards of a dataset in the UI's gallery: its pictures travel inside the artifact
DUPLICATES = 5  # rows of a dataset in the UI's table of duplicates


def publish_data(recipe: Recipe, data: StageData) -> None:
    """Mixture, rejects, duplicates, overlaps and gallery of a stage's data."""
    name, stage = recipe.name, data.stage
    mixture = tables.mixture(data.shards, recipe.model.projector.num_tokens)
    balance = tables.balance(recipe.stage(stage).data.balance.model_dump())
    _table(name, f"{stage} mixture", mixture, f"What {stage} learns from: {data.shards}. {balance}")
    _table(name, f"{stage} rejects", tables.losses(data.examples), "Rows that are in no example, by reason")
    dropped = duplicates.most_surprising(data.examples, DUPLICATES)
    about = "Turns that left an example because another one there says the same: those that share the fewest words"
    _table(name, f"{stage} duplicates", dropped, about)
    if overlaps.looked_for(data.examples):
        _table(name, f"{stage} overlaps", overlaps.summary(data.examples), "What the data shares with benchmarks")
    text = gallery.markdown(gallery.cards(data.shards, PER_DATASET), lambda _, png: gallery.data_uri(png))
    _markdown(name, f"{stage} gallery", f"### The first samples of each dataset in {stage}\n\n{text}")


def publish_scores(
    recipe: str, scores: Sequence[tables.Row], history: Sequence[tables.Row], bars: bytes | None
) -> None:
    """Every score of a run, the main ones of this run and those before it, and their bars (PNG)."""
    _table(recipe, "scores", scores, "Scores on the held-out benchmarks")
    _table(recipe, "scores history", history, "The main scores of this recipe's runs, the newest first")
    if bars is not None:
        _markdown(recipe, "score bars", f"### Main scores\n\n![scores]({gallery.data_uri(bars)})")


def publish_results(recipe: str, curve: bytes, directory: Path) -> None:
    """Loss curve (PNG), and where the results lie."""
    _markdown(recipe, "loss curve", f"### Loss and learning rate\n\n![loss curve]({gallery.data_uri(curve)})")
    create_link_artifact(
        key=artifact_key(recipe, "results"), link=directory.as_uri(), description=f"Results: `{directory}`"
    )


def _table(recipe: str, name: str, rows: Sequence[tables.Row], description: str) -> None:
    shown: Any = list(rows) or [{"": "none"}]
    create_table_artifact(key=artifact_key(recipe, name), table=shown, description=description)


def _markdown(recipe: str, name: str, text: str) -> None:
    create_markdown_artifact(key=artifact_key(recipe, name), markdown=text)


def artifact_key(recipe: str, name: str) -> str:
    """Prefect allows lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", f"{recipe} {name}".lower()).strip("-")
