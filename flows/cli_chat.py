"""The commands that ask a trained model: `chat` in the terminal, `serve` over HTTP."""

import io
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from PIL.Image import Image

    from model.chat import Chat

ModelArgument = Annotated[Path, typer.Argument(help="A model directory, e.g. runs/sample/latest/model.")]


def chat(
    model: ModelArgument,
    image: Annotated[str, typer.Argument(help="The picture to talk about.")],
    question: Annotated[
        str | None, typer.Argument(help="One question; without it, questions are read until EOF.")
    ] = None,
    images: Annotated[list[str] | None, typer.Option("--image", "-i", help="Another picture; repeatable.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the likeliest token.")] = 0.0,
) -> None:
    """Answers questions about pictures. Without a question: `/image PATH` adds a picture to the next question,
    `/reset` begins again."""
    from model.directory import check_model

    check_model(model)  # before torch is imported
    from model.chat import Chat, open_picture

    pictures = [open_picture(path) for path in (image, *(images or []))]
    session = Session(Chat.load(model), pictures, max_new_tokens, temperature)
    if question is not None:
        session.answer(question)
    else:
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        session.run(sys.stdin)


class Session:
    """A conversation in the terminal. What goes wrong is told in one line, and the conversation goes on."""

    def __init__(self, talk: "Chat", pictures: list["Image"], max_new_tokens: int, temperature: float):
        """pictures: stand before the first question, also after a reset."""
        self.talk, self.first = talk, pictures
        self.new = [*pictures]  # not yet shown
        self.max_new_tokens, self.temperature = max_new_tokens, temperature

    def run(self, lines: Iterable[str]) -> None:
        """Reads questions and commands to the end."""
        from model.chat import ChatError

        self._prompt("Human: ")
        for line in lines:
            try:
                self.take(line.strip())
            except ChatError as error:
                typer.echo(f"honeybee: {error}", err=True)
            except KeyboardInterrupt:  # ends the answer; between answers, the session
                pass
            self._prompt("Human: ")
        self._prompt("\n")

    def take(self, line: str) -> None:
        """One line. Raises ChatError."""
        from model.chat import ChatError, open_picture

        command, _, argument = line.partition(" ")
        if command == "/image":
            if not argument:
                raise ChatError("/image needs the path of a picture")
            self.new.append(open_picture(argument.strip()))
        elif line == "/reset":
            self.talk.messages, self.new = [], [*self.first]
            typer.echo("A new conversation, about what the command line shows.")
        elif command.startswith("/"):
            raise ChatError(f"there is no command {command}: only /image PATH and /reset")
        else:
            self._prompt("AI: ")
            self.answer(line)

    def _prompt(self, text: str) -> None:
        """For a person: answers to questions from a pipe stand alone."""
        if sys.stdin.isatty():
            typer.echo(text, nl=False)

    def answer(self, question: str) -> None:
        """Prints the answer as it is generated; Ctrl-C ends it. Raises ChatError."""
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
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="The model's name in requests; the directory's where absent.")
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Requests that are answered together.")] = 8,
    max_images: Annotated[int, typer.Option(min=0, help="Pictures of one request.")] = 8,
    max_upload_mib: Annotated[
        float, typer.Option(min=0.001, max=4096, help="Of a request, and of a fetched picture.")
    ] = 20,
    allow_urls: Annotated[bool, typer.Option("--allow-urls", help="Fetch pictures from public addresses.")] = False,
) -> None:
    """Answers over HTTP in OpenAI's form, POST /v1/chat/completions, until it is stopped."""
    from model.directory import check_model

    check_model(model)  # before torch is imported
    from model.serving.server import serve as run
    from model.serving.service import Settings

    settings = Settings(name or model.absolute().name, max_batch, max_images, int(max_upload_mib * 2**20), allow_urls)
    run(model, host, port, settings, typer.echo)
