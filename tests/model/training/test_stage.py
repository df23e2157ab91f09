"""A stage matches plain torch in any layout, resumes wherever it is killed, and writes a complete model."""

import hashlib
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.damage import files_of, flip
from support.training_data import encoded_image, rows, write_shards
from support.training_jobs import elsewhere, make_job
from support.training_plain import assert_bit_equal, plain_torch, weights
from support.training_ranks import Ranks, curve, fails, losses, train
from transformers import AutoModelForImageTextToText, AutoProcessor

from model import HoneybeeForConditionalGeneration, HoneybeeProcessor
from model.training.engine.checkpoint import require_space
from model.training.job import Job
from model.training.work_directory import CheckpointError
from pipelines.core.integrity import write_manifest

pytestmark = pytest.mark.slow
IMAGE = 3  # the id of <image> in the tiny tokenizer
LONG = 24  # steps of a run that is stopped, enough that it cannot finish before


@pytest.fixture(scope="module")
def processor(tiny_backbones: Path) -> HoneybeeProcessor:
    return HoneybeeProcessor.from_backbones(str(tiny_backbones / "vision"), str(tiny_backbones / "llm"), 16)


@pytest.fixture(scope="module")
def shards(tiny_backbones: Path, processor: HoneybeeProcessor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("shards")
    return write_shards(directory, rows(processor.tokenizer, LONG * 8), tiny_backbones / "llm", IMAGE)


@pytest.fixture
def job(tiny_backbones: Path, shards: Path, tmp_path: Path) -> dict[str, Any]:
    return make_job(tiny_backbones, shards, tmp_path)


@pytest.fixture(scope="module")
def usual(tiny_backbones: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A job with one rank and one forward pass per step, already trained."""
    job = make_job(tiny_backbones, shards, tmp_path_factory.mktemp("usual"))
    train(job)
    return job


@pytest.fixture(scope="module")
def uninterrupted(tiny_backbones: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A longer job, already trained without interruption."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    job = make_job(tiny_backbones, shards, directory, steps=LONG, save_every=5, log_every=4)
    train(job)
    return job


def test_losses_and_weights_match_plain_torch(usual: dict[str, Any]) -> None:
    history, state = plain_torch(usual)
    assert [loss for _, loss, _ in losses(usual)] == pytest.approx(history, abs=1e-5)
    assert history[-1] < history[0] - 0.3
    for name, tensor in weights(usual).items():
        torch.testing.assert_close(tensor, state[name], atol=1e-5, rtol=1e-4)


PACKED = {"packing": {"max_tokens": 200, "window": 24}, "global_batch": 4, "micro_batch": 4, "steps": None}


def test_packed_training_matches_separate_examples(job: dict[str, Any]) -> None:
    job["train"] |= PACKED
    history, state = plain_torch(job)
    train(job)
    assert [loss for _, loss, _ in losses(job)] == pytest.approx(history, abs=1e-5)
    assert len(history) >= 4  # the number of steps follows from the samples
    for name, tensor in weights(job).items():
        torch.testing.assert_close(tensor, state[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        (2, {"micro_batch": 1, "zero_stage": 2}),
        (4, {"micro_batch": 1}),
        (1, {"micro_batch": 2, "attention": "packed", "gradient_checkpointing": True}),
    ],
)
def test_layout_does_not_affect_packed_training(
    job: dict[str, Any], tmp_path: Path, ranks: int, settings: dict[str, Any]
) -> None:
    job["train"] |= PACKED
    train(job)
    other = elsewhere(job, tmp_path / "other", **settings)
    train(other, ranks)
    for (step, loss, _), (same_step, same_loss, _) in zip(losses(job), losses(other), strict=True):
        assert step == same_step and loss == pytest.approx(same_loss, abs=1e-4)


def test_killed_packed_run_resumes_bit_for_bit(job: dict[str, Any], tmp_path: Path) -> None:
    job["train"] |= PACKED | {"save_every": 2}
    train(job)
    other = elsewhere(job, tmp_path / "other")
    codes = Ranks(other).signal_when(Path(other["work"]) / "checkpoints" / "step-00000002", signal.SIGKILL)
    assert codes == [-signal.SIGKILL]
    train(other)
    assert_bit_equal(other, job)


# With micro-batches of one or two samples, some forward passes have no image, on one rank but not on the other.
@pytest.mark.parametrize(
    ("ranks", "train_settings"),
    [
        (1, {"micro_batch": 4}),
        (1, {"micro_batch": 2, "zero_stage": 2, "gradient_checkpointing": True}),
        (2, {"micro_batch": 4}),
        (2, {"micro_batch": 1, "zero_stage": 2}),
        (2, {"micro_batch": 2, "zero_stage": 3}),
        (2, {"micro_batch": 4, "zero_stage": 2, "offload": True}),
        (4, {"micro_batch": 1, "zero_stage": 2}),
    ],
)
def test_layout_does_not_affect_training(
    job: dict[str, Any], usual: dict[str, Any], ranks: int, train_settings: dict[str, Any]
) -> None:
    job["train"] |= train_settings
    train(job, ranks)
    for (step, loss, norm), (same_step, same_loss, same_norm) in zip(losses(job), losses(usual), strict=True):
        assert step == same_step
        assert loss == pytest.approx(same_loss, abs=1e-4)
        assert norm == pytest.approx(same_norm, rel=1e-3)
    expected = weights(usual)
    for name, tensor in weights(job).items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_bf16_losses_are_close_to_fp32(job: dict[str, Any], usual: dict[str, Any], zero_stage: int) -> None:
    job["train"] |= {"precision": "bf16", "zero_stage": zero_stage, "micro_batch": 4}
    train(job)
    assert [loss for _, loss, _ in losses(job)] == pytest.approx([loss for _, loss, _ in losses(usual)], abs=2e-2)
    assert {tensor.dtype for tensor in weights(job).values()} == {torch.bfloat16}


def test_frozen_weights_do_not_change(job: dict[str, Any], tmp_path: Path) -> None:
    job["train"] |= {"trains": ["projector"], "steps": 4, "weight_decay": 0.5}
    train(job)
    init = Job.model_validate(job).init
    before = HoneybeeForConditionalGeneration.from_backbones(
        init.vision, init.llm, {"type": "linear", "num_tokens": 16}, init.tokenizer, seed=job["seed"]
    ).state_dict()
    after = weights(job)
    changed = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"projector"}
    # Some of these forward passes have no image, so they involve no trained parameter.
    single = elsewhere(job, tmp_path / "single", micro_batch=1, zero_stage=2, gradient_checkpointing=True)
    train(single, 2)
    for name, tensor in weights(single).items():
        torch.testing.assert_close(tensor, after[name], atol=1e-4, rtol=1e-3)


def test_output_is_a_complete_model_for_the_next_stage(
    tiny_backbones: Path, usual: dict[str, Any], tmp_path: Path
) -> None:
    output = Path(usual["output"])
    manifest = json.loads((output / "manifest.json").read_text())
    (stage,) = manifest["stages"]
    assert (stage["stage"], stage["steps"]) == ("finetune", 8)
    assert {path.name for path in output.iterdir()} == {"manifest.json", *manifest["contents"]}
    assert (output / "tokenizer.json").read_bytes() == (tiny_backbones / "llm" / "tokenizer.json").read_bytes()

    card = (output / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\n")
    assert "linear, 16 visual tokens" in card and "finetune: 8 steps of 8 samples; projector and llm trained" in card
    assert all(f"{name} {100 * share:.1f} %" in card for name, share in stage["datasets"].items())
    assert str(tiny_backbones) not in card + json.dumps(manifest)  # local paths are not published

    model, processor = AutoModelForImageTextToText.from_pretrained(output), AutoProcessor.from_pretrained(output)
    inputs = processor(text="<s><image>Human: Hello AI:", images=Image.new("RGB", (9, 9)), return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=3).shape[1] > inputs["input_ids"].shape[1]

    following = elsewhere(usual, tmp_path, steps=2, warmup_steps=0) | {"init": {"model": str(output)}}
    train(following)
    assert losses(following)[0][1] < losses(usual)[0][1] - 0.3
    both = json.loads((Path(following["output"]) / "manifest.json").read_text())
    assert [(each["stage"], each["steps"]) for each in both["stages"]] == [("finetune", 8), ("finetune", 2)]

    (output / "manifest.json").rename(tmp_path / "aside")
    log = tmp_path / "aside"
    log.rename(output / "manifest.json")
    before = (output / "model.safetensors").stat().st_mtime_ns
    train(usual)  # already complete: nothing to do
    assert (output / "model.safetensors").stat().st_mtime_ns == before
    intact = files_of(output)
    flip(output / "model.safetensors")
    running = Ranks(usual)  # writes the model again from the last checkpoint
    assert running.wait() == [0]
    assert f"{output / 'model.safetensors'} is damaged" in running.output()
    assert files_of(output) == intact


@pytest.mark.parametrize(
    ("ranks", "zero_stage", "precision"),
    [(1, 0, "fp32"), (2, 2, "fp32"), (1, 0, "bf16"), (1, 3, "bf16")],
)
def test_killed_run_resumes_bit_for_bit(
    job: dict[str, Any], uninterrupted: dict[str, Any], tmp_path: Path, ranks: int, zero_stage: int, precision: str
) -> None:
    layout = {"zero_stage": zero_stage, "micro_batch": 8 // ranks, "precision": precision}
    reference = uninterrupted
    if layout != {key: reference["train"][key] for key in layout}:
        reference = elsewhere(uninterrupted, tmp_path / "reference", **layout)
        train(reference, ranks)
    killed = elsewhere(uninterrupted, tmp_path / "killed", **layout)
    checkpoints = Path(killed["work"]) / "checkpoints"
    for step in (5, 10):
        codes = Ranks(killed, ranks).signal_when(checkpoints / f"step-{step:08d}", signal.SIGKILL)
        assert set(codes) == {-signal.SIGKILL}
    assert not (Path(killed["output"]) / "manifest.json").exists()
    train(killed, ranks)
    assert_bit_equal(killed, reference)
    assert [line["step"] for line in curve(killed)] == list(range(4, LONG + 1, 4))
    assert len(list(checkpoints.iterdir())) == 2


def test_checkpoint_resumes_with_different_ranks_and_zero_stage(uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    moved = elsewhere(uninterrupted, tmp_path, zero_stage=2, micro_batch=4)
    Ranks(moved, 2).signal_when(Path(moved["work"]) / "checkpoints" / "step-00000005", signal.SIGKILL)
    moved["train"] |= {"zero_stage": 0, "micro_batch": 8}
    Ranks(moved, 1).signal_when(Path(moved["work"]) / "checkpoints" / "step-00000010", signal.SIGKILL)
    moved["train"] |= {"zero_stage": 3, "micro_batch": 4}
    train(moved, 2)
    assert [loss for _, loss, _ in losses(moved)] == pytest.approx(
        [loss for _, loss, _ in losses(uninterrupted)], abs=1e-3
    )


def test_sigterm_saves_a_checkpoint(uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    stopped = elsewhere(uninterrupted, tmp_path, save_every=1000)
    codes = Ranks(stopped).signal_when(Path(stopped["work"]) / "metrics.jsonl", signal.SIGTERM)
    assert codes == [128 + signal.SIGTERM]
    (checkpoint,) = (Path(stopped["work"]) / "checkpoints").iterdir()
    assert 4 <= json.loads((checkpoint / "manifest.json").read_text())["step"] < LONG
    train(stopped)
    assert_bit_equal(stopped, uninterrupted)


def _halve(checkpoint: Path) -> None:
    path = next(checkpoint.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(checkpoint: Path) -> None:
    flip(next(checkpoint.glob("*.safetensors")))


def _edit(checkpoint: Path) -> None:
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["loader"]
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("damage", [_flip, _halve, _edit, lambda checkpoint: (checkpoint / "manifest.json").unlink()])
def test_damaged_checkpoint_is_not_loaded(
    uninterrupted: dict[str, Any], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damaged = elsewhere(uninterrupted, tmp_path)
    checkpoints = Path(damaged["work"]) / "checkpoints"
    Ranks(damaged).signal_when(checkpoints / "step-00000010", signal.SIGKILL)
    newest = max(checkpoints.glob("step-*"))
    damage(newest)
    (checkpoints / ".step-00000099").mkdir()  # left behind by a rank that was killed while saving
    running = Ranks(damaged)
    assert running.wait() == [0]
    assert "falling back to the previous checkpoint" in running.output()
    assert str(newest) in running.output()
    assert_bit_equal(damaged, uninterrupted)
    assert not (checkpoints / ".step-00000099").exists()


def test_checkpoint_of_a_different_job_is_refused(uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    changed = elsewhere(uninterrupted, tmp_path, learning_rate=1e-3)
    shutil.copytree(Path(uninterrupted["work"]), changed["work"])
    output = fails(changed)
    assert "train.learning_rate was 0.003, now 0.001" in output
    assert "use another work directory" in output
    fitted = {**changed, "train": uninterrupted["train"], "init": {**uninterrupted["init"], "image_fit": "crop"}}
    assert "init.image_fit was stretch, now crop" in fails(fitted)


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (1e12, "step 2: the loss is not finite in sample"),
        (1e30, "step 2: the gradient norm is not finite although all losses are; the step had sample"),
    ],
)
@pytest.mark.parametrize("zero_stage", [0, 2])
def test_non_finite_step_stops_the_run_and_is_named(
    job: dict[str, Any], rate: float, message: str, zero_stage: int
) -> None:
    job["train"] |= {"learning_rate": rate, "warmup_steps": 0, "zero_stage": zero_stage}
    output = fails(job)
    assert f"NonFiniteError: {message}" in output
    assert [line["step"] for line in curve(job)] == [1]


@pytest.mark.parametrize(("allowed", "ends_well"), [(2, True), (1, False)])
def test_run_stops_above_the_limit_of_damaged_images(
    tiny_backbones: Path,
    processor: HoneybeeProcessor,
    job: dict[str, Any],
    tmp_path: Path,
    allowed: int,
    ends_well: bool,
) -> None:
    samples = rows(processor.tokenizer, 24)
    for index in (1, 18):
        cut = encoded_image("red", 1)[:-500]
        samples[index] |= {
            "images": [{"bytes": cut, "path": "cut.png"}],
            "image_sha256": [hashlib.sha256(cut).hexdigest()],
        }
    job["shards"] = str(write_shards(tmp_path / "shards", samples, tiny_backbones / "llm", IMAGE))
    job["train"] |= {"steps": 3, "micro_batch": 4}
    job["loading"] = {"max_bad_samples": allowed}
    if ends_well:
        train(job, 2)
        assert [line["bad_samples"] for line in curve(job)] == [1, 1, 2]
    else:
        output = fails(job, 2)
        assert "2 samples cannot be read or have images that do not decode" in output
        assert "sample 18 (captions example 9) cannot be used (an image does not decode: " in output


def test_metrics_describe_the_step(usual: dict[str, Any]) -> None:
    line = curve(usual)[-1]
    assert set(line["losses"]) == {"captions", "questions"}
    assert min(line["losses"].values()) <= line["loss"] <= max(line["losses"].values())
    assert line["learning_rate"] == pytest.approx(3e-4)
    assert 0 < line["padding_share"] < 0.6
    assert 0 <= line["data_wait_share"] <= 1
    assert line["tokens_per_second"] > line["supervised_tokens_per_second"] > 0
    assert list((Path(usual["work"]) / "tensorboard").glob("events.out.tfevents.*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"steps": 25}}, "25 steps of 8 need 200 samples"),
        ({"train": {"micro_batch": 3}}, "global_batch 8 is not a multiple of micro_batch 3"),
        ({"device": "cuda"}, "torch sees no CUDA device"),
    ],
)
def test_error_explains_why_a_job_cannot_run(job: dict[str, Any], change: dict[str, Any], message: str) -> None:
    if change == {"device": "cuda"} and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    merged = job | change | {"train": {**job["train"], **change.get("train", {})}}
    assert message in fails(merged)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer", "0123456789abcdef", "was built with tokenizer 0123456789abcdef, but"),
        ("image_token_id", 7, "has image token 7, but the model has 3"),
    ],
)
def test_shards_of_a_different_tokenizer_are_refused(
    job: dict[str, Any], shards: Path, tmp_path: Path, key: str, value: Any, message: str
) -> None:
    shutil.copytree(shards, tmp_path / "shards")
    manifest = json.loads((shards / "manifest.json").read_text())
    write_manifest(tmp_path / "shards", manifest | {key: value})
    assert message in fails(job | {"shards": str(tmp_path / "shards")})


def test_full_disk_is_noticed_before_writing(tmp_path: Path) -> None:
    require_space(tmp_path, 1000)
    with pytest.raises(CheckpointError, match=r"needs 1000000000\.00 GB, but .* GB free: free up space"):
        require_space(tmp_path, 10**18)


def test_two_runs_do_not_share_a_work_directory(uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    first = elsewhere(uninterrupted, tmp_path, save_every=1000)
    running = Ranks(first)
    again = Ranks(first)
    codes = [running.wait()[0], again.wait()[0]]
    assert codes == [0, 0]  # the second waits for the first and finds the output complete
    assert_bit_equal(first, uninterrupted)
