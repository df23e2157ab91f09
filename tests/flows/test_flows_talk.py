"""`honeybee chat` as it is typed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from model import HoneybeeForConditionalGeneration, HoneybeeProcessor

COMMAND = Path(sys.executable).with_name("honeybee")
ENVIRONMENT = os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def model(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was not trained: what it says is of no interest here."""
    directory = tmp_path_factory.mktemp("talk")
    vision, llm = corpus / "backbones/vision", corpus / "backbones/llm"
    projector = {"type": "linear", "num_tokens": 16}
    with torch.random.fork_rng():
        HoneybeeForConditionalGeneration.from_backbones(vision, llm, projector, llm).save_pretrained(directory)
    HoneybeeProcessor.from_backbones(vision, llm, 16).save_pretrained(directory)
    Image.new("RGB", (20, 20), "red").save(directory / "red one.png")
    Image.new("RGB", (20, 20), "blue").save(directory / "blue.png")
    return directory


def honeybee(*arguments: str | Path, says: str = "") -> subprocess.CompletedProcess:
    command = [COMMAND, *map(str, arguments)]
    return subprocess.run(command, text=True, capture_output=True, env=ENVIRONMENT, input=says, timeout=120)


def test_one_question_about_several_pictures(model: Path) -> None:
    picture = model / "red one.png"
    done = honeybee("chat", model, picture, "What is it?", "-i", model / "blue.png", "--max-new-tokens", "3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n") and done.stdout.count("\n") == 1


def test_a_session_survives_what_goes_wrong(model: Path) -> None:
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
    done = honeybee("chat", model, model / "blue.png", "--max-new-tokens", "3", says="\n".join(lines))
    assert done.returncode == 0, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("honeybee: ")]
    said = ["missing.png", "config.json", "not fetched from addresses", "empty", "holds <image>", "no command /rest"]
    assert len(errors) == len(said) and all(word in error for word, error in zip(said, errors, strict=True))
    assert done.stdout.count("AI: ") == 3 and done.stdout.count("A new conversation") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["chat", "{model}", "missing.png", "What?"], "missing.png is no image that can be read"),
        (["chat", "{model}", "{model}/blue.png", "<image>"], "the question holds <image>"),
        (["chat", "{model}/..", "{model}/blue.png", "What?"], "no model (no config.json)"),
    ],
)
def test_an_error_is_one_line(model: Path, arguments: list[str], said: str) -> None:
    done = honeybee(*(argument.format(model=model) for argument in arguments))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("honeybee: ") and said in last
    assert "Traceback" not in done.stderr
