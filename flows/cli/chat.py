"""The commands that talk to a trained model: `chat` in the terminal and `serve` over HTTP."""

import io
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.run_options import ModelArgument, StoreOption

if TYPE_CHECKING:
    from PIL.Image import Image

    from model.generation.chat import Chat


def chat(
    model: ModelArgument,
    image: Annotated[str, typer.Argument(help="Path of the image to ask about.")],
    question: Annotated[
        str | None, typer.Argument(help="A single question; default: read questions from standard input.")
    ] = None,
    images: Annotated[list[str] | None, typer.Option("--image", "-i", help="Another image; repeatable.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of tokens of an answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="Sampling temperature; 0 decodes greedily.")] = 0.0,
    store: StoreOption = None,
) -> None:
    """Answers questions about images in the terminal.

    In an interactive session, `/image PATH` adds an image to the next question and `/reset` starts a new conversation.
    """
    from flows.runs.find import find_model
    from model.check_directory import check_model

    model = find_model(model, store or ())
    check_model(model)  # before torch is imported
    from model.generation.chat import Chat, load_image

    opened = [load_image(path) for path in (image, *(images or []))]
    session = Session(Chat.load(model), opened, max_new_tokens, temperature)
    if question is not None:
        session.answer(question)
    else:
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        session.run(sys.stdin)


class Session:
    """A conversation in the terminal. An error is printed as one line, and the conversation continues."""

    def __init__(self, talk: "Chat", images: list["Image"], max_new_tokens: int, temperature: float):
        """images: precede the first question, also after a reset."""
        self.talk, self.first = talk, images
        self.new = [*images]  # not yet sent to the model
        self.max_new_tokens, self.temperature = max_new_tokens, temperature

    def run(self, lines: Iterable[str]) -> None:
        """Reads questions and commands until the input ends."""
        from model.generation.chat import ChatError

        self._prompt("Human: ")
        for line in lines:
            try:
                self.take(line.strip())
            except ChatError as error:
                typer.echo(f"honeybee: {error}", err=True)
            except KeyboardInterrupt:  # stops only the answer; between answers, Ctrl-C ends the session
                pass
            self._prompt("Human: ")
        self._prompt("\n")

    def take(self, line: str) -> None:
        """Handles one line of input. Raises ChatError."""
        from model.generation.chat import ChatError, load_image

        command, _, argument = line.partition(" ")
        if command == "/image":
            if not argument:
                raise ChatError("/image needs the path of an image")
            self.new.append(load_image(argument.strip()))
        elif line == "/reset":
            self.talk.messages, self.new = [], [*self.first]
            typer.echo("Started a new conversation about the images given on the command line.")
        elif command.startswith("/"):
            raise ChatError(f"unknown command {command}: use /image PATH or /reset")
        else:
            self._prompt("AI: ")
            self.answer(line)

    def _prompt(self, text: str) -> None:
        """Prints a prompt if the input is a terminal; for piped questions, only the answers are printed."""
        if sys.stdin.isatty():
            typer.echo(text, nl=False)

    def answer(self, question: str) -> None:
        """Prints the answer as it is generated; Ctrl-C stops it. Raises ChatError."""
        turns = len(self.talk.messages)
        pieces = self.talk.ask(question, self.new, self.max_new_tokens, self.temperature)
        try:
            for piece in pieces:
                typer.echo(piece, nl=False)
        finally:
            pieces.close()
            typer.echo()
            if len(self.talk.messages) > turns:
                self.new = []


def serve(
    model: ModelArgument,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 selects a free port.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="Model name in the API; default: the name of the model directory.")
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Maximum number of requests per batch.")] = 8,
    max_images: Annotated[int, typer.Option(min=0, help="Maximum number of images per request.")] = 8,
    max_upload_mib: Annotated[
        float, typer.Option(min=0.001, max=4096, help="Maximum size of a request, and of an image fetched by URL.")
    ] = 20,
    allow_urls: Annotated[bool, typer.Option("--allow-urls", help="Fetch images from public URLs.")] = False,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Web site whose pages may send requests (CORS); repeat it for further ones."),
    ] = None,
    store: StoreOption = None,
) -> None:
    """Serves a model over an OpenAI-compatible HTTP API (POST /v1/chat/completions) until it is stopped."""
    from flows.runs.find import find_model
    from model.check_directory import check_model

    place, model = model, find_model(model, store or ())
    check_model(model)  # before torch is imported
    from model.serving.server import serve as run
    from model.serving.settings import Settings
    from model.serving.web_guard import checked_origin

    limits = {"max_batch": max_batch, "max_images": max_images, "max_upload": int(max_upload_mib * 2**20)}
    origins = tuple(map(checked_origin, allow_origin or ()))
    settings = Settings(name or place.absolute().name, **limits, allow_urls=allow_urls, origins=origins)
    run(model, host, port, settings, typer.echo)
