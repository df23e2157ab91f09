"""`--dry-run`: describes what a recipe would do. Reads configurations and annotations, but loads no weights."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.data.rejects import over_limit
from flows.launch.hosts import count_ranks, find_cluster
from flows.preflight.check import check_settings, inspect_inputs, with_corpus
from flows.preflight.forecast import Forecaster, Known, StageForecast, stage_forecast
from flows.preflight.outcome import Check, NotChecked, Status, failed, refuse, table
from flows.preflight.surroundings import inspect_surroundings
from flows.recipe.data import Stage
from flows.recipe.recipe import Recipe
from flows.report import data_tables
from flows.runs.workspace import STAGES, Workspace, locate_workspace
from model.training.settings import describe_trained
from pipelines.core import text_tables
from pipelines.core.store import MANIFEST
from pipelines.core.text_tables import Row

if TYPE_CHECKING:
    from flows.preflight.memory import Content

OPEN = "?"  # placeholder for values that are not known before the build


def plan(recipe: Recipe, training: bool = True) -> Iterator[str]:
    """Yields the lines of a dry run: about the data and, with `training`, about the model, and last a table of all that
    was checked. Raises RecipeError if the recipe cannot run: immediately for wrong settings, at the end for files,
    models and mixtures. Raises NotChecked at the end if nothing failed, but something could not be checked."""
    check_settings(recipe)
    workspace = locate_workspace(recipe)
    generated = recipe.sample is None or (workspace.data / MANIFEST).is_file()
    checks = [Check("settings", Status.OK, "names, templates, chat styles, schedules and projector are valid")]
    yield f"Recipe {recipe.name}: names, templates, chat styles, schedules and projector are valid."
    if not generated:
        yield f"The sample corpus will be generated first, in {workspace.data}; a small one is checked."
    cluster = find_cluster(recipe.launch)
    if training and cluster is not None:
        yield f"Hosts: {cluster.describe()}."
    model = _model_sizes(recipe) if training else None
    if isinstance(model, str):
        yield model
        model = None
    elif model:
        parts = ", ".join(f"{name} {count / 1e6:,.1f}M" for name, count in model.parameters.items())
        yield f"Parameters: {parts}; {model.image_tokens} visual tokens per image."
    with tempfile.TemporaryDirectory() as scratch:
        forecaster = Forecaster(workspace, Path(scratch))
        if forecaster.lack:
            yield f"Token counts of data that is not built yet are unknown: {forecaster.lack}."
        for name in STAGES:
            known = {dataset: forecaster.known(name, dataset) for dataset in workspace.stage(name).data.names}
            forecast = stage_forecast(workspace, name, known)
            checks += [check for check in _rejects(recipe, known) if check not in checks]  # both stages may use it
            yield ""
            yield from _stage(workspace, name, known, forecast)
            yield from _image_fit(recipe, name, model)
            if forecast.problem:
                yield f"By this forecast, the mixture is impossible: {forecast.problem}."
                if all(entry.is_built for entry in known.values()):
                    checks.append(failed(f"{name}.data.balance", forecast.problem))
            if model:
                yield from _memory(workspace, name, model, known, forecast.samples)
        checks += inspect_inputs(with_corpus(workspace, Path(scratch) / "corpus"), training)
    if training:
        checks += inspect_surroundings(recipe)
    yield ""
    yield from table(checks)
    refuse(recipe.name, checks)
    unchecked = [check.item for check in checks if check.status is Status.NOT_CHECKED]
    if unchecked:
        raise NotChecked(
            f"recipe {recipe.name}: nothing failed, but {len(unchecked)} of {len(checks)} items could not be checked: "
            f"{', '.join(unchecked)}"
        )


def _rejects(recipe: Recipe, known: Mapping[str, Known]) -> Iterator[Check]:
    """Yields the datasets of which a build will reject too many rows: for certain, or by a sample of their rows."""
    for dataset, entry in sorted(known.items()):
        over = entry.ledgers and over_limit(entry.ledgers, recipe.max_rejects_of(dataset))
        if over:
            what, counts = over
            status = Status.FAILED if entry.all_rendered else Status.WARNING
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
            yield Check(f"datasets.{dataset}", status, f"{entry.origin}: {what}: {reasons}")


def _stage(workspace: Workspace, name: str, known: Mapping[str, Known], forecast: StageForecast) -> Iterator[str]:
    stage, ranks = workspace.stage(name), count_ranks(workspace.recipe.launch)
    train, balance = stage.train, stage.data.balance
    yield (
        f"{name}: {_amount(stage)}; trains "
        f"{describe_trained(train.trains, train.lora)}; {ranks} {'rank' if ranks == 1 else 'ranks'} × "
        f"micro-batch {train.micro_batch} × accumulation {train.global_batch // (ranks * train.micro_batch)}"
    )
    yield data_tables.balance(balance.model_dump())
    yield from text_tables.plain([_row(workspace, dataset, known[dataset], forecast) for dataset in sorted(known)])
    if not forecast.problem and (forecast.samples is None or any(e.supervised is None for e in known.values())):
        yield f"  {OPEN}: not known before the data is built."
    if not forecast.problem:
        yield _tokens(workspace, name, known, forecast.samples)


def _amount(stage: Stage) -> str:
    train, samples = stage.train, f"{stage.samples:,} samples"
    if train.packing is not None:
        steps = "" if train.steps is None else f", {train.steps:,} steps"
        return (
            f"{samples} in packs of {train.packing.max_tokens:,} positions, {train.global_batch} packs per step{steps}"
        )
    if train.steps is None:
        return f"{samples}, {train.global_batch} per step"
    return f"{train.steps:,} steps × {train.global_batch} examples = {train.steps * train.global_batch:,} samples"


def _row(workspace: Workspace, dataset: str, known: Known, forecast: StageForecast) -> Row:
    seen = forecast.samples[dataset] if forecast.samples else None
    limit = data_tables.AT_LIMIT if dataset in forecast.capped else ""

    def of_samples(value: float | None, times: int = 1) -> Any:
        each = known.each(value)
        return OPEN if each is None or seen is None else round(seen * each * times)

    return {
        "dataset": dataset,
        "rows": _shown(known.rows),
        "examples": _shown(known.examples),
        "turns per example": _shown(known.each(known.turns), "{:.1f}".format),
        "target share": _shown(forecast.wanted and forecast.wanted[dataset], "{:.1%}".format),
        "actual share": _shown(forecast.shares and forecast.shares[dataset], "{:.1%}".format),
        "samples": _shown(seen),
        "epochs": _shown(known.each(seen), "{:.2f}".format) + limit,
        "supervised tokens": of_samples(known.supervised),
        "visual tokens": of_samples(known.images, workspace.recipe.model.projector.num_tokens),
        "source of numbers": known.origin,
    }


def _shown(value: Any, how: Callable[[Any], Any] = lambda value: value) -> Any:
    return OPEN if value is None else how(value)


def _tokens(workspace: Workspace, name: str, known: Mapping[str, Known], samples: Mapping[str, int] | None) -> str:
    """Describes a stage's total number of tokens; unknown values count as their upper limit."""
    stage = workspace.stage(name)
    if samples is None:
        samples = {"any": stage.samples}
    text, visual, exact = 0.0, 0.0, True
    for dataset, seen in samples.items():
        entry = known.get(dataset)
        tokens, images = (entry.each(entry.tokens), entry.each(entry.images)) if entry else (None, None)
        exact &= tokens is not None and images is not None
        text += seen * (stage.data.max_text_tokens if tokens is None else tokens)
        visual += seen * (1 if images is None else images) * workspace.recipe.model.projector.num_tokens
    line = f"Tokens: {'about' if exact else 'at most'} {text + visual:,.0f}, of which {visual:,.0f} are visual."
    packing, packs = stage.train.packing, stage.train.global_batch
    if packing is not None and exact:
        steps = (text + visual) / packing.max_tokens / packs
        each = sum(samples.values()) / max(steps, 1)
        line += f" They fill about {steps:,.0f} steps of {packs} packs, with {each:,.0f} examples per step."
    return line


def _image_fit(recipe: Recipe, name: str, model: Any) -> Iterator[str]:
    """Describes the effects of model.image_fit on boxes and on shrunk images. model: its sizes, or None."""
    data, fit = recipe.stage(name).data, recipe.model.image_fit
    boxed = [dataset for dataset in data.names if recipe.source(dataset).task == "referring"]
    if boxed and fit != "stretch":
        seen = "of which the model sees only the centre" if fit == "crop" else "which the model sees with padding"
        yield f"Boxes of {', '.join(boxed)} stay relative to the full image, {seen} (model.image_fit: {fit})."
    if model and data.image_side and fit == "crop":
        shape = data.image_side / model.image_size
        yield (
            f"Images shrunk to {data.image_side} pixels are enlarged again where their aspect ratio exceeds "
            f"{shape:.2f}:1, because the shorter side becomes {model.image_size} pixels (model.image_fit: crop)."
        )


def _memory(
    workspace: Workspace, name: str, model: Any, known: Mapping[str, Known], samples: Mapping[str, int] | None
) -> Iterator[str]:
    """Describes a rank's memory on the recipe's device; for `auto` on a host without a GPU, on both kinds of device."""
    import torch

    from flows.preflight.memory import pass_peak, pass_shape, rank_bytes

    stage, launch = workspace.stage(name), workspace.recipe.launch
    shape = pass_shape(model, stage.data, stage.train, _content(workspace, known, samples))
    passes = pass_peak(model, stage.train, shape)
    if launch.device == "auto":
        devices = ["cuda"] if torch.cuda.is_available() else ["cuda", "cpu"]
    else:
        devices = [launch.device]
    for device in devices:
        moment, need = rank_bytes(
            model, stage.train, count_ranks(launch), shape, passes, device, workspace.recipe.loading
        )
        kinds = ", ".join(f"{kind} {value / 2**30:.2f}" for kind, value in need.items())
        what = "Memory per GPU" if device == "cuda" else "Memory per rank on the CPU"
        yield f"{what}: about {sum(need.values()) / 2**30:.1f} GiB {moment} ({kinds}); see flows/preflight/memory.py."


def _content(workspace: Workspace, known: Mapping[str, Known], samples: Mapping[str, int] | None) -> "Content":
    """Returns the statistics of a stage's samples, or the defaults where a dataset's are unknown."""
    from flows.preflight.memory import Content

    text = visual = images = supervised = 0.0
    for dataset, seen in (samples or {}).items():
        entry = known[dataset]
        each = [entry.each(value) for value in (entry.tokens, entry.images, entry.supervised)]
        if None in each:
            return Content()
        tokens, shown, counted = (float(value or 0) for value in each)
        text, images, supervised = text + seen * tokens, images + seen * shown, supervised + seen * counted
        visual += seen * shown * workspace.recipe.model.projector.num_tokens
    if not text:
        return Content()
    return Content(supervised / text, (text + visual) / images if images else None)


def _model_sizes(recipe: Recipe):
    """Returns the model's sizes, or a sentence that explains why they are not known."""
    backbones = recipe.backbones
    if backbones.vision is None or backbones.llm is None:
        return "The backbones will be trained first; they are small enough for any host."
    from flows.preflight.memory import sizes  # imports torch and transformers

    try:
        found = sizes(recipe, backbones.vision, backbones.llm)
    except ValueError:  # inspect_inputs reports it
        return "Memory: unknown, because the parts of the model do not fit together."
    if found is None:
        return f"Memory: unknown, because the settings of {backbones.vision} or {backbones.llm} are not on this host."
    return found
