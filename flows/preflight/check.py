"""Checks what the recipe's schema cannot: names, files, models and hosts. Reports all problems at once, before a run
spends hours."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from flows.data.decontamination import listed_benchmarks, read_items
from flows.launch.hosts import HostfileError, count_ranks, find_cluster
from flows.launch.launch import check_rendezvous
from flows.recipe.data import Stage
from flows.recipe.recipe import Recipe, RecipeError
from flows.runs.workspace import STAGES, Workspace
from model.evaluation import benchmarks
from model.evaluation.prompts import load_prompt
from model.training.settings import Lora
from pipelines import sources
from pipelines.core.beam import check_options
from pipelines.core.integrity import MANIFEST
from pipelines.dedup.embeddings import check_embedder
from pipelines.mixture.order import make_mixture
from pipelines.mixture.shares import wanted_shares
from pipelines.shards.remote import check_url
from pipelines.templates.sets import load_templates
from pipelines.tokens.chat_style import chat_style_file
from pipelines.tokens.tokenizer import check_tokenizer


def check_settings(recipe: Recipe) -> None:
    """Checks everything that needs no official file: names, templates, schedules. Raises RecipeError with all problems
    found. The projector and the LoRA targets come last, because importing torch takes seconds."""
    _raise(recipe, _settings(recipe))
    _raise(recipe, _problems("model.projector", _build_small_projector, recipe))
    for name in STAGES:
        lora = recipe.stage(name).train.lora
        if lora is not None:
            _raise(recipe, _problems(f"{name}.train", _find_targets, recipe, lora))


def check_inputs(workspace: Workspace) -> None:
    """Checks annotation files, image roots, benchmarks and local models. Raises RecipeError with all problems found."""
    _raise(workspace.recipe, _inputs(workspace))


def check_benchmarks(workspace: Workspace) -> None:
    """Checks only the benchmarks. Raises RecipeError with all problems found."""
    _raise(workspace.recipe, _benchmarks(workspace))


def check_hosts(recipe: Recipe, log: Callable[[str], None] = print) -> None:
    """Checks that this host and those of the hostfile can run the recipe's ranks. Raises RecipeError if GPUs are
    missing, LaunchError if a host cannot be reached or the rendezvous port is in use."""
    import torch

    cluster = find_cluster(recipe.launch)
    here = recipe.launch.ranks or 1
    if cluster is not None:  # single-process jobs always run here
        here = max(1, sum(host.slots for host in cluster.hosts if host.is_here))
    if recipe.launch.device == "cuda" and torch.cuda.device_count() < here:
        raise RecipeError(
            f"launch: {here} ranks on cuda need {here} GPUs, but this host has {torch.cuda.device_count()}: lower "
            f"{'launch.ranks' if cluster is None else 'its slots'}, change launch.device, or use another host"
        )
    check_rendezvous(cluster, recipe.launch.rendezvous.port, recipe.paths.store.resolve(), log)


def _writable(path: Path) -> str | None:
    """Returns why a directory at `path` cannot be created or written to, or None if it can. Writes nothing."""
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    if not there.is_dir():
        return f"{there} is not a directory"
    return None if os.access(there, os.W_OK | os.X_OK) else f"{there} is not writable"


def _settings(recipe: Recipe) -> Iterator[str]:
    for key, path in (("store", recipe.paths.store), ("runs", recipe.paths.runs)):
        problem = _writable(path)
        if problem and (key == "runs" or not any(path.glob(f"*/*/{MANIFEST}"))):  # what is built needs no writing
            yield f"paths.{key}: {problem}"
    if recipe.paths.remote is not None:
        yield from _problems("paths.remote", check_url, recipe.paths.remote)
    yield from _problems("beam", check_options, recipe.beam)
    compares_vectors = False
    for name in recipe.datasets:
        yield from _problems(f"datasets.{name}", recipe.source, name)
        with contextlib.suppress(sources.SourceError):  # reported above
            compares_vectors |= recipe.compares_vectors(name)
    if compares_vectors:
        yield from _problems("embedder", check_embedder, recipe.embedder.model, recipe.embedder.device)
    yield from _problems("launch", find_cluster, recipe.launch)
    for name in STAGES:
        yield from _stage_settings(recipe, name)
    for name in recipe.evaluation.benchmarks:
        yield from _problems(f"evaluation.benchmarks.{name}", benchmarks.get, name)
        if name in benchmarks.BENCHMARKS:
            yield from _problems(f"evaluation.benchmarks.{name}", load_prompt, name)
    for name, listed in listed_benchmarks(recipe).items():
        if listed.path is not None:
            yield from _problems(f"decontamination.benchmarks.{name}", benchmarks.get, listed.reader or name)


def _stage_settings(recipe: Recipe, name: str) -> Iterator[str]:
    stage = recipe.stage(name)
    yield from _problems(f"{name}.data.chat", chat_style_file, stage.data.chat)
    tasks: dict[str, str] = {}
    for dataset in stage.data.names:
        with contextlib.suppress(sources.SourceError):  # `_settings` reports it
            tasks[dataset] = recipe.source(dataset).task
            yield from _problems(
                f"{name}.data.templates", load_templates, stage.data.templates, dataset, tasks[dataset]
            )
    if len(tasks) == len(stage.data.names) and not stage.data.balance.needs_sizes:
        key = "weights" if stage.data.weights else "balance"
        yield from _problems(f"{name}.data.{key}", _mixture, stage, tasks)
    with contextlib.suppress(HostfileError):  # `_settings` reports it, under `launch`
        yield from _problems(f"{name}.train", stage.train.accumulation, count_ranks(recipe.launch))
    if stage.train.wandb is not None:
        yield from _problems(f"{name}.train.wandb", stage.train.wandb.check_installed)


def _mixture(stage: Stage, tasks: dict[str, str]) -> None:
    shares = wanted_shares(stage.data.balance, stage.data.names, stage.data.weights, tasks, None)
    make_mixture(shares, dict.fromkeys(shares, 1), 0)


def _inputs(workspace: Workspace) -> Iterator[str]:
    recipe = workspace.recipe
    for name in sorted({*recipe.pretrain.data.names, *recipe.finetune.data.names}):
        try:
            spec = workspace.spec(name)
        except sources.SourceError as error:
            yield f"datasets.{name}: {error}"
            continue
        yield from _problems(f"datasets.{name}", spec.reader.files, spec.annotations)
        if recipe.images != "skip" and not spec.images.is_dir():
            yield f"datasets.{name}.images: {spec.images} is not a directory"
    yield from _benchmarks(workspace)
    for name in listed_benchmarks(recipe):
        yield from _problems(f"decontamination.benchmarks.{name}", read_items, workspace, name)
    for key, model in (("vision", recipe.backbones.vision), ("llm", recipe.backbones.llm)):
        if model and not _may_exist(model):
            yield f"backbones.{key}: {model} is not a model directory (it has no config.json)"
    vision, llm = recipe.backbones.vision, recipe.backbones.llm
    if llm and _may_exist(llm):
        yield from _problems("backbones.llm", check_tokenizer, llm)
    if vision and llm and _may_exist(vision) and _may_exist(llm):
        yield from _problems("model", _check_model_parts, recipe, vision, llm)


def _benchmarks(workspace: Workspace) -> Iterator[str]:
    for name in workspace.recipe.evaluation.benchmarks:
        missing = [path for path in workspace.benchmark(name) if not path.exists()]
        yield from (f"evaluation.benchmarks.{name}: {path} does not exist" for path in missing)
        if not missing:
            yield from _problems(f"evaluation.benchmarks.{name}", _read_first_question, workspace, name)


def _check_model_parts(recipe: Recipe, vision: str, llm: str) -> None:
    from flows.preflight.memory import sizes  # imports torch and transformers

    model = sizes(recipe, vision, llm)
    for name in STAGES:
        side = recipe.stage(name).data.image_side
        if model and side and recipe.model.image_fit == "crop" and side < model.image_size:
            raise ValueError(
                f"model.image_fit crop resizes an image's shorter side to {model.image_size} pixels, but "
                f"{name}.data.image_side shrinks the longer side to {side}, so every image would be enlarged again: "
                f"raise it to {2 * model.image_size}, enough for aspect ratios up to 2:1, or remove it"
            )


def _read_first_question(workspace: Workspace, name: str) -> None:
    """Reads the questions and the first image as the evaluation does. Raises ValueError if there is no question."""
    path, images = workspace.benchmark(name)
    questions = benchmarks.get(name).read(path, images)
    if not questions:
        raise ValueError(f"{path} contains no questions")
    for image in questions[0].images[:1]:
        image.read()


def _may_exist(model: str) -> bool:
    """Whether `model` is a directory with a configuration, or may be a hub name: `name` or `owner/name`."""
    local = Path(model).is_dir() or model.startswith(("/", "./", "../", "~")) or model.count("/") > 1
    return not local or (Path(model) / "config.json").is_file()


def _build_small_projector(recipe: Recipe) -> None:
    """Builds the projector with small widths: only its type, settings and number of tokens can be wrong."""
    import torch

    from model.projectors import build_projector
    from model.projectors.base import Shape

    projector = recipe.model.projector
    features = projector.num_tokens if projector.type in ("linear", "mlp") else 16  # these keep the number of tokens
    with torch.device("meta"):
        build_projector(projector.type, Shape(features, projector.num_tokens, 8, 8), projector.settings)


def _find_targets(recipe: Recipe, lora: Lora) -> None:
    """Checks the LoRA targets if the language model's configuration is available; otherwise the stage does on start."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from flows.preflight.memory import model_config
    from model.training.engine.lora import check_targets

    llm = recipe.backbones.llm
    # model/training/sample_backbones.py trains a Llama.
    config = AutoConfig.for_model("llama") if llm is None else model_config(llm) if _may_exist(llm) else None
    if config is not None:
        with torch.device("meta"):
            check_targets(AutoModelForCausalLM.from_config(config), lora.targets)


def _problems(key: str, check: Callable[..., object], *arguments: object) -> Iterator[str]:
    try:
        check(*arguments)
    except ValueError as error:  # the base class of what the checks raise
        yield f"{key}: {error}"


def _raise(recipe: Recipe, problems: Iterator[str]) -> None:
    found = list(dict.fromkeys(problems))
    if found:
        lines = "".join(f"\n  {problem}" for problem in found)
        raise RecipeError(f"recipe {recipe.name} cannot run; nothing was started:{lines}")
