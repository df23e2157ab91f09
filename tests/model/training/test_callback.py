"""A callback of one's own: a new monitor is one new class, which sees every step in order and survives a resume."""

import json
import os
import signal
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.training_data import rows, write_shards
from support.training_jobs import elsewhere, make_job
from support.training_plain import assert_bit_equal
from support.training_ranks import Ranks, curve, losses, train
from transformers import AutoTokenizer

from model.training.callback import Callback, Interval, StepLosses, StepReport

pytestmark = pytest.mark.slow
IMAGE = 3  # the id of <image> in the tiny tokenizer
STEPS = 8


class Recorder(Callback):
    """Records what its hooks see; `history` is its state, `calls` belongs to one process."""

    def __init__(self, directory: Path, kill_after: int | None = None):
        self.directory, self.kill_after = directory, kill_after
        self.history: list[Any] = []
        self.calls: list[Any] = []

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = state["history"]
        self.calls.append("load")

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def on_start(self, step: int, steps: int) -> None:
        self.calls.append(["start", step, steps])

    def before_optimizer_step(self, losses: StepLosses) -> bool:
        self.calls.append(["before", losses.step, losses.loss])
        return True

    def after_step(self, report: StepReport) -> None:
        self.calls.append(["after", report.step, report.loss])
        self.history.append([report.step, report.loss, report.grad_norm])
        if report.step == self.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    def measure(self, interval: Interval) -> dict[str, Any]:
        self.calls.append(["measure", interval.last.step])
        return {"recorded": len(self.history)}

    def on_metrics(self, line: Mapping[str, Any]) -> None:
        self.calls.append(["metrics", line["step"], line["recorded"]])

    def on_checkpoint(self, step: int) -> None:
        self.calls.append(["checkpoint", step])

    def on_end(self) -> None:
        found = {"history": self.history, "calls": self.calls}
        (self.directory / f"recorder-{os.environ['RANK']}.json").write_text(json.dumps(found))


def recorder(directory: Path, kill_after: int | None = None) -> list[Callback]:
    return [Recorder(directory, kill_after)]


def recorded(directory: Path, rank: int = 0) -> dict[str, Any]:
    return json.loads((directory / f"recorder-{rank}.json").read_text())


@pytest.fixture(scope="module")
def usual(tiny_backbones: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A job without callbacks of one's own, already trained."""
    directory = tmp_path_factory.mktemp("usual")
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbones / "llm")
    shards = write_shards(directory / "shards", rows(tokenizer, STEPS * 8), tiny_backbones / "llm", IMAGE)
    job = make_job(tiny_backbones, shards, directory, steps=STEPS, save_every=3)
    train(job)
    return job


def test_callback_sees_every_step_in_order(usual: dict[str, Any], tmp_path: Path) -> None:
    job = elsewhere(usual, tmp_path)
    assert Ranks(job, own=partial(recorder, tmp_path)).wait() == [0]
    assert_bit_equal(job, usual)
    expected: list[Any] = [["start", 0, STEPS]]
    for step, loss, _ in losses(usual):
        expected += [["before", step, loss], ["after", step, loss], ["measure", step], ["metrics", step, step]]
        expected += [["checkpoint", step]] if step in (3, 6, STEPS) else []
    assert recorded(tmp_path)["calls"] == [
        [*call[:2], pytest.approx(call[2])] if call[0] in ("before", "after") else call for call in expected
    ]
    assert [line["recorded"] for line in curve(job)] == list(range(1, STEPS + 1))


def test_state_of_a_callback_survives_a_resume(usual: dict[str, Any], tmp_path: Path) -> None:
    job = elsewhere(usual, tmp_path)
    assert Ranks(job, own=partial(recorder, tmp_path, kill_after=5)).wait() == [-signal.SIGKILL]
    assert not (tmp_path / "recorder-0.json").exists()
    assert Ranks(job, own=partial(recorder, tmp_path)).wait() == [0]
    assert_bit_equal(job, usual)
    found = recorded(tmp_path)
    # The process that was killed also saw steps 4 and 5, after its checkpoint.
    assert found["calls"][:3] == ["load", ["start", 3, STEPS], ["before", 4, pytest.approx(losses(usual)[3][1])]]
    assert found["history"] == [pytest.approx(step) for step in losses(usual)]
    assert [line["recorded"] for line in curve(job)] == list(range(1, STEPS + 1))


def test_only_the_first_rank_sees_the_lines_of_metrics(usual: dict[str, Any], tmp_path: Path) -> None:
    job = elsewhere(usual, tmp_path, micro_batch=4, log_every=4)
    assert Ranks(job, 2, own=partial(recorder, tmp_path)).wait() == [0, 0]
    first, second = recorded(tmp_path), recorded(tmp_path, 1)
    assert first["history"] == second["history"]
    assert [call for call in first["calls"] if call[0] == "metrics"] == [["metrics", 4, 4], ["metrics", 8, 8]]
    assert [call for call in first["calls"] if call[0] != "metrics"] == second["calls"]


class Veto(Callback):
    """Skips step 3."""

    def before_optimizer_step(self, losses: StepLosses) -> bool:
        return losses.step != 3

    def after_step(self, report: StepReport) -> None:
        assert report.taken == (report.step != 3)


def veto() -> list[Callback]:
    return [Veto()]


@pytest.mark.parametrize(("ranks", "zero_stage"), [(1, 0), (2, 2)])
def test_callback_can_skip_a_step(usual: dict[str, Any], tmp_path: Path, ranks: int, zero_stage: int) -> None:
    job = elsewhere(usual, tmp_path, micro_batch=8 // ranks, zero_stage=zero_stage)
    assert Ranks(job, ranks, veto).wait() == [0] * ranks
    assert [line["skipped_steps"] for line in curve(job)] == [int(step >= 3) for step in range(1, STEPS + 1)]
    found, reference = losses(job), losses(usual)
    for step in range(3):
        assert found[step][1] == pytest.approx(reference[step][1], abs=1e-5)
    assert abs(found[3][1] - reference[3][1]) > 1e-3  # the weights are those before step 3
    (stage,) = json.loads((Path(job["output"]) / "manifest.json").read_text())["stages"]
    assert stage["skipped_steps"] == 1
    # A resumed run must tell AdamW that it took one step less.
    killed = elsewhere(job, tmp_path / "killed")
    checkpoint = Path(killed["work"]) / "checkpoints" / "step-00000003"
    assert set(Ranks(killed, ranks, veto).signal_when(checkpoint, signal.SIGKILL)) == {-signal.SIGKILL}
    assert Ranks(killed, ranks, veto).wait() == [0] * ranks
    assert losses(killed) == losses(job)


class SlowEvaluation(Callback):
    """Evaluates for a second after step 2, and compares the time of training with that of the clock."""

    def __init__(self, path: Path):
        self.path, self.seconds = path, 0.0

    def on_start(self, step: int, steps: int) -> None:
        self.started = time.perf_counter()

    def evaluate(self, step: int) -> dict[str, float] | None:
        if step != 2:
            return None
        time.sleep(1.0)
        return {"eval/own": 50.0}

    def measure(self, interval: Interval) -> dict[str, float]:
        self.seconds += interval.seconds
        return {}

    def on_end(self) -> None:
        self.path.write_text(json.dumps([self.seconds, time.perf_counter() - self.started]))


def slow_evaluation(path: Path) -> list[Callback]:
    return [SlowEvaluation(path)]


def test_evaluation_adds_a_line_and_does_not_count_as_training_time(usual: dict[str, Any], tmp_path: Path) -> None:
    job = elsewhere(usual, tmp_path, log_every=3)
    assert Ranks(job, own=partial(slow_evaluation, tmp_path / "seconds.json")).wait() == [0]
    assert [(line["step"], line.get("eval/own")) for line in curve(job)] == [(2, 50.0), (3, None), (6, None), (8, None)]
    training, clock = json.loads((tmp_path / "seconds.json").read_text())
    assert 0 < training < clock - 1.0


class Taken(Callback):
    name = "loader"


@pytest.mark.parametrize(("own", "name"), [([Taken()], "loader"), ([Veto(), Veto()], "Veto")])
def test_names_are_unique(usual: dict[str, Any], tmp_path: Path, own: list[Callback], name: str) -> None:
    running = Ranks(elsewhere(usual, tmp_path), own=partial(list, own))
    assert running.wait() == [1]
    assert f"callbacks: {name} is already a key of a checkpoint: choose another `name`" in running.output()
