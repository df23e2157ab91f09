"""The parameters of OpenAI's API and of vLLM's that this server does not have, and their values that change nothing.

Sources: https://platform.openai.com/docs/api-reference/chat and the types of the `openai` package; vLLM's
ChatCompletionRequest and SamplingParams; the further sampling settings of llama.cpp and text-generation-webui.
"""

from collections.abc import Mapping
from typing import Any

from model.serving.errors import RequestError

# Fields that never affect the answer, or only together with another field that is not supported.
_HARMLESS = {
    "id", "name", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "request_id",
    "prompt_cache_options", "prompt_cache_retention", "parallel_tool_calls", "prediction", "cache_salt", "priority",
    "cache_prompt", "include_reasoning", "return_tokens_as_token_ids", "guided_decoding_backend",
    "guided_whitespace_pattern", "include_stop_str_in_output",
}  # fmt: skip
_OFF: tuple[Any, ...] = (False,)
_ZERO: tuple[Any, ...] = (0,)
_ONE: tuple[Any, ...] = (1,)
_NOTHING: tuple[Any, ...] = ([], {}, "")
# Fields that can change the answer, with the values that leave it unchanged; null always does.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    # OpenAI
    "n": _ONE,
    "logprobs": _OFF,
    "top_logprobs": _ZERO,
    "logit_bias": _NOTHING,
    "presence_penalty": _ZERO,
    "frequency_penalty": _ZERO,
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": _NOTHING,
    "functions": _NOTHING,
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    # vLLM: sampling
    "best_of": _ONE,
    "use_beam_search": _OFF,
    "top_k": (-1, 0),
    "min_p": _ZERO,
    "repetition_penalty": _ONE,
    "length_penalty": _ONE,
    "early_stopping": _OFF,
    "stop_token_ids": _NOTHING,
    "bad_words": _NOTHING,
    "logits_processors": _NOTHING,
    "allowed_token_ids": (),
    "ignore_eos": _OFF,
    "min_tokens": _ZERO,
    "truncate_prompt_tokens": (),
    "prompt_logprobs": (),
    "repetition_detection": (),
    # vLLM: prompt and output
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "echo": _OFF,
    "add_generation_prompt": (True,),
    "continue_final_message": _OFF,
    "add_special_tokens": _OFF,
    "return_token_ids": _OFF,
    "documents": _NOTHING,
    "chat_template": (),
    "chat_template_kwargs": _NOTHING,
    "mm_processor_kwargs": _NOTHING,
    "media_io_kwargs": _NOTHING,
    "structured_outputs": _NOTHING,
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "kv_transfer_params": _NOTHING,
    "vllm_xargs": _NOTHING,
    # llama.cpp and others
    "typical_p": _ONE,
    "tfs_z": _ONE,
    "top_a": _ZERO,
    "mirostat": _ZERO,
    "mirostat_mode": _ZERO,
    "dry_multiplier": _ZERO,
    "xtc_probability": _ZERO,
    "repeat_penalty": _ONE,
    "no_repeat_ngram_size": _ZERO,
    "num_beams": _ONE,
    "n_probs": _ZERO,
    "grammar": _NOTHING,
    # messages
    "tool_calls": _NOTHING,
    "refusal": _NOTHING,
    "reasoning": _NOTHING,
    "reasoning_content": _NOTHING,
}
_HARMLESS_IN_MESSAGES = {"id", "name", "annotations", "metadata"}


def refuse_unsupported(extra: Mapping[str, Any], place: str) -> None:
    """Raises RequestError (400), naming the field, for one that would change the answer. extra: the fields that are no
    part of the protocol. place: `messages[0].` for those of a message."""
    harmless = _HARMLESS_IN_MESSAGES if place else _HARMLESS
    for name, value in extra.items():
        neutral = _NEUTRAL.get(name)
        if value is None or name in harmless or any(_equal(value, each) for each in neutral or ()):
            continue
        param = place + name
        if not neutral:
            raise RequestError(400, f"{param} is not supported by this server: omit it", param, "unsupported_parameter")
        allowed = " or ".join(map(repr, neutral))
        raise RequestError(400, f"{param} supports only {allowed}: omit it", param, "unsupported_parameter")


def _equal(value: Any, neutral: Any) -> bool:
    """Returns whether two values are the same; a truth value is not a number."""
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)
