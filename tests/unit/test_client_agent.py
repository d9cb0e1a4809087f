"""The client between its link and its entry points: work that is asked for, asked again and drained."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runnel.client import execution as execution_module
from runnel.common.blobs import LEAST_SPARE_BYTES
from runnel.common.protocol import (
    AssignmentKey,
    PayloadKind,
    Progress,
    Stage,
    Welcome,
)
from runnel.transport import Attached, Detached
from tests.doubles.client_site import KEY, OTHER, Site, settled, working
from tests.eventually import eventually, let_pass

pytestmark = pytest.mark.unit


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    made = await asyncio.to_thread(Site, tmp_path)
    async with working(made):
        yield made


async def test_work_is_done_reported_and_forgotten(site: Site) -> None:
    site.link.receive(site.order(1))
    await site.running(1)
    assert site.held == (KEY,)
    site.runtime.may_end.set()
    report = await site.reported(1)
    assert (report.order_id, report.payload_kind, report.weight) == ("ord-1", PayloadKind.UPDATE, 1.0)
    assert site.held == (KEY,), "until it is settled"
    site.link.receive(settled())
    await site.empty()
    assert not site.hello().member.holding
    assert list((site.state / "work").iterdir()) == []


async def spend_an_update(site: Site) -> None:
    site.runtime.may_end.set()
    site.link.receive(site.order(1))
    await site.reported(1)
    site.link.receive(settled())
    await eventually(lambda: site.agent._outbox.spares._idle)  # from now on its time runs
    assert [file.suffix for file in (site.state / "outbox").iterdir()] == [".spare"]


async def test_a_large_update_that_is_settled_makes_room_right_before_the_next(tmp_path: Path) -> None:
    site = await asyncio.to_thread(Site, tmp_path, count=LEAST_SPARE_BYTES)
    async with working(site):
        await spend_an_update(site)
        site.runtime.may_end.clear()
        site.link.receive(site.order(2, OTHER))
        await site.running(2)
        assert list((site.state / "outbox").iterdir()) == []


async def test_a_large_update_that_is_settled_is_gone_if_no_other_follows(tmp_path: Path) -> None:
    site = await asyncio.to_thread(Site, tmp_path, count=LEAST_SPARE_BYTES)
    async with working(site):
        await spend_an_update(site)
        let_pass(60)
        await site.empty()


async def test_asked_again_elsewhere_it_offers_what_it_has(site: Site) -> None:
    site.runtime.may_end.set()
    site.link.receive(site.order(1))
    await site.reported(1)
    site.link.happens(Detached(reason="lost"))
    site.link.receive(site.order(2))
    assert (await site.reported(2)).order_id == "ord-2"
    assert len(site.runtime.began) == 1


async def test_work_that_a_hello_did_not_name_is_told_by_another(site: Site) -> None:
    """It came by the attachment before, and was read after the hello of the next one was said."""
    there = Attached(welcome=Welcome(name="top", heartbeat_s=1.0), via="top", address="here")
    assert not site.held
    site.link.receive(site.order(1))
    site.link.happens(Detached(reason="lost"), there)
    await eventually(lambda: site.link.left == 1)
    assert site.held == (KEY,)
    site.link.happens(Detached(reason="left"), there)
    await site.running(1)
    site.link.receive(settled())
    await eventually(lambda: not site.held)
    assert site.link.left == 1


async def test_asked_again_after_a_failure_it_works_again(site: Site) -> None:
    site.runtime.may_end.set()
    site.runtime.fails = 1
    site.link.receive(site.order(1))
    failed = await site.reported(1)
    assert failed.outcomes[0].failure is not None
    assert failed.outcomes[0].failure.code == "exit_status"
    site.link.receive(site.order(2))
    good = await site.reported(2)
    assert (good.order_id, good.outcomes[0].failure, good.payload_kind) == ("ord-2", None, PayloadKind.UPDATE)


async def test_only_of_a_run_that_lasts_is_told_that_it_runs(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def running() -> list[AssignmentKey]:
        return [each.key for each in site.link.sent if isinstance(each, Progress) and each.stage is Stage.RUNNING]

    site.link.receive(site.order(1))
    await eventually(running)
    monkeypatch.setattr(execution_module, "_TELLING_S", 600.0)  # on a slow machine a short run lasts
    site.runtime.may_end.set()
    await site.reported(1)
    site.link.receive(settled(), site.order(2, OTHER))
    await site.reported(2)
    assert running() == [site.order(1).key]


async def test_it_drains_when_what_runs_is_reported_and_begins_nothing_else(site: Site) -> None:
    site.link.receive(site.order(1))
    await site.running(1)
    site.link.pushing.clear()
    draining = asyncio.create_task(site.agent.drain())
    await asyncio.sleep(0)
    site.link.receive(site.order(2, OTHER))
    site.runtime.may_end.set()
    await eventually(lambda: site.link.pushes == 1)
    assert not draining.done(), "what is finished is not told yet"
    site.link.pushing.set()
    await draining
    (report,) = site.link.reports
    assert (report.order_id, len(site.runtime.began), site.agent.working) == ("ord-1", 1, 0)


async def test_it_drains_at_once_when_nothing_is_under_way(site: Site) -> None:
    await asyncio.wait_for(site.agent.drain(), 1.0)


async def test_work_ends_some_time_after_its_round_and_a_newer_order_gives_it_more(site: Site) -> None:
    site.link.receive(site.order(1, remaining_s=600.0))
    await site.running(1)
    site.link.receive(site.order(2, remaining_s=0.05))
    report = await site.reported(1)
    assert report.order_id == "ord-2"
    assert report.outcomes[0].failure is not None
    assert report.outcomes[0].failure.code == "timeout"
    site.link.receive(site.order(3, remaining_s=0.2), site.order(4, remaining_s=600.0))
    await site.running(2)
    scope = site.agent._deadlines._scopes[KEY]
    when = scope.when()
    assert when is not None
    assert when > asyncio.get_running_loop().time() + 500
    site.runtime.may_end.set()
    good = await site.reported(2)
    assert (good.order_id, good.outcomes[0].failure) == ("ord-4", None)
    site.link.receive(settled(), site.order(5, OTHER))
    await site.reported(3)
    assert site.agent._deadlines.known() == {OTHER}, "what is done is not remembered"
