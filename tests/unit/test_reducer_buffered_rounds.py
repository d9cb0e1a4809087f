"""Rounds that overlap, as with fedbuff: which updates are part of which model, and which of none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runnel.common.protocol import Assignment, BlobRef, Cancel
from runnel.reducer.operations import wait_for
from runnel.reducer.store import ledger
from tests.doubles.engine_net import CALLER, SESSION, TRAIN, Net, net_in, ok, operations
from tests.eventually import eventually

pytestmark = pytest.mark.unit


@pytest.fixture
async def net(tmp_path: Path, each_database: None) -> AsyncIterator[Net]:
    async with net_in(tmp_path) as made:
        yield made


async def order_of_round(net: Net, client: str, number: int) -> Assignment:
    def asked() -> Assignment | None:
        return next((each for each in net.got(client, Assignment) if each.key.round == number), None)

    order = await eventually(asked)
    assert order is not None
    return order


@pytest.mark.parametrize(("max_staleness", "number"), [(0, 1), (1, 1), (1, 2), (2, 2)])
async def test_an_update_that_comes_while_a_model_is_made_counts_in_the_next_if_it_is_not_too_old(
    net: Net, max_staleness: int, number: int
) -> None:
    """The update is for round 1, and comes while the model of round ``number`` is made."""
    await net.attach("a")
    await net.attach("b")
    options = {"max_staleness": max_staleness}
    await net.start(rounds=number + 1, buffer=1, strategy="fedbuff", strategy_options=options, keep_models=1)
    came: list[int] = []

    async def report_in_the_midst(_model: BlobRef) -> None:
        row = await net.row()
        if (row.phase, row.round) == ("reducing", number) and not came:
            came.append(number)
            await net.report("b", await order_of_round(net, "b", 1), *ok("b"))

    net.lasting.before_held = report_in_the_midst
    for each in range(1, number + 1):
        await net.report("a", await order_of_round(net, "a", each), *ok("a"))
    too_old = number > max_staleness  # for the next one
    if too_old:
        assert await order_of_round(net, "b", number + 1), "it is asked for newer work"
        await net.report("a", await order_of_round(net, "a", number + 1), *ok("a"))
    row = await net.ended()
    assert (row.phase, row.reason, came) == ("finished", None, [number])
    async with net.database.read() as tx:
        counted = await ledger.counted_updates(tx, SESSION, number + 1)
    assert [(each.round, each.client) for each in counted] == [(number + 1, "a") if too_old else (1, "b")]
    assert await net.states() == {"a": "counted", "b": "late" if too_old else "counted"}
    called_off = [each.clients for each in net.got("b", Cancel) if each.key == TRAIN]
    assert called_off == ([("b",)] if too_old else [])
    assert len([each for each in net.got("b", Assignment) if each.key == TRAIN]) == 1
    assert list(net.partials.iterdir()) == []


async def test_an_update_of_an_earlier_round_outlasts_the_end_of_the_session(net: Net) -> None:
    for client in ("a", "b", "c"):
        await net.attach(client)
    await net.start(rounds=2, buffer=2, min_clients=2, strategy="fedbuff")
    earlier = await order_of_round(net, "c", 1)
    for client in ("a", "b"):
        await net.report(client, await order_of_round(net, client, 1), *ok(client))
    await order_of_round(net, "a", 2)
    await net.report("c", earlier, *ok("c"))
    for _ in range(2):
        await wait_for(net.engine.stop(SESSION))
        assert [path.name for path in net.partials.iterdir()] == [f"{earlier.order_id}.payload"]
        asked = len(net.got("a", Assignment))
        await operations(net).resume_session(CALLER, SESSION)
        again = await net.order("a", asked + 1)
    await net.report("a", again, *ok("a"))
    assert (await net.ended()).phase == "finished"
    async with net.database.read() as tx:
        counted = await ledger.counted_updates(tx, SESSION, 2)
    assert [(each.round, each.client) for each in counted] == [(2, "a"), (1, "c")]
    assert list(net.partials.iterdir()) == []
