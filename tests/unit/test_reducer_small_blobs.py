"""Small models within orders, small payloads within reports, at the reducer: as good as what is fetched and pushed."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from runnel.common.errors import NotFound
from runnel.common.protocol import MOST_WITHIN_BYTES, Assignment, BlobRef, PayloadKind, Report, Settlement
from runnel.reducer.store.tables import ModelRow
from tests.doubles.engine_net import Net, net_in, ok, settlements
from tests.doubles.faulty_blobs import FaultyBlobs

pytestmark = pytest.mark.unit


@pytest.fixture
async def net(tmp_path: Path, each_database: None) -> AsyncIterator[Net]:
    async with net_in(tmp_path) as made:
        yield made


def answer(order: Assignment, data: bytes) -> Report:
    ref = BlobRef(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
    return Report(
        key=order.key,
        order_id=order.order_id,
        outcomes=tuple(ok("a")),
        payload_kind=PayloadKind.WEIGHTED_SUM,
        payload=ref,
        weight=1.0,
        payload_data=data,
    )


SUM = np.full(4, 3.0, "<f8").tobytes()


async def test_a_small_model_goes_down_with_its_order_and_a_small_sum_comes_up_with_its_report(net: Net) -> None:
    await net.attach("m1", "a")
    await net.start(rounds=2)
    first = await net.order("m1")
    assert hashlib.sha256(first.model_data).hexdigest() == first.model.sha256
    assert first.payload_within == MOST_WITHIN_BYTES
    await net.engine.received("m1", answer(first, SUM))
    second = await net.order("m1", 2)
    assert hashlib.sha256(second.model_data).hexdigest() == second.model.sha256 != first.model.sha256
    await net.engine.received("m1", answer(second, SUM))
    row = await net.ended()
    assert row.phase == "finished"
    assert settlements(net, "m1") == [(("a",), Settlement.COUNTED)] * 2
    async with net.database.read() as tx:
        assert net.model((await tx.get_one(ModelRow, row.model_id)).digest) == [3.0] * 4
    assert list(net.partials.iterdir()) == []


async def test_a_payload_that_is_not_what_its_report_says_is_refused(net: Net) -> None:
    await net.attach("m1", "a")
    await net.start(retries=1)
    first = await net.order("m1")
    lying = dataclasses.replace(answer(first, SUM), payload_data=bytes(len(SUM)))
    await net.engine.received("m1", lying)
    assert await net.states() == {"a": "open"}
    assert list(net.partials.iterdir()) == []
    assert settlements(net, "m1") == []


async def test_a_payload_for_no_living_order_leaves_no_file(net: Net) -> None:
    await net.attach("m1", "a")
    await net.attach("m2", "b")
    await net.start()
    await net.engine.received("m2", answer(await net.order("m1"), SUM))
    assert list(net.partials.iterdir()) == []


async def test_a_model_that_is_not_at_hand_is_not_with_the_order(net: Net) -> None:
    async def gone(_ref: BlobRef) -> None:
        raise NotFound("Not here.")

    await net.attach("m1", "a")
    net.lasting.before_held = gone
    await net.start()
    order = await net.order("m1")
    assert order.model_data == b""
    net.lasting.before_held = FaultyBlobs(net.blobs).before_held
    await net.engine.received("m1", answer(order, SUM))
    assert (await net.ended()).phase == "finished"


async def test_single_orders_of_a_buffered_session_bring_no_model(net: Net) -> None:
    await net.attach("m1", "a")
    await net.start(strategy="fedbuff", buffer=1)
    assert (await net.order("m1")).model_data == b""
