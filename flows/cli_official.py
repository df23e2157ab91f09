"""The commands for checkpoints of the paper's authors."""

from pathlib import Path
from typing import Annotated

import typer


def import_official(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of the paper's authors: config.json and weights.")],
    output: Annotated[Path, typer.Argument(help="The model directory to write; absent or empty.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Directory or hub name of the language model's tokenizer, unless it is there.")
    ] = None,
    vision: Annotated[
        str | None, typer.Option(help="Where the encoder's configuration is, if config.json only names it.")
    ] = None,
    llm: Annotated[str | None, typer.Option(help="The same for the language model.")] = None,
) -> None:
    """Makes a model directory of ours from a checkpoint that the paper's authors released."""
    from model.official_checkpoint import import_official as convert

    config = convert(checkpoint, output, tokenizer, vision, llm)
    typer.echo(
        f"{output}: {config.projector['type']}, {config.num_image_tokens} tokens for an image of "
        f"{config.vision_config.image_size} pixels, hidden state {config.vision_layer} of the encoder"
    )


def export_official(
    model: Annotated[Path, typer.Argument(help="A model directory, e.g. runs/sample/latest/model.")],
    output: Annotated[Path, typer.Argument(help="The checkpoint directory to write; absent or empty.")],
    vision: Annotated[
        str | None, typer.Option(help="Name by which the authors' code shall load the encoder, unless it was imported.")
    ] = None,
    llm: Annotated[str | None, typer.Option(help="The same for the language model.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="And for its tokenizer; LLM where absent.")] = None,
) -> None:
    """Makes a checkpoint for the code of the paper's authors from a model directory."""
    from model.official_checkpoint import export_official as convert

    names = {"vision": vision, "llm": llm, "tokenizer": tokenizer or llm}
    convert(model, output, {part: name for part, name in names.items() if name})
    typer.echo(str(output))
