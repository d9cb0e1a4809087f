"""Connections to peers, with keepalive, limits and TLS."""

from __future__ import annotations

from typing import Any

import grpc

from runnel.common.errors import BadSettings
from runnel.transport.addresses import Address, parse_address
from runnel.transport.tls import ClientTls

MAX_MESSAGE_BYTES = 16 << 20
"""Largest message either side takes; blobs travel in chunks far below."""

KEEPALIVE_MS = 10_000
"""A connection on which nothing moves is probed after this time, and given up after as long without an answer."""

_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Else a probe that gRPC sends by itself while bytes flow is waited for, 60 s, instead of the keepalive's.
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_MS),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # how long one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # Connections of different owners share nothing: closing or breaking one does not touch another.
    ("grpc.use_local_subchannel_pool", 1),
)


def open_channel(address: str, *, tls: ClientTls | None, allow_plaintext: bool = False) -> grpc.aio.Channel:
    """Return a channel to ``address`` (``HOST:PORT``); it connects with the first call. The caller closes it.

    Args:
        address: whom to call.
        tls: whom to trust; None: no encryption.
        allow_plaintext: whether to go without encryption to another machine.

    Raises:
        BadSettings: no such address, an unreadable file, or plain text to another machine without leave.
    """
    parsed = parse_address(address)
    options = _OPTIONS
    if parsed.loopback:
        options = (*options, ("grpc.enable_http_proxy", 0))  # a proxy can't reach the loopback of this machine
    if tls is not None:
        return grpc.aio.secure_channel(str(parsed), tls.credentials(), options=options)
    refuse_plaintext(parsed, allow_plaintext=allow_plaintext, doing="Calling")
    return grpc.aio.insecure_channel(str(parsed), options=options)


def behind_proxy(address: Address) -> bool:
    """Whether gRPC calls ``address`` by way of an HTTP proxy, which the environment names."""
    if address.loopback:
        return False
    from urllib.request import getproxies, proxy_bypass  # with all of HTTP, which most starts need for nothing else

    proxies = getproxies()
    return any(kind in proxies for kind in ("grpc", "https", "http")) and not proxy_bypass(address.host)


def refuse_plaintext(address: Address, *, allow_plaintext: bool, doing: str) -> None:
    """Raise :class:`BadSettings` if plain text would leave this machine and nobody allowed it."""
    if allow_plaintext or address.loopback:
        return
    raise BadSettings(
        f"{doing} {address} without TLS would send tokens and models in plain text over the network.",
        hint="Give certificates (--tls-cert and --tls-key where it listens, --tls or --tls-ca where it is called), "
        "or allow plain text explicitly with --allow-plaintext if something else protects this network.",
        address=str(address),
    )
