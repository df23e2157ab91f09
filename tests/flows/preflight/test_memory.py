"""How each setting affects the estimate of a rank's memory. benchmarks/memory.py compares it with measurements."""

from typing import Any

import pytest
from transformers import CLIPVisionConfig, LlamaConfig

from flows.preflight.memory import Content, Sizes, pass_peak, pass_shape, phases, rank_bytes, sizes_of
from flows.recipe.data import Data
from model import HoneybeeConfig
from model.training.activation_memory import Peak
from model.training.settings import Lora, Train
from pipelines.packing.plan import Packing


@pytest.fixture(scope="module")
def model() -> Sizes:
    width: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    return sizes_of(
        HoneybeeConfig(
            vision_config=CLIPVisionConfig(**width, num_hidden_layers=3, image_size=64, patch_size=8),
            text_config=LlamaConfig(**width, num_hidden_layers=6, vocab_size=1000),
            projector={"type": "c-abstractor", "num_tokens": 16, "settings": {"hidden_size": 64, "depth": 1}},
        )
    )


DATA = Data.model_validate({"weights": {"a": 1.0}, "max_text_tokens": 100})


def train_of(**changes: Any) -> Train:
    return Train(
        **{"steps": 1, "warmup_steps": 0, "global_batch": 8, "micro_batch": 2, "gradient_checkpointing": False}
        | changes
    )


def test_zero_divides_the_states_of_the_trained_parameters(model: Sizes) -> None:
    def held(ranks: int, device: str = "cuda", **changes: Any) -> dict[str, float]:
        return phases(model, train_of(**changes), ranks, Peak(0, 0), device)["in the optimiser step"]

    total, trained = sum(model.parameters.values()), model.parameters["projector"] + model.parameters["llm"]
    assert held(2) == {"weights": 2 * total, "optimiser": 12 * trained / 2, "gradients": 4 * trained / 2}
    plain = held(2, zero_stage=0, precision="fp32")
    assert plain == {"weights": 4 * total, "optimiser": 8 * trained, "gradients": 4 * trained}
    assert held(4)["optimiser"] == held(2)["optimiser"] / 2
    assert held(2, offload=True)["optimiser"] == held(2, offload=True)["gradients"] == 0
    assert held(2, "cpu", offload=True)["optimiser"] == 12 * trained / 2  # offloading to the CPU saves nothing there
    few = model.parameters["projector"] + 2 * (model.targets["q_proj"] + model.targets["v_proj"])
    assert held(1, lora=Lora(rank=2))["optimiser"] == 12 * few


def test_passes_depend_on_freezing_checkpointing_and_supervision(model: Sizes) -> None:
    def passes(content: Content = Content(), **changes: Any) -> int:
        train = train_of(**changes)
        return pass_peak(model, train, pass_shape(model, DATA, train, content)).handed_on

    assert passes(gradient_checkpointing=True) < 0.6 * passes()
    assert passes(trains=("projector",)) < 0.9 * passes()
    assert passes(micro_batch=4) == pytest.approx(2 * passes(), rel=0.1)
    assert passes(precision="fp32") > 1.3 * passes()
    assert passes(Content(supervised=0.1)) < passes()
    pack: dict[str, Any] = {"packing": Packing(max_tokens=464), "micro_batch": 1}  # four examples
    assert passes(**pack) > passes(**pack, attention="packed")


def test_a_pass_has_the_maximum_sequence_length(model: Sizes) -> None:
    shape = pass_shape(model, DATA, train_of(), Content(0.5))
    assert (shape.rows, shape.positions, shape.images, shape.supervised, shape.masked) == (2, 116, 2, 100, False)
    packed = train_of(packing=Packing(max_tokens=400))
    shape = pass_shape(model, DATA, packed, Content(1.0, positions_per_image=40))
    assert (shape.positions, shape.images, shape.supervised, shape.masked) == (400, 20, 2 * (400 - 160), True)


def test_on_a_cpu_libraries_and_prefetched_images_count_too(model: Sizes) -> None:
    train = train_of()
    shape = pass_shape(model, DATA, train, Content())
    passes = pass_peak(model, train, shape)
    moment, need = rank_bytes(model, train, 1, shape, passes, "cpu")
    assert need["libraries"] > 0.5 * 2**30
    assert need["images"] == 5 * 8 * 3 * 64 * 64 * 4  # five steps of eight images
    assert moment in phases(model, train, 1, passes, "cpu")
    assert "libraries" not in rank_bytes(model, train, 1, shape, passes, "cuda")[1]
