"""A local server that implements the chat completions protocol and fails on demand."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from model.evaluation.interface import Benchmark, Predictions
from model.evaluation.judging import verdicts
from model.evaluation.judging.endpoint_judge import EndpointJudge, JudgeSettings

Reply = str | tuple[int, bytes] | tuple[int, bytes, dict[str, str]]
KEY = "sk-test-0123456789"


def completion(text: Any, tokens: int | None = 10) -> bytes:
    content: dict[str, Any] = {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}
    if tokens is not None:
        content["usage"] = {"total_tokens": tokens}
    return json.dumps(content).encode()


@dataclass
class JudgeServer:
    """The state of the server. answer: a request's body → the text of a completion, or (status, body[, headers]).
    failures: the replies to the first requests, in this order. requests, keys: the bodies and Authorization headers."""

    answer: Callable[[dict[str, Any]], Reply]
    failures: list[Reply] = field(default_factory=list)
    delay: float = 0.0  # seconds before a reply
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    at_once: int = 0  # the maximum number of concurrent requests
    url: str = ""
    _in_flight: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, path: str, key: str | None, body: dict[str, Any]) -> Reply:
        with self._lock:
            self.requests.append(body)
            self.keys.append(key)
            self._in_flight += 1
            self.at_once = max(self.at_once, self._in_flight)
            failure = self.failures.pop(0) if self.failures else None
        time.sleep(self.delay)
        with self._lock:
            self._in_flight -= 1
        if path != "/v1/chat/completions":
            return 404, b"no such path"
        return self.answer(body) if failure is None else failure


@contextmanager
def serving(answer: Callable[[dict[str, Any]], Reply], **settings: Any) -> Iterator[JudgeServer]:
    """Runs a JudgeServer on a free port of 127.0.0.1."""
    state = JudgeServer(answer, **settings)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            reply = state.reply(self.path, self.headers.get("authorization"), body)
            status, data, *headers = (200, completion(reply)) if isinstance(reply, str) else reply
            try:
                self.send_response(status)
                for name, value in (headers[0] if headers else {}).items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client has disconnected

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask_judge(
    benchmark: Benchmark, predictions: Predictions, server: JudgeServer, cache: Path, **settings: Any
) -> Predictions:
    """Returns the predictions with the verdicts of a judge at the server."""
    judge = EndpointJudge(JudgeSettings(url=server.url, model="gpt-test", **settings), cache)
    return verdicts.add_verdicts(benchmark, predictions, judge)


def last(body: dict[str, Any]) -> str:
    """Returns the last message of a request."""
    return body["messages"][-1]["content"]


def write_rows(path: Path, content: Any) -> Path:
    """Writes a list as JSON lines and anything else as one line of JSON."""
    lines = content if isinstance(content, list) else [content]
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    return path
