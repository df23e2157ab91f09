"""Evaluation during training: the scores equal those after training, and the learned weights do not change."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from support.training_data import rows, write_shards
from support.training_jobs import elsewhere, make_job
from support.training_ranks import Ranks, curve, fails, losses, train

from model import HoneybeeProcessor
from model.evaluation.run import Job, evaluate
from pipelines.sample_corpus import write_sample

pytestmark = pytest.mark.slow
IMAGE = 3  # the id of <image> in the tiny tokenizer
STEPS, EVERY = 12, 4


@pytest.fixture(scope="module")
def shards(tiny_backbones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    llm = tiny_backbones / "llm"
    tokenizer = HoneybeeProcessor.from_backbones(str(tiny_backbones / "vision"), str(llm), 16).tokenizer
    return write_shards(tmp_path_factory.mktemp("shards"), rows(tokenizer, STEPS * 8), llm, IMAGE)


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    corpus = tmp_path_factory.mktemp("corpus")
    write_sample(corpus, scenes=8, held_out=12, seed=0)
    (tsv,) = corpus.glob("MMBench/*.tsv")
    return {
        "pope": {"path": str(corpus / "POPE"), "images": str(corpus / "POPE" / "images")},
        "mmbench": {"path": str(tsv)},
    }


def with_evaluation(
    job: dict[str, Any], benchmarks: dict[str, dict[str, str]], directory: Path, **train: Any
) -> dict[str, Any]:
    evaluating = {
        "evaluate_every": EVERY,
        "evaluate": {"benchmarks": list(benchmarks), "questions": 20, "batch_size": 8},
    }
    return elsewhere(job, directory, **{**evaluating, **train}) | {"benchmarks": benchmarks}


@pytest.fixture(scope="module")
def plain(tiny_backbones: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A job without evaluation, already trained."""
    job = make_job(tiny_backbones, shards, tmp_path_factory.mktemp("plain"), steps=STEPS, save_every=5, zero_stage=2)
    job["train"]["trains"] = ["projector", "llm"]  # the frozen encoder is always in evaluation mode
    train(job)
    return job


def scores(job: dict[str, Any]) -> dict[int, dict[str, float]]:
    """Returns the evaluation scores in metrics.jsonl, by step."""
    found = {line["step"]: {k: v for k, v in line.items() if k.startswith("eval/")} for line in curve(job)}
    return {step: values for step, values in found.items() if values}


def model_bytes(job: dict[str, Any]) -> bytes:
    return (Path(job["output"]) / "model.safetensors").read_bytes()


def test_evaluation_changes_no_weights_and_scores_match_those_after_training(
    plain: dict[str, Any], benchmarks: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    everything = {"benchmarks": list(benchmarks), "questions": 10_000, "batch_size": 8}
    job = with_evaluation(
        plain, benchmarks, tmp_path, evaluate=everything, evaluate_every=STEPS, gradient_checkpointing=True
    )
    train(job)
    assert losses(job) == losses(plain)
    assert model_bytes(job) == model_bytes(plain)
    (found,) = scores(job).values()
    assert {"eval/pope/accuracy", "eval/mmbench/accuracy"} <= set(found)
    after = evaluate(
        Job.model_validate({"model": job["output"], "benchmarks": benchmarks, "output": tmp_path / "after"})
    )
    for name, value in found.items():
        _, benchmark, score = name.split("/")
        assert after[benchmark][score] == value


def test_killed_run_reuses_finished_evaluations(
    plain: dict[str, Any], benchmarks: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    uninterrupted, killed = (
        with_evaluation(plain, benchmarks, tmp_path / name) for name in ("uninterrupted", "killed")
    )
    train(uninterrupted)
    assert list(scores(uninterrupted)) == [4, 8, 12]
    done = Path(killed["work"]) / "evaluations" / "step-00000008" / "scores.json"
    assert Ranks(killed).signal_when(done, signal.SIGKILL) == [-signal.SIGKILL]  # after the checkpoint of step 5
    before = done.stat().st_mtime_ns
    train(killed)
    assert done.stat().st_mtime_ns == before
    assert scores(killed) == scores(uninterrupted)
    assert model_bytes(killed) == model_bytes(uninterrupted) == model_bytes(plain)
    assert losses(killed) == losses(plain)


def test_questions_are_split_over_ranks(
    plain: dict[str, Any], benchmarks: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    few = {"benchmarks": ["pope"], "questions": 5, "batch_size": 2}
    job = with_evaluation(
        plain, benchmarks, tmp_path, evaluate=few, steps=4, micro_batch=4, log_every=3, warmup_steps=0
    )
    train(job, 2)
    assert [line["step"] for line in curve(job)] == [3, 4]  # an evaluation adds a line
    directory = Path(job["work"]) / "evaluations" / "step-00000004"
    answers = [path.read_text().splitlines()[1:] for path in sorted(directory.glob("pope.rank-*.jsonl"))]
    assert [len(each) for each in answers] == [3, 2]
    ids = {json.loads(line)["id"] for each in answers for line in each}
    assert len(ids) == 5
    assert set(scores(job)[4]) == set(json.loads((directory / "scores.json").read_text())["scores"])


def test_missing_benchmark_is_reported_at_the_start(plain: dict[str, Any], tmp_path: Path) -> None:
    job = with_evaluation(plain, {"pope": {"path": str(tmp_path / "absent")}}, tmp_path)
    output = fails(job)
    assert "JobError: train.evaluate: pope: " in output and str(tmp_path / "absent") in output
