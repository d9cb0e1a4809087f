"""Small models within assignments, small payloads within reports: no call of their own, and verified all the same."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from runnel.common.blobs import SpoolFile
from runnel.common.errors import CorruptData, IllegalState, StorageFull
from runnel.common.protocol import (
    MOST_WITHIN_BYTES,
    Assignment,
    AssignmentKey,
    BlobRef,
    NodeKind,
    Outcome,
    PayloadKind,
    Report,
    Work,
)
from runnel.transport import Attached, Received, UplinkLink
from tests.doubles.uplink import SmallNetwork
from tests.eventually import eventually

pytestmark = [pytest.mark.network, pytest.mark.timeout(60)]

KEY = AssignmentKey(session_id="ses-1", round=1, work=Work.TRAIN)
MODEL = os.urandom(4000)


def ref_of(data: bytes) -> BlobRef:
    return BlobRef(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def order(*, order_id: str = "ord-1", data: bytes = MODEL, within: int = MOST_WITHIN_BYTES) -> Assignment:
    model = ref_of(MODEL)
    return Assignment(
        order_id=order_id,
        key=KEY,
        clients=("c1",),
        package=model,
        model=model,
        model_data=data,
        payload_within=within,
    )


def report(ref: BlobRef, *, order_id: str = "ord-1") -> Report:
    return Report(
        key=KEY,
        order_id=order_id,
        outcomes=(Outcome(client="c1", weight=2.0),),
        payload_kind=PayloadKind.UPDATE,
        payload=ref,
        weight=2.0,
    )


@pytest.fixture
async def network(tmp_path: Path) -> AsyncIterator[SmallNetwork]:
    async with SmallNetwork(tmp_path / "red") as small:
        small.handler.refuse_push = IllegalState("Nothing is pushed here.")
        yield small


async def asked(link: UplinkLink, network: SmallNetwork, assignment: Assignment) -> Assignment:
    """Have the node above ask the attached node, which is told of it."""
    event: Any = await anext(aiter(link))
    assert isinstance(event, Attached)
    network.handler.children["c1"].send(assignment)
    event = await anext(aiter(link))
    assert isinstance(event, Received)
    assert isinstance(event.message, Assignment)
    return event.message


async def test_a_small_model_is_here_with_the_order(network: SmallNetwork, tmp_path: Path) -> None:
    async with network.link() as link:
        came = await asked(link, network, order())
        assert came.model_data == b""  # nothing that is kept with the order keeps it too
        await link.fetch(came.model, tmp_path / "target", deadline_s=60)  # from above there is none
    assert (tmp_path / "target").read_bytes() == MODEL


async def test_a_model_that_came_damaged_is_fetched(network: SmallNetwork, tmp_path: Path) -> None:
    ref = network.handler.put(tmp_path, MODEL)
    async with network.link() as link:
        await asked(link, network, order(data=bytes(len(MODEL))))
        await link.fetch(ref, tmp_path / "target", deadline_s=60)
    assert (tmp_path / "target").read_bytes() == MODEL


async def test_a_small_model_for_which_there_is_no_room_leaves_nothing(
    network: SmallNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: SpoolFile) -> Path:
        assert file.partial.exists()
        raise StorageFull("The disk is full.")

    async with network.link() as link:
        came = await asked(link, network, order())
        monkeypatch.setattr(SpoolFile, "finish", full)
        with pytest.raises(StorageFull):
            await link.fetch(came.model, tmp_path / "target", deadline_s=60)
    assert {path.name for path in tmp_path.iterdir()} == {"red"}


@pytest.mark.parametrize(
    ("kind", "payload_kind"),
    [(NodeKind.CLIENT, PayloadKind.UPDATE), (NodeKind.COMBINER, PayloadKind.WEIGHTED_SUM)],
)
async def test_a_small_payload_goes_within_its_report(
    network: SmallNetwork, tmp_path: Path, kind: NodeKind, payload_kind: PayloadKind
) -> None:
    update = tmp_path / "update"
    update.write_bytes(b"update")
    async with network.link(kind=kind) as link:
        await asked(link, network, order())
        await link.push("ord-1", update, ref_of(b"update"), deadline_s=60)
        link.send(dataclasses.replace(report(ref_of(b"update")), payload_kind=payload_kind))
        await eventually(lambda: network.handler.said("received"))
    (got,) = network.handler.said("received")
    assert isinstance(got, Report)
    assert (got.payload, got.payload_data) == (ref_of(b"update"), b"update")


@pytest.mark.parametrize(
    ("size", "within", "order_id"),
    [(9, 8, "ord-1"), (1, 0, "ord-1"), (1, 100, "ord-2"), (MOST_WITHIN_BYTES + 1, 1 << 30, "ord-1")],
    ids=["too large", "not allowed", "another order", "larger than any may be"],
)
async def test_what_may_not_go_within_is_pushed(
    network: SmallNetwork, tmp_path: Path, size: int, within: int, order_id: str
) -> None:
    update = tmp_path / "update"
    update.write_bytes(bytes(size))
    async with network.link() as link:
        await asked(link, network, order(within=within))
        with pytest.raises(IllegalState, match="Nothing is pushed here"):
            await link.push(order_id, update, ref_of(bytes(size)), deadline_s=60)


async def test_a_payload_that_is_another_one_by_now_is_not_sent(network: SmallNetwork, tmp_path: Path) -> None:
    update = tmp_path / "update"
    update.write_bytes(b"forged")
    async with network.link() as link:
        await asked(link, network, order())
        with pytest.raises(CorruptData, match="any more"):
            await link.push("ord-1", update, ref_of(b"update"), deadline_s=60)
