"""Fetching images: permitted addresses and responses."""

import asyncio
import http.server
import ipaddress
import threading
import time
from collections.abc import Iterator

import pytest

from model.serving import fetch_image
from model.serving.fetch_image import FetchError, fetch, is_public


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_internet_addresses_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "224.0.0.1", "255.255.255.255", "198.18.0.1", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::1",
        "2001:0:4136:e378:8000:63bf:80ff:fffe", "::127.0.0.1",
    ],
)  # fmt: skip
def test_all_other_networks_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


class Host(http.server.BaseHTTPRequestHandler):
    """A server whose response depends on the path."""

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.send_response({"/moved": 302, "/missing": 404}.get(path, 200))
        if path == "/moved":
            self.send_header("Location", "/image")
        self.end_headers()
        if path == "/endless" or path == "/slow":
            try:
                while True:
                    self.wfile.write(b"x" * 1000)
                    time.sleep(0.05 if path == "/slow" else 0)
            except OSError:
                return
        self.wfile.write(f"{self.path} for {self.headers['Host']}".encode())

    def log_message(self, *args: object) -> None:
        """Suppresses the log."""


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"localhost:{server.server_port}"
        server.shutdown()


def fetched(url: str, max_bytes: int = 100_000) -> bytes:
    """Fetches a URL as if the local network were public."""
    return asyncio.run(fetch(url, max_bytes, permits=lambda address: True))


def test_content_is_fetched_from_the_checked_address(host: str) -> None:
    assert fetched(f"http://{host}/image?size=9") == f"/image?size=9 for {host}".encode()


@pytest.mark.parametrize(
    ("path", "message"),
    [("moved", "redirects are not followed"), ("missing", "status 404"), ("endless", "larger than 100000 bytes")],
)
def test_unusable_response_is_rejected(host: str, path: str, message: str) -> None:
    with pytest.raises(FetchError, match=message):
        fetched(f"http://{host.replace('localhost', '127.0.0.1')}/{path}")


def test_slow_host_times_out(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_image, "TIMEOUT", 0.3)
    with pytest.raises(FetchError, match="did not complete within"):
        fetched(f"http://{host.replace('localhost', '127.0.0.1')}/slow")


def test_unreachable_host_or_unsupported_scheme_is_rejected() -> None:
    with pytest.raises(FetchError, match="ConnectError"):
        fetched("http://127.0.0.1:9/")
    with pytest.raises(FetchError, match="cannot be resolved"):
        fetched("http://no-such-host.invalid/")
    for url in ("file:///etc/passwd", "gopher://127.0.0.1/", "127.0.0.1/a.png"):
        with pytest.raises(FetchError, match="only http and https"):
            fetched(url)
