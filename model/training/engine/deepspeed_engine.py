"""The DeepSpeed engine of a stage, with a uniform view of its optimiser state across ZeRO stages and precisions."""

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from model.distributed import Ranks
from model.training.engine.optimizer import adamw
from model.training.settings import Train

MOMENTS = ("exp_avg", "exp_avg_sq")
STATE = ("weight", *MOMENTS)  # the state of a trained parameter, each in fp32


class Engine:
    """Runs forward, backward and step of a model whose frozen parameters have requires_grad=False."""

    def __init__(self, model: nn.Module, train: Train, ranks: Ranks):
        deepspeed.utils.logger.setLevel(logging.WARNING)
        # Otherwise DeepSpeed compiles this op for more than a minute when the ranks are joined.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
        self.train, self.ranks = train, ranks
        self.accumulation = train.accumulation(ranks.world)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.optimizer = adamw(model, train)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0  # DeepSpeed may take a step itself to create the optimiser state: see _init_state
        self.deepspeed = deepspeed.initialize(
            model=model,
            optimizer=self.optimizer,
            config=deepspeed_config(train, self.accumulation, trained, ranks.device.type),
            dist_init_required=False,
        )[0]
        if ranks.world == 1 and train.zero_stage == 0:  # saves copying all gradients to buckets and back, unchanged
            self.deepspeed.enable_backward_allreduce = False
        self.model = model
        self.trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        # For ZeRO stage 0: the fp32 tensor that AdamW updates for each parameter.
        self._master_of: dict[nn.Parameter, Tensor] = {}
        if train.zero_stage == 0 and train.precision == "fp32":
            self._master_of = {p: p for _, p in self.trained}
        elif train.zero_stage == 0:
            own, masters = self.deepspeed.optimizer.fp16_groups, self.deepspeed.optimizer.fp32_groups
            self._master_of = dict(zip(itertools.chain(*own), itertools.chain(*masters), strict=True))
        self._init_state()
        # DeepSpeed's plain fp32 engine neither clips here nor reports the norm.
        self._clips = train.zero_stage == 0 and train.precision == "fp32"
        self._in_step = 0
        self._skip, self._norm = False, 0.0
        self.optimizer.held = lambda: self._skip or not math.isfinite(self._current_norm())

    def forward(self, **inputs: Any) -> Any:
        """Returns the output of the model."""
        return self.deepspeed(**inputs)

    def backward(self, loss: Tensor) -> None:
        """loss: the share of this forward pass in the loss of the global batch, the sum over all passes and ranks."""
        # DeepSpeed averages over ranks.
        self.deepspeed.backward(loss * self.ranks.world, scale_wrt_gas=False)
        self._in_step += 1
        if self._in_step < self.accumulation:
            self.deepspeed.step()  # only counts

    def step(self, learning_rate: float, skip: bool = False) -> float:
        """Updates the weights and returns the gradient norm before clipping. Call it after the last backward.

        learning_rate: of this step; each group multiplies it by its `rate_scale` (model/training/engine/optimizer.py).
        With `skip`, or if the norm is not finite, weights and optimiser state stay unchanged on all ranks, but
        DeepSpeed does everything else of a step, so that the next one starts normally.
        """
        assert self._in_step == self.accumulation, "step before the last backward of the global batch"
        self._in_step = 0
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate * group["rate_scale"]
        self._skip = skip
        if self._clips:
            parameters = [p for _, p in self.trained]
            self._norm = float(nn.utils.clip_grad_norm_(parameters, self.train.clip_norm, foreach=True))
        self.deepspeed.step()
        return self._current_norm()

    def _current_norm(self) -> float:
        """Returns the gradient norm of the current step; valid once the gradient is complete."""
        return self._norm if self._clips else float(self.deepspeed.optimizer._global_grad_norm)

    def full_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yields the name and full tensor of every parameter, in the model's precision. All ranks must iterate."""
        for name, parameter in self.model.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.train.zero_stage == 3):
                yield name, parameter.detach()

    def gathered(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager:
        """Inside this context the parameters are gathered in full and may be changed, identically on all ranks.

        All ranks must enter it.
        """
        return deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0, enabled=self.train.zero_stage == 3)

    def full_state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Returns the full STATE of a trained parameter. All ranks must call it, in the same order."""
        if self.train.zero_stage == 0:
            master = self._master_of[parameter]
            return {"weight": master.detach(), **{key: self.optimizer.state[master][key] for key in MOMENTS}}
        moments = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
        return {"weight": safe_get_full_fp32_param(parameter), **moments}

    def set_full_state(self, parameter: nn.Parameter, state: dict[str, Tensor]) -> None:
        """Sets what full_state returns. All ranks must call it, with the same state."""
        if self.train.zero_stage == 0:
            master = self._master_of[parameter]
            master.data.copy_(state["weight"])
            for key in MOMENTS:
                self.optimizer.state[master][key].copy_(state[key])
        else:
            safe_set_full_fp32_param(parameter, state["weight"].to(self.ranks.device))
            for key in MOMENTS:
                safe_set_full_optimizer_state(parameter, state[key].to(self.ranks.device), key)
        # The copy of the weight that the model computes with.
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self.train.zero_stage == 3):
            if self.train.zero_stage < 3 or self.ranks.first:
                parameter.data.copy_(state["weight"])

    def set_steps(self, steps: int) -> None:
        """Sets the number of steps that AdamW has taken, by which it corrects the bias of its moments."""
        for master in self._masters():
            self.optimizer.state[master]["step"].fill_(steps)

    def _init_state(self) -> None:
        """Creates AdamW's state before the first step, as torch does in that step. DeepSpeed may have taken a step
        itself, and ZeRO stage 2 looks up the state of all groups while only the first has any."""
        self.optimizer.state.clear()
        for master in self._masters():
            self.optimizer.state[master] = {
                "step": torch.zeros((), dtype=torch.float32, device=master.device),
                **{key: torch.zeros_like(master) for key in MOMENTS},
            }
        if self.train.zero_stage == 2:
            self.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()

    def _masters(self) -> list[Tensor]:
        """Returns the tensors that AdamW updates on this rank."""
        if self.train.zero_stage == 2:
            return self.deepspeed.optimizer.single_partition_of_fp32_groups
        if self.train.zero_stage == 3:
            return self.deepspeed.optimizer.fp32_partitioned_groups_flat
        return list(self._master_of.values())


def deepspeed_config(train: Train, accumulation: int, trained: int, device: str) -> dict:
    """Returns DeepSpeed's config. trained: the number of trained parameters, which bounds the bucket size."""
    on_gpu = device == "cuda"
    bucket = min(500_000_000, trained + trained % 2)
    zero: dict = {"stage": train.zero_stage, "reduce_bucket_size": bucket, "overlap_comm": on_gpu}
    if train.zero_stage == 2:
        # Contiguous gradients allocate a new buffer in every step, which costs time on a CPU.
        zero |= {"allgather_bucket_size": bucket, "contiguous_gradients": on_gpu}
    config = {
        "train_micro_batch_size_per_gpu": train.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 0.0 if train.zero_stage == 0 and train.precision == "fp32" else train.clip_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # use torch's AdamW with offload, too
        # HeldAdamW checks the norm itself: with offload, DeepSpeed's own overflow check would carry a non-finite
        # gradient over to the next step.
        "bf16": {"enabled": train.precision == "bf16", "check_grad_overflow": False},
    }
    if train.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    if train.precision == "bf16" and train.zero_stage > 0:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config
