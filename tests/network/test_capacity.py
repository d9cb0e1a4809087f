"""What happens at the limit: a full combiner refuses, newcomers go elsewhere, and with nowhere to go they say so."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import structlog

from runnel.common.protocol import Hello, Member, NodeKind
from runnel.transport import Attached, UplinkLink
from tests.eventually import eventually
from tests.network.local_network import LocalNetwork

pytestmark = [pytest.mark.network, pytest.mark.timeout(60)]


def node(network: LocalNetwork, name: str, *, kind: NodeKind = NodeKind.CLIENT, prefer: str = "") -> UplinkLink:
    member = Member(name=name, node_id=f"id-{name}", kind=kind)
    return UplinkLink(
        network.reducer.rpc_address,
        name=name,
        node_id=f"id-{name}",
        kind=kind,
        token=None,
        hello=lambda: Hello(member=member),
        prefer=prefer,
    )


async def attached_to(link: UplinkLink) -> str:
    async for event in link:
        if isinstance(event, Attached):
            return event.via
    raise AssertionError("the link ended")


def said(logs: Sequence[Mapping[str, Any]], node_of: str, what: str) -> list[Mapping[str, Any]]:
    return [each for each in logs if each["event"] == node_of and what in str(each.get("detail", ""))]


async def test_a_newcomer_goes_to_the_next_combiner_and_then_waits_for_room(tmp_path: Path) -> None:
    """However often it asks, nobody is let in beyond the places there are, and the first that is free is taken."""
    with structlog.testing.capture_logs() as logs:
        async with LocalNetwork(tmp_path, direct_clients=0) as network, AsyncExitStack() as stack:
            await network.start_combiner("m1", capacity=1)
            await network.start_combiner("m2", capacity=1)
            first = await stack.enter_async_context(node(network, "a", prefer="m1"))
            assert await attached_to(first) == "m1"
            async with node(network, "b", prefer="m1") as second:
                assert await attached_to(second) == "m2"
                third = await stack.enter_async_context(node(network, "c"))
                await eventually(lambda: said(logs, "not attached, trying again", "All 2 combiners are full"))
                assert not third.attached
                assert [network.combiners[name].attached_below for name in ("m1", "m2")] == [1, 1]
            async with asyncio.timeout(20):
                assert await attached_to(third) == "m2"


async def test_a_full_combiner_refuses_whoever_comes_all_the_same(tmp_path: Path) -> None:
    """A combiner that wants this one for its parent is sent there whatever the directory thinks of the room."""
    with structlog.testing.capture_logs() as logs:
        async with LocalNetwork(tmp_path, direct_clients=0) as network:
            combiner = await network.start_combiner("m1", capacity=1)
            async with node(network, "a") as first:
                assert await attached_to(first) == "m1"
                async with node(network, "m2", kind=NodeKind.COMBINER, prefer="m1") as second:
                    full = "The combiner m1 is full: all its 1 places are taken."
                    await eventually(lambda: said(logs, "not attached, trying again", full))
                    assert not second.attached
                    assert first.attached
                    assert combiner.attached_below == 1
            async with node(network, "m2", kind=NodeKind.COMBINER, prefer="m1") as second, asyncio.timeout(20):
                assert await attached_to(second) == "m1"
