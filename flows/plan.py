"""`--dry-run`: what a recipe would do, told without doing it. Reads configurations and annotations, loads no weight."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import tables
from flows.check import check_inputs, check_settings
from flows.forecast import Forecaster, Known, StageForecast, stage_forecast
from flows.hosts import count_ranks, find_cluster
from flows.recipe import Recipe, RecipeError, Stage
from flows.workspace import STAGES, Workspace, locate_workspace
from model.training.job import describe_trained
from pipelines.store import MANIFEST

if TYPE_CHECKING:
    from flows.memory import Content

OPEN = "?"  # stands for what is known once it is built


def plan(recipe: Recipe, training: bool = True) -> Iterator[str]:
    """The lines of a dry run: of the data, and, if `training`, of the model too. Raises RecipeError for a recipe that
    cannot run: at once for what it says itself, at the end for files that are missing and shares that cannot be."""
    check_settings(recipe)
    workspace = locate_workspace(recipe)
    generated = recipe.sample is None or (workspace.data / MANIFEST).is_file()
    yield f"Recipe {recipe.name}: names, templates, chat styles, schedules and projector are in order."
    if not generated:
        yield f"The sample corpus will be generated first, in {workspace.data}."
    cluster = find_cluster(recipe.launch)
    if training and cluster is not None:
        yield f"Trains on {cluster.describe()}."
    model = _model_sizes(recipe) if training else None
    if isinstance(model, str):
        yield model
        model = None
    elif model:
        parts = ", ".join(f"{name} {count / 1e6:,.1f}M" for name, count in model.parameters.items())
        yield f"Parameters: {parts}; an image takes {model.image_tokens} tokens."
    problems = []
    with tempfile.TemporaryDirectory() as scratch:
        forecaster = Forecaster(workspace, Path(scratch))
        if forecaster.lack:
            yield f"Tokens of data that is not built: not known, since {forecaster.lack}."
        for name in STAGES:
            known = {dataset: forecaster.known(name, dataset) for dataset in workspace.stage(name).data.names}
            forecast = stage_forecast(workspace, name, known)
            yield ""
            yield from _stage(workspace, name, known, forecast)
            yield from _pictures(recipe, name, model)
            if forecast.problem:
                yield f"As far as is known, this mixture cannot be: {forecast.problem}."
                if all(entry.is_built for entry in known.values()):
                    problems.append(f"{name}.data.balance: {forecast.problem}")
            if model:
                yield from _memory(workspace, name, model, known, forecast.samples)
    if generated:
        check_inputs(workspace)
        yield f"\nAll annotation files, image roots and benchmarks are there, under {workspace.data}."
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise RecipeError(f"the recipe {recipe.name} cannot run; nothing was started:{lines}")


def _stage(workspace: Workspace, name: str, known: Mapping[str, Known], forecast: StageForecast) -> Iterator[str]:
    stage, ranks = workspace.stage(name), count_ranks(workspace.recipe.launch)
    train, balance = stage.train, stage.data.balance
    yield (
        f"{name}: {_amount(stage)}; trains "
        f"{describe_trained(train.trains, train.lora)}; {ranks} {'rank' if ranks == 1 else 'ranks'} × "
        f"micro-batch {train.micro_batch} × {train.global_batch // (ranks * train.micro_batch)} accumulated"
    )
    yield tables.balance(balance.model_dump())
    yield from tables.plain([_row(workspace, dataset, known[dataset], forecast) for dataset in sorted(known)])
    if not forecast.problem and (forecast.samples is None or any(e.supervised is None for e in known.values())):
        yield f"  {OPEN}: known once built."
    if not forecast.problem:
        yield _tokens(workspace, name, known, forecast.samples)


def _amount(stage: Stage) -> str:
    train, samples = stage.train, f"{stage.samples:,} samples"
    if train.packing is not None:
        steps = "" if train.steps is None else f", {train.steps:,} steps"
        return (
            f"{samples} in packs of {train.packing.max_tokens:,} positions, {train.global_batch} packs to a step{steps}"
        )
    if train.steps is None:
        return f"{samples}, {train.global_batch} to a step"
    return f"{train.steps:,} steps × {train.global_batch} examples = {train.steps * train.global_batch:,} samples"


def _row(workspace: Workspace, dataset: str, known: Known, forecast: StageForecast) -> tables.Row:
    seen = forecast.samples[dataset] if forecast.samples else None
    limit = tables.AT_LIMIT if dataset in forecast.limited else ""

    def of_samples(value: float | None, times: int = 1) -> Any:
        each = known.each(value)
        return OPEN if each is None or seen is None else round(seen * each * times)

    return {
        "dataset": dataset,
        "rows": _shown(known.rows),
        "examples": _shown(known.examples),
        "turns each": _shown(known.each(known.turns), "{:.1f}".format),
        "share wanted": _shown(forecast.wanted and forecast.wanted[dataset], "{:.1%}".format),
        "share got": _shown(forecast.shares and forecast.shares[dataset], "{:.1%}".format),
        "samples": _shown(seen),
        "epochs": _shown(known.each(seen), "{:.2f}".format) + limit,
        "supervised tokens": of_samples(known.supervised),
        "visual tokens": of_samples(known.images, workspace.recipe.model.projector.num_tokens),
        "numbers": known.origin,
    }


def _shown(value: Any, how: Callable[[Any], Any] = lambda value: value) -> Any:
    return OPEN if value is None else how(value)


def _tokens(workspace: Workspace, name: str, known: Mapping[str, Known], samples: Mapping[str, int] | None) -> str:
    """All tokens of a stage; what is not known counts as the most that it may be."""
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
    line = f"Tokens: {'about' if exact else 'at most'} {text + visual:,.0f}, {visual:,.0f} of them visual."
    packing, packs = stage.train.packing, stage.train.global_batch
    if packing is not None and exact:
        steps = (text + visual) / packing.max_tokens / packs
        each = sum(samples.values()) / max(steps, 1)
        line += f" They fill about {steps:,.0f} steps of {packs} packs, {each:,.0f} examples in each."
    return line


def _pictures(recipe: Recipe, name: str, model: Any) -> Iterator[str]:
    """What is to be known of pictures that the model does not see as they are. model: its sizes, or None."""
    data, fit = recipe.stage(name).data, recipe.model.image_fit
    boxed = [dataset for dataset in data.names if recipe.source(dataset).task == "referring"]
    if boxed and fit != "stretch":
        seen = "of which the model sees only the middle" if fit == "crop" else "which the model sees between bars"
        yield f"Boxes of {', '.join(boxed)} stay relative to the whole picture, {seen} (model.image_fit: {fit})."
    if model and data.image_side and fit == "crop":
        shape = data.image_side / model.image_size
        yield (
            f"Pictures shrunk to {data.image_side} pixels are enlarged again where longer than {shape:.2f} : 1, since "
            f"the shorter side becomes {model.image_size} (model.image_fit: crop)."
        )


def _memory(
    workspace: Workspace, name: str, model: Any, known: Mapping[str, Known], samples: Mapping[str, int] | None
) -> Iterator[str]:
    """Of a rank on the device that the recipe names; where it is left open and no GPU is here, on both kinds."""
    import torch

    from flows.memory import pass_peak, pass_shape, rank_bytes

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
        what = "Memory of a GPU" if device == "cuda" else "Memory of a rank on the CPU"
        yield f"{what}: about {sum(need.values()) / 2**30:.1f} GiB {moment} ({kinds}); see flows/memory.py."


def _content(workspace: Workspace, known: Mapping[str, Known], samples: Mapping[str, int] | None) -> "Content":
    """What the samples of a stage are like, as far as is known."""
    from flows.memory import Content

    text = visual = images = supervised = 0.0
    for dataset, seen in (samples or {}).items():
        entry = known[dataset]
        each = [entry.each(value) for value in (entry.tokens, entry.images, entry.supervised)]
        if None in each:
            return Content()
        tokens, pictures, counted = (float(value or 0) for value in each)
        text, images, supervised = text + seen * tokens, images + seen * pictures, supervised + seen * counted
        visual += seen * pictures * workspace.recipe.model.projector.num_tokens
    if not text:
        return Content()
    return Content(supervised / text, (text + visual) / images if images else None)


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
