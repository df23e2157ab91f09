"""The model: outputs of each part, loss and gradients, generation, saving and loading, rejected inputs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from model import HoneybeeConfig, HoneybeeForConditionalGeneration

IMAGE = 3  # the id of <image> in the tiny tokenizer
PER_IMAGE = 4


def tokens(*rows: str) -> Tensor:
    """Rows of ids: `i` denotes an image (4 image tokens), `.` padding, and any other letter a text token."""
    ids = [
        [x for letter in row for x in ([IMAGE] * PER_IMAGE if letter == "i" else [0 if letter == "." else ord(letter)])]
        for row in rows
    ]
    return torch.tensor(ids)


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(7))


def backbones(root: Path, **changes: Any) -> HoneybeeForConditionalGeneration:
    given: dict[str, Any] = {
        "vision": root / "vision",
        "llm": root / "llm",
        "projector": {"type": "linear", "num_tokens": 16},
        "tokenizer": root / "llm",
    }
    return HoneybeeForConditionalGeneration.from_backbones(**{**given, **changes})


class Calls:
    """Records the input shape of each call of a module."""

    def __init__(self, module: nn.Module):
        self.shapes: list[tuple[int, ...]] = []
        module.register_forward_hook(lambda module, args, output: self.shapes.append(tuple(args[0].shape)))


# --- vision features ---


@pytest.mark.parametrize("layer", [-1, -2, 0, 2, 3, -4])
def test_features_equal_the_encoders_hidden_states_and_later_layers_do_not_run(
    tiny_backbones: Path, layer: int
) -> None:
    model = backbones(tiny_backbones, vision_layer=layer)
    expected = model.vision(images(2), output_hidden_states=True).hidden_states[layer]
    counts = [Calls(block) for block in model.vision.encoder.layers]
    features = model.get_vision_features(images(2))
    assert torch.equal(features, expected[:, 1:])
    assert [len(c.shapes) for c in counts] == [1] * (layer % 4) + [0] * (3 - layer % 4)


@pytest.mark.parametrize(
    "encoder, prefix",
    [
        (
            SiglipVisionModel(
                SiglipVisionConfig(
                    hidden_size=32,
                    intermediate_size=64,
                    num_hidden_layers=3,
                    num_attention_heads=2,
                    image_size=32,
                    patch_size=8,
                )
            ),
            0,
        ),
        (
            Dinov2Model(
                Dinov2Config(
                    hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8, mlp_ratio=2
                )
            ),
            1,
        ),
    ],
    ids=["siglip", "dinov2"],
)
def test_other_vision_encoders(tiny_backbones: Path, tmp_path: Path, encoder: Any, prefix: int) -> None:
    encoder.save_pretrained(tmp_path)
    model = backbones(tiny_backbones, vision=tmp_path)
    encoder.eval()
    expected = encoder(images(2), output_hidden_states=True).hidden_states[-2][:, prefix:]
    assert torch.equal(model.get_vision_features(images(2)), expected)


def test_graph_is_recorded_only_if_the_encoder_is_trainable(tiny_model: Any) -> None:
    trained = tiny_model.get_vision_features(images(1))
    assert trained.requires_grad
    tiny_model.vision.requires_grad_(False)
    frozen = tiny_model.get_vision_features(images(1))
    assert not frozen.requires_grad and torch.equal(frozen, trained)
    tiny_model.vision.encoder.layers[0].mlp.fc1.bias.requires_grad_(True)  # one parameter is enough
    tiny_model.get_vision_features(images(1)).sum().backward()
    assert tiny_model.vision.encoder.layers[0].mlp.fc1.bias.grad.abs().sum() > 0


def test_position_embeddings_are_interpolated_for_another_image_size(tiny_backbones: Path) -> None:
    model = backbones(
        tiny_backbones, image_size=64, projector={"type": "c-abstractor", "num_tokens": 4}, vision_layer=-1
    )
    assert model.config.vision_config.image_size == 64 and model.config.num_features == 64
    large = torch.randn(2, 3, 64, 64)
    clip = CLIPVisionModel.from_pretrained(tiny_backbones / "vision")
    expected = clip(large, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
    torch.testing.assert_close(model.get_vision_features(large), expected)


# --- splicing ---


def test_visual_tokens_replace_image_tokens_in_order(tiny_model: Any) -> None:
    ids = tokens("aiibii", "abcdefgihjklmno", "abcdefghjklmnopqrs")
    embeds, visual = tiny_model.embed(ids, images(5))
    assert visual.shape == (5, 4, 32)
    text = tiny_model.get_input_embeddings()(ids)
    is_image = ids == IMAGE
    assert torch.equal(embeds[is_image], visual.flatten(0, 1)) and torch.equal(embeds[~is_image], text[~is_image])
    each = torch.cat([tiny_model.get_image_features(image) for image in images(5).split(1)])
    torch.testing.assert_close(visual, each)


@pytest.mark.parametrize(
    "ids, count, message",
    [
        (tokens("ai"), 2, "found 4 image tokens for 2 images: .* must be 8"),
        (tokens("aii"), 1, "found 8 image tokens for 1 images: .* must be 4"),
        (tokens("ai")[:, :-1], 1, "found 3 image tokens for 1 images"),
        (tokens("abcdefgh"), 1, "found 0 image tokens for 1 images"),
        (tokens("aii"), 0, "found 8 image tokens for 0 images"),
        (tokens("aii"), None, "found 8 image tokens but 0 images"),
        (torch.tensor([[IMAGE] * 5 + [9], [IMAGE] * 3 + [9] * 3]), 2, r"rows contain \[5, 3\] .* multiple of 4"),
    ],
)
def test_images_and_image_tokens_must_match(tiny_model: Any, ids: Tensor, count: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model(input_ids=ids, pixel_values=None if count is None else images(count))


def test_exactly_one_input_is_required(tiny_model: Any) -> None:
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        tiny_model(pixel_values=images(1))
    with pytest.raises(ValueError, match="exactly one"):
        tiny_model(input_ids=tokens("ab"), inputs_embeds=torch.zeros(1, 2, 32))


def test_inputs_embeds_with_and_without_spliced_images(tiny_model: Any) -> None:
    ids = tokens("aibc")
    expected = tiny_model(input_ids=ids, pixel_values=images(1)).logits
    spliced, _ = tiny_model.embed(ids, images(1))
    assert torch.equal(tiny_model(inputs_embeds=spliced).logits, expected)
    unspliced = tiny_model.get_input_embeddings()(ids)
    assert torch.equal(tiny_model(inputs_embeds=unspliced, pixel_values=images(1)).logits, expected)


# --- loss ---


def labelled() -> dict[str, Tensor]:
    ids = torch.cat([tokens("aibcdefgh"), tokens("iabcdefgh")])
    labels = ids.masked_fill((ids == IMAGE) | (torch.arange(12) < 8), -100)
    labels[1, -2:] = -100
    return {"input_ids": ids, "pixel_values": images(2), "labels": labels}


def test_loss_is_the_mean_over_supervised_tokens_and_the_head_runs_only_on_them(tiny_model: Any) -> None:
    batch = labelled()
    full = tiny_model(**batch, return_logits=True)
    expected = F.cross_entropy(full.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    torch.testing.assert_close(full.loss, expected)
    head = Calls(tiny_model.llm.lm_head)
    output = tiny_model(**batch)
    assert output.logits is None and head.shapes == [(6, 32)]  # 4 + 2 supervised tokens
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(tiny_model(**batch, num_items_in_batch=12).loss, expected / 2)
    torch.testing.assert_close(tiny_model(**batch, num_items_in_batch=torch.tensor(3)).loss, expected * 2)


def test_gradients_do_not_depend_on_return_logits(tiny_model: Any) -> None:
    tiny_model.train()
    gradients = []
    for return_logits in (True, False):
        tiny_model.zero_grad()
        tiny_model(**labelled(), return_logits=return_logits).loss.backward()
        gradients.append({name: p.grad for name, p in tiny_model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])
    assert {"projector", "llm", "vision"} == {name.split(".")[0] for name in gradients[0]}


def test_batch_without_supervised_tokens_has_zero_loss_and_gradients(tiny_model: Any) -> None:
    batch = labelled()
    batch["labels"] = torch.full_like(batch["labels"], -100)
    loss = tiny_model(**batch).loss
    assert loss.item() == 0
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in tiny_model.parameters())


def test_batch_without_images_gives_the_projector_zero_gradients(tiny_model: Any) -> None:
    ids = tokens("abcdef")
    with_none = tiny_model(input_ids=ids, labels=ids)
    output = tiny_model(input_ids=ids, pixel_values=images(0), labels=ids)
    torch.testing.assert_close(output.loss, with_none.loss)
    output.loss.backward()
    for name, parameter in tiny_model.projector.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


def test_packed_sequences_equal_separate_sequences(tiny_model: Any) -> None:
    first, second = tokens("aibcde"), tokens("fghiik")
    separate = [
        tiny_model(input_ids=ids, pixel_values=images(3)[at]).logits for ids, at in ((first, [0]), (second, [1, 2]))
    ]
    packed = torch.cat([first, second], dim=1)
    lengths = [first.shape[1], second.shape[1]]
    block = torch.block_diag(*[torch.ones(n, n).tril() for n in lengths]).bool()
    output = tiny_model(
        input_ids=packed,
        pixel_values=images(3),
        attention_mask=block[None, None],
        position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
    )
    torch.testing.assert_close(output.logits, torch.cat(separate, dim=1), rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_covers_the_projector_and_preserves_gradients(tiny_model: Any) -> None:
    tiny_model.vision.requires_grad_(False)
    tiny_model.train()
    blocks = Calls(tiny_model.projector.blocks_before)
    plain = gradients_of(tiny_model)
    assert len(blocks.shapes) == 1
    tiny_model.activation_checkpointing_enable()
    checkpointed = gradients_of(tiny_model)
    assert len(blocks.shapes) == 3  # one more forward pass, and its recomputation in the backward pass
    for name, gradient in plain.items():
        torch.testing.assert_close(gradient, checkpointed[name])


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    model(**labelled()).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# --- generation ---


def test_batched_generation_equals_single_generation_and_encodes_images_once(tiny_model: Any) -> None:
    rows = ["aibc", "defiigh", "klmnopq"]
    longest = max(tokens(row).shape[1] for row in rows)
    counts = [1, 2, 0]
    single = []
    for row, at in zip(rows, torch.arange(3).split(counts), strict=True):
        pixels = images(3)[at] if len(at) else None
        ids = tokens(row)
        output = tiny_model.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=6, do_sample=False)
        single.append(output[0, ids.shape[1] :].tolist())
    ids = torch.cat([F.pad(tokens(row), (longest - tokens(row).shape[1], 0)) for row in rows])
    vision = Calls(tiny_model.vision.embeddings)
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": images(3)}
    output = tiny_model.generate(**batch, max_new_tokens=6, do_sample=False)
    assert output[:, longest:].tolist() == single
    assert vision.shapes == [(3, 3, 32, 32)]


def test_beam_search_keeps_the_images_of_a_row_together(tiny_model: Any) -> None:
    settings = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False}
    both = tiny_model.generate(
        input_ids=torch.cat([tokens("aiib"), tokens("biia")]), pixel_values=images(4), **settings
    )
    single = [
        tiny_model.generate(input_ids=tokens(row), pixel_values=images(4)[at], **settings)[0]
        for row, at in (("aiib", [0, 1]), ("biia", [2, 3]))
    ]
    assert both.tolist() == torch.stack(single).tolist()


def test_generation_from_embeddings(tiny_model: Any) -> None:
    ids = tokens("aibc")
    expected = tiny_model.generate(input_ids=ids, pixel_values=images(1), max_new_tokens=5, do_sample=False)
    embeds, _ = tiny_model.embed(ids, images(1))
    output = tiny_model.generate(inputs_embeds=embeds, max_new_tokens=5, do_sample=False)
    assert output.tolist() == expected[:, ids.shape[1] :].tolist()


def test_image_token_is_never_generated(tiny_model: Any) -> None:
    with torch.no_grad():  # makes <image> the likeliest token in every state
        tiny_model.llm.lm_head.weight.zero_()
        tiny_model.llm.lm_head.weight[IMAGE] = 1.0
        tiny_model.llm.model.norm.weight.copy_(torch.ones(32))
    output = tiny_model.generate(input_ids=tokens("abc"), max_new_tokens=4, do_sample=False)
    assert IMAGE not in output[0, 3:]


# --- backbones, saving, loading ---


def test_projector_initialisation_depends_only_on_the_seed(tiny_backbones: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = backbones(tiny_backbones, seed=5).projector.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = backbones(tiny_backbones, seed=5).projector.state_dict()
    other = backbones(tiny_backbones, seed=6).projector.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["net.0.weight"], other["net.0.weight"])


def test_parts_have_the_weights_of_the_backbones(tiny_backbones: Path) -> None:
    model = backbones(tiny_backbones)
    clip = AutoModel.from_pretrained(tiny_backbones / "vision").vision_model.state_dict()
    llama = AutoModelForCausalLM.from_pretrained(tiny_backbones / "llm").state_dict()
    assert all(torch.equal(model.vision.state_dict()[name], tensor) for name, tensor in clip.items())
    assert all(torch.equal(model.llm.state_dict()[name], tensor) for name, tensor in llama.items())
    assert not model.training and str(tiny_backbones) not in model.config.to_json_string()


def test_embeddings_are_extended_for_new_tokens(tiny_backbones: Path, tiny_processor: Any) -> None:
    tokenizer = tiny_processor.tokenizer.__class__.from_pretrained(tiny_backbones / "llm")
    tokenizer.add_tokens(["<one>", "<two>"])
    model = backbones(tiny_backbones, tokenizer=tokenizer)
    assert model.config.text_config.vocab_size == 322
    table: Any
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert table.weight.shape == (322, 32)
        torch.testing.assert_close(table.weight[320], table.weight[:320].mean(dim=0))
    assert model(input_ids=torch.tensor([[320, 321]])).logits.shape == (1, 2, 322)


def test_tokenizer_without_the_image_token_is_rejected(tiny_backbones: Path, tmp_path: Path) -> None:
    text = (tiny_backbones / "llm" / "tokenizer.json").read_text().replace("<image>", "<other>")
    settings = (tiny_backbones / "llm" / "tokenizer_config.json").read_text().replace("<image>", "<other>")
    (tmp_path / "tokenizer.json").write_text(text)
    (tmp_path / "tokenizer_config.json").write_text(settings)
    with pytest.raises(ValueError, match="has no token <image>"):
        backbones(tiny_backbones, tokenizer=tmp_path)


def test_backbone_with_missing_weights_is_rejected(tiny_backbones: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tiny_backbones / "llm").model.save_pretrained(tmp_path)  # without lm_head
    with pytest.raises(ValueError, match=r"lacks 1 weights .* lm_head\.weight"):
        backbones(tiny_backbones, llm=tmp_path)


def test_vision_layer_out_of_range_is_rejected(tiny_backbones: Path) -> None:
    with pytest.raises(ValueError, match=r"vision_layer is -5, but the vision encoder has 3 layers: .* from -4 to 3"):
        backbones(tiny_backbones, vision_layer=-5)


def test_unknown_projector_key_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"projector has unknown keys \['tokens'\]"):
        HoneybeeConfig(projector={"tokens": 4})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saving_and_loading_is_bit_exact(tiny_backbones: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    model = backbones(tiny_backbones, dtype=dtype)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert isinstance(AutoConfig.from_pretrained(tmp_path), HoneybeeConfig)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert isinstance(loaded, HoneybeeForConditionalGeneration) and loaded.dtype == dtype
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert all(a.dtype == b.dtype for a, b in zip(before.values(), after.values(), strict=True))
    batch = {"input_ids": torch.tensor([[7] + [IMAGE] * 16 + [9]]), "pixel_values": images(1)}
    assert torch.equal(model(**batch).logits, loaded(**batch).logits)
    assert loaded.generation_config.suppress_tokens == [IMAGE]


LLMS = {
    "tied llama": LlamaConfig(tie_word_embeddings=True, num_key_value_heads=2),
    "gemma2 with soft-capped logits": Gemma2Config(head_dim=8, final_logit_softcapping=5.0, num_key_value_heads=2),
    "gpt-neox": GPTNeoXConfig(),
}


@pytest.mark.parametrize("name", LLMS)
def test_other_language_models(tiny_backbones: Path, tmp_path: Path, name: str) -> None:
    config = LLMS[name]
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    for key, value in {**sizes, "vocab_size": 320, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}.items():
        setattr(config, key, value)
    if hasattr(config, "layer_types") and config.layer_types:
        config.layer_types = config.layer_types[:2]
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "llm")
    model = backbones(tiny_backbones, llm=tmp_path / "llm", projector={"type": "c-abstractor", "num_tokens": 4})
    batch = labelled()
    full = model(**batch, return_logits=True)
    expected = F.cross_entropy(full.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    torch.testing.assert_close(model(**batch).loss, expected)
    model.save_pretrained(tmp_path / "model")
    loaded = HoneybeeForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded(**batch, return_logits=True).logits, full.logits)
    tied = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert tied == config.tie_word_embeddings


def test_mismatched_weights_are_rejected_by_name(tiny_model: Any, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    good = load_file(file)

    def assert_rejected(message: str, **changed: Tensor) -> None:
        save_file({**{k: v for k, v in good.items() if k not in changed}, **changed}, file, {"format": "pt"})
        with pytest.raises(ValueError, match=message):
            HoneybeeForConditionalGeneration.from_pretrained(tmp_path)

    bias = "projector.readout.2.bias"
    save_file({k: v for k, v in good.items() if k != bias}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=f"missing {bias}"):
        HoneybeeForConditionalGeneration.from_pretrained(tmp_path)
    assert_rejected("unexpected projector.extra", **{"projector.extra": torch.zeros(2)})
    assert_rejected(rf"{bias} has shape \(31,\), but the model expects \(32,\)", **{bias: torch.zeros(31)})
    assert_rejected(f"{bias} contains non-finite values", **{bias: torch.full((32,), float("nan"))})


def test_bf16_is_close_to_fp32(tiny_backbones: Path) -> None:
    projector = {"type": "c-abstractor", "num_tokens": 4, "settings": {"hidden_size": 32}}
    full, half = (backbones(tiny_backbones, projector=projector, dtype=t) for t in (torch.float32, torch.bfloat16))
    batch = labelled()
    assert half(**batch, return_logits=True).logits.dtype == torch.bfloat16
    torch.testing.assert_close(half(**batch).loss, full(**batch).loss, rtol=0.02, atol=0.02)


def test_saved_configuration_describes_the_model(tiny_model: Any, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "honeybee" and config["projector"]["type"] == "c-abstractor"
    assert config["vision_config"]["model_type"] == "clip_vision_model" and config["image_token_id"] == IMAGE
    assert tiny_model.config.num_image_tokens == 4
