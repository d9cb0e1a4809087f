"""Hosts beyond a site that its policy names, so that containers of tasks may reach them. Pure."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

WEB_PORTS = frozenset({80, 443})
"""What is meant by a host without a port."""

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*", re.ASCII)
_ANY = "*."


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressHost:
    """One entry: a ``host`` as :func:`plain_host` gives it, or ``*.`` and a domain for all below it, and its ports."""

    host: str
    ports: frozenset[int] = WEB_PORTS

    def allows(self, host: str, port: int) -> bool:
        """Tell whether ``host``, as :func:`plain_host` gives it, may be reached at ``port``."""
        below = self.host.startswith(_ANY) and host.endswith(self.host[1:]) and not _is_address(host)
        return port in self.ports and (below or host == self.host)

    @property
    def by_address(self) -> bool:
        """Whether it names an address: then that is what is reached, wherever it is."""
        return _is_address(self.host)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.ports == WEB_PORTS else f"{host}:{min(self.ports)}"


def egress_host(text: str) -> EgressHost:
    """Return the entry that ``text`` is.

    Raises:
        ValueError: it is none; the message says how one is written.

    >>> egress_host("*.example.org:8443").allows("a.b.example.org", 8443)
    True
    >>> egress_host("example.org").allows("example.org", 8443)
    False
    """
    try:
        host, port = split_port(text)
        named = _ANY + plain_host(host[len(_ANY) :]) if host.startswith(_ANY) else plain_host(host)
        if named.startswith(_ANY) and _is_address(named[len(_ANY) :]):
            raise ValueError(named)
    except ValueError:
        raise ValueError(
            f"{text[:100]!r} should be a host as api.example.org, *.example.org, 192.0.2.7 or [2001:db8::7], "
            "with :PORT unless it is 80 and 443 that are meant"
        ) from None
    return EgressHost(host=named, ports=WEB_PORTS if port is None else frozenset({port}))


def split_port(text: str) -> tuple[str, int | None]:
    """Return host and port of ``HOST``, ``HOST:PORT`` or ``[HOST]:PORT``; the host has not been looked at.

    Raises:
        ValueError: the port is none.
    """
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(.*))?", text, re.DOTALL)
    if bracketed:
        host, port = bracketed[1], bracketed[2]
    else:
        host, colon, rest = text.partition(":")
        port = rest if colon else None
    if port is None:
        return host, None
    if not (port.isascii() and port.isdecimal() and len(port) < 6 and 0 < int(port) < 1 << 16):
        raise ValueError(f"{port[:20]!r} should be a port, 1 to 65535")
    return host, int(port)


def plain_host(text: str) -> str:
    """Return a host in the one way in which it is compared: lower case, no dot at its end, addresses in short form.

    Raises:
        ValueError: it is neither a name of ASCII letters, digits, dashes and dots nor an address.

    >>> plain_host("API.Example.org."), plain_host("2001:DB8:0::7")
    ('api.example.org', '2001:db8::7')
    """
    if _is_address(text):
        return str(ipaddress.ip_address(text))
    name = text.lower().removesuffix(".")
    # A name whose last part is a number would be taken for an address by some that resolve it: 0x7f.1 is the loopback.
    if len(name) > 253 or not _NAME.fullmatch(name) or _NUMBER.fullmatch(name.rpartition(".")[2]):
        raise ValueError(f"{text[:100]!r} is no name of a host")
    return name


def is_within(address: IpAddress) -> bool:
    """Tell whether an address is this machine's own, or leads to what serves machines only, as cloud metadata do."""
    plain = getattr(address, "ipv4_mapped", None) or address
    return bool(plain.is_loopback or plain.is_link_local or plain.is_unspecified or plain.is_multicast)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
