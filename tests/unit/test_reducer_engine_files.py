"""The engine when files are gone, or there is no room for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runnel.common.errors import StorageFull, Unreachable
from runnel.common.protocol import (
    BlobRef,
    Roster,
    Settlement,
)
from runnel.reducer.engine import exchange as exchange_module
from runnel.reducer.store.tables import ModelRow
from tests.doubles.engine_net import (
    SESSION,
    TRAIN,
    Net,
    net_in,
    nothing,
    ok,
    settlements,
)
from tests.doubles.faulty_blobs import FaultyBlobs

pytestmark = pytest.mark.unit


@pytest.fixture
async def net(tmp_path: Path, each_database: None) -> AsyncIterator[Net]:
    async with net_in(tmp_path) as made:
        yield made


# ---- files that are gone


async def test_a_model_whose_equal_is_removed_as_it_is_stored_is_made_again(net: Net) -> None:
    await net.attach("a")
    await net.start()
    net.lasting.vanishing = 1
    await net.report("a", await net.order("a"), *ok("a"))
    row = await net.ended()
    assert (row.phase, row.reason) == ("finished", None)
    async with net.database.read() as tx:
        assert net.model((await tx.get_one(ModelRow, row.model_id)).digest) == [1.0] * 4


@pytest.mark.parametrize("strategy", ["fedavgm", "fedavg"])
async def test_without_the_optimizers_state_a_session_does_not_go_on(net: Net, strategy: str) -> None:
    await net.attach("a")
    await net.start(rounds=2, strategy=strategy)
    await net.report("a", await net.order("a"), *ok("a"))
    second = await net.order("a", 2)
    position = net.engine._runners[SESSION].position
    before, state = position.model_id, position.optimizer_state
    if state is None:
        state = position.optimizer_state = "0" * 64  # of a session with another strategy, from which this one goes on
    net.blobs.delete(state)
    await net.report("a", second, *ok("a"))
    row = await net.ended()
    if strategy == "fedavg":
        assert row.phase == "finished"
        return
    assert row.phase == "failed"
    assert row.model_id == before
    assert row.reason is not None
    assert (
        f"goes on from the model {before}, and the state that fedavgm had there, the file {state}, is gone"
        in row.reason
    )
    assert "Restore the file and resume the session" in row.reason


# ---- a full disk


def told(net: Net) -> dict[str, str]:
    collection = net.engine._runners[SESSION].collects(TRAIN)
    assert collection is not None
    return collection.unanswered()


async def test_a_report_that_could_not_be_made_durable_does_not_count_and_is_asked_for_again_in_a_while(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange_module, "_NO_ROOM_PAUSE_S", 0.2)
    await net.attach("a")
    await net.start()
    first = await net.order("a")
    net.journal.failing = 1
    began = time.monotonic()
    await net.report("a", first, *ok("a"))
    assert await net.states() == {"a": "open"}
    assert settlements(net, "a") == []
    assert told(net) == {"a": "The reducer: The disk of the reducer's database is full."}
    again = await net.order("a", 2)
    assert time.monotonic() - began > 0.19
    assert again.order_id != first.order_id
    assert net.engine.open_orders == 1
    await net.report("a", again, *ok("a"))
    assert (await net.ended()).phase == "finished"
    assert settlements(net, "a") == [(("a",), Settlement.COUNTED)]


async def test_a_report_that_there_is_no_room_to_check_is_asked_for_again(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange_module, "_NO_ROOM_PAUSE_S", 0.01)
    await net.attach("a")
    await net.start()
    first = await net.order("a")

    async def full(_ref: BlobRef) -> None:
        raise StorageFull("No room in /here: 7 bytes are free.")

    net.lasting.before_held = full
    await net.report("a", first, *ok("a"))
    assert list(net.partials.iterdir()) == []
    assert told(net) == {"a": "The reducer: No room in /here: 7 bytes are free."}
    net.lasting.before_held = FaultyBlobs(net.blobs).before_held
    again = await net.order("a", 2)
    await net.report("a", again, *ok("a"))
    assert (await net.ended()).phase == "finished"
    assert settlements(net, "a") == [(("a",), Settlement.COUNTED)]


async def test_an_order_is_over_when_nobody_knows_whether_its_report_is_durable(net: Net) -> None:
    await net.attach("a")
    await net.start()
    first = await net.order("a")

    async def away() -> None:
        net.journal.before_commit = nothing
        raise Unreachable("The database does not answer.")

    net.journal.before_commit = away
    with pytest.raises(Unreachable):
        await net.report("a", first, *ok("a"))
    assert not net.engine.has_order(first.order_id)
    again = await net.order("a", 2)
    assert net.engine.open_orders == 1
    await net.report("a", again, *ok("a"))
    assert (await net.ended()).phase == "finished"
    assert net.engine.open_orders == 0


async def test_a_round_does_not_go_on_with_a_report_that_is_not_durable_yet(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange_module, "_NO_ROOM_PAUSE_S", 0.01)
    await net.attach("a")
    await net.start()
    first = await net.order("a")

    async def let_the_session_look_again() -> None:
        for runner in net.engine._runners.values():
            runner.roster_changed()
        for _ in range(20):
            await asyncio.sleep(0)

    net.journal.failing, net.journal.before_commit = 1, let_the_session_look_again
    await net.report("a", first, *ok("a"))
    again = await net.order("a", 2)
    assert (await net.row()).phase == "training"
    await net.report("a", again, *ok("a"))
    assert (await net.ended()).phase == "finished"
    assert await net.states() == {"a": "counted"}


async def test_a_node_that_could_not_be_taken_in_is_not_there(net: Net) -> None:
    await net.attach("m1", "a")
    await net.start(min_clients=1)
    await net.order("m1")
    net.journal.failing = 1
    with pytest.raises(StorageFull):
        await net.attach("m2", "b")
    assert net.engine.roster.clients() == ["a"]
    assert net.engine.roster.find("m2") is None
    await net.attach("m2", "c")
    assert net.engine.roster.clients() == ["a", "c"]
    assert net.engine.roster.attached_to("b", "top") is None


async def test_who_has_not_joined_brings_nobody_in(net: Net) -> None:
    await net.attach("m1", "a")
    await net.engine.received("m1", Roster(joined=(net.client("stranger"),)))
    assert net.engine.roster.clients() == ["a"]
