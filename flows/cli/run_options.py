"""The arguments and options that all commands for existing runs share."""

from pathlib import Path
from typing import Annotated

import typer

RunArgument = Annotated[str, typer.Argument(help="Directory of a run, or RECIPE/RUN_ID under runs/.")]
ModelArgument = Annotated[
    Path, typer.Argument(help="A model directory, e.g. runs/sample/latest/model, or a run, e.g. sample/latest.")
]
StoreOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--store",
        help="Store in which to look for what a run links to, e.g. after it was moved; repeatable. Default: the store "
        "that the run recorded.",
    ),
]
