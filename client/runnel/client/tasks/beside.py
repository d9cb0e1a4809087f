"""What of the client is beside a run's containers: the server of their contract, and their way out."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from runnel.client.domain.egress import EgressHost
from runnel.client.tasks.contract import Accompanied, TaskContract
from runnel.client.tasks.egress import EgressProxy, Traffic
from runnel.client.tasks.work import Work

if TYPE_CHECKING:
    from runnel.client.tasks.open_engine import OpenEngine


@contextlib.asynccontextmanager
async def accompanied(
    contract: TaskContract, work: Work, opened: OpenEngine, *, egress: Sequence[EgressHost], traffic: Traffic
) -> AsyncIterator[Work]:
    """Give ``work`` with the layout that holds for its containers while the block runs.

    Args:
        contract: of the task.
        work: what is to run.
        opened: where.
        egress: hosts that it may reach.
        traffic: what it does there is counted in this.

    Raises:
        RunnelError: what the contract needs can't be had.
        EnvironmentFailed: the engine can't give a network of the run's own.
    """
    async with contextlib.AsyncExitStack() as stack:
        layout = work.layout
        if isinstance(contract, Accompanied):
            beside = contract.accompany(work.order, work.spec, layout, engine=opened.engine, labels=opened.labels)
            layout = await stack.enter_async_context(beside)
        if egress:
            from runnel.client.tasks.run_network import run_network  # with the engine's library

            network = layout.network
            if network is None:
                network = await stack.enter_async_context(run_network(opened.engine, work.order.run_id, opened.labels))
            proxy = EgressProxy(egress, run_id=work.order.run_id, traffic=traffic)
            variables = await stack.enter_async_context(proxy.serving(network.address))
            layout = dataclasses.replace(layout, network=network, env={**layout.env, **variables})
        yield dataclasses.replace(work, layout=layout)
