"""Which hosts of URLs are this machine: requests to it never go through a proxy."""

import ipaddress
import os

NAMES = ("localhost", "127.0.0.1", "::1")


def is_loopback(host: str) -> bool:
    """Whether the host of a URL is this machine."""
    host = host.strip("[]").rstrip(".").lower()
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def bypass_proxies(*hosts: str) -> None:
    """Exempts this machine, and `hosts`, from HTTP_PROXY, HTTPS_PROXY and ALL_PROXY, here and in all child processes.

    Both spellings are set, because the lower-case one wins where both exist.
    """
    known = [host.strip() for name in ("no_proxy", "NO_PROXY") for host in os.environ.get(name, "").split(",")]
    if "*" not in known:
        known = list(dict.fromkeys([*filter(None, known), *NAMES, *hosts]))
        os.environ.update(dict.fromkeys(("no_proxy", "NO_PROXY"), ",".join(known)))
