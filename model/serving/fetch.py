"""Pictures from http and https, without letting a request reach into the server's own network."""

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from typing import Any

import httpx

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_ASSIGNED = ipaddress.ip_network("2000::/3")  # all of IPv6 that is given out to the internet
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
TIMEOUT = 15.0  # seconds, for all of it


class FetchError(ValueError):
    """A picture that was not fetched."""


def is_public(address: Address) -> bool:
    """Whether an address belongs to the open internet. Addresses of IPv4 that are written as IPv6 are looked into;
    the old tunnels, which hold one too, are refused."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address not in _ASSIGNED or address.sixtofour or address.teredo:
            return False
    return address.is_global and not address.is_multicast


async def fetch(url: str, max_bytes: int, permits: Callable[[Address], bool] = is_public) -> bytes:
    """The bytes at a URL. No redirect is followed and no proxy used.

    permits: every address of the host must pass; the connection goes to one that did, so that a second look-up cannot
    give another. Raises FetchError, which does not show what the host answered.
    """
    try:
        async with asyncio.timeout(TIMEOUT):
            return await _fetch(url, max_bytes, permits)
    except TimeoutError:
        raise FetchError(f"it did not arrive within {TIMEOUT:.0f} seconds") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise FetchError(f"{type(error).__name__}: {error}") from None


async def _fetch(url: str, max_bytes: int, permits: Callable[[Address], bool]) -> bytes:
    parsed = httpx.URL(url)
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise FetchError("only http and https addresses are fetched")
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
            raise FetchError("it redirects, and redirects are not followed: give the last address")
        if response.status_code != 200:
            raise FetchError(f"the host answered with the status {response.status_code}")
        data = bytearray()
        async for piece in response.aiter_raw():
            data += piece
            if len(data) > max_bytes:
                raise FetchError(f"more than {max_bytes} bytes")
        return bytes(data)


async def _resolve(host: str, port: int, permits: Callable[[Address], bool]) -> Address:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise FetchError(f"the host {host[:80]} is not known") from None
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    if not addresses or not all(map(permits, addresses)):
        raise FetchError(f"the host {host[:80]} has an address that is private, loopback or otherwise not public")
    return min(addresses, key=lambda address: address.version)  # not every machine reaches IPv6
