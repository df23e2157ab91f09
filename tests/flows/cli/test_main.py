"""The `honeybee` command on the command line."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from support.fork_server import run_honeybee

from flows.cli.main import main

pytestmark = pytest.mark.slow


def honeybee(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    return run_honeybee(*arguments, cwd=cwd, env={"COLUMNS": "200"})


def test_help_lists_every_command(tmp_path):
    done = honeybee("--help", cwd=tmp_path)
    assert done.returncode == 0
    commands = ["sample", "build", "diff", "train", "evaluate", "chat", "serve", "templates", "up", "down", "submit"]
    for command in [*commands, "import-official", "export-official"]:
        assert f" {command} " in done.stdout


def test_sample_writes_the_corpus_and_refuses_foreign_directories(tmp_path):
    done = honeybee("sample", "corpus", "--scenes", "20", "--held-out", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "vqav2:" in done.stdout
    assert (tmp_path / "corpus/VQAv2/v2_OpenEnded_mscoco_train2014_questions.json").is_file()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    done = honeybee("sample", "mine", cwd=tmp_path)
    assert done.returncode == 1
    assert "contains files that are not a sample corpus" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_dry_run(write_recipe, tmp_path):
    done = honeybee("train", write_recipe(), "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "finetune: 3 steps × 8 examples = 24 samples" in done.stdout


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({}, 0, ""),
        ({"backbones": {"vision": "openai/clip", "llm": "owner/typo"}}, 1, "run `hf download owner/typo`"),
        (
            {"evaluation/judge": {"url": "http://127.0.0.1:9/v1", "model": "x"}},
            3,
            "checked: evaluation.judge",
        ),
    ],
)
def test_the_exit_code_of_a_dry_run_depends_on_what_was_checked(
    recipe_of, tmp_path, monkeypatch, capsys, changes, code, message
):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(recipe_of(changes).model_dump(mode="json")))
    monkeypatch.setattr(sys, "argv", ["honeybee", "train", str(path), "--dry-run"])
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the handler would stay in this process
    with pytest.raises(SystemExit) as caught:
        main()
    assert (caught.value.code or 0) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", [["train"], ["train", "--dry-run"], ["build"], ["build", "--dry-run"]])
def test_an_invalid_recipe_fails_immediately_with_one_message(write_recipe, tmp_path, command):
    path = write_recipe({"finetune/data/templates": "fein"})
    done = honeybee(*command, path, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("honeybee: recipe tiny cannot run; nothing was started:")
    assert "template set 'fein'" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def running(write_recipe, tmp_path) -> Iterator[tuple[subprocess.Popen, list[psutil.Process]]]:
    """A run that has started, and its child processes, among them its server."""
    command = [Path(sys.executable).with_name("honeybee"), "build", str(write_recipe())]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    with subprocess.Popen(
        command, cwd=tmp_path, env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        assert run.stdout is not None
        assert any("Results:" in line for line in run.stdout)
        started = psutil.Process(run.pid).children(recursive=True)
        assert servers(started)
        yield run, started
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def servers(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if "flows.server.serve" in process.cmdline()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_exits_within_seconds_and_leaves_no_process(running, number):
    run, started = running
    run.send_signal(number)
    output, _ = run.communicate(timeout=60)
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not alive
    if number == signal.SIGKILL:
        assert run.returncode == -number
    else:
        assert run.returncode == 128 + number
        assert output.endswith(f"honeybee: stopped by {number.name}; run it again to continue\n")
        assert "Traceback" not in output
