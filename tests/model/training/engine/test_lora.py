"""LoRA in a stage: only adapters of the language model are trained, in any layout, and the output is a normal model."""

import json
import signal
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from support.training_data import rows, write_shards
from support.training_jobs import elsewhere, make_job
from support.training_plain import assert_bit_equal, plain_torch, weights
from support.training_ranks import Ranks, fails, losses, train
from transformers import AutoModelForCausalLM, AutoTokenizer

from model import HoneybeeForConditionalGeneration
from model.training.engine.export import language_model
from model.training.engine.lora import add_adapters, check_targets, save_adapter, target_sizes
from model.training.engine.optimizer import freeze
from model.training.job import Job, load_job
from model.training.model_card import LOCAL_WEIGHTS
from model.training.settings import JobError, Lora

LORA = {"rank": 4, "alpha": 16, "dropout": 0.0}  # dropout masks differ by rank, so layouts agree only without dropout
DROPPING = {**LORA, "dropout": 0.1}


@pytest.fixture(scope="module")
def shards(tiny_backbones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbones / "llm")
    return write_shards(tmp_path_factory.mktemp("shards"), rows(tokenizer, 96), tiny_backbones / "llm", 3)


@pytest.fixture(scope="module")
def usual(tiny_backbones: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A job with one rank and one forward pass per step, already trained."""
    job = make_job(tiny_backbones, shards, tmp_path_factory.mktemp("usual"), lora=LORA, learning_rate=1e-2)
    train(job)
    return job


def initial_model(job: dict[str, Any]) -> HoneybeeForConditionalGeneration:
    """Returns the model that a job starts from."""
    init = Job.model_validate(job).init
    projector = {"type": "linear", "num_tokens": 16}
    return HoneybeeForConditionalGeneration.from_backbones(
        str(init.vision), str(init.llm), projector, str(init.tokenizer), seed=job["seed"]
    )


def logits_of(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(5, 200, (2, 30), generator=generator)
    ids[:, 1:17] = 3  # the image token
    pixels = torch.randn(2, 3, 32, 32, generator=generator)
    with torch.no_grad():
        return model.eval()(input_ids=ids, pixel_values=pixels).logits


def assert_only_trained_weights_changed(job: dict[str, Any]) -> None:
    before, after = initial_model(job).state_dict(), weights(job)
    assert after.keys() == before.keys()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name].to(tensor.dtype))}
    layers = {f"llm.model.layers.{layer}.self_attn.{name}.weight" for layer in (0, 1) for name in ("q_proj", "v_proj")}
    assert changed == layers | {name for name in after if "projector" in job["train"]["trains"] and "projector" in name}


@pytest.mark.slow
def test_losses_match_a_plain_loop_with_peft(usual: dict[str, Any]) -> None:
    def groups(model: HoneybeeForConditionalGeneration) -> list[dict[str, Any]]:
        add_adapters(model.llm, Lora(**LORA), seed=usual["seed"])
        freeze(model, ["projector", "llm"])
        trained = [p for p in model.parameters() if p.requires_grad]
        return [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.01},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]

    history, _ = plain_torch(usual, groups)
    assert [loss for _, loss, _ in losses(usual)] == pytest.approx(history, abs=1e-5)
    assert history[-1] < history[0] - 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("zero_stage", "precision"), [(0, "fp32"), (3, "fp32"), (2, "bf16"), (3, "bf16")])
def test_output_is_a_merged_model_with_a_separate_adapter(
    usual: dict[str, Any], tiny_backbones: Path, tmp_path: Path, zero_stage: int, precision: str
) -> None:
    job = usual
    if (zero_stage, precision) != (0, "fp32"):
        job = elsewhere(usual, tmp_path, zero_stage=zero_stage, precision=precision, micro_batch=4)
        train(job, 2)
    assert_only_trained_weights_changed(job)
    output = Path(job["output"])
    merged = HoneybeeForConditionalGeneration.from_pretrained(output, dtype=torch.float32)
    assert not any("lora" in name for name, _ in merged.named_modules())

    adapted: Any = initial_model(job).to(torch.float32 if precision == "fp32" else torch.bfloat16).float()
    adapted.projector.load_state_dict(merged.projector.state_dict())
    without = logits_of(adapted)
    adapted.llm = peft.PeftModel.from_pretrained(adapted.llm, str(output / "adapter"))
    expected = logits_of(adapted)
    exact = {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(
        logits_of(merged), expected, **(exact if precision == "fp32" else {"atol": 0.05, "rtol": 0.05})
    )
    assert (without - expected).abs().max() > 0.1  # the adapter makes the difference

    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["stages"][0]["lora"] == {**LORA, "targets": ["q_proj", "v_proj"]}
    files = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert files == {"manifest.json", *manifest["contents"]} and "adapter/adapter_model.safetensors" in files
    config = (output / "adapter" / "adapter_config.json").read_text()
    assert json.loads(config)["target_modules"] == ["q_proj", "v_proj"]
    assert str(tiny_backbones.parent) not in config
    card = (output / "README.md").read_text()
    assert "projector and llm (adapters of rank 4 on q_proj, v_proj) trained" in card and "`adapter/`" in card


@pytest.mark.slow
def test_merging_in_bf16_rounds_the_fp32_sum(usual: dict[str, Any], tmp_path: Path) -> None:
    job = elsewhere(usual, tmp_path, precision="bf16", zero_stage=3, micro_batch=4, steps=3)
    train(job, 2)
    adapter, after = load_file(Path(job["output"]) / "adapter" / "adapter_model.safetensors"), weights(job)
    assert {tensor.dtype for tensor in adapter.values()} == {torch.bfloat16}
    for name, before in initial_model(job).llm.state_dict().items():
        if name.endswith(("q_proj.weight", "v_proj.weight")):
            path = f"base_model.model.{name.removesuffix('.weight')}"
            up, down = adapter[f"{path}.lora_B.weight"].float(), adapter[f"{path}.lora_A.weight"].float()
            expected = (before.to(torch.bfloat16).float() + 4 * (up @ down)).to(torch.bfloat16)
            assert torch.equal(after[f"llm.{name}"], expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        (2, {"micro_batch": 4}),
        (1, {"micro_batch": 2, "zero_stage": 2, "gradient_checkpointing": True}),
        (2, {"micro_batch": 1, "zero_stage": 2}),
        (2, {"micro_batch": 2, "zero_stage": 3, "gradient_checkpointing": True}),
        (2, {"micro_batch": 4, "zero_stage": 2, "offload": True}),
    ],
)
def test_layout_does_not_affect_learning(
    usual: dict[str, Any], tmp_path: Path, ranks: int, settings: dict[str, Any]
) -> None:
    job = elsewhere(usual, tmp_path, **settings)
    train(job, ranks)
    for (step, loss, norm), (same_step, same_loss, same_norm) in zip(losses(job), losses(usual), strict=True):
        assert step == same_step
        assert loss == pytest.approx(same_loss, abs=1e-4)
        assert norm == pytest.approx(same_norm, rel=1e-3)
    expected = weights(usual)
    for name, tensor in weights(job).items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_packing_with_only_adapters_trained(usual: dict[str, Any], tmp_path: Path) -> None:
    packed = {"packing": {"max_tokens": 200, "window": 24}, "global_batch": 4, "micro_batch": 4, "steps": None}
    packed |= {"trains": ["llm"]}
    one = elsewhere(usual, tmp_path / "one", **packed)
    train(one)
    two = elsewhere(usual, tmp_path / "two", **packed | {"micro_batch": 1, "zero_stage": 2})
    two["train"]["gradient_checkpointing"] = True
    train(two, 2)
    assert_only_trained_weights_changed(one)
    assert [loss for _, loss, _ in losses(two)] == pytest.approx([loss for _, loss, _ in losses(one)], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "zero_stage", "precision"), [(1, 0, "fp32"), (2, 2, "fp32"), (1, 0, "bf16"), (2, 3, "bf16")]
)
def test_killed_run_resumes_bit_for_bit(
    usual: dict[str, Any], tmp_path: Path, ranks: int, zero_stage: int, precision: str
) -> None:
    layout = {"zero_stage": zero_stage, "micro_batch": 8 // ranks, "precision": precision}
    layout |= {
        "learning_rates": {"llm": 2e-2},
        "lora": DROPPING,
        "save_every": 3,
        "steps": 12,
        "gradient_checkpointing": zero_stage == 3,
    }
    uninterrupted = elsewhere(usual, tmp_path / "uninterrupted", **layout)
    train(uninterrupted, ranks)
    killed = elsewhere(usual, tmp_path / "killed", **layout)
    for step in (3, 6):
        checkpoint = Path(killed["work"]) / "checkpoints" / f"step-{step:08d}"
        assert set(Ranks(killed, ranks).signal_when(checkpoint, signal.SIGKILL)) == {-signal.SIGKILL}
    train(killed, ranks)
    assert_bit_equal(killed, uninterrupted)
    adapters = [Path(job["output"]) / "adapter" / "adapter_model.safetensors" for job in (killed, uninterrupted)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


@pytest.mark.slow
def test_checkpoint_resumes_in_a_different_layout(usual: dict[str, Any], tmp_path: Path) -> None:
    moved = elsewhere(usual, tmp_path, zero_stage=3, micro_batch=4, save_every=3)
    for step, (ranks, zero_stage) in zip((3, 6), ((2, 3), (1, 0)), strict=True):
        moved["train"] |= {"zero_stage": zero_stage}
        Ranks(moved, ranks).signal_when(Path(moved["work"]) / "checkpoints" / f"step-{step:08d}", signal.SIGKILL)
    moved["train"] |= {"zero_stage": 2}
    train(moved, 2)
    assert [loss for _, loss, _ in losses(moved)] == pytest.approx([loss for _, loss, _ in losses(usual)], abs=1e-3)


@pytest.mark.slow
def test_next_stage_starts_from_the_output(usual: dict[str, Any], tmp_path: Path) -> None:
    full = elsewhere(usual, tmp_path / "full", lora=None, steps=2, warmup_steps=0)
    train(full | {"init": {"model": usual["output"]}})
    assert losses(full)[0][1] < losses(usual)[0][1] - 0.1
    assert not (Path(full["output"]) / "adapter").exists()
    assert "adapters of rank 4" in (Path(full["output"]) / "README.md").read_text()  # of the previous stage
    again = elsewhere(usual, tmp_path / "again", steps=2, warmup_steps=0) | {"init": {"model": usual["output"]}}
    train(again)
    assert (Path(again["output"]) / "adapter").is_dir()


@pytest.mark.slow
def test_unknown_target_stops_the_stage_at_the_start(usual: dict[str, Any], tmp_path: Path) -> None:
    output = fails(elsewhere(usual, tmp_path, lora={**LORA, "targets": ["q_proj", "c_attn"]}))
    assert "lora.targets: the language model has no linear layers named c_attn; it has down_proj, gate_proj," in output


def test_freeze_counts_the_adapters(tiny_model: HoneybeeForConditionalGeneration) -> None:
    size = sum(p.numel() for p in tiny_model.llm.parameters())
    sizes = target_sizes(tiny_model.llm)
    assert sizes["q_proj"] == 2 * (32 + 32) and sizes["v_proj"] == 2 * (32 + 16) and "lm_head" not in sizes
    before = logits_of_text(tiny_model)
    add_adapters(tiny_model.llm, Lora(), seed=3)
    assert torch.equal(logits_of_text(tiny_model), before)
    counts = freeze(tiny_model, ["projector", "llm"])
    adapters = 8 * (sizes["q_proj"] + sizes["v_proj"])
    assert counts["llm"] == (adapters, size + adapters)
    assert counts["projector"][0] == counts["projector"][1] and counts["vision"][0] == 0
    trained = {name for name, p in tiny_model.llm.named_parameters() if p.requires_grad}
    assert len(trained) == 8 and all(".lora_" in name for name in trained)


def logits_of_text(model: HoneybeeForConditionalGeneration) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 25)[None]).logits


def test_same_seed_gives_the_same_adapters(tiny_backbones: Path) -> None:
    made = []
    for seed in (1, 1, 2):
        llm = AutoModelForCausalLM.from_pretrained(tiny_backbones / "llm")
        torch.rand(seed)  # the state of the random generator does not matter
        add_adapters(llm, Lora(), seed)
        made.append(llm.state_dict()["model.layers.1.self_attn.v_proj.lora_A.default.weight"])
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_targets_must_name_linear_layers(tiny_model: HoneybeeForConditionalGeneration) -> None:
    check_targets(tiny_model.llm, ["q_proj", "down_proj"])
    for wrong in ("lm_head", "embed_tokens", "proj", "self_attn"):
        with pytest.raises(JobError, match=f"no linear layers named {wrong}; it has down_proj, gate_proj, k_proj, o_"):
            check_targets(tiny_model.llm, ["q_proj", wrong])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora": {}, "trains": ["projector"]}, "lora adapts the language model: add llm to `trains`"),
        ({"lora": {"targets": []}}, "name at least one linear layer"),
        ({"lora": {"rank": 0}}, r"train\.lora\.rank"),
        ({"lora": {"r": 8}}, r"train\.lora\.r: Extra inputs"),
        ({"lora": {"dropout": 1.0}}, r"train\.lora\.dropout"),
    ],
)
def test_invalid_settings_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(make_job(tmp_path, tmp_path, tmp_path, **settings)))
    with pytest.raises(JobError, match=message):
        load_job(path)


def test_identity_contains_lora_only_if_used(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(make_job(tmp_path, tmp_path, tmp_path)))
    assert "lora" not in load_job(path).identity()["train"]
    path.write_text(json.dumps(make_job(tmp_path, tmp_path, tmp_path, lora={})))
    paper = {"rank": 8, "alpha": 32, "dropout": 0.05, "targets": ["q_proj", "v_proj"]}
    assert load_job(path).identity()["train"]["lora"] == paper


@pytest.mark.parametrize(
    ("llm", "stages", "base"),
    [
        ("lmsys/vicuna-7b-v1.5", [["projector"], ["projector", "llm"]], "lmsys/vicuna-7b-v1.5"),
        ("lmsys/vicuna-7b-v1.5", [["llm"], ["llm"]], None),  # the last stage started from a model that is on no hub
        (LOCAL_WEIGHTS, [["llm"]], None),
    ],
)
def test_adapter_names_its_base_model(tmp_path: Path, llm: str, stages: list[list[str]], base: str | None) -> None:
    facts = {"parts": {"vision": LOCAL_WEIGHTS, "llm": llm}, "stages": [{"trains": trains} for trains in stages]}
    found = language_model(facts)
    assert found == base
    save_adapter(tmp_path / "adapter", Lora(), {"base_model.model.x.lora_A.weight": torch.zeros(8, 2)}, found)
    config = peft.PeftConfig.from_pretrained(tmp_path / "adapter")
    assert config.base_model_name_or_path == base
    assert (config.r, config.lora_alpha, config.lora_dropout, config.target_modules) == (
        8,
        32,
        0.05,
        {"q_proj", "v_proj"},
    )
