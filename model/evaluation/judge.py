"""A judge behind an OpenAI-compatible endpoint: asked in parallel, within a budget, each reply kept on disk.

A reply is kept under the content of its request, so a judging that was killed goes on where it stopped, and one that
is run again asks nothing. Nothing here is used unless a judge is configured.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event, Lock
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from model.evaluation.base import Answer, Messages
from model.evaluation.judge_http import Endpoint, Failed, JudgeError, encodable
from pipelines.store import write_atomic

LOG_EVERY = 5.0  # seconds
FAILED_IN_A_ROW = 5  # so many requests that failed for good, one after another: the endpoint is down
_CHARACTERS_PER_TOKEN = 3  # at least, of the texts that are judged; a guess until the endpoint says what it counted
log = logging.getLogger(__name__)


class JudgeSettings(BaseModel):
    """Whom to ask. The key is none of it: it stays in the environment, under the name `key_variable`.

    url: the base of the API, as http://127.0.0.1:8000/v1. max_tokens: of one reply; where absent, as the benchmark's
    judge prompt says. timeout: seconds. max_requests, max_total_tokens: the budget of one run, tries that failed and
    tokens of the requests among it; what was kept of earlier runs is free.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)  # an address may hold a password
    url: str
    model: str = Field(min_length=1)
    key_variable: str = Field(default="HONEYBEE_JUDGE_KEY", pattern=r"[A-Za-z_][A-Za-z0-9_]*")
    max_tokens: int | None = Field(default=None, gt=0)
    concurrency: int = Field(default=4, ge=1, le=64)
    timeout: float = Field(default=60, gt=0)
    tries: int = Field(default=6, ge=1, le=20)
    max_requests: int = Field(default=10_000, ge=0)
    max_total_tokens: int = Field(default=10_000_000, ge=0)

    @field_validator("url")
    @classmethod
    def _is_plain(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or " " in url or not url.isprintable():
            raise ValueError("must be an address like http://127.0.0.1:8000/v1")
        if parts.port == 0:  # one above 65535 raises ValueError itself
            raise ValueError("has port 0")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must hold no user, password or query: it is written into the scores")
        return url.rstrip("/")


class EndpointJudge:
    """The Judge (base.py) of some settings. cache: the directory of the kept replies, made if need be.

    Raises JudgeError for a key that no header can carry.
    """

    def __init__(self, settings: JudgeSettings, cache: Path):
        self.settings, self.cache = settings, cache
        key = os.environ.get(settings.key_variable, "").strip() or None
        if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
            raise JudgeError(f"the key in ${settings.key_variable} holds blanks or characters that no key has")
        if key is None:
            log.info("judge: no key in $%s, so none is sent", settings.key_variable)
        self._endpoint = Endpoint(settings.url, key, settings.timeout, settings.tries, settings.concurrency)
        self._budget = _Budget(settings.max_requests, settings.max_total_tokens)

    @property
    def by(self) -> dict[str, Any]:
        length = {} if self.settings.max_tokens is None else {"max_tokens": self.settings.max_tokens}
        return {"model": self.settings.model, "url": self.settings.url, "temperature": 0, **length}

    def ask(self, conversations: Mapping[str, Messages], max_tokens: int) -> dict[str, Answer]:
        """See base.Judge; equal conversations are asked once. Raises JudgeError where no request can succeed."""
        bodies: dict[str, dict[str, Any]] = {}  # by digest
        digests = {}
        for key, messages in conversations.items():
            body = {
                "model": self.settings.model,
                "messages": [{**message, "content": encodable(message["content"])} for message in messages],
                "temperature": 0,
                "max_tokens": self.settings.max_tokens or max_tokens,
            }
            digests[key] = _digest({"url": self.settings.url, **body})
            bodies[digests[key]] = body
        found: dict[str, Answer] = {digest: kept for digest in bodies if (kept := self._kept(digest)) is not None}
        self._ask({digest: body for digest, body in bodies.items() if digest not in found}, found)
        return {key: found[digest] for key, digest in digests.items()}

    def _ask(self, bodies: Mapping[str, dict[str, Any]], found: dict[str, Answer]) -> None:
        """Adds the replies to `found`, in the order in which they come."""
        kept, total = len(found), len(found) + len(bodies)
        if not bodies:
            log.info("judge %s: all %d replies are kept from before", self.settings.model, total)
            return
        watch = _Watch()
        started = last_log = time.monotonic()
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            futures = {pool.submit(self._one, digest, body, watch): digest for digest, body in bodies.items()}
            try:
                for future in as_completed(futures):
                    found[futures[future]] = future.result()
                    now = time.monotonic()
                    if now - last_log > LOG_EVERY or len(found) == total:
                        speed = (len(found) - kept) / (now - started)
                        what = f"{len(found)} of {total} replies, {kept} of them kept from before"
                        log.info("judge %s: %s, %.1f a second, %s", self.settings.model, what, speed, self._budget)
                        last_log = now
            except BaseException:
                watch.stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _one(self, digest: str, body: dict[str, Any], watch: "_Watch") -> Answer:
        length = sum(len(message["content"]) for message in body["messages"])
        guess = length // _CHARACTERS_PER_TOKEN + body["max_tokens"]
        first = True

        def pay() -> None:
            nonlocal first
            if watch.down is not None:
                raise _NotAsked(f"{FAILED_IN_A_ROW} requests failed one after another, the last: {watch.down}")
            self._budget.pay(guess if first else 0)
            first = False

        try:
            completion = self._endpoint.complete(body, pay, watch.stopped)
        except _NotAsked as error:
            return Answer(None, f"not asked: {error}")
        except Failed as error:
            watch.failed(error)
            return Answer(None, f"no reply: {error}")
        watch.succeeded()
        if completion.tokens is not None:
            self._budget.correct(completion.tokens - guess)
        kept = {"url": self.settings.url, "request": body, "reply": completion.text, "tokens": completion.tokens}
        path = self._path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(kept, ensure_ascii=False, indent=1) + "\n")
        return Answer(completion.text)

    def _path(self, digest: str) -> Path:
        return self.cache / digest[:2] / f"{digest}.json"

    def _kept(self, digest: str) -> Answer | None:
        path = self._path(digest)
        try:
            kept = json.loads(path.read_bytes())
            whole = _digest({"url": kept["url"], **kept["request"]}) == digest and isinstance(kept["reply"], str)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            log.warning("%s is no kept reply: asked again", path)
            return None
        return Answer(kept["reply"])


class _NotAsked(Exception):
    pass


class _Budget:
    """What one run may spend; threads share it."""

    def __init__(self, requests: int, tokens: int):
        self._limits = (requests, tokens)
        self._requests = self._tokens = 0
        self._lock = Lock()

    def pay(self, tokens: int) -> None:
        """For one request of about so many tokens. Raises _NotAsked where it would be too much."""
        with self._lock:
            if self._requests + 1 > self._limits[0]:
                raise _NotAsked(f"the budget of {self._limits[0]} requests is spent")
            if self._tokens + tokens > self._limits[1]:
                raise _NotAsked(f"of the budget of {self._limits[1]} tokens {self._tokens} are spent: too few are left")
            self._requests += 1
            self._tokens += tokens

    def correct(self, tokens: int) -> None:
        """By how much a request took more than it had paid for."""
        with self._lock:
            self._tokens += tokens

    def __str__(self) -> str:
        return f"spent {self._requests} requests and about {self._tokens} tokens"


class _Watch:
    """Sees over all requests of one call whether the endpoint is down: faults that pass, one after another, or any
    before the first reply. `stopped`: the call ends, so nobody waits."""

    def __init__(self) -> None:
        self.stopped = Event()
        self.down: str | None = None
        self._in_a_row = 0
        self._replied = False
        self._lock = Lock()

    def failed(self, error: Failed) -> None:
        with self._lock:
            self._in_a_row += error.passing or not self._replied
            if self._in_a_row >= FAILED_IN_A_ROW:
                self.down = str(error)

    def succeeded(self) -> None:
        with self._lock:
            self._in_a_row, self._replied = 0, True


def _digest(request: Mapping[str, Any]) -> str:
    text = json.dumps(request, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
