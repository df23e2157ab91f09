"""A Prefect API that cannot be used is one clear error, and loopback is never asked through a proxy."""

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from flows.server import settings
from flows.server.reach import ServiceError, check_api

DEAD = "http://127.0.0.1:9"  # nothing listens at port 9


@pytest.fixture
def proxies(monkeypatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        for spelled in (name, name.upper()):
            monkeypatch.setenv(spelled, DEAD)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def other_program() -> Iterator[str]:
    """The address of a program that answers every request with 200 and a page."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *values: object) -> None:
            """Prints nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/api"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "url", [f"{DEAD}/api", "http://no-such-host.invalid/api", "127.0.0.1:4200/api", "http://", "ftp://127.0.0.1/api"]
)
def test_an_unreachable_api_is_one_error_with_its_url_and_what_to_do(url):
    with pytest.raises(ServiceError) as error:
        check_api(url, None, None, "start it")
    assert str(error.value).startswith(f"the Prefect server at {url} does not answer (")
    assert str(error.value).endswith("): start it") and "\n" not in str(error.value)


def test_another_program_is_not_taken_for_a_server(other_program, proxies):
    with pytest.raises(ServiceError, match=f"what answers at {other_program} is not a Prefect API"):
        check_api(other_program, None, None, "start it")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("auth", "key", "message"),
    [
        (None, None, "asks for authentication"),
        ("honeybee:wrong", None, "refuses the value of PREFECT_API_AUTH_STRING"),
        (None, "wrong", "refuses the value of PREFECT_API_KEY"),
    ],
)
def test_wrong_credentials_are_one_error(prefect, proxies, auth, key, message):
    from prefect.settings import PREFECT_API_URL

    with pytest.raises(ServiceError, match=rf"{message} \(HTTP 401\): set it"):
        check_api(PREFECT_API_URL.value(), auth, key, "set it")


@pytest.mark.slow
def test_the_owner_passes_whatever_the_proxies(prefect, proxies):
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL

    check_api(PREFECT_API_URL.value(), PREFECT_API_AUTH_STRING.value(), None, "set it")


@pytest.mark.slow
def test_a_run_on_an_unreachable_server_ends_at_once(write_recipe, tmp_path):
    code = "from flows.server.temporary import prefect_server\nwith prefect_server(): print('ran')"
    env = {**os.environ, "PREFECT_API_URL": f"{DEAD}/api", "PREFECT_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, text=True, capture_output=True)
    assert done.returncode == 1 and done.stdout == ""
    assert f"ServiceError: the Prefect server at {DEAD}/api does not answer" in done.stderr
    assert "or unset PREFECT_API_URL to run on a temporary server" in done.stderr


def test_settings_of_the_environment_take_precedence_only_without_a_port(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", {"PREFECT_API_URL": "http://team/api", "PREFECT_API_AUTH_STRING": "a:b"})
    settings.configure()
    assert os.environ["PREFECT_API_URL"] == "http://team/api"
    settings.configure(4321)
    assert os.environ["PREFECT_API_URL"] == "http://127.0.0.1:4321/api"
    assert os.environ["PREFECT_API_AUTH_STRING"] == settings.secret()
