"""``Uplink.Ask``, by which the containers of tasks ask the network: both of its sides."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Protocol

import grpc
import structlog

from runnel.common.errors import DeadlineExceeded, IllegalState, Unauthenticated, Unreachable
from runnel.common.tasks.asks import TaskAnswer, TaskAsk
from runnel.rpc.v1 import uplink_pb2 as pb
from runnel.transport.ask_messages import answer_from_wire, answer_to_wire, ask_from_wire, ask_to_wire
from runnel.transport.attachment import Attachment
from runnel.transport.identity import NodeIdentity, bearer_metadata
from runnel.transport.status import rpc_errors

_DEFAULT_S = 60.0  # of a caller that names no deadline

log = structlog.get_logger()


class AskHandler(Protocol):
    """What answers, or passes on, what the containers below ask."""

    async def ask(self, identity: NodeIdentity, ask: TaskAsk, *, deadline_s: float) -> TaskAnswer:
        """Return the answer to what came by the attached node ``identity``, within ``deadline_s``.

        Raises ``Forbidden`` if the run is not one that may ask, or not one below that node.
        """
        ...


async def answer(
    handler: AskHandler | None,
    identity: NodeIdentity,
    request: pb.TaskAsk,
    context: grpc.aio.ServicerContext[Any, Any],
) -> pb.TaskAnswer:
    """Answer one call.

    Raises:
        IllegalState: nobody answers here.
        RunnelError: what the handler said.
    """
    if handler is None:
        raise IllegalState("This node does not answer what containers of tasks ask.")
    remaining = context.time_remaining()
    deadline_s = _DEFAULT_S if remaining is None else max(0.0, remaining)
    return answer_to_wire(await handler.ask(identity, ask_from_wire(request), deadline_s=deadline_s))


async def call(attachment: Attachment, ask: TaskAsk, *, deadline_s: float) -> TaskAnswer:
    """Ask the node above.

    Raises:
        Unreachable: it did not answer; another attachment may help.
        RunnelError: what it said.
    """
    try:
        with rpc_errors(attachment.peer):
            told = await attachment.stub.Ask(
                ask_to_wire(ask), timeout=deadline_s, metadata=bearer_metadata(attachment.credential)
            )
    except Unauthenticated as error:
        attachment.end("credential refused", error)  # the next one comes with a new credential
        raise Unreachable(f"{attachment.peer} refused the credential.", peer=attachment.peer) from error
    return answer_from_wire(told)


async def ask_network(
    present: Callable[[], Awaitable[Attachment]],
    ask: TaskAsk,
    delays: Iterator[float],
    *,
    deadline_s: float,
    clock: Callable[[], float],
) -> TaskAnswer:
    """Ask whoever is above, over one attachment after another.

    Raises:
        DeadlineExceeded: nobody answered within ``deadline_s``.
        RunnelError: what the network said.
    """
    until = clock() + deadline_s
    try:
        async with asyncio.timeout(deadline_s):
            while True:
                attachment = await present()
                try:
                    return await attachment.while_attached(call(attachment, ask, deadline_s=max(0.0, until - clock())))
                except Unreachable as error:
                    log.debug("nobody answered a container, trying again", run=ask.run_id, detail=str(error))
                await asyncio.sleep(next(delays))
    except TimeoutError:
        raise DeadlineExceeded(
            f"Nobody answered the run {ask.run_id} within {deadline_s:.0f} s.", run_id=ask.run_id
        ) from None
