"""``HOST:PORT`` as people write it."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

from runnel.common.errors import BadSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A host (name, IPv4, or IPv6 without brackets) and a port; 0 means any free one, for those who listen."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether it can't be reached from another machine."""
        return is_loopback(self.host)

    @property
    def everywhere(self) -> bool:
        """Whether it stands for all addresses of this machine (``0.0.0.0``, ``[::]``): to listen on, not to call."""
        try:
            return ipaddress.ip_address(self.host).is_unspecified
        except ValueError:
            return False

    def to_call(self, host: str = "") -> Address:
        """Return what to call to get here: this address, or if it is all addresses that of ``host``.

        Args:
            host: a name or address of this machine; empty: its loopback, for callers on it.

        >>> str(parse_address("0.0.0.0:7400").to_call()), str(parse_address("[::]:7400").to_call("reducer.example.org"))
        ('127.0.0.1:7400', 'reducer.example.org:7400')
        >>> str(parse_address("192.0.2.7:7400").to_call("reducer.example.org"))
        '192.0.2.7:7400'
        """
        if not self.everywhere:
            return self
        return Address(host=host or ("::1" if ":" in self.host else "127.0.0.1"), port=self.port)


def own_host_towards(peer: Address) -> str:
    """Return the address of this machine from which it calls ``peer``; nothing is sent. Blocks to resolve a name.

    An empty text if that can't be known: the name is not known, or there is no way there.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(peer.host, peer.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(place)
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def parse_address(text: str, *, key: str = "address") -> Address:
    """Return the address that ``text`` writes as ``HOST:PORT``, ``192.0.2.7:7400`` or ``[2001:db8::7]:7400``.

    Raises:
        BadSettings: it is none; the message names ``key``.

    >>> str(parse_address("[::1]:7400")), parse_address("localhost:0").port
    ('[::1]:7400', 0)
    """
    host, colon, port = text.strip().rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else -1
    well_formed = bool(colon and host and 0 <= number <= 65535 and (bracketed == (":" in host)))
    if not well_formed or any(character.isspace() or character in "/[]" for character in host):
        raise BadSettings(
            f"{key} must be HOST:PORT with a port of 0 to 65535, not {text[:200]!r}.",
            hint="For example 127.0.0.1:7400, combiner.example.org:7410 or [2001:db8::7]:7400.",
            key=key,
        )
    return Address(host=host, port=number)


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine's loopback: ``localhost``, 127.0.0.0/8 or ::1. Names are not resolved.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
