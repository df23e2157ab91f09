"""Tests a disk that fills up during training: the error message, and the state that is left behind."""

import resource
import signal
from pathlib import Path
from typing import Any

import pytest
from support.training_data import rows, write_shards
from support.training_jobs import make_job
from support.training_ranks import Ranks, in_a_rank
from transformers import PreTrainedTokenizerFast

from model.load_backbones import image_token_id
from model.training.work_directory import DiskFullError, explain_full_disk


@pytest.fixture
def job(tiny_backbones: Path, tmp_path: Path) -> dict[str, Any]:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_backbones / "llm")
    image = image_token_id(tokenizer)
    shards = write_shards(tmp_path / "shards", rows(tokenizer, 80), tiny_backbones / "llm", image)
    return make_job(tiny_backbones, shards, tmp_path, save_every=2)


def _train_with_small_files(job: dict[str, Any], max_bytes: int, message: str) -> None:
    """Trains with a file size limit of `max_bytes` and expects an error with `message`; runs in its own process."""
    from model.training.job import Job
    from model.training.stage import run

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))
    try:
        run(Job.model_validate(job))
    except DiskFullError as error:
        assert message in str(error), error
        assert "the file is too large. Partially written files are ignored; free up space, then run again" in str(error)
    else:
        raise AssertionError("training succeeded despite the file size limit")


def test_full_disk_is_reported_and_training_succeeds_once_there_is_space(job: dict[str, Any]) -> None:
    in_a_rank(_train_with_small_files, job, 100_000, "step-00000002/rank-00000-000.safetensors cannot be written")
    assert not list((Path(job["work"]) / "checkpoints").glob("step-*"))
    running = Ranks(job)
    assert running.wait() == [0], running.output()
    assert (Path(job["output"]) / "manifest.json").is_file()


def test_other_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), explain_full_disk(tmp_path):
        (tmp_path / "nothing").read_bytes()
