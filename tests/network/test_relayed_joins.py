"""Nodes that can't reach the reducer join through a combiner."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from runnel.combiner.relay import JoinRelay
from runnel.common.errors import CapacityExceeded, Conflict, IllegalState, Unauthenticated, Unreachable
from runnel.common.protocol import NodeKind
from runnel.transport import DirectoryServer, JoinAsk, RpcServer, join, open_channel
from tests.doubles.uplink import TOKEN, SmallNetwork
from tests.eventually import eventually
from tests.network.local_network import LocalNetwork, write_package

pytestmark = pytest.mark.network

ASK = JoinAsk(name="c1", node_id="id-c1", kind=NodeKind.CLIENT)


@pytest.fixture
async def above(tmp_path: Path) -> AsyncIterator[SmallNetwork]:
    async with SmallNetwork(tmp_path / "red") as network:
        network.directory.places = {"c9": "192.0.2.9:7500"}
        yield network


async def ask_through_relay(network: str, ask: JoinAsk, token: str | None = TOKEN) -> str:
    """Join as a node does, through a relay named relay, and return to whom it is sent."""
    async with JoinRelay("relay", network, tls=None, allow_plaintext=False) as relay:
        server = RpcServer("127.0.0.1:0", services=[DirectoryServer(relay).service])
        async with server, open_channel(server.address, tls=None) as channel:
            return (await join(channel, ask, token=token, deadline_s=10)).attach_to


async def test_a_token_passes_and_a_wrong_one_is_refused_in_the_words_of_the_directory(above: SmallNetwork) -> None:
    assert await ask_through_relay(above.address, ASK) == "c9"
    with pytest.raises(Unauthenticated) as refused:
        await ask_through_relay(above.address, ASK, token="rnl_wrong")
    with pytest.raises(Unauthenticated) as direct:
        async with open_channel(above.address, tls=None) as channel:
            await join(channel, ASK, token="rnl_wrong", deadline_s=10)
    assert str(refused.value) == str(direct.value)


async def test_a_name_that_is_taken_stays_a_conflict(above: SmallNetwork) -> None:
    with pytest.raises(Conflict, match="Another node has this name"):
        await ask_through_relay(above.address, dataclasses.replace(ASK, name="taken"))


async def test_the_relay_is_preferred_by_those_who_prefer_none(above: SmallNetwork) -> None:
    for asked, seen in [
        (ASK, "relay"),
        (dataclasses.replace(ASK, prefer="c2"), "c2"),
        (dataclasses.replace(ASK, attached_to="c2"), ""),
        (dataclasses.replace(ASK, avoid=("relay",)), ""),
    ]:
        await ask_through_relay(above.address, asked)
        assert above.directory.asks[-1] == dataclasses.replace(asked, prefer=seen)


async def test_the_reducer_itself_is_no_place_for_who_cannot_reach_it(above: SmallNetwork) -> None:
    above.directory.places = {"red": ""}
    with pytest.raises(CapacityExceeded, match="is not reached through relay"):
        await ask_through_relay(above.address, ASK)


async def test_a_directory_that_is_away_is_told_as_such() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and not listening
        with pytest.raises(Unreachable, match=f"the directory at 127.0.0.1:{taken.getsockname()[1]}"):
            await ask_through_relay(f"127.0.0.1:{taken.getsockname()[1]}", ASK)


async def test_a_client_that_knows_a_relay_only_trains(tmp_path: Path) -> None:
    async with LocalNetwork(tmp_path) as network:
        away = (await network.start_combiner("away")).address
        relay = (await network.start_combiner("relay", relay_joins=True)).address
        # The least loaded combiner would be the other one: who comes through the relay is known to reach the relay.
        await network.start_client("direct", network=network.reducer.rpc_address, prefer="relay")
        await network.start_client("site", step=2.0, network=relay)
        roster = network.reducer.engine.roster
        assert roster.attached_to("site", "reducer") == "relay"
        # Also a combiner that only knows it, and a client below that.
        await network.start_combiner("lower", network=relay, relay_joins=True)
        await network.start_client("deep", step=3.0, network=network.combiners["lower"].address)
        assert (roster.attached_to("lower", "reducer"), roster.attached_to("deep", "reducer")) == ("relay", "lower")
        package = await network.push_package(write_package(tmp_path / "package"))
        seed = await network.push_model({"w": np.zeros(2)})
        session = await network.start_session(package, seed, rounds=1, min_clients=3, validate_every=0)
        ended = await network.until_ended(session)
        assert ended["status"] == "finished", ended
        assert (await network.model(ended["model"]))["w"].tolist() == [2.0, 2.0]
        with pytest.raises(IllegalState, match="--relay-joins"):
            async with open_channel(away, tls=None) as channel:
                await join(channel, ASK, token=None, deadline_s=10)


async def test_a_client_of_a_full_relay_is_sent_to_the_next(tmp_path: Path) -> None:
    async with LocalNetwork(tmp_path) as network:
        relay = (await network.start_combiner("relay", relay_joins=True, capacity=1)).address
        await network.start_client("first", network=relay)
        await network.start_client("second", network=relay, wait=False)
        await eventually(lambda: network.reducer.engine.roster.find("first") is not None)
        assert network.reducer.engine.roster.find("second") is None
        await network.start_combiner("other")
        await network.until_attached("second")
        assert network.reducer.engine.roster.attached_to("second", "reducer") == "other"
