"""A combiner process: the object graph and its life."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version

import structlog

from runnel.combiner.combiner import Combiner
from runnel.combiner.metrics import combiner_page
from runnel.combiner.relay import JoinRelay
from runnel.combiner.settings import CombinerSettings
from runnel.common.descriptors import room_for_nodes
from runnel.common.disk import state_folder
from runnel.common.endpoints import note_attachment, remove_endpoints, write_endpoints
from runnel.common.errors import Unreachable
from runnel.common.metrics import LoopLag, MetricsServer
from runnel.common.protocol import Hello, NodeKind
from runnel.transport import (
    BlobServer,
    DirectoryServer,
    NodeIdentity,
    RpcServer,
    UplinkLink,
    UplinkServer,
    parse_address,
)
from runnel.transport.addresses import own_host_towards
from runnel.transport.credentials import CredentialVerifier
from runnel.transport.way_up import client_tls, load_or_create_identity, require_loopback, server_tls

log = structlog.get_logger()


class AwaitedVerifier(CredentialVerifier):
    """Verifies credentials as soon as the network above has said by which key; until then callers try again."""

    def __init__(self) -> None:
        self._verifier: CredentialVerifier | None = None

    def set_key(self, public_key: bytes) -> None:
        """Use this key (raw Ed25519, 32 bytes) from now on."""
        self._verifier = CredentialVerifier(public_key)

    def verify(self, token: str | None) -> NodeIdentity:
        """Return whom the credential was issued to."""
        if self._verifier is None:
            raise Unreachable("This combiner is not attached to its network yet.", hint="Try again in a moment.")
        return self._verifier.verify(token)


@contextlib.asynccontextmanager
async def serve_combiner(settings: CombinerSettings) -> AsyncIterator[tuple[Combiner, RpcServer]]:
    """Serve those below; :meth:`Combiner.run` of what is yielded is the way up.

    Raises:
        BadSettings, Conflict, StorageFull: it can't be served like this.
    """
    if settings.insecure:
        require_loopback(settings.network, settings.listen)
    tls = server_tls(
        settings.tls_cert,
        settings.tls_key,
        settings.listen,
        allow_plaintext=settings.allow_plaintext or settings.insecure,
    )
    await asyncio.to_thread(state_folder, settings.state)
    identity = load_or_create_identity(settings.state, kind="combiner", name=settings.name)
    verifier = AwaitedVerifier()
    way_up_tls = client_tls(settings.network, settings.tls_ca, plaintext=settings.allow_plaintext)

    def link(hello: Callable[[], Hello]) -> UplinkLink:
        return UplinkLink(
            settings.network,
            name=identity.name,
            node_id=identity.node_id,
            kind=NodeKind.COMBINER,
            token=None if settings.token is None else settings.token.get_secret_value(),
            hello=hello,
            tls=way_up_tls,
            allow_plaintext=settings.allow_plaintext,
            prefer=settings.parent,
        )

    combiner = Combiner(
        name=identity.name,
        node_id=identity.node_id,
        version=version("runnel"),
        state=settings.state,
        link_factory=link,
        on_public_key=verifier.set_key,
        capacity=room_for_nodes(settings.capacity),
        keep_bytes=settings.keep_bytes,
        heartbeat_s=settings.heartbeat_s,
        isolated_after_s=settings.isolated_after_s,
        on_attachment=functools.partial(note_attachment, settings.state),
    )
    uplink = UplinkServer(
        combiner, verifier, asks=combiner.asks, heartbeat_s=settings.heartbeat_s, queue=combiner.queue
    )
    services = [uplink.service]
    async with contextlib.AsyncExitStack() as stack:
        if settings.relay_joins:
            relay = JoinRelay(identity.name, settings.network, tls=way_up_tls, allow_plaintext=settings.allow_plaintext)
            services.append(DirectoryServer(await stack.enter_async_context(relay)).service)
        rpc = RpcServer(settings.listen, tls=tls, allow_plaintext=settings.allow_plaintext, services=services)
        blobs = BlobServer(uplink, settings.listen, settings.blob_port, told=settings.advertise_blob_port, tls=tls)
        for part in (combiner, rpc, blobs, uplink):
            await stack.enter_async_context(part)
        bound = parse_address(rpc.address)
        here = await asyncio.to_thread(own_host_towards, parse_address(settings.network)) if bound.everywhere else ""
        combiner.address = settings.advertise or str(bound.to_call(here))
        combiner.tls = tls is not None
        write_endpoints(settings.state, rpc=str(bound.to_call()), tls=tls is not None, attached_to="")
        stack.callback(remove_endpoints, settings.state)
        if settings.metrics is not None:
            lag, where = LoopLag(), parse_address(settings.metrics, key="metrics")
            stack.callback(lag.close)
            page = combiner_page(combiner, uplink, settings.state, lag)
            await stack.enter_async_context(MetricsServer(page, where.host, where.port))
        log.info(
            "ready",
            rpc=rpc.address,
            blob_port=uplink.blob_port,
            name=identity.name,
            network=settings.network,
            advertised=combiner.address,
        )
        yield combiner, rpc


async def run_combiner(settings: CombinerSettings, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set; then send those below elsewhere and go."""
    async with serve_combiner(settings) as (combiner, _), asyncio.TaskGroup() as group:
        way_up = group.create_task(combiner.run(), name="way up")
        stopped = group.create_task(stop.wait(), name="stop")
        await asyncio.wait((way_up, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not way_up.done():
            log.info("stopping", nodes=combiner.attached_below)
            combiner.drain("the combiner shuts down")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(settings.grace_s):
                    await combiner.deserted()
            way_up.cancel()
