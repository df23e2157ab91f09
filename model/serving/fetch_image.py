"""Fetches images over HTTP and HTTPS without giving requests access to the server's internal network (SSRF)."""

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from typing import Any

import httpx

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_ASSIGNED = ipaddress.ip_network("2000::/3")  # the IPv6 range allocated for global unicast
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
TIMEOUT = 15.0  # seconds for the complete request


class FetchError(ValueError):
    """Raised if an image could not be fetched."""


def is_public(address: Address) -> bool:
    """Returns whether an address belongs to the public internet. IPv4-mapped and NAT64 addresses are judged by the
    embedded IPv4 address; 6to4 and Teredo tunnels are rejected."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address not in _ASSIGNED or address.sixtofour or address.teredo:
            return False
    return address.is_global and not address.is_multicast


async def fetch(url: str, max_bytes: int, permits: Callable[[Address], bool] = is_public) -> bytes:
    """Returns the content of a URL, without following redirects or using a proxy.

    permits: must accept every address of the host; the connection uses one of the checked addresses, so that a second
    DNS lookup cannot return a different one. Raises FetchError, which does not reveal the content of the response.
    """
    try:
        async with asyncio.timeout(TIMEOUT):
            return await _fetch(url, max_bytes, permits)
    except TimeoutError:
        raise FetchError(f"the download did not complete within {TIMEOUT:.0f} seconds") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise FetchError(f"{type(error).__name__}: {error}") from None


async def _fetch(url: str, max_bytes: int, permits: Callable[[Address], bool]) -> bytes:
    parsed = httpx.URL(url)
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise FetchError("only http and https URLs are supported")
    address = await _resolve(parsed.host, parsed.port or (443 if parsed.scheme == "https" else 80), permits)
    request: dict[str, Any] = {
        "headers": {"Host": parsed.netloc.decode(), "Accept": "image/*", "Accept-Encoding": "identity"},
        "extensions": {"sni_hostname": parsed.host},  # the certificate must be the host's
    }
    async with (
        httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=TIMEOUT) as client,
        client.stream("GET", parsed.copy_with(host=str(address)), **request) as response,
    ):
        if response.is_redirect:
            raise FetchError("the URL redirects, but redirects are not followed: give the final URL")
        if response.status_code != 200:
            raise FetchError(f"the host responded with status {response.status_code}")
        data = bytearray()
        async for piece in response.aiter_raw():
            data += piece
            if len(data) > max_bytes:
                raise FetchError(f"the file is larger than {max_bytes} bytes")
        return bytes(data)


async def _resolve(host: str, port: int, permits: Callable[[Address], bool]) -> Address:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise FetchError(f"the host {host[:80]} cannot be resolved") from None
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    if not addresses or not all(map(permits, addresses)):
        raise FetchError(f"the host {host[:80]} has an address that is private, loopback or otherwise not public")
    return min(addresses, key=lambda address: address.version)  # prefer IPv4: IPv6 is not always reachable
