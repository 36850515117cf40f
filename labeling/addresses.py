"""Where labelers reach Label Studio, and what that means for their secrets. No SDK."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

LOOPBACK = "127.0.0.1"


def checked_bind(bind: str) -> str:
    """The IPv4 address as it is. Raises ValueError for anything else."""
    try:
        return str(ipaddress.IPv4Address(bind.strip()))
    except ValueError:
        raise ValueError(
            "must be an IPv4 address of this machine, or 0.0.0.0 for all of them"
        ) from None


def checked_public_url(url: str) -> str:
    """The address without a slash at its end. Raises ValueError for what no browser can open."""
    parts = urlsplit(url.strip())
    try:
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        is_one = False
    if not is_one or parts.query or parts.fragment or parts.username:
        raise ValueError("must be an address like https://rank.example.org")
    return url.strip().rstrip("/")


def is_this_machine(url: str) -> bool:
    """Whether the address is one of this machine: no proxy stands between."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    return host == "localhost" or is_own_address(host)


def is_own_address(host: str) -> bool:
    """Whether this machine has that IP address, loopback among them."""
    try:
        address = ipaddress.ip_address(host)
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
    except (OSError, ValueError):
        return False
    return True


@dataclass(frozen=True)
class Address:
    """On which IPv4 address the embedded Label Studio listens, and where browsers find it if a
    proxy stands before it."""

    bind: str = LOOPBACK
    public_url: str | None = None

    @property
    def reached_at(self) -> str:
        """The address by which this machine itself reaches the server."""
        return LOOPBACK if self.bind == "0.0.0.0" else self.bind

    @property
    def origin(self) -> str | None:
        """Scheme, host and port of `public_url`, as a browser names them."""
        parts = urlsplit(self.public_url or "")
        return f"{parts.scheme}://{parts.netloc}" if self.public_url else None

    @property
    def has_tls(self) -> bool:
        return (self.public_url or "").startswith("https://")

    @property
    def exposure(self) -> str | None:
        """In plain words what others on the network can see; None when they see nothing."""
        is_open = not ipaddress.ip_address(self.bind).is_loopback
        if self.has_tls:
            return (
                f"Label Studio listens on {self.bind} without TLS, behind {self.public_url}: let "
                "only the proxy reach its port; whoever listens between the two reads passwords"
                if is_open
                else None
            )
        host = urlsplit(self.public_url or "").hostname
        if not is_open and host in (None, "localhost", LOOPBACK):
            return None
        return (
            f"Label Studio is reachable at {self.public_url or self.bind} without TLS: whoever "
            "listens on the network between reads labelers' passwords and answers, and can then "
            "answer, change and delete in their name; put a TLS proxy before it and name its "
            "https address in labeling.public_url"
        )


THIS_MACHINE = Address()
