"""A gRPC server with what every component of the network wants of one."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from runnel.common.errors import BadSettings, Conflict, RunnelError
from runnel.transport.addresses import Address, parse_address
from runnel.transport.channels import KEEPALIVE_MS, MAX_MESSAGE_BYTES, refuse_plaintext
from runnel.transport.status import ErrorInterceptor
from runnel.transport.tls import ServerTls

Service = tuple[str, Callable[[grpc.aio.Server], None]]
"""Full name of a service (``runnel.rpc.v1.Uplink``) and what adds its servicer to a server."""

_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.so_reuseport", 0),  # else a second server on the same port starts silently and takes half of the calls
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Callers probe every KEEPALIVE_MS, also between calls. A busy machine reads several probes at once, and gRPC would
    # take that for abuse and cut the connection in the middle of a large push.
    ("grpc.http2.max_ping_strikes", 0),
    # What a sender may send ahead of the reader, for each stream: 10 MB/s over 50 ms. gRPC's own estimate grows with
    # the bandwidth to many times that, and this is held once for every node that pushes at the same time.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 512 << 10),
    # Else each connection over which something large came keeps half a megabyte for what may come next, for good.
    ("grpc.experimental.tcp_max_read_buffer_size", 256 << 10),
)


class RpcServer:
    """Serves the given services, health checking and reflection; an async context manager.

    The servers of long-lived streams (:class:`runnel.transport.UplinkServer`) are entered inside this one, so that at
    the end they send their nodes away before the connections are closed.

    Args:
        listen: ``HOST:PORT``; port 0 takes a free one.
        tls: certificate and key; None: plain text.
        allow_plaintext: whether plain text may be spoken with other machines.
        services: what to serve.
        grace_s: how long calls under way may take to end when the block is left.
    """

    def __init__(
        self,
        listen: str,
        *,
        tls: ServerTls | None = None,
        allow_plaintext: bool = False,
        services: Sequence[Service] = (),
        grace_s: float = 0.5,
    ) -> None:
        self._listen = parse_address(listen, key="listen address")
        self._tls = tls
        self._allow_plaintext = allow_plaintext
        self._services = tuple(services)
        self._grace_s = grace_s
        self._server: grpc.aio.Server | None = None
        self._health: HealthServicer | None = None
        self._address = ""
        self._log = structlog.get_logger()

    @property
    def address(self) -> str:
        """Where it listens, ``HOST:PORT`` with the actual port; empty before the start."""
        return self._address

    async def __aenter__(self) -> RpcServer:
        """Start.

        Raises:
            Conflict: the port is taken.
            BadSettings: the address is none of this machine, or plain text to other machines was not allowed, or the
                certificate can't be read.
        """
        if self._tls is None:
            refuse_plaintext(self._listen, allow_plaintext=self._allow_plaintext, doing="Listening on")
        credentials = None if self._tls is None else self._tls.credentials()
        server = grpc.aio.server(interceptors=(ErrorInterceptor(),), options=_OPTIONS)
        health = health_aio.HealthServicer()
        for _, register in self._services:
            register(server)
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        names = [name for name, _ in self._services]
        reflection.enable_server_reflection((*names, "grpc.health.v1.Health", reflection.SERVICE_NAME), server)
        port = self._bind(server, credentials)
        await server.start()
        for name in names:
            await health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._server = server
        self._health = health
        self._address = str(Address(host=self._listen.host, port=port))
        if self._tls is None:
            self._log.warning("serving plain text, without encryption", address=self._address)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop(self._grace_s)

    async def stop(self, grace_s: float) -> None:
        """Say NOT_SERVING, take no new calls, let those under way end for ``grace_s`` seconds, cancel the rest.

        May be called before the start and more than once.
        """
        server, self._server = self._server, None
        if server is None:
            return
        if self._health is not None:
            await self._health.enter_graceful_shutdown()
        await server.stop(grace_s)

    def _bind(self, server: grpc.aio.Server, credentials: grpc.ServerCredentials | None) -> int:
        address = str(self._listen)
        if self._listen.port and (problem := listen_error(self._listen)) is not None:
            raise problem  # gRPC would print it in its own words too
        try:
            if credentials is None:
                return server.add_insecure_port(address)
            return server.add_secure_port(address, credentials)
        except RuntimeError as error:
            problem = listen_error(self._listen)
            raise problem or BadSettings(f"Can't listen on {address}: {error}.", address=address) from error


def listen_error(address: Address) -> RunnelError | None:
    """Find out why ``address`` can't be listened on, of which gRPC tells only that; None: it can."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            probe.listen(1)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return BadSettings(
                f"Can't listen on {address}: {error.strerror}.",
                hint="The host must be an address of this machine, 0.0.0.0 or [::]; ports below 1024 need privileges.",
                address=str(address),
            )
    else:
        return None
    return Conflict(
        f"The port of {address} is taken by another program.",
        hint=f"Stop that (ss -ltnp 'sport = :{address.port}' shows it), or listen on another port; 0 picks a free one.",
        address=str(address),
    )
