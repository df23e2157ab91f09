"""Requests of other web pages and other users to the Prefect server, sent to the server of the session."""

import http.client
import json
import socket
import stat
from base64 import b64encode
from urllib.parse import urlsplit

import pytest

from flows.server import process as processes
from flows.server import services, settings

pytestmark = pytest.mark.slow

# What an attacker wants: a deployment that runs a command on the worker.
DEPLOYMENT = {
    "name": "hostile",
    "flow_id": "00000000-0000-0000-0000-000000000000",
    "pull_steps": [{"prefect.deployments.steps.run_shell_script": {"script": "touch /tmp/hostile"}}],
}


@pytest.fixture(scope="module")
def server(prefect) -> tuple[str, str]:
    """Host:port and the Authorization header of the server's owner."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL

    token = b64encode(PREFECT_API_AUTH_STRING.value().encode()).decode()
    return urlsplit(PREFECT_API_URL.value()).netloc, f"Basic {token}"


def send(server, path="/api/deployments/", method="POST", body=DEPLOYMENT, owner=False, **headers):
    """Returns status, body and headers of the answer. Underscores in the names of headers are hyphens."""
    address, authorization = server
    sent = {"Host": address, "Content-Type": "application/json"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    if owner:
        sent["Authorization"] = authorization
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request(method, path, json.dumps(body), sent)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/x-www-form-urlencoded"])
def test_a_deployment_with_a_shell_step_needs_the_secret(server, kind):
    status, text, _ = send(server, Content_Type=kind)
    assert (status, json.loads(text)) == (401, {"exception_message": "Unauthorized"})


@pytest.mark.parametrize(
    "authorization", ["Basic", "Basic aG9uZXliZWU6", "Bearer x", "Basic ////", "basic " + b64encode(b"a:b").decode()]
)
def test_a_wrong_secret_is_refused(server, authorization):
    assert send(server, Authorization=authorization)[0] == 401


@pytest.mark.parametrize(
    "path", ["/api/flows/filter", "/api/work_pools/filter", "/api/block_documents/filter", "/api/logs/filter"]
)
def test_nothing_is_read_without_the_secret(server, path):
    assert send(server, path, body={})[0] == 401
    assert send(server, path, body={}, owner=True)[0] == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://{0}", "http://localhost:1", "http://{0}.evil"]
)
def test_other_web_pages_are_refused_even_with_the_secret(server, origin):
    origin = origin.format(server[0])
    status, text, headers = send(server, Origin=origin, owner=True)
    assert (status, text) == (403, "Requests of other web pages are refused.")
    preflight = send(server, method="OPTIONS", Origin=origin, Access_Control_Request_Method="POST")
    assert preflight[0] == 403
    assert not [name for name in {**headers, **preflight[2]} if name.startswith("access-control")]


def test_a_page_of_the_server_itself_is_answered(server):
    status, text, headers = send(server, "/api/flows/filter", body={}, owner=True, Origin=f"http://{server[0]}")
    assert status == 200 and isinstance(json.loads(text), list)
    assert "connect-src 'self'" in headers["content-security-policy"]
    assert "'unsafe-inline'" not in headers["content-security-policy"].split("style-src")[0]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{0}", "127.0.0.1.evil.example:{0}", "[::1]:{0}", ""])
def test_a_name_that_was_rebound_to_this_machine_is_refused(server, host):
    host = host.format(server[0].partition(":")[2])
    for path in ("/api/flows/filter", "/api/health", "/"):
        assert send(server, path, body={}, owner=True, Host=host, Origin=f"http://{host}")[0] == 403


@pytest.mark.parametrize("protocol", [None, "prefect"])
@pytest.mark.parametrize("path", ["/api/events/in", "/api/logs/out", "/api/work_pools/local/workers/connect"])
def test_websockets_need_the_secret_too(server, path, protocol):
    from websockets.exceptions import ConnectionClosed, InvalidStatus
    from websockets.sync.client import connect

    url = f"ws://{server[0]}{path}"
    with pytest.raises(InvalidStatus):
        connect(url, subprotocols=["prefect"], origin="http://evil.example", proxy=None)
    with (
        pytest.raises((ConnectionClosed, InvalidStatus)),
        connect(url, subprotocols=protocol and [protocol], proxy=None) as opened,
    ):
        opened.send(json.dumps({"type": "auth", "token": "honeybee:guessed"}))
        opened.recv(timeout=10)


def test_the_secret_belongs_to_its_owner_and_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = settings.secret()
    assert len(first) > 40 and first == settings.secret() and first != settings.new_secret()
    settings.environment(4321)
    services._write_login(4321)
    private = [settings.SECRET, settings.LOGIN, settings.PREFECT_HOME / "profiles.toml"]
    assert [oct(stat.S_IMODE(path.stat().st_mode)) for path in private] == ["0o600"] * 3
    assert stat.S_IMODE(settings.HOME.stat().st_mode) == 0o700
    assert not list(settings.HOME.glob(".*partial"))
    settings.SECRET.chmod(0o644)
    settings.HOME.chmod(0o755)
    assert settings.secret() == first
    assert [stat.S_IMODE(path.stat().st_mode) for path in (settings.SECRET, settings.HOME)] == [0o600, 0o700]


def test_a_port_in_use_is_reported_without_asking_what_uses_it():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(services.ServiceError, match=f"port {port} of 127.0.0.1 is used by another program"):
            processes.open_socket(port)
