"""LoRA: trains only small adapters of the language model, an option in the paper's official code.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021). The adapters are those of peft; at the end of a
stage they are merged into the weights, and also saved separately.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model.training.settings import JobError, Lora

ADAPTER = "adapter"  # the subdirectory of the model directory that holds the adapter
_NAME = "default"  # peft's name for the only adapter of a model


def is_adapter(parameter: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return ".lora_A." in parameter or ".lora_B." in parameter


def target_sizes(llm: nn.Module) -> dict[str, int]:
    """Returns the possible targets: the last name components of all linear layers except the output head, sorted, each
    with the summed input and output sizes of its layers; adapters of rank r have r times that number of parameters."""
    sizes: dict[str, int] = {}
    last: Any = getattr(llm, "get_output_embeddings", lambda: None)()
    for path, layer in llm.named_modules():
        if isinstance(layer, nn.Linear) and layer is not last:
            name = path.rpartition(".")[2]
            sizes[name] = sizes.get(name, 0) + layer.in_features + layer.out_features
    return dict(sorted(sizes.items()))


def check_targets(llm: nn.Module, targets: Iterable[str]) -> None:
    """Raises JobError, listing the possible targets, if a target does not name a linear layer."""
    known = target_sizes(llm)
    unknown = [name for name in targets if name not in known]
    if unknown:
        raise JobError(
            f"lora.targets: the language model has no linear layers named {', '.join(unknown)}; "
            f"it has {', '.join(known) or 'none'}"
        )


def add_adapters(llm: nn.Module, lora: Lora, seed: int) -> None:
    """Injects adapters into the model, initially without effect. The same seed gives the same ones on every rank.

    A layer `….q_proj` gets the parameters `….q_proj.lora_A.default.weight` (rank, inputs) and `lora_B` (outputs, rank);
    its own weight becomes `….q_proj.base_layer.weight`. Raises JobError for targets that do not exist.
    """
    import peft  # the import takes seconds, and most stages do not need it

    check_targets(llm, lora.targets)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(_config(lora), llm, _NAME)


def merge_adapters(
    llm: nn.Module, gathered: Callable[[Sequence[nn.Parameter]], AbstractContextManager]
) -> dict[str, Tensor]:
    """Merges the adapters into the weights, in fp32, and removes them, which leaves a model without peft layers.

    gathered: a context in which the given parameters are complete and may be changed. Returns the adapter weights on
    the CPU, under the names of peft's files. All ranks must call it.
    """
    from peft.tuners.lora import LoraLayer

    adapters = {}
    for path, layer in list(llm.named_modules()):
        if not isinstance(layer, LoraLayer):
            continue
        base: Any = layer.get_base_layer()
        down: Any = layer.lora_A[_NAME]
        up: Any = layer.lora_B[_NAME]
        with torch.no_grad(), gathered([base.weight, down.weight, up.weight]):
            change = layer.scaling[_NAME] * (up.weight.float() @ down.weight.float())
            base.weight.copy_(base.weight.float() + change)
            for name, part in (("lora_A", down), ("lora_B", up)):
                adapters[f"base_model.model.{path}.{name}.weight"] = part.weight.detach().to("cpu", copy=True)
        parent, _, name = path.rpartition(".")
        setattr(llm.get_submodule(parent), name, base)
    del llm.peft_config  # left behind by peft
    return adapters


def save_adapter(directory: Path, lora: Lora, adapters: dict[str, Tensor], base: str | None) -> None:
    """Writes adapter_config.json and adapter_model.safetensors, in the format of `peft.PeftModel.from_pretrained`.

    base: the hub name of the language model that the adapters were trained for, or None.
    """
    directory.mkdir()
    config = _config(lora)
    config.base_model_name_or_path = base
    config.inference_mode = True
    # Sort sets, whose order is not stable.
    content = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    (directory / "adapter_config.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    save_file(adapters, directory / "adapter_model.safetensors", {"format": "pt"})


def _config(lora: Lora) -> Any:
    from peft import LoraConfig, TaskType

    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
    )
