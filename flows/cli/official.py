"""The commands that convert checkpoints from and to the format of the paper's official code."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.run_options import ModelArgument, StoreOption


def import_official(
    checkpoint: Annotated[
        Path, typer.Argument(help="An official checkpoint: a directory with config.json and weights.")
    ],
    output: Annotated[Path, typer.Argument(help="The model directory to write; must be absent or empty.")],
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Directory or hub name of the tokenizer; default: the one in the checkpoint."),
    ] = None,
    vision: Annotated[
        str | None,
        typer.Option(help="Directory or hub name of the vision encoder's configuration, if config.json only names it."),
    ] = None,
    llm: Annotated[
        str | None,
        typer.Option(help="Directory or hub name of the language model's configuration, if config.json only names it."),
    ] = None,
) -> None:
    """Converts a checkpoint released by the paper's authors into a model directory."""
    from model.official.checkpoint import import_official as convert

    config = convert(checkpoint, output, tokenizer, vision, llm)
    typer.echo(
        f"{output}: {config.projector['type']} projector, {config.num_image_tokens} tokens per image of "
        f"{config.vision_config.image_size} pixels, vision encoder layer {config.vision_layer}"
    )


def export_official(
    model: ModelArgument,
    output: Annotated[Path, typer.Argument(help="The checkpoint directory to write; must be absent or empty.")],
    vision: Annotated[
        str | None,
        typer.Option(
            help="Name under which the official code loads the vision encoder; required unless the model was imported."
        ),
    ] = None,
    llm: Annotated[
        str | None,
        typer.Option(
            help="Name under which the official code loads the language model; required unless the model was imported."
        ),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Name under which the official code loads the tokenizer; default: --llm.")
    ] = None,
    store: StoreOption = None,
) -> None:
    """Converts a model directory into a checkpoint for the official code of the paper."""
    from flows.runs.find import find_model
    from model.official.checkpoint import export_official as convert

    names = {"vision": vision, "llm": llm, "tokenizer": tokenizer or llm}
    convert(find_model(model, store or ()), output, {part: name for part, name in names.items() if name})
    typer.echo(str(output))
