"""A judge behind an OpenAI-compatible endpoint: requests run in parallel within a budget, replies are cached on disk.

The cache key is a hash of the request, so a killed judging run resumes where it stopped, and a repeated one sends no
requests. This module is used only if a judge is configured.
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

from model.evaluation.interface import Answer, Messages
from model.evaluation.judging.http_client import Endpoint, JudgeError, RequestFailed, encodable
from pipelines.core.files import write_atomic
from pipelines.core.integrity import seal, unseal

LOG_EVERY = 5.0  # seconds
MAX_CONSECUTIVE_FAILURES = (
    5  # after this many consecutive requests that ultimately failed, the endpoint is considered down
)
_CHARACTERS_PER_TOKEN = 3  # a conservative estimate, used until the endpoint reports the number of tokens
log = logging.getLogger(__name__)


class JudgeSettings(BaseModel):
    """Which judge to ask and how. The API key is not part of it: it stays in the environment variable `key_variable`.

    url: the base URL of the API, such as http://127.0.0.1:8000/v1. max_tokens: the limit of one reply, by default that
    of the benchmark's judge prompt. timeout: in seconds. max_requests, max_total_tokens: the budget of one run, which
    includes failed attempts and the tokens of the requests; replies cached by earlier runs are free.
    """

    # hide_input_in_errors: a URL may contain a password.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True)

    url: str
    """Base URL of an OpenAI-compatible API, such as `http://127.0.0.1:8000/v1`."""

    model: str = Field(min_length=1)
    """Name of the model that judges."""

    key_variable: str = Field(default="HONEYBEE_JUDGE_KEY", pattern=r"[A-Za-z_][A-Za-z0-9_]*")
    """Environment variable that holds the API key."""

    max_tokens: int | None = Field(default=None, gt=0)
    """Maximum number of tokens of a reply; if unset, as in the benchmark's judge prompt."""

    concurrency: int = Field(default=4, ge=1, le=64)
    """Number of requests that are sent in parallel."""

    timeout: float = Field(default=60, gt=0)
    """Seconds after which a request is given up."""

    tries: int = Field(default=6, ge=1, le=20)
    """Maximum number of attempts for one reply."""

    max_requests: int = Field(default=10_000, ge=0)
    """Budget of one run in requests, failed attempts included; cached replies are free."""

    max_total_tokens: int = Field(default=10_000_000, ge=0)
    """Budget of one run in tokens, requests and replies together."""

    @field_validator("url")
    @classmethod
    def _is_plain(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or " " in url or not url.isprintable():
            raise ValueError("must be a URL like http://127.0.0.1:8000/v1")
        if parts.port == 0:  # urlsplit itself raises ValueError for a port above 65535
            raise ValueError("must not have port 0")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must not contain a user, password, query or fragment because it is written to the scores")
        return url.rstrip("/")


class EndpointJudge:
    """Implements base.Judge for an endpoint. cache: the directory of the cached replies, created if necessary.

    Raises JudgeError if the API key cannot be sent in an HTTP header.
    """

    def __init__(self, settings: JudgeSettings, cache: Path):
        self.settings, self.cache = settings, cache
        key = os.environ.get(settings.key_variable, "").strip() or None
        if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
            raise JudgeError(f"the API key in ${settings.key_variable} contains spaces or is not printable ASCII")
        if key is None:
            log.info("judge: $%s holds no API key, so none is sent", settings.key_variable)
        self._endpoint = Endpoint(settings.url, key, settings.timeout, settings.tries, settings.concurrency)
        self._budget = _Budget(settings.max_requests, settings.max_total_tokens)

    @property
    def by(self) -> dict[str, Any]:
        length = {} if self.settings.max_tokens is None else {"max_tokens": self.settings.max_tokens}
        return {"model": self.settings.model, "url": self.settings.url, "temperature": 0, **length}

    def ask(self, conversations: Mapping[str, Messages], max_tokens: int) -> dict[str, Answer]:
        """See base.Judge. Equal conversations are sent once. Raises JudgeError if no request can succeed."""
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
        found: dict[str, Answer] = {digest: hit for digest in bodies if (hit := self._cached(digest)) is not None}
        self._ask({digest: body for digest, body in bodies.items() if digest not in found}, found)
        return {key: found[digest] for key, digest in digests.items()}

    def _ask(self, bodies: Mapping[str, dict[str, Any]], found: dict[str, Answer]) -> None:
        """Adds the replies to `found` as they arrive."""
        cached, total = len(found), len(found) + len(bodies)
        if not bodies:
            log.info("judge %s: all %d replies are cached", self.settings.model, total)
            return
        health = _Health()
        started = last_log = time.monotonic()
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            futures = {pool.submit(self._one, digest, body, health): digest for digest, body in bodies.items()}
            try:
                for future in as_completed(futures):
                    found[futures[future]] = future.result()
                    now = time.monotonic()
                    if now - last_log > LOG_EVERY or len(found) == total:
                        speed = (len(found) - cached) / (now - started)
                        what = f"{len(found)} of {total} replies, {cached} of them cached"
                        log.info("judge %s: %s, %.1f per second, %s", self.settings.model, what, speed, self._budget)
                        last_log = now
            except BaseException:
                health.stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _one(self, digest: str, body: dict[str, Any], health: "_Health") -> Answer:
        length = sum(len(message["content"]) for message in body["messages"])
        estimate = length // _CHARACTERS_PER_TOKEN + body["max_tokens"]
        first = True

        def charge() -> None:
            nonlocal first
            if health.down is not None:
                raise _NotAsked(
                    f"{MAX_CONSECUTIVE_FAILURES} consecutive requests failed, the last one with: {health.down}"
                )
            self._budget.charge(estimate if first else 0)
            first = False

        try:
            completion = self._endpoint.complete(body, charge, health.stopped)
        except _NotAsked as error:
            return Answer(None, f"not asked: {error}")
        except RequestFailed as error:
            health.failed(error)
            return Answer(None, f"no reply: {error}")
        health.succeeded()
        if completion.tokens is not None:
            self._budget.correct(completion.tokens - estimate)
        entry = {"url": self.settings.url, "request": body, "reply": completion.text, "tokens": completion.tokens}
        path = self._path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, seal(entry))
        return Answer(completion.text)

    def _path(self, digest: str) -> Path:
        return self.cache / digest[:2] / f"{digest}.json"

    def _cached(self, digest: str) -> Answer | None:
        path = self._path(digest)
        try:
            entry = unseal(path.read_bytes(), path)
            valid = _digest({"url": entry["url"], **entry["request"]}) == digest and isinstance(entry["reply"], str)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            valid = False
        if not valid:
            log.warning("%s is not a valid cached reply; the request is sent again", path)
            return None
        return Answer(entry["reply"])


class _NotAsked(Exception):
    pass


class _Budget:
    """The budget of one run, shared by its threads."""

    def __init__(self, requests: int, tokens: int):
        self._limits = (requests, tokens)
        self._requests = self._tokens = 0
        self._lock = Lock()

    def charge(self, tokens: int) -> None:
        """Charges one request of an estimated number of tokens. Raises _NotAsked if it would exceed the budget."""
        with self._lock:
            if self._requests + 1 > self._limits[0]:
                raise _NotAsked(f"the budget of {self._limits[0]} requests is spent")
            if self._tokens + tokens > self._limits[1]:
                raise _NotAsked(f"{self._tokens} of the budget of {self._limits[1]} tokens are spent: too few are left")
            self._requests += 1
            self._tokens += tokens

    def correct(self, tokens: int) -> None:
        """Adds the difference between the tokens that a request used and the estimate that it was charged."""
        with self._lock:
            self._tokens += tokens

    def __str__(self) -> str:
        return f"spent {self._requests} requests and about {self._tokens} tokens"


class _Health:
    """Detects during one call that the endpoint is down: by consecutive transient failures or, before the first reply,
    by consecutive failures of any kind. stopped: set when the call is aborted, so that no thread keeps waiting."""

    def __init__(self) -> None:
        self.stopped = Event()
        self.down: str | None = None
        self._consecutive = 0
        self._replied = False
        self._lock = Lock()

    def failed(self, error: RequestFailed) -> None:
        with self._lock:
            self._consecutive += error.passing or not self._replied
            if self._consecutive >= MAX_CONSECUTIVE_FAILURES:
                self.down = str(error)

    def succeeded(self) -> None:
        with self._lock:
            self._consecutive, self._replied = 0, True


def _digest(request: Mapping[str, Any]) -> str:
    text = json.dumps(request, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
