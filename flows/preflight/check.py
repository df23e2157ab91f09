"""Checks what the recipe's schema cannot: names, files, models and hosts. Reports all problems at once, before a run
spends hours."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from flows.data.decontamination import listed_benchmarks, read_items
from flows.launch.hosts import HostfileError, count_ranks, find_cluster
from flows.preflight.images import check_images
from flows.preflight.models import CONFIG, check_backbones, is_local
from flows.preflight.outcome import Check, Status, failed, passed, refuse, refuse_to_start, tried
from flows.recipe.data import Stage
from flows.recipe.recipe import Recipe
from flows.runs.workspace import STAGES, Workspace
from model.evaluation import benchmarks
from model.evaluation.prompts import load_prompt
from model.training.settings import Lora
from pipelines import sources
from pipelines.core.beam import check_options
from pipelines.core.errors import ImageRefError
from pipelines.core.integrity import MANIFEST
from pipelines.dedup.embeddings import check_embedder
from pipelines.images.decode import measure
from pipelines.mixture.order import make_mixture
from pipelines.mixture.shares import wanted_shares
from pipelines.sample_corpus import write_sample
from pipelines.shards.remote import check_url
from pipelines.sources.generic.hub import HubUnreachable
from pipelines.templates.sets import load_templates
from pipelines.tokens.chat_style import chat_style_file

QUESTIONS = 16  # of a benchmark, whose images are opened


def check_settings(recipe: Recipe) -> None:
    """Checks everything that needs no official file: names, templates, schedules. Raises RecipeError with all problems
    found. The projector and the LoRA targets come last, because importing torch takes seconds."""
    refuse(recipe.name, _settings(recipe))
    refuse(recipe.name, tried("model.projector", _build_small_projector, recipe))
    refuse(recipe.name, _lora(recipe))


def check_inputs(workspace: Workspace, training: bool = True) -> None:
    """Checks annotation files, images, benchmarks and models. training: if False, of the models only the tokenizer.
    Raises RecipeError with all problems found, and with all models that the run needs but that cannot be reached."""
    refuse_to_start(workspace.recipe.name, inspect_inputs(workspace, training))


def inspect_inputs(workspace: Workspace, training: bool) -> Iterator[Check]:
    """Yields the outcome of each check of `check_inputs`."""
    recipe = workspace.recipe
    yield from check_backbones(recipe, training)
    yield from _model_parts(recipe)
    yield from _lora(recipe)
    for name in sorted({*recipe.pretrain.data.names, *recipe.finetune.data.names}):
        yield from _dataset(workspace, name)
    yield from _benchmarks(workspace)
    for name in listed_benchmarks(recipe):
        item = f"decontamination.benchmarks.{name}"
        yield from passed(item, tried(item, read_items, workspace, name))


def with_corpus(workspace: Workspace, directory: Path) -> Workspace:
    """Returns the workspace; if its sample corpus is yet to be generated, with a small one of the same layouts in its
    place, which is written to `directory`."""
    sample = workspace.recipe.sample
    if sample is None or (workspace.data / MANIFEST).is_file():
        return workspace
    write_sample(directory, min(sample.scenes, 60), min(sample.held_out, 12), sample.seed)
    return replace(workspace, data=directory)


def check_benchmarks(workspace: Workspace) -> None:
    """Checks only the benchmarks. Raises RecipeError with all problems found."""
    refuse(workspace.recipe.name, _benchmarks(workspace))


def _writable(path: Path) -> str | None:
    """Returns why a directory at `path` cannot be created or written to, or None if it can. Writes nothing."""
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    if not there.is_dir():
        return f"{there} is not a directory"
    return None if os.access(there, os.W_OK | os.X_OK) else f"{there} is not writable"


def _settings(recipe: Recipe) -> Iterator[Check]:
    for key, path in (("store", recipe.paths.store), ("runs", recipe.paths.runs)):
        problem = _writable(path)
        if problem and (key == "runs" or not any(path.glob(f"*/*/{MANIFEST}"))):  # what is built needs no writing
            yield failed(f"paths.{key}", problem)
    if recipe.paths.remote is not None:
        yield from tried("paths.remote", check_url, recipe.paths.remote)
    yield from tried("beam", check_options, recipe.beam)
    compares_vectors = False
    for name in recipe.datasets:
        yield from tried(f"datasets.{name}", recipe.source, name)
        with contextlib.suppress(sources.SourceError):  # reported above
            compares_vectors |= recipe.compares_vectors(name)
    if compares_vectors:
        yield from tried("embedder", check_embedder, recipe.embedder.model, recipe.embedder.device)
    yield from tried("launch", find_cluster, recipe.launch)
    for name in STAGES:
        yield from _stage_settings(recipe, name)
    for name in recipe.evaluation.benchmarks:
        yield from tried(f"evaluation.benchmarks.{name}", benchmarks.get, name)
        if name in benchmarks.BENCHMARKS:
            yield from tried(f"evaluation.benchmarks.{name}", load_prompt, name)
    for name, listed in listed_benchmarks(recipe).items():
        if listed.path is not None:
            yield from tried(f"decontamination.benchmarks.{name}", benchmarks.get, listed.reader or name)


def _stage_settings(recipe: Recipe, name: str) -> Iterator[Check]:
    stage = recipe.stage(name)
    yield from tried(f"{name}.data.chat", chat_style_file, stage.data.chat)
    tasks: dict[str, str] = {}
    for dataset in stage.data.names:
        with contextlib.suppress(sources.SourceError):  # `_settings` reports it
            tasks[dataset] = recipe.source(dataset).task
            yield from tried(f"{name}.data.templates", load_templates, stage.data.templates, dataset, tasks[dataset])
    if len(tasks) == len(stage.data.names) and not stage.data.balance.needs_sizes:
        key = "weights" if stage.data.weights else "balance"
        yield from tried(f"{name}.data.{key}", _mixture, stage, tasks)
    with contextlib.suppress(HostfileError):  # `_settings` reports it, under `launch`
        yield from tried(f"{name}.train", stage.train.accumulation, count_ranks(recipe.launch))
    if stage.train.wandb is not None:
        yield from tried(f"{name}.train.wandb", stage.train.wandb.check_installed)


def _mixture(stage: Stage, tasks: dict[str, str]) -> None:
    shares = wanted_shares(stage.data.balance, stage.data.names, stage.data.weights, tasks, None)
    make_mixture(shares, dict.fromkeys(shares, 1), 0)


def _dataset(workspace: Workspace, name: str) -> Iterator[Check]:
    item, part = f"datasets.{name}", workspace.recipe.datasets[name]
    try:
        spec = workspace.spec(name)
        files = spec.reader.files(spec.annotations)
    except HubUnreachable as error:
        yield Check(item, Status.NOT_CHECKED, str(error), needed=True)
        return
    except (ValueError, OSError) as error:
        yield failed(item, error)
        if (
            part.images is not None
            and workspace.recipe.images != "skip"
            and not (workspace.data / part.images).is_dir()
        ):
            yield failed(f"{item}.images", f"{workspace.data / part.images} is not a directory")
        return
    below = spec.annotations if part.annotations is None else part.annotations
    yield Check(item, Status.OK, f"{len(files):,} {'file' if len(files) == 1 else 'files'} below {below}")
    if workspace.recipe.images != "skip":
        yield check_images(spec)


def _benchmarks(workspace: Workspace) -> Iterator[Check]:
    for name in workspace.recipe.evaluation.benchmarks:
        item = f"evaluation.benchmarks.{name}"
        missing = [path for path in workspace.benchmark(name) if not path.exists()]
        problems = [failed(item, f"{path} does not exist") for path in missing]
        yield from passed(item, problems or tried(item, _read_first_questions, workspace, name))


def _model_parts(recipe: Recipe) -> Iterator[Check]:
    """Checks that the parts of the model fit together, if they exist."""
    vision, llm = recipe.backbones.vision, recipe.backbones.llm
    if vision is None or llm is None:
        return
    if any(is_local(model) and not (Path(model) / CONFIG).is_file() for model in (vision, llm)):
        return  # reported already
    from flows.preflight.memory import sizes  # imports torch and transformers

    try:
        model = sizes(recipe, vision, llm)
    except (ValueError, OSError) as error:
        yield failed("model", error)
        return
    if model is None:
        yield Check("model", Status.NOT_CHECKED, "the settings of its parts are not on this host")
        return
    problems = []
    for name in STAGES:
        side = recipe.stage(name).data.image_side
        if side and recipe.model.image_fit == "crop" and side < model.image_size:
            problems.append(
                failed(
                    "model",
                    f"model.image_fit crop resizes an image's shorter side to {model.image_size} pixels, but "
                    f"{name}.data.image_side shrinks the longer side to {side}, so every image would be enlarged "
                    f"again: raise it to {2 * model.image_size}, enough for aspect ratios up to 2:1, or remove it",
                )
            )
    yield from passed("model", problems, "its parts fit together")


def _read_first_questions(workspace: Workspace, name: str) -> None:
    """Reads the questions as the evaluation does, and opens the images of the first ones. Raises ValueError if there is
    no question, or an image cannot be used."""
    path, images = workspace.benchmark(name)
    questions = benchmarks.get(name).read(path, images)
    if not questions:
        raise ValueError(f"{path} contains no questions")
    for image in [image for question in questions[:QUESTIONS] for image in question.images][:QUESTIONS]:
        try:
            measure(image.read())
        except ImageRefError as error:
            raise ValueError(f"{error.reason}: {error.detail} ({image.name})") from None


def _build_small_projector(recipe: Recipe) -> None:
    """Builds the projector with small widths: only its type, settings and number of tokens can be wrong."""
    import torch

    from model.projectors import build_projector
    from model.projectors.base import Shape

    projector = recipe.model.projector
    features = projector.num_tokens if projector.type in ("linear", "mlp") else 16  # these keep the number of tokens
    with torch.device("meta"):
        build_projector(projector.type, Shape(features, projector.num_tokens, 8, 8), projector.settings)


def _lora(recipe: Recipe) -> Iterator[Check]:
    for name in STAGES:
        lora = recipe.stage(name).train.lora
        if lora is not None:
            item = f"{name}.train"
            yield from passed(item, _find_targets(item, recipe, lora), "the language model has all lora.targets")


def _find_targets(item: str, recipe: Recipe, lora: Lora) -> Iterator[Check]:
    """Checks the LoRA targets if the language model's configuration is available; otherwise the stage does on start."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from flows.preflight.memory import model_config
    from model.training.engine.lora import check_targets

    llm = recipe.backbones.llm
    # model/training/sample_backbones.py trains a Llama.
    config = AutoConfig.for_model("llama") if llm is None else model_config(llm)
    if config is None:
        yield Check(item, Status.NOT_CHECKED, f"lora.targets: the settings of {llm} are not on this host")
        return
    with torch.device("meta"):
        yield from tried(item, check_targets, AutoModelForCausalLM.from_config(config), lora.targets)
