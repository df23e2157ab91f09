"""A disk that fills up while a stage trains: what is said, and what is left."""

import resource
import signal
from pathlib import Path
from typing import Any

import pytest
from training_data import rows, write_shards
from training_jobs import make_job
from training_ranks import Ranks, in_a_rank
from transformers import PreTrainedTokenizerFast

from model.pretrained import image_token_id
from model.training.disk import DiskFullError, says_if_full


@pytest.fixture
def job(tiny_backbones: Path, tmp_path: Path) -> dict[str, Any]:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_backbones / "llm")
    image = image_token_id(tokenizer)
    shards = write_shards(tmp_path / "shards", rows(tokenizer, 80), tiny_backbones / "llm", image)
    return make_job(tiny_backbones, shards, tmp_path, save_every=2)


def _train_with_small_files(job: dict[str, Any], most: int, said: str) -> None:
    """In a process of its own: no file may grow beyond `most` bytes."""
    from model.training.job import Job
    from model.training.stage import run

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    try:
        run(Job.model_validate(job))
    except DiskFullError as error:
        assert said in str(error), error
        assert "the file is too large. Nothing half-written counts; make room, then run again" in str(error)
    else:
        raise AssertionError("it was written")


def test_what_cannot_be_written_is_named_and_training_goes_on_once_there_is_room(job: dict[str, Any]) -> None:
    in_a_rank(_train_with_small_files, job, 100_000, "step-00000002/rank-00000-000.safetensors cannot be written")
    assert not list((Path(job["work"]) / "checkpoints").glob("step-*"))
    running = Ranks(job)
    assert running.wait() == [0], running.output()
    assert (Path(job["output"]) / "manifest.json").is_file()


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), says_if_full(tmp_path):
        (tmp_path / "nothing").read_bytes()
