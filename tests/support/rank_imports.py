"""Loads everything that a rank loads while it starts and trains: the fork server does so once for all ranks.

Otherwise it takes several times as long to start a rank of a tiny model as to train it: e.g. DeepSpeed's Muon
optimizer, which every ZeRO stage imports, imports torch._inductor.
"""

# ruff: noqa: F401 (importing is the purpose)
import gc

import deepspeed.comm.mori
import deepspeed.module_inject.auto_ep_layer
import deepspeed.ops.triton_ops
import deepspeed.runtime.superoffload.superoffload_stage3
import deepspeed.runtime.zero.muon.muon_optimizer
import deepspeed.runtime.zero.stage3
import deepspeed.runtime.zero.stage_1_and_2
import pandas
import PIL.Image
import torch.utils.tensorboard
import transformers
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import model.evaluation.run
import model.modeling
import model.processing
import model.training.sample_backbones
import model.training.stage

# What is computed at the first use.
BACKBONES = (transformers.CLIPModel, transformers.CLIPImageProcessorPil, transformers.LlamaForCausalLM)
OPERATORS = deepspeed.ops.__compatible_ops__
PIL.Image.init()
get_checkpoint_conversion_mapping("llama")

gc.collect()
gc.freeze()  # so that a collection in a rank does not visit, and thereby copy, all of these objects
