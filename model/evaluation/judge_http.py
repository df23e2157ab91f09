"""One request to an OpenAI-compatible chat completions endpoint: sent again where the fault may pass, never else."""

import email.utils
import json
import logging
import random
import time
from collections.abc import Callable
from threading import Event
from typing import Any, NamedTuple

import httpx

from model.evaluation.base import EvaluationError

FIRST_WAIT = 1.0  # seconds before the second try; doubled before each next one
LONGEST_WAIT = 60.0  # seconds: more than that is a fault that does not pass, whoever asks for it
_PASSING = {408, 409, 425, 429}  # beside all from 500 on
_THIS_REQUEST = {400, 413, 422}  # this request is refused, others may not be
_SHOWN = 200  # characters of an error's body
log = logging.getLogger(__name__)


class JudgeError(EvaluationError):
    """The endpoint cannot be used at all: a wrong key, address or model."""


class Failed(Exception):
    """No usable reply to this request. `passing`: what failed may work later (a time-out, an overload)."""

    def __init__(self, reason: str, passing: bool):
        super().__init__(reason)
        self.passing = passing


class Completion(NamedTuple):
    text: str
    tokens: int | None  # of request and reply, None where the endpoint does not say


class Endpoint:
    """Threads may share it. The key stands in the header of each request and nowhere else."""

    def __init__(self, url: str, key: str | None, timeout: float, tries: int, connections: int):
        """url: the base, to which /chat/completions is added. timeout: seconds without a byte. tries: per request."""
        self.url = f"{url.rstrip('/')}/chat/completions"
        self.tries, self._key = tries, key
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        limits = httpx.Limits(max_connections=connections)
        self._client = httpx.Client(headers=headers, timeout=timeout, limits=limits)  # redirects are not followed

    def close(self) -> None:
        self._client.close()

    def complete(self, body: dict[str, Any], before_each: Callable[[], None], stopped: Event) -> Completion:
        """Sends a request, again after a wait where the fault may pass (429, 5xx, time-out, no connection, a reply
        that is no completion).

        before_each: called before every try; what it raises ends this. Raises Failed, or JudgeError for what would
        fail for every request alike.
        """
        for attempt in range(self.tries):
            before_each()
            try:
                return self._once(body)
            except _Again as again:
                wait = FIRST_WAIT * 2**attempt * random.uniform(0.75, 1.25) if again.wait is None else again.wait
                last = attempt == self.tries - 1
                if last or wait > LONGEST_WAIT:
                    asks = f"; it asks to wait {wait:.0f} s" if wait > LONGEST_WAIT and not last else ""
                    raise Failed(f"{again} ({attempt + 1} tries{asks})", passing=True) from None
                log.info("judge: %s: again in %.1f s", again, wait)
                if stopped.wait(wait):
                    raise Failed("stopped", passing=True) from None
        raise AssertionError("there is always a first try")

    def _once(self, body: dict[str, Any]) -> Completion:
        try:
            response = self._client.post(self.url, json=body)
        except httpx.TimeoutException as error:
            raise _Again(f"no answer in time ({type(error).__name__})") from None
        except httpx.TransportError as error:
            raise _Again(f"no connection: {self._clean(str(error)) or type(error).__name__}") from None
        except httpx.HTTPError as error:
            raise _Again(f"{type(error).__name__}: {self._clean(str(error))}") from None
        code = response.status_code
        if code >= 500 or code in _PASSING:
            raise _Again(f"HTTP {code} {self._clean(response.text)}".strip(), _retry_after(response))
        if code in _THIS_REQUEST:
            raise Failed(f"HTTP {code} {self._clean(response.text)}", passing=False)
        if code != 200:
            hint = "is the key right?" if code in (401, 403) else "are the URL and the model's name right?"
            raise JudgeError(f"{self.url}: HTTP {code} {self._clean(response.text)}: {hint}")
        return _completion(response)

    def _clean(self, text: str) -> str:
        """The beginning of a text of the endpoint's, in one line and without the key, should it repeat it."""
        if self._key:
            text = text.replace(self._key, "***")
        return " ".join(text.split())[:_SHOWN]


class _Again(Exception):
    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


def _completion(response: httpx.Response) -> Completion:
    try:
        content = json.loads(response.content)
        text = content["choices"][0]["message"]["content"]
        used = (content.get("usage") or {}).get("total_tokens")
    except (ValueError, RecursionError):
        raise _Again("the reply is not JSON") from None
    except (KeyError, IndexError, TypeError, AttributeError):
        raise _Again("the reply holds no choices[0].message.content") from None
    if not isinstance(text, str):
        raise _Again(f"choices[0].message.content is {type(text).__name__}, not a text")
    return Completion(encodable(text), used if type(used) is int and used >= 0 else None)


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or as a date (RFC 9110, 10.2.3); None without one."""
    value = response.headers.get("retry-after", "").strip()
    if value.isdecimal() and len(value) < 10:
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def encodable(text: str) -> str:
    """The text with a question mark for half a surrogate pair, which JSON can spell and UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode()
