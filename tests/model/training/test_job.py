"""Tests the validation of a job, which happens before anything is loaded."""

import json
from pathlib import Path

import pytest
from support.training_jobs import make_job

from model.training.job import load_job
from model.training.settings import JobError, Train


def write(tmp_path: Path, job: dict) -> Path:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job))
    return path


def test_a_job_is_read(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, make_job(tmp_path, tmp_path / "shards", tmp_path)))
    assert job.train.trains == ("projector", "llm")
    assert job.init.tokenizer_directory == tmp_path / "llm"
    assert job.loading.max_bad_samples == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"steps": 0, "global_batch": 8, "micro_batch": 8, "warmup_steps": 0}}, "train.steps"),
        (
            {"train": {"steps": 9, "global_batch": 8, "micro_batch": 8, "warmup_steps": 9}},
            "warmup_steps 9 must be less than the 9 steps",
        ),
        ({"train": {"steps": 900, "global_batch": 8, "micro_batch": 8, "min_learning_rate": 1}}, "min_learning_rate"),
        ({"train": {"steps": 900, "global_batch": 8, "micro_batch": 8, "zero_stage": 1}}, "train.zero_stage"),
        ({"train": {"steps": 900, "global_batch": 8, "micro_batch": 8, "trains": ["vit"]}}, "train.trains"),
        ({"train": {"steps": 900, "global_batch": 8, "micro_batch": 8, "trains": []}}, "at least one of vision"),
        (
            {"train": {"steps": 900, "global_batch": 8, "micro_batch": 8, "zero_stage": 0, "offload": True}},
            "offload needs zero_stage 2 or 3",
        ),
        ({"train": {"steps": 900, "global_batch": 8, "micro_batch": 8, "spike_threshold": 0}}, "train.spike_threshold"),
        ({"train": {"steps": 900, "global_batch": 8, "micro_batch": 8, "on_spike": "stop"}}, "train.on_spike"),
        ({"train": {"steps": 900, "global_batch": 8, "micro_batch": 8, "wandb": {}}}, "train.wandb.project"),
        ({"train": {"steps": 900, "global_batch": 8, "micro_batch": 8, "evaluate_every": 5}}, "go together"),
        (
            {
                "train": {"steps": 900, "global_batch": 8, "micro_batch": 8, "zero_stage": 3, "evaluate_every": 5}
                | {"evaluate": {"benchmarks": ["pope"]}}
            },
            "zero_stage 3 does not keep",
        ),
        (
            {
                "train": {"steps": 900, "global_batch": 8, "micro_batch": 8, "evaluate_every": 5}
                | {"evaluate": {"benchmarks": ["pope"]}}
            },
            r"train.evaluate names \['pope'\], for which `benchmarks` has no path",
        ),
        ({"peak_tflops": -1}, "peak_tflops"),
        ({"init": {"vision": "v", "llm": "l"}}, "give either `model`, or all of"),
        ({"init": {"model": "m", "llm": "l"}}, "omit llm"),
        ({"init": {"model": "m", "image_fit": "pad", "image_size": 9}}, "omit image_fit, image_size"),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_error_names_file_and_key(tmp_path: Path, change: dict, message: str) -> None:
    path = write(tmp_path, make_job(tmp_path, tmp_path, tmp_path) | change)
    with pytest.raises(JobError, match=message) as error:
        load_job(path)
    assert str(path) in str(error.value)


def test_json_error_names_the_position(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text('{"stage": ')
    with pytest.raises(JobError, match="line 1 column"):
        load_job(path)
    with pytest.raises(JobError, match="no job file"):
        load_job(tmp_path / "absent.json")


def test_global_batch_must_be_divisible() -> None:
    train = Train(steps=900, global_batch=24, micro_batch=4)
    assert [train.accumulation(ranks) for ranks in (1, 2, 3, 6)] == [6, 3, 2, 1]
    with pytest.raises(ValueError, match="24 is not a multiple of micro_batch 4 × 4 ranks = 16"):
        train.accumulation(4)


def test_identity_omits_settings_that_do_not_affect_the_weights(tmp_path: Path) -> None:
    job = make_job(tmp_path, tmp_path / "shards", tmp_path)
    identity = load_job(write(tmp_path, job)).identity()
    same = job | {"work": "elsewhere", "device": "auto", "train": {**job["train"], "micro_batch": 2, "zero_stage": 2}}
    same["train"] |= {"wandb": {"project": "bees"}, "evaluate_every": 3, "evaluate": {"benchmarks": ["pope"]}}
    same |= {"benchmarks": {"pope": {"path": "POPE"}}}
    other = job | {"train": {**job["train"], "learning_rate": 1e-2}}
    assert load_job(write(tmp_path, same)).identity() == identity
    assert load_job(write(tmp_path, other)).identity() != identity
    fitted = job | {"init": {**job["init"], "image_fit": "crop"}}
    assert load_job(write(tmp_path, fitted)).identity() != identity
