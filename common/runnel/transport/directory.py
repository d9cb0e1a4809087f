"""``Directory.Join``: where a node finds its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from runnel.common.protocol import NodeKind
from runnel.rpc.v1 import directory_pb2 as pb
from runnel.rpc.v1 import directory_pb2_grpc as pb_grpc
from runnel.transport.identity import bearer, bearer_metadata
from runnel.transport.status import rpc_errors
from runnel.transport.wire_values import id_from_wire, kind_from_wire, kind_to_wire, name_from_wire

DIRECTORY_SERVICE = "runnel.rpc.v1.Directory"


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinAsk:
    """Who asks for a place: see ``JoinRequest``."""

    name: str
    node_id: str
    kind: NodeKind
    attached_to: str = ""
    prefer: str = ""
    avoid: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where to attach, and with what: see ``JoinResponse``. An empty ``address`` is the one that was called."""

    address: str
    tls: bool
    attach_to: str
    credential: str
    ttl_s: float


class DirectoryHandler(Protocol):
    """What decides about places."""

    async def join(self, ask: JoinAsk, bearer: str | None) -> Place:
        """Return the place for the node that presents ``bearer``, or raise a ``RunnelError``, which it will see."""
        ...


class DirectoryServer(pb_grpc.DirectoryServicer):
    """Serves ``Directory`` for a handler."""

    def __init__(self, handler: DirectoryHandler) -> None:
        self._handler = handler

    @property
    def service(self) -> tuple[str, Any]:
        """For the ``services`` of :class:`runnel.transport.RpcServer`."""
        return DIRECTORY_SERVICE, self.register

    def register(self, server: grpc.aio.Server) -> None:
        """Add this servicer to ``server``."""
        pb_grpc.add_DirectoryServicer_to_server(self, server)

    async def Join(  # noqa: N802, D102 - the name is the wire's, and documented there
        self, request: pb.JoinRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.JoinResponse:
        place = await self._handler.join(_ask_from_wire(request), bearer(context))
        return pb.JoinResponse(
            address=place.address,
            tls=place.tls,
            attach_to=place.attach_to,
            credential=place.credential,
            credential_ttl_ms=round(place.ttl_s * 1000),
        )


def _ask_from_wire(request: pb.JoinRequest) -> JoinAsk:
    return JoinAsk(
        name=name_from_wire(request.name, "name"),
        node_id=id_from_wire(request.node_id, "node_id"),
        kind=kind_from_wire(request.kind, "kind"),
        attached_to=name_from_wire(request.attached_to, "attached_to", optional=True),
        prefer=name_from_wire(request.prefer, "prefer", optional=True),
        avoid=tuple(name_from_wire(name, "avoid") for name in request.avoid),
    )


async def join(
    channel: grpc.aio.Channel, ask: JoinAsk, *, token: str | None, deadline_s: float, peer: str = "the directory"
) -> Place:
    """Ask the directory behind ``channel`` for a place.

    Raises:
        Unauthenticated, Forbidden, Conflict: the token or the name is refused.
        Unreachable, DeadlineExceeded: nobody answered; trying again may help.
        RunnelError: anything else the directory said.
    """
    request = pb.JoinRequest(
        name=ask.name,
        node_id=ask.node_id,
        kind=kind_to_wire(ask.kind),
        attached_to=ask.attached_to,
        prefer=ask.prefer,
        avoid=ask.avoid,
    )
    with rpc_errors(peer):
        answer = await pb_grpc.DirectoryStub(channel).Join(request, timeout=deadline_s, metadata=bearer_metadata(token))
    return Place(
        address=answer.address,
        tls=answer.tls,
        attach_to=answer.attach_to,
        credential=answer.credential,
        ttl_s=answer.credential_ttl_ms / 1000,
    )
