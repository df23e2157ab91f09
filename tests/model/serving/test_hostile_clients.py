"""Web pages and clients that never finish: what they send is refused, and others are answered meanwhile."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.serving_world import run_server, user, wait_for

from model import HoneybeeForConditionalGeneration
from model.serving.connections import LimitedConnection
from model.serving.server import ServeError, bind
from model.serving.web_guard import checked_origin, is_loopback

BODY = json.dumps({"model": "bee", "messages": [user("Hi")], "max_tokens": 2})
JSON = {"Content-Type": "application/json"}
APP = "https://app.example.org"
LIMIT = 100_000


class Quick(LimitedConnection):
    max_connections, header_seconds, write_seconds = 20, 0.6, 0.6


@pytest.fixture(scope="module")
def model(tiny_backbones: Path) -> Any:
    vision, llm = tiny_backbones / "vision", tiny_backbones / "llm"
    return HoneybeeForConditionalGeneration.from_backbones(vision, llm, {"type": "resampler", "num_tokens": 4}, llm)


@pytest.fixture(scope="module")
def url(model: Any, tiny_processor: Any) -> Iterator[str]:
    limits: dict[str, Any] = {"max_upload": LIMIT, "body_seconds": 1.2, "stall_seconds": 0.6}
    with run_server(model, tiny_processor, Quick, name="bee", origins=(APP,), **limits) as url:
        yield url
        assert post(url).status_code == 200  # the server still answers


def post(url: str, **headers: str) -> httpx.Response:
    sent = {**JSON, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return httpx.post(f"{url}/chat/completions", content=BODY, headers=sent, timeout=20)


def connect(url: str, sent: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", httpx.URL(url).port), timeout=10)
    connection.sendall(sent)
    return connection


def is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        while data := connection.recv(65536):
            assert data.startswith((b"HTTP/1.1 40", b"HTTP/1.1 503", b"{"))
        return True
    except BlockingIOError:
        return False
    except OSError:
        return True


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://localhost:1",
        "http://127.0.0.1",
        "file://",
        "https://app.example.org.evil",
    ],
)
def test_requests_of_web_pages_are_refused(url: str, origin: str) -> None:
    for kind in ("application/json", "text/plain"):
        answer = post(url, Origin=origin, Content_Type=kind)
        assert answer.status_code == 403 and "--allow-origin" in answer.json()["error"]["message"]
        assert not any(name.startswith("access-control") for name in answer.headers)
    assert httpx.get(f"{url}/models", headers={"Origin": origin}).status_code == 403
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    assert httpx.options(f"{url}/chat/completions", headers=asked).status_code == 403


def test_pages_of_allowed_sites_and_of_the_server_itself_are_answered(url: str) -> None:
    answer = post(url, Origin=APP)
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == APP
    asked = {"Origin": APP, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-stainless-os"}
    answer = httpx.options(f"{url}/chat/completions", headers=asked)
    assert answer.status_code == 200 and "x-stainless-os" in answer.headers["access-control-allow-headers"]
    assert post(url, Origin=url.removesuffix("/v1")).status_code == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "", "application/x-www-form-urlencoded", "multipart/form-data; a=application/json"]
)
def test_other_content_types_are_refused(url: str, kind: str) -> None:
    answer = post(url, Content_Type=kind)
    assert answer.status_code == 415 and "must be application/json" in answer.json()["error"]["message"]
    assert post(url, Content_Type="Application/JSON; charset=utf-8").status_code == 200
    assert post(url, Content_Encoding="gzip").status_code == 415


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((own, 200) for own in ("localhost", "LocalHost:9", "[::1]:8000", "127.8.9.1", "[::ffff:127.0.0.1]:1")),
        *((bad, 400) for bad in ("evil.example", "127.0.0.1.evil.example", "localhost.evil", "0.0.0.0", "[::2]")),
        ("user@localhost", 400),
    ],
)
def test_host_must_be_a_loopback_address(url: str, host: str, status: int) -> None:
    assert httpx.get(f"{url}/models", headers={"Host": host}).status_code == status


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1", "localhost", "0.0.0.0"])
def test_every_loopback_address_is_known_as_one(host: str) -> None:
    with bind(host, 0) as listener:
        assert is_loopback(listener.getsockname()[0]) == (host != "0.0.0.0")


def test_addresses_that_do_not_exist_and_origins_of_many_sites_are_refused() -> None:
    for host in ("", "no.such.host.invalid", "192.0.2.1"):
        with pytest.raises(ServeError, match=f"cannot listen on port 0 on {host}"):
            bind(host, 0)
    assert checked_origin("https://App.example.org:443/") == APP
    for origin in ("*", "null", "app.example.org", "https://a/b", "https://*.example.org", ""):
        with pytest.raises(ValueError, match="give the origin of one site"):
            checked_origin(origin)


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"GET", HEAD, HEAD + b"X-A: b"])
def test_half_sent_headers_are_closed_in_time_and_lock_nobody_out(url: str, sent: bytes) -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(url, sent)) for _ in range(60)]
        assert post(url).status_code == 200
        for _ in range(3):  # a byte now and then does not help
            time.sleep(0.1)
            for connection in connections:
                if not is_closed(connection) and sent:
                    connection.send(b"a")
        wait_for(lambda: all(map(is_closed, connections)), 2)


def test_idle_connections_are_closed_after_an_answer(url: str) -> None:
    with connect(url, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n") as connection:
        assert connection.recv(4000).startswith(b"HTTP/1.1 200")
        for _ in range(2):
            connection.send(b"G")
            time.sleep(0.2)
        wait_for(lambda: is_closed(connection), 2)


@pytest.mark.parametrize("drip", [False, True])
def test_half_sent_bodies_are_refused_in_time(url: str, drip: bool) -> None:
    with connect(url, HEAD + b"Content-Length: 5000\r\n\r\n{") as connection:
        answer, until = b"", time.monotonic() + 4
        connection.settimeout(0.2)
        while not answer.startswith(b"HTTP/1.1 408") and time.monotonic() < until:
            try:
                if drip:
                    connection.send(b" ")
                answer += connection.recv(4000)
            except TimeoutError:
                continue
        assert b"408" in answer and b"connection: close" in answer.lower()


def test_bodies_together_are_limited(url: str) -> None:
    head = HEAD + f"Content-Length: {LIMIT}\r\n\r\n".encode()
    with ExitStack() as stack:
        half = [stack.enter_context(connect(url, head + b" " * (LIMIT - 1))) for _ in range(12)]  # 8 may be in memory
        statuses = [connection.recv(4000)[9:12] for connection in half]
    assert statuses.count(b"503") >= 4 and statuses.count(b"408") >= 1 and set(statuses) == {b"503", b"408"}
    assert post(url).status_code == 200
