"""Sends one request to an OpenAI-compatible chat completions endpoint and retries it only after transient failures."""

import email.utils
import json
import logging
import random
import time
from collections.abc import Callable
from threading import Event
from typing import Any, NamedTuple

import httpx

from model.evaluation.interface import EvaluationError
from pipelines.core.hosts import is_loopback

INITIAL_BACKOFF = 1.0  # seconds before the first retry; doubled before each further one
MAX_BACKOFF = 60.0  # seconds; the request fails if the endpoint asks for a longer wait
_TRANSIENT = {408, 409, 425, 429}  # in addition to all codes from 500 on
_THIS_REQUEST = {400, 413, 422}  # this request is refused, but others may succeed
_SHOWN = 200  # characters of an error's body
log = logging.getLogger(__name__)


class JudgeError(EvaluationError):
    """The endpoint cannot be used at all: the API key, URL or model is wrong."""


class RequestFailed(Exception):
    """A request got no usable reply. passing: the failure is transient (a time-out, an overload)."""

    def __init__(self, reason: str, passing: bool):
        super().__init__(reason)
        self.passing = passing


class Completion(NamedTuple):
    text: str
    tokens: int | None  # of request and reply, None if the endpoint does not report them


class Endpoint:
    """A chat completions endpoint, safe to share between threads. The API key appears only in the request headers."""

    def __init__(self, url: str, key: str | None, timeout: float, tries: int, connections: int):
        """url: the base, without /chat/completions. timeout: seconds without a byte. tries: attempts per request."""
        self.url = f"{url.rstrip('/')}/chat/completions"
        self.tries, self._key = tries, key
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        limits = httpx.Limits(max_connections=connections)
        proxies = not is_loopback(httpx.URL(url).host)  # those of the environment; never for this machine
        # Redirects are not followed.
        self._client = httpx.Client(headers=headers, timeout=timeout, limits=limits, trust_env=proxies)

    def close(self) -> None:
        self._client.close()

    def complete(self, body: dict[str, Any], before_each: Callable[[], None], stopped: Event) -> Completion:
        """Sends a request and retries it with backoff after transient failures (429, 5xx, time-out, no connection, a
        reply that is not a completion).

        before_each: called before every attempt; its exceptions are passed on. Raises Failed if this request fails, and
        JudgeError if every request would fail.
        """
        for attempt in range(self.tries):
            before_each()
            try:
                return self._once(body)
            except _Retry as failure:
                wait = (
                    INITIAL_BACKOFF * 2**attempt * random.uniform(0.75, 1.25) if failure.wait is None else failure.wait
                )
                last = attempt == self.tries - 1
                if last or wait > MAX_BACKOFF:
                    asks = f"; the endpoint asks to wait {wait:.0f} s" if wait > MAX_BACKOFF and not last else ""
                    raise RequestFailed(f"{failure} (attempts: {attempt + 1}{asks})", passing=True) from None
                log.info("judge: %s; retrying in %.1f s", failure, wait)
                if stopped.wait(wait):
                    raise RequestFailed("stopped", passing=True) from None
        raise AssertionError("tries must be at least 1")

    def _once(self, body: dict[str, Any]) -> Completion:
        try:
            response = self._client.post(self.url, json=body)
        except httpx.TimeoutException as error:
            raise _Retry(f"the request timed out ({type(error).__name__})") from None
        except httpx.TransportError as error:
            raise _Retry(f"no connection: {self._clean(str(error)) or type(error).__name__}") from None
        except httpx.HTTPError as error:
            raise _Retry(f"{type(error).__name__}: {self._clean(str(error))}") from None
        code = response.status_code
        if code >= 500 or code in _TRANSIENT:
            raise _Retry(f"HTTP {code} {self._clean(response.text)}".strip(), _retry_after(response))
        if code in _THIS_REQUEST:
            raise RequestFailed(f"HTTP {code} {self._clean(response.text)}", passing=False)
        if code != 200:
            hint = "is the API key correct?" if code in (401, 403) else "are the URL and the model name correct?"
            raise JudgeError(f"{self.url}: HTTP {code} {self._clean(response.text)}: {hint}")
        return _completion(response)

    def _clean(self, text: str) -> str:
        """Returns the start of a text from the endpoint on one line, with any copy of the API key masked."""
        if self._key:
            text = text.replace(self._key, "***")
        return " ".join(text.split())[:_SHOWN]


class _Retry(Exception):
    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


def _completion(response: httpx.Response) -> Completion:
    try:
        content = json.loads(response.content)
        text = content["choices"][0]["message"]["content"]
        used = (content.get("usage") or {}).get("total_tokens")
    except (ValueError, RecursionError):
        raise _Retry("the reply is not JSON") from None
    except (KeyError, IndexError, TypeError, AttributeError):
        raise _Retry("the reply has no choices[0].message.content") from None
    if not isinstance(text, str):
        raise _Retry(f"choices[0].message.content is {type(text).__name__}, not a string")
    return Completion(encodable(text), used if type(used) is int and used >= 0 else None)


def _retry_after(response: httpx.Response) -> float | None:
    """Returns the seconds of a Retry-After header, a number or a date (RFC 9110, 10.2.3), or None if it has none."""
    value = response.headers.get("retry-after", "").strip()
    if value.isdecimal() and len(value) < 10:
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def encodable(text: str) -> str:
    """Replaces lone surrogates, which JSON can express but UTF-8 cannot encode, with question marks."""
    return text.encode("utf-8", "replace").decode()
