"""The server as seen by the official client: answers, streams, batches, cancellation and shutdown."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from support.serving_world import data_url, image, run_server, text, user, wait_for

from model import HoneybeeForConditionalGeneration
from model.generation.chat import Chat
from model.generation.generate import End, PromptError, PromptRow, encode, generate
from model.generation.sampling import Sampling

QUESTIONS: list[list[Any]] = [
    [user("Is there a circle?")],
    [user(image(data_url("red")), text("What colour is the square?"))],
    [user(image(data_url("blue", "JPEG")), image(data_url("green", "WEBP")), text("And now?"))],
    [{"role": "system", "content": "Be short."}, user(text("Who is "), text("there?"))],
    [user("Human"), {"role": "assistant", "content": "Yes"}, user(text("Why? "), image(data_url("gray", "GIF")))],
    [user(image(data_url("yellow", "BMP", (90, 10))))],
]


def build(tiny_backbones: Path) -> Any:
    """Returns a random model with weights so large that its answers depend on images and history."""
    vision, llm = tiny_backbones / "vision", tiny_backbones / "llm"
    projector = {"type": "c-abstractor", "num_tokens": 4, "settings": {"hidden_size": 32, "depth": 1}}
    model = HoneybeeForConditionalGeneration.from_backbones(vision, llm, projector, llm)
    with torch.no_grad():
        for parameter in model.llm.model.layers.parameters():
            if parameter.ndim == 2:
                parameter *= 15
    return model


@pytest.fixture(scope="module")
def world(tiny_backbones: Path, tiny_processor: Any) -> Iterator[tuple[openai.OpenAI, Any, list[int]]]:
    """Yields a client, the served model, and the sizes of the batches that it ran."""
    model = build(tiny_backbones)
    sizes: list[int] = []
    model.llm.lm_head.register_forward_hook(lambda module, args, logits: sizes.append(len(logits)))
    with run_server(model, tiny_processor) as url:
        yield openai.OpenAI(base_url=url, api_key="none", max_retries=0), model, sizes


def ask(client: openai.OpenAI, messages: Any, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "model", "messages": messages, "max_tokens": 12, **options})


def text_of(answer: Any) -> str:
    return answer.choices[0].message.content


def test_answer_equals_chat(world: Any, tiny_processor: Any) -> None:
    client, model, _ = world
    answer = ask(client, QUESTIONS[0])
    assert text_of(answer) == "".join(Chat(model, tiny_processor).ask("Is there a circle?", max_new_tokens=12))
    assert answer.object == "chat.completion" and answer.model == "model" and answer.choices[0].index == 0
    assert answer.choices[0].message.role == "assistant"
    assert [each.id for each in client.models.list()] == ["model"]


@pytest.mark.parametrize("question", range(len(QUESTIONS)))
def test_streamed_answer_equals_complete_answer(world: Any, question: int) -> None:
    client = world[0]
    complete = ask(client, QUESTIONS[question])
    chunks = list(ask(client, QUESTIONS[question], stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert "".join(pieces) == text_of(complete)
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-2]] == [None] * (len(chunks) - 2)
    assert chunks[-2].choices[0].finish_reason == complete.choices[0].finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage == complete.usage
    assert all(chunk.usage is None for chunk in ask(client, QUESTIONS[question], stream=True))


def test_usage_includes_visual_tokens(world: Any, tiny_processor: Any) -> None:
    client = world[0]
    one, two = (ask(client, [user(*[image(data_url())] * n, text("What?"))]).usage for n in (1, 2))
    line = len(tiny_processor.tokenizer.encode("\nHuman: ", add_special_tokens=False))
    assert two.prompt_tokens - one.prompt_tokens in range(4 + line - 1, 4 + line + 2)
    assert one.total_tokens == one.prompt_tokens + one.completion_tokens and one.completion_tokens == 12


def test_answer_depends_on_images_and_earlier_turns(world: Any) -> None:
    client = world[0]
    answers = {
        text_of(ask(client, [*before, user(*shown, text("What is it?"))], max_tokens=30))
        for before in ([], [user("Hello"), {"role": "assistant", "content": "Yes"}])
        for shown in ([], [image(data_url("red"))], [image(data_url("red")), image(data_url("white"))])
    }
    assert len(answers) == 6


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "top_p": 0.9, "seed": 3}])
def test_batched_answers_equal_single_answers(world: Any, options: Any) -> None:
    client, _, sizes = world
    lengths = [3, 40, 12, 25, 7, 18]
    single = [ask(client, q, max_tokens=n, **options) for q, n in zip(QUESTIONS, lengths, strict=True)]
    sizes.clear()
    with ThreadPoolExecutor(len(QUESTIONS)) as pool:
        for _ in range(4):
            batched = list(pool.map(lambda q, n: ask(client, q, max_tokens=n, **options), QUESTIONS, lengths))
            assert [text_of(answer) for answer in batched] == [text_of(answer) for answer in single]
            assert [answer.usage for answer in batched] == [answer.usage for answer in single]
    assert max(sizes) > 1


def test_answers_are_reproducible_with_the_same_seed_only(world: Any) -> None:
    client = world[0]
    drawn = [text_of(ask(client, QUESTIONS[0], temperature=1.5, seed=seed, max_tokens=30)) for seed in (1, 1, 2, None)]
    assert drawn[0] == drawn[1] and len(set(drawn)) == 3
    greedy = text_of(ask(client, QUESTIONS[0], max_tokens=30))
    for nearly in ({"temperature": 1e-9}, {"temperature": 1, "top_p": 0}):
        assert text_of(ask(client, QUESTIONS[0], max_tokens=30, **nearly)) == greedy


def test_answer_is_truncated_before_a_stop_string(world: Any) -> None:
    client = world[0]
    complete = text_of(ask(client, QUESTIONS[1], max_tokens=40))
    stop = complete[8:11]
    for stops in (stop, [stop], ["never generated", stop, complete[12:]]):
        answer = ask(client, QUESTIONS[1], max_tokens=40, stop=stops)
        assert text_of(answer) == complete[: complete.index(stop)]
        assert answer.choices[0].finish_reason == "stop" and answer.usage.completion_tokens < 40
    streamed = ask(client, QUESTIONS[1], max_tokens=40, stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == complete[: complete.index(stop)]
    unfinished = ask(client, QUESTIONS[1], max_tokens=12, stop=complete + " and more")
    assert text_of(unfinished) == text_of(ask(client, QUESTIONS[1])) and unfinished.choices[0].finish_reason == "length"


def test_length_limit_is_applied_and_reported(world: Any) -> None:
    client = world[0]
    answer = ask(client, QUESTIONS[0], max_tokens=5)
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (5, "length")
    newer = ask(client, QUESTIONS[0], max_tokens=openai.omit, max_completion_tokens=5)
    assert text_of(newer) == text_of(answer)


def test_fields_that_do_not_change_the_answer_are_accepted(world: Any) -> None:
    client = world[0]
    options = {"user": "me", "metadata": {"a": "b"}, "store": False, "n": 1, "logprobs": False, "tools": [],
               "response_format": {"type": "text"}, "presence_penalty": 0, "logit_bias": {},
               "max_completion_tokens": 12, "stream_options": {"include_usage": False},
               "extra_body": {"id": "a", "name": "b", "repetition_penalty": 1, "skip_special_tokens": True, "top_k": -1,
                              "min_p": 0.0, "best_of": 1, "use_beam_search": False, "echo": False, "tool_calls": None,
                              "stop_token_ids": [], "chat_template_kwargs": {}, "guided_json": None}}  # fmt: skip
    assert text_of(ask(client, QUESTIONS[0], **options)) == text_of(ask(client, QUESTIONS[0]))
    named = [{**QUESTIONS[0][0], "id": "1", "name": "me", "tool_calls": []}]
    assert text_of(ask(client, named)) == text_of(ask(client, QUESTIONS[0]))
    history = [user("Hi"), ask(client, [user("Hi")]).choices[0].message.model_dump(), user("And?")]
    assert ask(client, history).usage.completion_tokens


@pytest.mark.parametrize(
    "write", [base64.encodebytes, base64.urlsafe_b64encode, lambda data: base64.b64encode(data)[:-1]]
)
def test_base64_may_be_written_in_every_way(world: Any, write: Any) -> None:
    data = base64.b64decode(data_url("teal", size=(23, 19)).partition(",")[2])
    padded = data + bytes(-(len(data) + 1) % 3)  # so that its base64 ends with a "="
    answers = {
        text_of(ask(world[0], [user(image(f"data:image/png;base64,{written.decode()}"), text("What?"))], max_tokens=30))
        for written in (base64.b64encode(data), write(padded))
    }
    assert len(answers) == 1


@pytest.mark.parametrize("control", ["</s>", "<s>", "<pad>", " </s> ", "</s></s>"])
def test_text_is_never_a_control_token(world: Any, tiny_processor: Any, control: str) -> None:
    client, model, _ = world
    tokenizer = tiny_processor.tokenizer
    split = [tokenizer.encode(letter, add_special_tokens=False) for letter in control.strip()]
    asked = [
        {"role": "system", "content": control},
        user(text("Is"), text(control)),
        {"role": "assistant", "content": control},
    ]
    ids = encode(tiny_processor, [*asked, user(control)])
    assert all(len(each) == 1 for each in split)
    special = [tokenizer.convert_ids_to_tokens(token) for token in ids if token in tokenizer.all_special_ids]
    assert special == ["<s>", "</s>"]
    answer = ask(client, [*asked, user(control)])
    assert answer.usage.prompt_tokens == len(ids)
    chat = Chat(model, tiny_processor)
    chat.messages = [{**message, "content": [text(message["content"])]} for message in (asked[0],)]
    assert "".join(chat.ask(control, max_new_tokens=12)) == text_of(ask(client, [asked[0], user(control)]))


def test_a_bad_row_does_not_fail_its_batch(world: Any, tiny_processor: Any) -> None:
    model = world[1]
    reports: list[list[Any]] = [[] for _ in range(6)]
    prompt = encode(tiny_processor, [user("Is there a circle?")])
    seen = encode(tiny_processor, [user({"type": "image"}, text("What?"))])
    pixels = torch.zeros(1, 3, 32, 32)
    wide = torch.zeros(1, 3, 64, 64)
    bad = [(seen, None), (prompt, pixels), (seen, torch.cat([pixels, pixels])), (seen, wide), ([10**6], None)]
    rows = [PromptRow(ids, images, 4, report.append) for (ids, images), report in zip(bad, reports, strict=False)]
    rows.insert(2, PromptRow(prompt, None, 4, reports[5].append))
    generate(model, tiny_processor, rows)
    assert [type(report[0]) for report in reports[:5]] == [PromptError] * 5
    assert "found 4 image tokens for 0 images" in str(reports[0][0])
    assert reports[5][-1] == End("length", 4)


def test_scores_that_are_not_numbers_fail_their_row_only(world: Any, tiny_processor: Any) -> None:
    model = world[1]
    reports: list[list[Any]] = [[], []]
    prompt = encode(tiny_processor, [user("Is there a circle?")])
    sampled = [Sampling(1.0, seed=1), Sampling(1.0, seed=2)]
    rows = [PromptRow(prompt, None, 4, r.append, s) for r, s in zip(reports, sampled, strict=True)]

    def spoil(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.full_like(logits[:1], torch.nan), logits[1:]])

    hook = model.llm.lm_head.register_forward_hook(spoil)
    generate(model, tiny_processor, rows)
    hook.remove()
    assert isinstance(reports[0][-1], Exception) and reports[1][-1] == End("length", 4)


class Slow:
    """A model that endlessly generates "a", one token per 10 ms, until it is told to fail or to end."""

    def __init__(self, tiny_backbones: Path, processor: Any):
        self.model, self.steps, self.fail_at, self.end = build(tiny_backbones), 0, -1, False
        letter, self.eos = processor.tokenizer.convert_tokens_to_ids("a"), processor.tokenizer.eos_token_id
        self.letter = letter
        self.model.llm.lm_head.register_forward_hook(self.step)

    def step(self, module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        time.sleep(0.01)
        self.steps += 1
        if self.steps == self.fail_at:
            raise RuntimeError("the device is on fire")
        forced = torch.zeros_like(logits)
        forced[..., self.eos if self.end else self.letter] = 1
        return forced


@pytest.fixture
def slow(tiny_backbones: Path, tiny_processor: Any) -> Iterator[tuple[openai.OpenAI, Slow]]:
    slow = Slow(tiny_backbones, tiny_processor)
    with run_server(slow.model, tiny_processor) as url:
        yield openai.OpenAI(base_url=url, api_key="none", max_retries=0), slow


def is_idle(slow: Slow) -> bool:
    before = slow.steps
    time.sleep(0.1)
    return slow.steps == before


def test_disconnecting_cancels_the_answer(slow: Any) -> None:
    client, model = slow
    stream = ask(client, QUESTIONS[0], max_tokens=400, stream=True)
    assert [next(stream).choices[0].delta.content for _ in range(3)] == ["", "a", "a"]
    stream.close()
    wait_for(lambda: is_idle(model), 2)
    assert model.steps < 200
    with pytest.raises(openai.APITimeoutError):
        ask(client.with_options(timeout=0.3), QUESTIONS[0], max_tokens=400)
    wait_for(lambda: is_idle(model), 2)
    assert model.steps < 300
    assert text_of(ask(client, QUESTIONS[0], max_tokens=2)) == "aa"


def test_disconnecting_does_not_affect_other_requests(slow: Any) -> None:
    client, model = slow
    start = threading.Barrier(2)

    def wait_for_answer() -> str:
        start.wait()
        return text_of(ask(client, QUESTIONS[1], max_tokens=40))

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(wait_for_answer)
        start.wait()
        stream = ask(client, QUESTIONS[0], max_tokens=400, stream=True)
        next(stream)
        stream.close()
        assert other.result() == "a" * 40
    wait_for(lambda: is_idle(model), 2)


def test_end_token_ends_the_answer(slow: Any) -> None:
    client, model = slow
    model.end = True
    answer = ask(client, QUESTIONS[0])
    assert (text_of(answer), answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("", "stop", 1)


def test_failure_is_reported_and_the_server_continues(slow: Any) -> None:
    client, model = slow
    model.fail_at = 1
    with pytest.raises(openai.InternalServerError) as raised:
        ask(client, QUESTIONS[0])
    assert raised.value.body == {
        "message": "generating the answer failed: RuntimeError: the device is on fire",
        "type": "server_error",
        "param": None,
        "code": None,
    }
    model.steps, model.fail_at = 0, 4
    stream = ask(client, QUESTIONS[0], stream=True)
    pieces: list[str] = []
    with pytest.raises(openai.APIError, match="the device is on fire"):
        pieces.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text_of(ask(client, QUESTIONS[0])) == "a" * 12


def test_server_completes_running_answers_on_shutdown(tiny_backbones: Path, tiny_processor: Any) -> None:
    slow = Slow(tiny_backbones, tiny_processor)
    with run_server(slow.model, tiny_processor) as url:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        answer = ask(client, QUESTIONS[0], max_tokens=30, stream=True)
        next(answer)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in answer) == "a" * 30


def test_server_sent_events_of_a_stream(world: Any) -> None:
    client = world[0]
    body = {"model": "model", "messages": QUESTIONS[0], "max_tokens": 4, "stream": True}
    for options in ({}, {"stream_options": {"include_usage": True}}):
        response = httpx.post(f"{client.base_url}chat/completions", json={**body, **options}, timeout=20)
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        events = response.text.split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
        assert chunks[0]["choices"] == [
            {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        ]
        assert all(("usage" in chunk) == bool(options) for chunk in chunks)
