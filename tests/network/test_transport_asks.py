"""Asking the network for a container: over real connections, through their loss, and by a combiner."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from runnel.combiner.asks import AskRelay
from runnel.combiner.domain import Membership
from runnel.common.errors import DeadlineExceeded, Forbidden, IllegalState, NotFound, RunnelError, Unreachable
from runnel.common.protocol import Member, NodeKind
from runnel.common.tasks.asks import Site, SitesAsk, TaskAnswer, TaskAsk
from runnel.transport import NodeIdentity
from tests.doubles.uplink import SmallNetwork, attached
from tests.eventually import eventually

pytestmark = [pytest.mark.network, pytest.mark.timeout(60)]

ASK = TaskAsk(run_id="run-1", client="c1", body=SitesAsk())
ANSWER = TaskAnswer(sites=(Site(name="a", attached=True),))


class Oracle:
    """Answers, or fails as it is told to."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, TaskAsk, float]] = []
        self.faults: list[RunnelError] = []
        self.speaks = asyncio.Event()
        self.speaks.set()

    async def ask(self, identity: NodeIdentity, ask: TaskAsk, *, deadline_s: float) -> TaskAnswer:
        self.heard.append((identity.name, ask, deadline_s))
        await self.speaks.wait()
        if self.faults:
            raise self.faults.pop(0)
        return ANSWER


async def test_a_question_is_answered_and_errors_come_back_as_they_were_raised(tmp_path: Path) -> None:
    oracle = Oracle()
    async with SmallNetwork(tmp_path / "n", asks=oracle) as network, attached(network) as link:
        assert await link.ask(ASK, deadline_s=60) == ANSWER
        [(name, heard, deadline_s)] = oracle.heard
        assert (name, heard) == ("c1", ASK)
        assert 5 < deadline_s <= 60.5
        oracle.faults = [Unreachable("not now"), NotFound("no such task")]
        with pytest.raises(NotFound, match="no such task"):
            await link.ask(ASK, deadline_s=60)
        assert len(oracle.heard) == 3


async def test_where_nobody_answers_the_asker_is_told(tmp_path: Path) -> None:
    async with SmallNetwork(tmp_path / "n") as network, attached(network) as link:
        with pytest.raises(IllegalState, match="does not answer"):
            await link.ask(ASK, deadline_s=60)


async def test_a_question_outlives_its_attachment_but_not_its_deadline(tmp_path: Path) -> None:
    oracle = Oracle()
    oracle.speaks.clear()
    async with SmallNetwork(tmp_path / "n", asks=oracle) as network, attached(network) as link:
        asking = asyncio.create_task(link.ask(ASK, deadline_s=60))
        await eventually(lambda: len(oracle.heard) == 1)
        link.leave()
        await eventually(lambda: len(oracle.heard) == 2)
        oracle.speaks.set()
        assert await asking == ANSWER
        oracle.speaks.clear()
        with pytest.raises(DeadlineExceeded, match="run-1"):
            await link.ask(ASK, deadline_s=0.2)
        oracle.speaks.set()


async def test_a_combiner_passes_on_what_those_below_it_ask_and_nothing_else(tmp_path: Path) -> None:
    above = Oracle()
    async with (
        SmallNetwork(tmp_path / "above", asks=above) as reducer,
        attached(reducer, "comb", kind=NodeKind.COMBINER) as up,
    ):
        membership = Membership("comb")
        membership.attach(Member(name="c1", node_id="id-c1", kind=NodeKind.CLIENT), ())
        membership.attach(Member(name="c2", node_id="id-c2", kind=NodeKind.CLIENT), ())
        relay = AskRelay("comb", membership, up)
        async with (
            SmallNetwork(tmp_path / "comb", asks=relay) as combiner,
            attached(combiner, "c1") as one,
            attached(combiner, "c2") as two,
        ):
            assert await one.ask(ASK, deadline_s=60) == ANSWER
            assert [(name, ask) for name, ask, _ in above.heard] == [("comb", ASK)]
            with pytest.raises(Forbidden, match="not known to comb"):
                await two.ask(ASK, deadline_s=60)
    assert len(above.heard) == 1
