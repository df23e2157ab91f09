"""The DeepSpeed engine of a stage, and one view of its optimiser state for every ZeRO stage and precision."""

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

from model.ranks import Ranks
from model.training.job import Train
from model.training.optimizer import adamw

MOMENTS = ("exp_avg", "exp_avg_sq")
STATE = ("weight", *MOMENTS)  # what AdamW knows of a trained parameter, each in fp32


class Engine:
    """Forward, backward and step of a model whose frozen parameters have requires_grad False."""

    def __init__(self, model: nn.Module, train: Train, ranks: Ranks):
        deepspeed.utils.logger.setLevel(logging.WARNING)
        # Else it is compiled when the ranks are joined, for more than a minute.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
        self.train, self.ranks = train, ranks
        self.accumulation = train.accumulation(ranks.world)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.optimizer = adamw(model, train)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0  # DeepSpeed may take a step of its own, to make the optimiser's state: see _begin_state
        self.deepspeed = deepspeed.initialize(
            model=model,
            optimizer=self.optimizer,
            config=deepspeed_config(train, self.accumulation, trained, ranks.device.type),
            dist_init_required=False,
        )[0]
        if ranks.world == 1 and train.zero_stage == 0:  # else all gradients are copied to buckets and back, unchanged
            self.deepspeed.enable_backward_allreduce = False
        self.model = model
        self.trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        # At stage 0: the fp32 tensor that AdamW updates for each parameter.
        self._master_of: dict[nn.Parameter, Tensor] = {}
        if train.zero_stage == 0 and train.precision == "fp32":
            self._master_of = {p: p for _, p in self.trained}
        elif train.zero_stage == 0:
            own, masters = self.deepspeed.optimizer.fp16_groups, self.deepspeed.optimizer.fp32_groups
            self._master_of = dict(zip(itertools.chain(*own), itertools.chain(*masters), strict=True))
        self._begin_state()
        # Where DeepSpeed does not clip: its plain fp32 engine, which does not report the norm either.
        self._clips = train.zero_stage == 0 and train.precision == "fp32"
        self._in_step = 0
        self._skip, self._norm = False, 0.0
        self.optimizer.held = lambda: self._skip or not math.isfinite(self._current_norm())

    def forward(self, **inputs: Any) -> Any:
        """What the model returns."""
        return self.deepspeed(**inputs)

    def backward(self, loss: Tensor) -> None:
        """loss: this forward pass's share of the loss of the global batch; shares of all passes and ranks are added."""
        # DeepSpeed takes the mean over ranks.
        self.deepspeed.backward(loss * self.ranks.world, scale_wrt_gas=False)
        self._in_step += 1
        if self._in_step < self.accumulation:
            self.deepspeed.step()  # only counts

    def step(self, learning_rate: float, skip: bool = False) -> float:
        """Updates the weights; returns the norm of the gradient before clipping. Call it after the last backward.

        learning_rate: of this step; each group takes it times its own `rate_scale` (model/training/optimizer.py). With
        `skip`, or where the norm is not finite, weights and optimiser stay as they are, on all ranks alike. Else
        DeepSpeed does all that it does in a step, so that the next one begins as usual.
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
        """Of the step in progress, as soon as its gradient is whole."""
        return self._norm if self._clips else float(self.deepspeed.optimizer._global_grad_norm)

    def full_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter by name, whole, as the model computes with it. All ranks must iterate."""
        for name, parameter in self.model.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.train.zero_stage == 3):
                yield name, parameter.detach()

    def gathered(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager:
        """Within it the parameters are whole, and may be changed: all ranks to the same. All ranks must enter it."""
        return deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0, enabled=self.train.zero_stage == 3)

    def full_state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """STATE of a trained parameter, whole. All ranks must call it, in the same order."""
        if self.train.zero_stage == 0:
            master = self._master_of[parameter]
            return {"weight": master.detach(), **{key: self.optimizer.state[master][key] for key in MOMENTS}}
        moments = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
        return {"weight": safe_get_full_fp32_param(parameter), **moments}

    def set_full_state(self, parameter: nn.Parameter, state: dict[str, Tensor]) -> None:
        """The inverse of full_state. All ranks must call it, with the same state."""
        if self.train.zero_stage == 0:
            master = self._master_of[parameter]
            master.data.copy_(state["weight"])
            for key in MOMENTS:
                self.optimizer.state[master][key].copy_(state[key])
        else:
            safe_set_full_fp32_param(parameter, state["weight"].to(self.ranks.device))
            for key in MOMENTS:
                safe_set_full_optimizer_state(parameter, state[key].to(self.ranks.device), key)
        # The copy that the model computes with.
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self.train.zero_stage == 3):
            if self.train.zero_stage < 3 or self.ranks.first:
                parameter.data.copy_(state["weight"])

    def set_steps(self, steps: int) -> None:
        """Tells AdamW, which corrects the bias of its moments by it, how many steps they come from."""
        for master in self._masters():
            self.optimizer.state[master]["step"].fill_(steps)

    def _begin_state(self) -> None:
        """Makes AdamW's state before the first step, as torch does at that step. DeepSpeed may have taken a step of
        its own, and at stage 2 it looks for the state of all groups when only the first has any."""
        self.optimizer.state.clear()
        for master in self._masters():
            self.optimizer.state[master] = {
                "step": torch.zeros((), dtype=torch.float32, device=master.device),
                **{key: torch.zeros_like(master) for key in MOMENTS},
            }
        if self.train.zero_stage == 2:
            self.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()

    def _masters(self) -> list[Tensor]:
        """The tensors that AdamW updates on this rank."""
        if self.train.zero_stage == 2:
            return self.deepspeed.optimizer.single_partition_of_fp32_groups
        if self.train.zero_stage == 3:
            return self.deepspeed.optimizer.fp32_partitioned_groups_flat
        return list(self._master_of.values())


def deepspeed_config(train: Train, accumulation: int, trained: int, device: str) -> dict:
    """trained: how many numbers are trained; no bucket needs to be larger."""
    on_gpu = device == "cuda"
    bucket = min(500_000_000, trained + trained % 2)
    zero: dict = {"stage": train.zero_stage, "reduce_bucket_size": bucket, "overlap_comm": on_gpu}
    if train.zero_stage == 2:
        # Contiguous gradients mean a new buffer in every step, which costs time on a CPU.
        zero |= {"allgather_bucket_size": bucket, "contiguous_gradients": on_gpu}
    config = {
        "train_micro_batch_size_per_gpu": train.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 0.0 if train.zero_stage == 0 and train.precision == "fp32" else train.clip_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # with offload too, torch's AdamW
        # The optimiser looks at the norm itself (HeldAdamW). DeepSpeed's own way out keeps, with offload, a gradient
        # that is no number for the next step.
        "bf16": {"enabled": train.precision == "bf16", "check_grad_overflow": False},
    }
    if train.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    if train.precision == "bf16" and train.zero_stage > 0:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config
