"""The judge behind an endpoint, tested with a local server: its cache, failures and budget."""

import email.utils
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from support.judge_server import KEY, completion, serving

from model.evaluation.judging.endpoint_judge import EndpointJudge, JudgeSettings
from model.evaluation.judging.http_client import JudgeError


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("model.evaluation.judging.http_client.INITIAL_BACKOFF", 0.01)
    monkeypatch.setenv("HONEYBEE_JUDGE_KEY", KEY)


def judge_of(server: Any, cache: Path, **settings: Any) -> EndpointJudge:
    return EndpointJudge(JudgeSettings(url=server.url, model="m", **settings), cache)


def asked(number: int) -> dict[str, list[dict[str, str]]]:
    return {f"q{i}": [{"role": "user", "content": f"question {i}"}] for i in range(number)}


def echo(body: dict[str, Any]) -> str:
    return body["messages"][-1]["content"].upper()


def texts(judge: EndpointJudge, conversations: dict[str, Any]) -> dict[str, str | None]:
    return {key: answer.text for key, answer in judge.ask(conversations, 8).items()}


def test_requests_follow_the_protocol_and_replies_are_cached(tmp_path):
    with serving(echo, delay=0.02) as server:
        first = texts(judge_of(server, tmp_path), asked(12))
        assert first == {f"q{i}": f"QUESTION {i}" for i in range(12)}
        assert server.at_once <= 4 and len(server.requests) == 12
        assert server.keys == [f"Bearer {KEY}"] * 12
        expected = {"model": "m", "messages": asked(1)["q0"], "temperature": 0, "max_tokens": 8}
        assert expected in server.requests
        assert texts(judge_of(server, tmp_path, concurrency=1), asked(12)) == first
        assert len(server.requests) == 12, "the second time, no requests are sent"
        judge_of(server, tmp_path, max_tokens=9).ask(asked(1), 8)
        assert server.requests[-1]["max_tokens"] == 9, "a different max_tokens makes a new request"
        cached = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
        assert len(cached) == 13 and not any(KEY in text for text in cached)


def test_an_endpoint_on_this_machine_is_never_asked_through_a_proxy(tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens at port 9
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving(echo) as server:
        assert texts(judge_of(server, tmp_path), asked(1)) == {"q0": "QUESTION 0"}


def test_equal_questions_are_sent_once_and_lone_surrogates_are_replaced(tmp_path):
    with serving(lambda body: (200, completion("\ud83d half"))) as server:
        message = [{"role": "user", "content": "a \ud800 b"}]
        assert texts(judge_of(server, tmp_path), {"a": message, "b": message}) == dict.fromkeys("ab", "? half")
        assert len(server.requests) == 1 and server.requests[0]["messages"][0]["content"] == "a ? b"
        assert texts(judge_of(server, tmp_path), {"a": message}) == {"a": "? half"}


@pytest.mark.parametrize(
    "failure",
    [
        (429, b"slow down"),
        (429, b"slow down", {"Retry-After": "0"}),
        (503, b"busy", {"Retry-After": email.utils.formatdate(usegmt=True)}),
        (500, b"oops"),
        (200, b'{"choices": [{"mess'),
        (200, b'{"choices": []}'),
        (200, b'{"error": "overloaded"}'),
        (200, b"[]"),
        (200, completion(None)),
    ],
)
def test_transient_failures_are_retried(tmp_path, failure):
    with serving(echo, failures=[failure, failure]) as server:
        assert texts(judge_of(server, tmp_path), asked(1)) == {"q0": "QUESTION 0"}
        assert len(server.requests) == 3


def test_retry_after_is_respected_up_to_a_limit(tmp_path):
    with serving(echo, failures=[(429, b"", {"Retry-After": "1"})]) as server:
        started = time.monotonic()
        judge_of(server, tmp_path).ask(asked(1), 8)
        assert time.monotonic() - started >= 1
    with serving(echo, failures=[(429, b"", {"Retry-After": "3600"})]) as server:
        (answer,) = judge_of(server, tmp_path / "other").ask(asked(1), 8).values()
        assert answer.text is None and "the endpoint asks to wait 3600 s" in answer.error


def test_backoff_is_exponential(tmp_path, monkeypatch):
    monkeypatch.setattr("model.evaluation.judging.http_client.INITIAL_BACKOFF", 0.05)
    with serving(echo, failures=[(500, b"")] * 4) as server:
        started = time.monotonic()
        judge_of(server, tmp_path).ask(asked(1), 8)
        assert time.monotonic() - started >= 0.75 * 0.05 * (1 + 2 + 4 + 8)


def test_a_time_out_is_retried_and_finally_reported(tmp_path):
    with serving(echo, delay=0.5) as server:
        (answer,) = judge_of(server, tmp_path, timeout=0.1, tries=2).ask(asked(1), 8).values()
        assert len(server.requests) == 2
        assert answer.error == "no reply: the request timed out (ReadTimeout) (attempts: 2)"


def test_a_refused_request_is_not_retried_and_does_not_affect_others(tmp_path):
    def answer(body: dict[str, Any]) -> Any:
        return (400, b"too long") if "question 1" in body["messages"][0]["content"] else echo(body)

    with serving(answer) as server:
        replies = judge_of(server, tmp_path).ask(asked(3), 8)
        assert [replies[key].error for key in ("q0", "q1", "q2")] == [None, "no reply: HTTP 400 too long", None]
        assert len(server.requests) == 3


@pytest.mark.parametrize(("status", "hint"), [(401, "is the API key correct"), (404, "the URL and the model name")])
def test_a_wrong_key_or_model_fails_at_once_without_revealing_the_key(tmp_path, caplog, status, hint):
    caplog.set_level(logging.DEBUG)
    with serving(lambda body: (status, f"bad key {KEY}".encode())) as server:
        with pytest.raises(JudgeError, match=f"HTTP {status} bad key .*{hint}") as caught:
            judge_of(server, tmp_path, concurrency=2).ask(asked(50), 8)
        assert len(server.requests) < 10
    assert KEY not in str(caught.value) and KEY not in caplog.text


def test_a_missing_key_is_not_sent_and_an_invalid_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("HONEYBEE_JUDGE_KEY")
    with serving(echo) as server:
        judge_of(server, tmp_path).ask(asked(1), 8)
        assert server.keys == [None]
        monkeypatch.setenv("OTHER", "two words")
        with pytest.raises(JudgeError, match=r"the API key in \$OTHER contains spaces"):
            judge_of(server, tmp_path, key_variable="OTHER")


def test_the_budget_is_checked_before_each_request(tmp_path):
    with serving(echo, failures=[(500, b"")]) as server:
        replies = judge_of(server, tmp_path, max_requests=3, concurrency=1).ask(asked(4), 8)
        assert len(server.requests) == 3
        assert [answer.text for answer in replies.values()] == ["QUESTION 0", "QUESTION 1", None, None]
        assert replies["q3"].error == "not asked: the budget of 3 requests is spent"
        assert len(texts(judge_of(server, tmp_path, max_requests=2), asked(4))) == 4
        assert len(server.requests) == 5, "cached replies are free"


def test_the_budget_uses_the_token_counts_of_the_endpoint(tmp_path):
    with serving(lambda body: (200, completion("x", tokens=50))) as server:
        replies = judge_of(server, tmp_path, max_total_tokens=120, concurrency=1).ask(asked(5), 8)
        assert len(server.requests) == 3  # 50 + 50 tokens are spent, and the third request is estimated at 11
        assert "150 of the budget of 120 tokens are spent" in replies["q4"].error
    with serving(lambda body: (200, completion("x", tokens=None))) as server:
        judge_of(server, tmp_path, max_total_tokens=23, concurrency=1).ask(asked(5), 8)
        assert len(server.requests) == 2, "without reported counts, the estimate of 11 tokens per request is used"


def test_requests_stop_when_the_endpoint_is_down(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    judge = EndpointJudge(JudgeSettings(url=url, model="m", tries=2, concurrency=1), tmp_path)
    replies = judge.ask(asked(200), 8)
    reasons = [answer.error for answer in replies.values()]
    assert sum(reason.startswith("no reply: no connection") for reason in reasons) == 5
    assert reasons[-1].startswith("not asked: 5 consecutive requests failed, the last one with: no connection")


def test_requests_stop_when_the_endpoint_refuses_everything(tmp_path):
    with serving(lambda body: (400, b"unknown parameter max_tokens")) as server:
        replies = judge_of(server, tmp_path, concurrency=1).ask(asked(50), 8)
        assert len(server.requests) == 5
        assert replies["q49"].error.endswith("the last one with: HTTP 400 unknown parameter max_tokens")


def test_damaged_cache_entries_are_requested_again(tmp_path, caplog):
    with serving(echo) as server:
        judge_of(server, tmp_path).ask(asked(3), 8)
        one, two, _ = sorted(tmp_path.rglob("*.json"))
        one.write_text(one.read_text()[:40])
        content = json.loads(two.read_text())
        content["request"]["messages"][0]["content"] = "another question"
        two.write_text(json.dumps(content))
        assert texts(judge_of(server, tmp_path), asked(3)) == {f"q{i}": f"QUESTION {i}" for i in range(3)}
        assert len(server.requests) == 5
        assert caplog.text.count("is not a valid cached reply; the request is sent again") == 2


def test_a_killed_judging_run_resumes_where_it_stopped(tmp_path):
    program = (
        "import sys; from pathlib import Path; from model.evaluation.judging.endpoint_judge import *\n"
        "judge = EndpointJudge(JudgeSettings(url=sys.argv[1], model='m'), Path(sys.argv[2]))\n"
        "judge.ask({str(i): [{'role': 'user', 'content': f'question {i}'}] for i in range(60)}, 8)\n"
    )
    with serving(echo, delay=0.05) as server:
        process = subprocess.Popen([sys.executable, "-c", program, server.url, str(tmp_path)], env=dict(os.environ))
        while len(list(tmp_path.rglob("*.json"))) < 10:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(0.2)
        before, cached = len(server.requests), len(list(tmp_path.rglob("*.json")))
        assert before < 60 and before - cached <= 4
        conversations = {str(i): [{"role": "user", "content": f"question {i}"}] for i in range(60)}
        assert texts(judge_of(server, tmp_path), conversations) == {str(i): f"QUESTION {i}" for i in range(60)}
        assert len(server.requests) == before + 60 - cached


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "example.org/v1"}, "must be a URL"),
        ({"url": "http://user:secret@127.0.0.1/v1"}, "must not contain a user, password, query"),
        ({"url": "http://127.0.0.1/v1?key=1"}, "must not contain a user, password, query"),
        ({"key": "sk"}, "Extra inputs"),
        ({"concurrency": 0}, "concurrency"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValidationError, match=message):
        JudgeSettings(**{"url": "http://127.0.0.1/v1", "model": "m", **settings})
