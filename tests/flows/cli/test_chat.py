"""`honeybee chat` and `honeybee serve` on the command line."""

import base64
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from PIL import Image
from support.fork_server import run_honeybee

from model import HoneybeeForConditionalGeneration, HoneybeeProcessor

pytestmark = pytest.mark.slow

COMMAND = Path(sys.executable).with_name("honeybee")
ENVIRONMENT = os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def model(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model: these tests do not depend on its answers."""
    directory = tmp_path_factory.mktemp("talk")
    vision, llm = corpus / "backbones/vision", corpus / "backbones/llm"
    projector = {"type": "linear", "num_tokens": 16}
    with torch.random.fork_rng():
        HoneybeeForConditionalGeneration.from_backbones(vision, llm, projector, llm).save_pretrained(directory)
    HoneybeeProcessor.from_backbones(vision, llm, 16).save_pretrained(directory)
    Image.new("RGB", (20, 20), "red").save(directory / "red one.png")
    Image.new("RGB", (20, 20), "blue").save(directory / "blue.png")
    return directory


def honeybee(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess:
    return run_honeybee(*arguments, cwd=Path.cwd(), stdin=stdin, env={"COLUMNS": "200"})


def test_one_question_about_several_images(model: Path) -> None:
    image = model / "red one.png"
    done = honeybee("chat", model, image, "What is it?", "-i", model / "blue.png", "--max-new-tokens", "3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n") and done.stdout.count("\n") == 1


def test_a_session_continues_after_errors(model: Path) -> None:
    lines = [
        "What is it?",
        "/image missing.png",
        f"/image {model / 'config.json'}",
        "/image http://127.0.0.1/a.png",
        f"/image {model / 'red one.png'}",
        "",
        "Look: <image>",
        "/rest",
        "And this?",
        "/reset",
        "And now?",
    ]
    done = honeybee("chat", model, model / "blue.png", "--max-new-tokens", "3", stdin="\n".join(lines))
    assert done.returncode == 0, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("honeybee: ")]
    said = ["missing.png", "config.json", "not fetched from URLs", "empty", "contains <image>", "unknown command /rest"]
    assert len(errors) == len(said) and all(word in error for word, error in zip(said, errors, strict=True))
    before, after = done.stdout.split("Started a new conversation about the images given on the command line.\n")
    assert len(before.splitlines()) >= 2 and after.strip()
    assert "Human:" not in done.stdout and "AI:" not in done.stdout  # prompts are only printed to a terminal
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chat", "{model}", "missing.png", "What?"], "missing.png cannot be read as an image"),
        (["chat", "{model}", "{model}/blue.png", "<image>"], "the question contains <image>"),
        (["chat", "{model}/..", "{model}/blue.png", "What?"], "no model (no config.json)"),
        (["serve", "{model}/.."], "no model (no config.json)"),
    ],
)
def test_an_error_is_one_line(model: Path, arguments: list[str], message: str) -> None:
    done = honeybee(*(argument.format(model=model) for argument in arguments))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("honeybee: ") and message in last
    assert "Traceback" not in done.stderr


@pytest.fixture
def server(model: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """`honeybee serve` on a free port, and its address."""
    command = [COMMAND, "serve", model, "--port", "0", "--name", "bee"]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT)
    assert process.stdout is not None
    line = process.stdout.readline()
    yield process, line.split()[-1]
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_answers_and_shuts_down_cleanly(
    server: tuple[subprocess.Popen, str], model: Path, number: int
) -> None:
    process, address = server
    assert address.startswith("http://127.0.0.1:") and address.endswith("/v1")
    image = base64.b64encode((model / "blue.png").read_bytes()).decode()
    parts: Any = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
        {"type": "text", "text": "What is it?"},
    ]
    client = openai.OpenAI(base_url=address, api_key="none")
    answer = client.chat.completions.create(
        model="bee", messages=[{"role": "user", "content": parts}], max_tokens=3, timeout=60
    )
    assert answer.usage is not None and answer.usage.completion_tokens in range(1, 4)
    second = honeybee("serve", model, "--port", address.split(":")[-1].removesuffix("/v1"))
    assert second.returncode == 1
    assert second.stderr.splitlines()[-1].endswith("on 127.0.0.1 is already in use: choose another one with --port")
    process.send_signal(number)
    assert process.wait(30) == 0
    assert process.stderr is not None and "Traceback" not in process.stderr.read()
