"""What can be wrong with a recipe besides its form, found before hours of work: all of it at once."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from flows.decontamination import listed_benchmarks, read_items
from flows.hosts import HostfileError, count_ranks, find_cluster
from flows.launch import check_rendezvous
from flows.recipe import Recipe, RecipeError, Stage
from flows.workspace import STAGES, Workspace
from model import evaluation
from model.evaluation.base import load_prompt
from model.training.job import Lora
from model.training.wandb_run import check_installed
from pipelines import sources
from pipelines.balance import wanted_shares
from pipelines.beam import check_options
from pipelines.chat_style import chat_style_file
from pipelines.embed import check_embedder
from pipelines.mixture import make_mixture
from pipelines.remote import check_url
from pipelines.templates import load_templates
from pipelines.tokenizer import check_tokenizer


def check_settings(recipe: Recipe) -> None:
    """Names, templates, schedules: all that needs no official file. Raises RecipeError with every problem found; the
    projector and LoRA's targets are looked at last, since torch takes seconds to load."""
    _raise(recipe, _settings(recipe))
    _raise(recipe, _problems("model.projector", _build_small_projector, recipe))
    for name in STAGES:
        lora = recipe.stage(name).train.lora
        if lora is not None:
            _raise(recipe, _problems(f"{name}.train", _find_targets, recipe, lora))


def check_inputs(workspace: Workspace) -> None:
    """Annotation files, image roots, benchmarks, local models. Raises RecipeError with every problem found."""
    _raise(workspace.recipe, _inputs(workspace))


def check_benchmarks(workspace: Workspace) -> None:
    """The benchmarks alone. Raises RecipeError with every problem found."""
    _raise(workspace.recipe, _benchmarks(workspace))


def check_machines(recipe: Recipe, log: Callable[[str], None] = print) -> None:
    """Whether this machine and the hosts can train what the recipe asks them to. Raises RecipeError, or LaunchError for
    a host that cannot be reached, or a port in use."""
    import torch

    cluster = find_cluster(recipe.launch)
    here = recipe.launch.ranks or 1
    if cluster is not None:  # evaluation and sample backbones need one here in any case
        here = max(1, sum(host.slots for host in cluster.hosts if host.is_here))
    if recipe.launch.device == "cuda" and torch.cuda.device_count() < here:
        raise RecipeError(
            f"launch: {here} ranks on cuda need as many GPUs, this machine has {torch.cuda.device_count()}: lower "
            f"{'launch.ranks' if cluster is None else 'its slots'}, set launch.device, or run it elsewhere"
        )
    check_rendezvous(cluster, recipe.launch.rendezvous.port, recipe.paths.store.resolve(), log)


def _writable(path: Path) -> str | None:
    """What keeps a directory from being made or written at `path`; nothing is written to find out."""
    there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    if not there.is_dir():
        return f"{there} is no directory"
    return None if os.access(there, os.W_OK | os.X_OK) else f"{there} cannot be written to"


def _settings(recipe: Recipe) -> Iterator[str]:
    for key, path in (("store", recipe.paths.store), ("runs", recipe.paths.runs)):
        problem = _writable(path)
        if problem:
            yield f"paths.{key}: {problem}"
    if recipe.paths.remote is not None:
        yield from _problems("paths.remote", check_url, recipe.paths.remote)
    yield from _problems("beam", check_options, recipe.beam)
    for name, dataset in recipe.datasets.items():
        yield from _problems(f"datasets.{name}", recipe.source, name)
        if "semantic" in dataset.dedup.rule and dataset.max_turns > 1:
            yield from _problems("embedder", check_embedder, recipe.embedder.model, recipe.embedder.device)
    yield from _problems("launch", find_cluster, recipe.launch)
    for name in STAGES:
        yield from _stage_settings(recipe, name)
    for name in recipe.evaluation.benchmarks:
        yield from _problems(f"evaluation.benchmarks.{name}", evaluation.get, name)
        if name in evaluation.BENCHMARKS:
            yield from _problems(f"evaluation.benchmarks.{name}", load_prompt, name)
    for name, listed in listed_benchmarks(recipe).items():
        if listed.path is not None:
            yield from _problems(f"decontamination.benchmarks.{name}", evaluation.get, listed.reader or name)


def _stage_settings(recipe: Recipe, name: str) -> Iterator[str]:
    stage = recipe.stage(name)
    yield from _problems(f"{name}.data.chat", chat_style_file, stage.data.chat)
    tasks: dict[str, str] = {}
    for dataset in stage.data.names:
        with contextlib.suppress(sources.SourceError):  # of a source that is wrong, told elsewhere
            tasks[dataset] = recipe.source(dataset).task
            yield from _problems(
                f"{name}.data.templates", load_templates, stage.data.templates, dataset, tasks[dataset]
            )
    if len(tasks) == len(stage.data.names) and not stage.data.balance.needs_sizes:
        key = "weights" if stage.data.weights else "balance"
        yield from _problems(f"{name}.data.{key}", _mixture, stage, tasks)
    with contextlib.suppress(HostfileError):  # told once, of launch
        yield from _problems(f"{name}.train", stage.train.accumulation, count_ranks(recipe.launch))
    if stage.train.wandb is not None:
        yield from _problems(f"{name}.train.wandb", check_installed)


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
            yield f"datasets.{name}.images: there is no directory {spec.images}"
    yield from _benchmarks(workspace)
    for name in listed_benchmarks(recipe):
        yield from _problems(f"decontamination.benchmarks.{name}", read_items, workspace, name)
    for key, model in (("vision", recipe.backbones.vision), ("llm", recipe.backbones.llm)):
        if model and not _may_be_there(model):
            yield f"backbones.{key}: there is no model (no config.json) in {model}"
    vision, llm = recipe.backbones.vision, recipe.backbones.llm
    if llm and _may_be_there(llm):
        yield from _problems("backbones.llm", check_tokenizer, llm)
    if vision and llm and _may_be_there(vision) and _may_be_there(llm):
        yield from _problems("model", _parts_fit, recipe, vision, llm)


def _benchmarks(workspace: Workspace) -> Iterator[str]:
    for name in workspace.recipe.evaluation.benchmarks:
        missing = [path for path in workspace.benchmark(name) if not path.exists()]
        yield from (f"evaluation.benchmarks.{name}: there is no {path}" for path in missing)
        if not missing:
            yield from _problems(f"evaluation.benchmarks.{name}", _ask_nothing, workspace, name)


def _parts_fit(recipe: Recipe, vision: str, llm: str) -> None:
    from flows.memory import sizes  # imports torch and transformers

    model = sizes(recipe, vision, llm)
    for name in STAGES:
        side = recipe.stage(name).data.image_side
        if model and side and recipe.model.image_fit == "crop" and side < model.image_size:
            raise ValueError(
                f"image_fit crop makes a picture's shorter side {model.image_size} pixels, but {name}.data.image_side "
                f"shrinks the longer one to {side}, and all would be enlarged again: raise it to "
                f"{2 * model.image_size}, enough for shapes up to 2 : 1, or leave it out"
            )


def _ask_nothing(workspace: Workspace, name: str) -> None:
    """Reads the questions and the first picture, as the evaluation will hours later."""
    path, images = workspace.benchmark(name)
    questions = evaluation.get(name).read(path, images)
    if not questions:
        raise ValueError(f"{path} holds no question")
    for image in questions[0].images[:1]:
        image.read()


def _may_be_there(model: str) -> bool:
    """A directory with a configuration, or a hub name: `name` or `owner/name`."""
    local = Path(model).is_dir() or model.startswith(("/", "./", "../", "~")) or model.count("/") > 1
    return not local or (Path(model) / "config.json").is_file()


def _build_small_projector(recipe: Recipe) -> None:
    """Of any width: the number of tokens, the type and its settings are what can be wrong."""
    import torch

    from model.projectors import build_projector
    from model.projectors.base import Shape

    projector = recipe.model.projector
    features = projector.num_tokens if projector.type in ("linear", "mlp") else 16  # those two keep the number
    with torch.device("meta"):
        build_projector(projector.type, Shape(features, projector.num_tokens, 8, 8), projector.settings)


def _find_targets(recipe: Recipe, lora: Lora) -> None:
    """Where the language model's configuration is at hand; else the stage finds out when it begins."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from flows.memory import model_config
    from model.training.lora import check_targets

    llm = recipe.backbones.llm
    # That of model/backbones.py is a Llama.
    config = AutoConfig.for_model("llama") if llm is None else model_config(llm) if _may_be_there(llm) else None
    if config is not None:
        with torch.device("meta"):
            check_targets(AutoModelForCausalLM.from_config(config), lora.targets)


def _problems(key: str, check: Callable[..., object], *arguments: object) -> Iterator[str]:
    try:
        check(*arguments)
    except ValueError as error:  # what all our own checks raise
        yield f"{key}: {error}"


def _raise(recipe: Recipe, problems: Iterator[str]) -> None:
    found = list(dict.fromkeys(problems))
    if found:
        lines = "".join(f"\n  {problem}" for problem in found)
        raise RecipeError(f"the recipe {recipe.name} cannot run; nothing was started:{lines}")
