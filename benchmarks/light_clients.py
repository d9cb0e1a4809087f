"""Clients without entry points, many in one process: each fetches the model and pushes a prepared update."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from runnel.common.protocol import (
    Assignment,
    BlobRef,
    Hello,
    Member,
    NodeKind,
    Outcome,
    PayloadKind,
    Report,
    Work,
)
from runnel.transport import Received, UplinkLink

_DEADLINE_S = 600.0


class LightClient:
    """Does over the wire what a client does, with the real :class:`runnel.transport.UplinkLink`, and nothing else.

    Args:
        name: of this client.
        network: the reducer's address.
        update: what it answers to every request to train; not modified.
        ref: the name of ``update``.
        folder: for the model that it fetches and drops.
    """

    def __init__(self, name: str, network: str, *, update: Path, ref: BlobRef, folder: Path) -> None:
        self._name = name
        self._update = update
        self._ref = ref
        self._folder = folder
        self._link = UplinkLink(
            network, name=name, node_id=f"id-{name}", kind=NodeKind.CLIENT, token=None, hello=self._hello
        )

    async def run(self) -> None:
        """Stay attached and answer until cancelled."""
        async with self._link, asyncio.TaskGroup() as group:
            async for event in self._link:
                if isinstance(event, Received) and isinstance(event.message, Assignment):
                    group.create_task(self._answer(event.message))

    def _hello(self) -> Hello:
        return Hello(
            member=Member(name=self._name, node_id=f"id-{self._name}", kind=NodeKind.CLIENT, platform=platform.system())
        )

    async def _answer(self, assignment: Assignment) -> None:
        outcome = Outcome(client=self._name, weight=1.0)
        report = Report(key=assignment.key, order_id=assignment.order_id, outcomes=(outcome,))
        if assignment.key.work is Work.TRAIN:
            model = self._folder / f"{self._name}.npz"
            await self._link.fetch(assignment.model, model, deadline_s=_DEADLINE_S)
            await asyncio.to_thread(model.unlink)
            await self._link.push(assignment.order_id, self._update, self._ref, deadline_s=_DEADLINE_S)
            report = Report(
                key=assignment.key,
                order_id=assignment.order_id,
                outcomes=(outcome,),
                payload_kind=PayloadKind.UPDATE,
                payload=self._ref,
                weight=outcome.weight,
            )
        self._link.send(report)


@asynccontextmanager
async def light_clients(count: int, network: str, *, update: Path, ref: BlobRef, folder: Path) -> AsyncIterator[None]:
    """Have ``count`` of them run meanwhile."""
    async with AsyncExitStack() as stack:
        group = await stack.enter_async_context(asyncio.TaskGroup())
        tasks = [
            group.create_task(
                LightClient(f"light-{n}", network, update=update, ref=ref, folder=folder).run(), name=f"light-{n}"
            )
            for n in range(1, count + 1)
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
