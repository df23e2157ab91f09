"""Requests that the server rejects, with status, message and the invalid field."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.serving_world import data_url, image, run_server, text, user

from model import HoneybeeForConditionalGeneration

LIMIT = 200_000


@pytest.fixture(scope="module")
def model(tiny_backbones: Path) -> Any:
    vision, llm = tiny_backbones / "vision", tiny_backbones / "llm"
    return HoneybeeForConditionalGeneration.from_backbones(vision, llm, {"type": "resampler", "num_tokens": 4}, llm)


@pytest.fixture(scope="module")
def client(model: Any, tiny_processor: Any) -> Iterator[httpx.Client]:
    with (
        run_server(model, tiny_processor, name="bee", max_images=2, max_upload=LIMIT) as url,
        httpx.Client(base_url=url, timeout=20) as client,
    ):
        yield client
        assert post(client).status_code == 200  # the server still works after all invalid requests


JSON = {"Content-Type": "application/json"}
ROLES = ("system", "developer")


def post(client: httpx.Client, messages: Any = None, **fields: Any) -> httpx.Response:
    body = {"model": "bee", "messages": [user("Hi")] if messages is None else messages, "max_tokens": 2, **fields}
    return client.post("/chat/completions", json={key: value for key, value in body.items() if value is not ...})


def refusal(response: httpx.Response, status: int = 400) -> tuple[str | None, str]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    return error["param"], error["message"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("response_format", {"type": "json_object"}),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("logit_bias", {"5": 100}),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -1),
        ("modalities", ["text", "audio"]),
        ("top_k", 40),
        ("reasoning_effort", "high"),
        ("repetition_penalty", 1.1),
        ("skip_special_tokens", False),
        ("min_p", 0.1),
        ("n", True),
        ("guided_json", {"type": "object"}),
        ("chat_template", "{{ messages }}"),
    ],
)
def test_unsupported_field_is_named(client: httpx.Client, name: str, value: Any) -> None:
    param, message = refusal(post(client, **{name: value}))
    assert param == name and name in message and "omit it" in message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ...}, "model"),
        ({"model": 5}, "model"),
        ({"messages": ...}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": ["Hi"]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "Hi", "tool_calls": [1]}]}, "messages[0].tool_calls"),
        ({"messages": [user(text("a"), {"type": "input_audio"})]}, "messages[0].content[1].type"),
        ({"messages": [user(text("a"), {"type": "image_url"})]}, "messages[0].content[1]"),
        ({"messages": [user(text("a"), {"type": "image_url", "image_url": "x"})]}, "messages[0].content[1].image_url"),
        ({"messages": [user("Hi"), {"role": "assistant", "content": "Ho"}]}, "messages[1].role"),
        ({"messages": [{"role": "system", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [user("look: <image>")]}, "messages[0].content[0]"),
        ({"messages": [user(text("<ima"), text("ge> and"))]}, "messages[0].content[1]"),
        ({"messages": [user(image(data_url()), text("<"), text(""), text("image>"))]}, "messages[0].content[3]"),
        ({"messages": [{"role": "system", "content": "<image>"}, user("Hi")]}, "messages[0].content[0]"),
        ({"messages": [{"role": "system", "content": [image("data:,")]}, user("Hi")]}, "messages[0].content[0]"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": 5}, "max_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_invalid_field_is_named(client: httpx.Client, fields: dict[str, Any], param: str) -> None:
    assert refusal(post(client, **fields))[0] == param


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"5", b'"Hi"', b"\xff\xfe", b'{"model": "bee", "messages": NaN}', b"[" * 100_000,
        b'{"model": "bee", "messages": [{"role": "user", "content": "Hi"}], "temperature": NaN}',
        b'{"model": "bee", "messages": [{"role": "user", "content": "\\ud800"}]}',
    ],
)  # fmt: skip
def test_malformed_body_is_rejected(client: httpx.Client, body: bytes) -> None:
    refusal(client.post("/chat/completions", content=body, headers=JSON))


def test_unknown_models_and_routes_are_not_found(client: httpx.Client) -> None:
    assert refusal(post(client, model="gpt-6"), 404) == (
        "model",
        "unknown model 'gpt-6': this server provides only 'bee'",
    )
    assert "/v1/completions" in refusal(client.post("/completions", json={}), 404)[1]
    assert refusal(client.get("/chat/completions"), 405)
    assert client.get("models/bee").json()["id"] == "bee"
    assert refusal(client.get("models/gpt-6"), 404)[0] == "model"
    assert client.get(str(client.base_url).replace("/v1/", "/health")).json() == {"status": "ok"}


def test_unknown_host_header_is_rejected(client: httpx.Client) -> None:
    assert client.get("models", headers={"Host": "attacker.example"}).status_code == 400
    assert client.get("models", headers={"Host": "localhost:1"}).status_code == 200


def test_prompt_that_leaves_no_room_for_an_answer_is_rejected(client: httpx.Client) -> None:
    param, message = refusal(post(client, [user("Why? " * 300)]))
    assert param == "messages" and "the model's context is 512" in message
    param, message = refusal(post(client, [user("Why? " * 30_000)]))  # rejected before it is tokenised
    assert param == "messages" and "150000 characters, but the model's context is 512" in message
    limited = post(client, [user("a")], max_tokens=100_000).json()
    assert limited["usage"]["total_tokens"] <= 512


def bad(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (bad(b""), "image_corrupt"),
        (bad(b"\x89PNG\r\n\x1a\n and then nothing"), "image_corrupt"),
        (bad(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "in none of the formats JPEG"),
        (data_url("red", size=(200, 200))[:-60], "image_corrupt"),
        (data_url(0, size=(20_000, 5_000), mode="1"), "image_too_large"),
        ("data:image/png;base64,§§§", "is not valid base64: it has '§' after 0 characters"),
        ("data:image/png;base64,AAAA=BBB", "is not valid base64: it has '=' after 4 characters"),
        ("data:image/png;base64,AAAAB", "is not valid base64: 5 characters are one too many or too few"),
        ("data:image/png,abc", "must be a base64 data: URL"),
        ("file:///etc/passwd", "scheme 'file'"),
        ("/etc/passwd", "scheme 'none'"),
        ("ftp://127.0.0.1/a.png", "scheme 'ftp'"),
        ("", "must be a base64 data: URL"),
        ("http://127.0.0.1:1/a.png", "start the server with --allow-urls"),
        ("HTTPS://example.org/a.png", "start the server with --allow-urls"),
    ],
)
def test_field_of_an_invalid_image_is_named(client: httpx.Client, url: str, expected: str) -> None:
    messages = [user("Hi"), {"role": "assistant", "content": "Ho"}, user(text("a"), image(data_url()), image(url))]
    param, message = refusal(post(client, messages))
    assert param == "messages[2].content[2].image_url" and message.startswith(f"{param}: ") and expected in message


def test_too_many_images_are_rejected(client: httpx.Client) -> None:
    assert "3 images, but at most 2" in refusal(post(client, [user(*[image(data_url())] * 3)]))[1]


def test_images_with_too_many_pixels_in_total_are_rejected_before_decoding(client: httpx.Client) -> None:
    large = image(data_url(0, size=(9_000, 7_000), mode="1"))  # 63 of at most 89 million pixels
    assert "126,000,000 pixels in total" in refusal(post(client, [user(large, large, text("Hi"))]))[1]


def test_more_messages_than_fit_into_the_context_are_rejected(client: httpx.Client) -> None:
    many = [user("Hi"), {"role": "assistant", "content": ""}] * 2000
    assert "parts" in refusal(post(client, [*many, user("Hi")]))[1]


def test_developer_role_is_an_alias_of_system(client: httpx.Client) -> None:
    answers = [post(client, [{"role": role, "content": "Be short."}, user("Hi")], max_tokens=4) for role in ROLES]
    texts = [answer.json()["choices"][0]["message"]["content"] for answer in answers]
    assert texts[0] == texts[1]


def test_too_large_body_is_rejected_with_and_without_content_length(client: httpx.Client) -> None:
    body = json.dumps({"model": "bee", "messages": [user("a" * 40 * LIMIT)]}).encode()
    assert f"larger than {LIMIT} bytes" in refusal(client.post("/chat/completions", content=body, headers=JSON), 413)[1]
    pieces = (body[at : at + 10_000] for at in range(0, len(body), 10_000))
    assert refusal(
        client.post("/chat/completions", content=pieces, headers=JSON), 413
    )  # in chunks, without Content-Length


def test_allowed_urls_do_not_give_access_to_the_internal_network(model: Any, tiny_processor: Any) -> None:
    with run_server(model, tiny_processor, name="bee", allow_urls=True) as url, httpx.Client(base_url=url) as client:
        own = url.removesuffix("/v1") + "/health"
        hosts = [own, own.replace("127.0.0.1", "localhost"), own.replace("127.0.0.1", "[::ffff:127.0.0.1]")]
        hosts += ["http://10.0.0.1/a.png", "http://169.254.169.254/latest", "http://[::1]/", "http://0.0.0.0/"]
        hosts += ["http://[64:ff9b::7f00:1]/", "http://2130706433/", "http://[fe80::1]/", "http://224.0.0.1/"]
        for host in hosts:
            param, message = refusal(post(client, [user(image(host), text("What?"))]))
            assert param == "messages[0].content[0].image_url" and "not public" in message
        for broken in ("http://", "http:///a.png", "https://[/a.png", "http://\x00/", "http://a..b/"):
            assert "could not be fetched" in refusal(post(client, [user(image(broken))]))[1]
