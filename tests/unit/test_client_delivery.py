"""Finished work that has no room, can not be read or can not be pushed."""

from __future__ import annotations

import asyncio
import errno
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runnel.client import delivery as delivery_module
from runnel.client.outbox import Outbox
from runnel.common.errors import (
    Conflict,
    IllegalState,
    RunnelError,
    StorageFull,
    Unauthenticated,
    Unreachable,
)
from runnel.common.protocol import (
    PayloadKind,
    Progress,
)
from tests.doubles.client_site import KEY, OTHER, Site, settled, working
from tests.eventually import eventually

pytestmark = pytest.mark.unit


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    made = await asyncio.to_thread(Site, tmp_path)
    async with working(made):
        yield made


@pytest.mark.parametrize(
    ("fault", "times", "code"),
    [
        (StorageFull("No room."), 3, "storage_full"),
        (OSError(errno.EMFILE, "Too many open files"), 3, None),
        (OSError(errno.EIO, "Input/output error"), 6, "internal"),
    ],
)
async def test_a_report_that_can_not_be_kept_fails_the_work_at_most_and_not_the_client(
    site: Site, monkeypatch: pytest.MonkeyPatch, fault: Exception, times: int, code: str | None
) -> None:
    keep = Outbox.keep

    def without_room(self: Outbox, *args: object, **kwargs: object) -> object:
        nonlocal times
        if times:
            times -= 1
            raise fault
        return keep(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(delivery_module, "_PUSH_AGAIN_S", 0.01)
    monkeypatch.setattr(Outbox, "keep", without_room)
    site.runtime.may_end.set()
    site.link.receive(site.order(1))
    failure = (await site.reported(1)).outcomes[0].failure
    assert (None if failure is None else failure.code) == code
    site.link.receive(settled(), site.order(2, OTHER))
    assert (await site.reported(2)).outcomes[0].failure is None


async def test_no_room_above_is_told_and_the_update_offered_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_module, "_PUSH_AGAIN_S", 0.01)
    site.link.full = 2
    site.runtime.may_end.set()
    site.link.receive(site.order(1))
    assert (await site.reported(1)).outcomes[0].failure is None
    told = [each.detail for each in site.link.sent if isinstance(each, Progress) and each.detail]
    assert told == ["c1: No room."] * 2
    assert site.link.pushes == 3


@pytest.mark.parametrize("fault", [RunnelError("c1: unexpected."), OSError(errno.EMFILE, "Too many open files")])
@pytest.mark.parametrize(("times", "code"), [(3, None), (4, "internal")])
async def test_what_can_not_be_pushed_is_tried_again_and_then_told(
    site: Site, monkeypatch: pytest.MonkeyPatch, fault: Exception, times: int, code: str | None
) -> None:
    monkeypatch.setattr(delivery_module, "_PUSH_AGAIN_S", 0.01)
    site.link.faults = [fault] * times
    site.runtime.may_end.set()
    site.link.receive(site.order(1))
    failure = (await site.reported(1)).outcomes[0].failure
    assert (None if failure is None else failure.code) == code
    assert failure is None or ("unexpected" if isinstance(fault, RunnelError) else "Too many") in failure.message
    assert site.link.pushes == 4
    site.link.receive(settled())
    await site.empty()


@pytest.mark.parametrize("error", [Unreachable, Conflict, Unauthenticated, IllegalState])
async def test_what_the_attachment_or_the_order_is_the_reason_of_is_kept(site: Site, error: type[RunnelError]) -> None:
    site.link.faults = [error("Not now.")]
    site.runtime.may_end.set()
    site.link.receive(site.order(1))
    await eventually(lambda: site.link.pushes == 1 and not site.agent._offers)
    assert site.link.reports == []
    site.link.receive(site.order(2))
    assert (await site.reported(1)).outcomes[0].failure is None


async def test_a_report_that_can_not_be_read_is_told_and_offered_when_it_can(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.runtime.may_end.set()
    site.link.receive(site.order(1))
    await site.reported(1)
    read = Path.read_text

    def unreadable(self: Path, *args: object) -> str:
        if self.parent.name == "outbox":
            raise OSError(errno.EIO, "Input/output error")
        return read(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", unreadable)
    site.link.receive(site.order(2))
    report = await site.reported(2)
    assert report.order_id == "ord-2"
    assert report.outcomes[0].failure is not None
    assert (report.outcomes[0].client, report.outcomes[0].failure.code) == ("a", "corrupt_data")
    monkeypatch.undo()
    site.link.receive(site.order(3))
    whole = await site.reported(3)
    assert (whole.outcomes[0].failure, whole.payload_kind) == (None, PayloadKind.UPDATE)
    assert len(site.runtime.began) == 1


async def test_files_that_can_not_be_had_fail_the_work_and_not_the_client(site: Site) -> None:
    shutil.rmtree(site.state / "work")
    (site.state / "work").touch()
    site.runtime.may_end.set()
    site.link.receive(site.order(1))
    failure = (await site.reported(1)).outcomes[0].failure
    assert failure is not None
    assert "work" in failure.message


async def test_what_is_held_is_told_and_offered_by_the_next_process(tmp_path: Path) -> None:
    site = await asyncio.to_thread(Site, tmp_path)
    async with working(site):
        site.runtime.may_end.set()
        site.link.receive(site.order(1))
        await site.reported(1)
    site.agent = site._new_agent()
    async with working(site):
        assert site.held == (KEY,)
        site.link.receive(site.order(2))
        assert (await site.reported(2)).order_id == "ord-2"
        assert len(site.runtime.began) == 1
        site.link.receive(settled())
        await site.empty()


async def test_a_settled_report_that_can_not_be_removed_ends_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()

    def fail(*_: object) -> None:
        asked.set()
        raise OSError(errno.EIO, "Input/output error")

    site.runtime.may_end.set()
    site.link.receive(site.order(1))
    await site.reported(1)
    with monkeypatch.context() as patch:
        patch.setattr(Outbox, "drop", fail)
        site.link.receive(settled())
        await asyncio.wait_for(asked.wait(), 30)
    site.link.receive(site.order(2, OTHER))
    assert (await site.reported(2)).outcomes[0].failure is None
