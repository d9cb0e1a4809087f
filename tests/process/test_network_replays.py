"""Reports that come twice, late or for another round, from a client written by hand: each counts once or not at all."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pytest

from runnel.common.endpoints import read_endpoints
from runnel.common.errors import IllegalState, Unreachable
from runnel.common.protocol import Assignment
from runnel.common.tensors import write_npz
from tests.doubles.hostile_node import HostileNode, npz
from tests.eventually import eventually
from tests.process.process_network import ProcessNetwork

pytestmark = [pytest.mark.process, pytest.mark.restarts, pytest.mark.timeout(90)]

SIZE = 50_000
SEED = np.arange(SIZE, dtype=np.float64)
HONEST = 1.0  # what the real client adds
TRAIN = f"""
import sys
import numpy as np

with np.load(sys.argv[1]) as model:
    np.savez(sys.argv[2], **{{name: model[name] + {HONEST} for name in model.files}})
"""


class ReplayedNetwork(ProcessNetwork):
    """A combiner with one real client."""

    def serve(self) -> None:
        self.start_reducer()
        with self.together():
            self.start_combiner("c1")
            self.start_client("site-1", self.folder)
        self.until_attached("c1", "site-1")
        self.package = self.sdk.packages.push(self.build_package(TRAIN)).digest
        write_npz(self.folder / "seed.npz", {"w": SEED})
        self.seed = self.sdk.models.push(self.folder / "seed.npz").model

    def by_hand(self, where: str) -> HostileNode:
        """Return a client to enter that is attached there."""
        return HostileNode(self.rpc, f"hand-{where}", at=str(read_endpoints(self.folder / where).rpc))

    async def start(self, node: HostileNode, rounds: int, **more: object) -> str:
        await asyncio.to_thread(self.until_attached, node.name, "site-1")
        started = await asyncio.to_thread(
            self.sdk.sessions.start,
            package=self.package,
            seed=self.seed,
            rounds=rounds,
            retries=0,
            round_timeout_s=60,
            validate_every=0,
            **more,  # type: ignore[arg-type]
        )
        return started.session

    async def require_model(self, session: str, gain: float) -> None:
        ended = await asyncio.to_thread(self.until_ended, session)
        assert ended["status"] == "finished", ended["reason"]
        await asyncio.to_thread(self.sdk.models.get, str(ended["model"]), self.folder / "got.npz")
        with np.load(self.folder / "got.npz") as model:
            assert np.array_equal(model["w"], SEED + gain)
        for name in self.components:
            assert self.process(name).poll() is None
            assert "Traceback" not in self.log_of(name)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplayedNetwork]:
    with ReplayedNetwork(tmp_path_factory.mktemp("replays")) as net:
        net.serve()
        yield net


async def order(node: HostileNode, session: str, round_number: int) -> Assignment:
    """Wait for the order of this round."""

    def found() -> list[Assignment]:
        asked = [each for each in node.heard if isinstance(each, Assignment)]
        return [each for each in asked if (each.key.session_id, each.key.round) == (session, round_number)]

    return (await eventually(found, timeout_s=30, state=lambda: node.error))[-1]


async def answer(node: HostileNode, asked: Assignment, data: bytes) -> None:
    """Push and report, whether it is wanted or not."""
    with suppress(IllegalState, Unreachable):  # of a refusal while it still pushes, gRPC may lose the reason
        await node.push(asked.order_id, data)
    await node.say(node.report(asked, data))


@pytest.mark.parametrize("where", ["reducer", "c1"])
async def test_twice_and_for_another_round(network: ReplayedNetwork, where: str) -> None:
    async with network.by_hand(where) as node:
        session = await network.start(node, 2, min_clients=2)
        first = await order(node, session, 1)
        data = npz({"w": SEED + 4.0})
        await answer(node, first, data)
        await answer(node, first, data)
        second = await order(node, session, 2)
        half = SEED + (HONEST + 4.0) / 2
        wrong = npz({"w": half + 1e6})
        await answer(node, first, wrong)  # of a round that is over
        await node.say(node.report(first, data), node.report(first, wrong))
        await node.push(second.order_id, wrong)
        await node.say(node.report(dataclasses.replace(first, key=second.key), wrong))  # that order, for this round
        await answer(node, second, npz({"w": half + 6.0}))
        await network.require_model(session, (HONEST + 4.0) / 2 + (HONEST + 6.0) / 2)
        rounds = network.sdk.sessions.show(session, clients=True).rounds
        assert [(each.updates, each.late, each.failed) for each in rounds] == [(2, 0, 0)] * 2
        refusal = 'event="report not wanted"' if where == "c1" else 'event="report refused"'
        assert network.log_of(where).count(f"{refusal} child={node.name} key={session}/1/train") >= 3


@pytest.mark.parametrize("where", ["reducer", "c1"])
async def test_too_late(network: ReplayedNetwork, where: str) -> None:
    async with network.by_hand(where) as node:
        session = await network.start(node, 2, min_clients=1, buffer=1)
        first = await order(node, session, 1)
        second = await order(node, session, 2)  # the first round went on without it
        wrong = npz({"w": SEED + 1e6})
        await answer(node, first, wrong)
        await network.require_model(session, 2 * HONEST)
        await answer(node, second, wrong)
        await answer(node, first, wrong)
        ended = await asyncio.to_thread(network.sdk.sessions.show, session, clients=True)
        for each in ended.rounds:
            assert (each.updates, each.late, each.failed) == (1, 1, 0)
            assert {part.client: part.status for part in each.clients} == {"site-1": "counted", node.name: "late"}
        assert network.sdk.models.show(str(ended.model)).metrics == {}
