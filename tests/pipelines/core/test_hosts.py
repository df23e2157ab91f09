"""Which hosts are this machine, and that no proxy is used for them."""

import os
from urllib.request import getproxies, proxy_bypass

import httpx
import pytest

from pipelines.core.hosts import bypass_proxies, is_loopback


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST", "localhost.", "a.localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]"]
)
def test_names_of_this_machine(host):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", "example.org", "localhost.example.org", "10.0.0.1", "::2", "notlocalhost", "128.0.0.1"]
)
def test_other_machines(host):
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "localhost,127.0.0.1,::1"),
        ({"no_proxy": "corp.example"}, "corp.example,localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "corp.example, localhost"}, "corp.example,localhost,127.0.0.1,::1"),
        ({"no_proxy": "a", "NO_PROXY": "b"}, "a,b,localhost,127.0.0.1,::1"),
        ({"no_proxy": "*"}, None),
    ],
)
def test_this_machine_is_reached_directly_and_others_through_the_proxy(monkeypatch, before, after):
    monkeypatch.setattr(os, "environ", {"http_proxy": "http://proxy:1", "ALL_PROXY": "http://proxy:1", **before})
    bypass_proxies()
    if after is None:
        assert os.environ["no_proxy"] == "*" and "NO_PROXY" not in os.environ
        return
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == after
    assert proxy_bypass("127.0.0.1") and proxy_bypass("localhost") and not proxy_bypass("example.org")
    with httpx.Client() as client:
        direct = client._transport
        for url in ("http://127.0.0.1:4200", "http://localhost:1", "http://[::1]:2", "https://localhost"):
            assert client._transport_for_url(httpx.URL(url)) is direct
        assert client._transport_for_url(httpx.URL("http://example.org")) is not direct
    assert getproxies()["http"] == "http://proxy:1"
