"""Checks that a Prefect API answers and accepts the credentials, before a flow depends on it."""

import base64

import httpx

from pipelines.core.hosts import is_loopback

TIMEOUT = 10.0  # seconds


class ServiceError(RuntimeError):
    """A server or worker cannot be used; the message names its URL or log file and says what to do."""


def check_api(url: str, auth: str | None, key: str | None, remedy: str) -> None:
    """Raises ServiceError if no Prefect API answers at `url` or if it refuses PREFECT_API_AUTH_STRING or
    PREFECT_API_KEY. remedy: what to do, in the imperative."""
    headers = {}
    if auth:
        headers["Authorization"] = f"Basic {base64.b64encode(auth.encode()).decode()}"
    elif key:
        headers["Authorization"] = f"Bearer {key}"
    try:
        with httpx.Client(trust_env=not is_loopback(httpx.URL(url).host), timeout=TIMEOUT) as client:
            answer = client.post(f"{url.rstrip('/')}/flows/filter", json={"limit": 1}, headers=headers)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, ImportError) as error:  # the last two: unusable proxies
        raise ServiceError(f"the Prefect server at {url} does not answer ({_reason(error)}): {remedy}") from None
    if answer.status_code in (401, 403):
        given = "PREFECT_API_AUTH_STRING" if auth else "PREFECT_API_KEY" if key else None
        what = f"refuses the value of {given}" if given else "asks for authentication"
        raise ServiceError(f"the Prefect server at {url} {what} (HTTP {answer.status_code}): {remedy}")
    try:
        flows = answer.json() if answer.status_code == 200 else None
    except ValueError:
        flows = None
    if not isinstance(flows, list):
        raise ServiceError(
            f"what answers at {url} is not a Prefect API (HTTP {answer.status_code}; its URL usually ends in /api): "
            f"{remedy}"
        )


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
