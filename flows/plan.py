"""`--dry-run`: what a recipe would do, told without doing it. Reads configurations and annotations, loads no weight."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from flows import tables
from flows.check import check_inputs, check_settings
from flows.recipe import Recipe, RecipeError
from flows.workspace import STAGES, Workspace, locate_workspace
from pipelines import sources
from pipelines.build import DatasetSpec
from pipelines.mixture import make_mixture
from pipelines.store import MANIFEST, Store

COUNTED_BYTES = 64 << 20  # annotation files up to this size are read and counted; larger ones would take too long


@dataclass(frozen=True)
class Count:
    """What is known of a dataset. `examples`: as built, or the groups that its rows will make before any is refused."""

    rows: int
    examples: int
    tokens: float | None  # of an example, image tokens aside; known once it was built
    origin: str


def plan(recipe: Recipe) -> Iterator[str]:
    """The lines of a dry run. Raises RecipeError for a recipe that cannot run: at once for what it says itself, at the
    end for files that are missing."""
    check_settings(recipe)
    workspace = locate_workspace(recipe)
    generated = recipe.sample is None or (workspace.data / MANIFEST).is_file()
    yield f"Recipe {recipe.name}: names, templates, chat styles, schedules and projector are in order."
    if not generated:
        yield f"The sample corpus will be generated first, in {workspace.data}."
    model = _model_sizes(recipe)
    if isinstance(model, str):
        yield model
    else:
        parts = ", ".join(f"{name} {count / 1e6:,.1f}M" for name, count in model.parameters.items())
        yield f"Parameters: {parts}; an image takes {model.image_tokens} tokens."
    counts = {name: _count(workspace, workspace.spec(name)) for name in recipe.datasets}
    for name in STAGES:
        yield ""
        yield from _stage(workspace, name, counts, None if isinstance(model, str) else model)
    if generated:
        check_inputs(workspace)
        yield f"\nAll annotation files, image roots and benchmarks are there, under {workspace.data}."


def _stage(workspace: Workspace, name: str, counts: dict[str, Count | None], model) -> Iterator[str]:
    stage, ranks = workspace.stage(name), workspace.recipe.launch.ranks
    train, weights = stage.train, stage.data.weights
    num_samples = train.steps * train.global_batch
    yield (
        f"{name}: {train.steps:,} steps × {train.global_batch} examples = {num_samples:,} samples; trains "
        f"{' and '.join(train.trains)}; {ranks} ranks × micro-batch {train.micro_batch} × "
        f"{train.global_batch // (ranks * train.micro_batch)} accumulated"
    )
    mixture = make_mixture(weights, dict.fromkeys(weights, 1), workspace.recipe.seed)
    samples = mixture.counts(num_samples)
    rows, tokens, exact = [], 0.0, True
    for dataset, seen in samples.items():
        count = counts[dataset]
        rows.append(
            {
                "dataset": dataset,
                "share": f"{seen / num_samples:.1%}",
                "examples seen": seen,
                "rows": count.rows if count else "?",
                "examples": count.examples if count else "?",
                "epochs": f"{seen / count.examples:.2f}" if count and count.examples else "?",
                "counted": count.origin if count else "known once built",
            }
        )
        known = count.tokens if count else None
        exact &= known is not None
        tokens += seen * (known if known is not None else stage.data.max_text_tokens)
    yield from tables.plain(rows)
    image_tokens = model.image_tokens if model else workspace.recipe.model.projector.num_tokens
    tokens += num_samples * image_tokens
    yield f"Tokens: {'about' if exact else 'at most'} {tokens:,.0f}, image tokens included."
    if model:
        from flows.memory import rank_bytes

        need = rank_bytes(model, stage.data, train, ranks)
        kinds = ", ".join(f"{kind} {value / 2**30:.2f}" for kind, value in need.items())
        total = sum(need.values()) / 2**30
        yield f"Memory of a GPU: about {total:.1f} GiB ({kinds}); the formula is in flows/memory.py."


def _model_sizes(recipe: Recipe):
    """Sizes, or the sentence that says why they are not known."""
    backbones = recipe.backbones
    if backbones.vision is None or backbones.llm is None:
        return "The backbones will be trained first; they are small, and fit anywhere."
    from flows.memory import sizes  # imports torch and transformers

    try:
        found = sizes(recipe, backbones.vision, backbones.llm)
    except ValueError as error:
        raise RecipeError(f"the recipe {recipe.name} cannot run; nothing was started:\n  model: {error}") from None
    if found is None:
        return (
            f"Memory: not known, since no configuration of {backbones.vision} or {backbones.llm} is in the local hub "
            "cache; `hf download NAME config.json` fetches one."
        )
    return found


def _count(workspace: Workspace, spec: DatasetSpec) -> Count | None:
    """As built where it was, else counted where its files are small."""
    source = sources.get(spec.source)
    try:
        files = source.files(spec.annotations)
    except sources.SourceError:  # not there yet: said at the end, with all else that is missing
        return None
    built = _built(workspace.store, spec)
    if built is not None:
        return built
    if sum(path.stat().st_size for path in files) > COUNTED_BYTES:
        return None
    images = [batch.select(["image", "reject"]) for batch in source.read(spec.annotations)]
    table = pa.Table.from_batches(images)
    usable = table.filter(table["reject"].is_null())
    per_image = (
        usable.filter(usable["image"].is_valid()).group_by("image").aggregate([("image", "count")])["image_count"]
    )
    alone = usable.num_rows - (pc.sum(per_image).as_py() or 0)
    if spec.task == "conversation":
        groups = usable.num_rows
    else:
        groups = alone + (pc.sum(pc.ceil(pc.divide(pc.cast(per_image, pa.float64()), spec.max_turns))).as_py() or 0)
    return Count(table.num_rows, int(groups), None, "from its files, before rejects and duplicates")


def _built(store: Store, spec: DatasetSpec) -> Count | None:
    """What the newest examples of that dataset in the store say."""
    newest: tuple[float, Path] | None = None
    for path in (store.root / "examples").glob("*/manifest.json"):
        key = json.loads(path.read_text())["key"]
        if key["dataset"] == spec.name and key["max_turns"] == spec.max_turns:
            newest = max(newest or (0.0, path), (path.stat().st_mtime, path))
    if newest is None:
        return None
    manifest = json.loads(newest[1].read_text())
    examples = manifest["num_examples"]
    return Count(
        manifest["rows"]["read"],
        examples,
        (manifest["num_tokens"] - manifest["num_images"]) / examples if examples else None,
        "as last built",
    )
