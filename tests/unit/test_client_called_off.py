"""Work of a client that is called off or settled half-way."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from runnel.client.execution import Execution
from runnel.client.outbox import Outbox
from runnel.common.blobs import threads
from runnel.common.protocol import (
    PayloadKind,
)
from tests.doubles.client_site import KEY, OTHER, Site, called_off, settled, working
from tests.eventually import eventually

pytestmark = pytest.mark.unit


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    made = await asyncio.to_thread(Site, tmp_path)
    async with working(made):
        yield made


async def test_called_off_and_asked_again_at_once_the_two_runs_do_not_touch(site: Site) -> None:
    # As when a session is stopped and resumed: the first run still dies when the same work is asked for again.
    site.runtime.may_die.clear()
    site.link.receive(site.order(1))
    await site.running(1)
    site.link.receive(called_off(), site.order(2))
    await eventually(lambda: KEY in site.held and site.link._events.empty())
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(site.runtime.began) == 1, "it waits for the other to be gone"
    site.runtime.may_die.set()
    await site.running(2)
    site.runtime.may_end.set()
    report = await site.reported(1)
    assert (report.order_id, report.payload_kind) == ("ord-2", PayloadKind.UPDATE)
    assert site.runtime.died == 1
    assert site.held == (KEY,)
    site.link.receive(settled())
    await site.empty()


async def test_other_work_waits_until_what_was_called_off_has_ended(site: Site) -> None:
    # Where one piece of work runs at a time it is lent the cached model itself.
    site.runtime.may_die.clear()
    site.link.receive(site.order(1), site.order(2, OTHER))
    await site.running(1)
    site.link.receive(called_off())
    await eventually(lambda: site.held == (OTHER,))
    with pytest.raises(AssertionError):
        await eventually(lambda: len(site.runtime.began) == 2, timeout_s=0.3)
    site.runtime.may_die.set()
    await site.running(2)
    assert site.runtime.died == 1
    site.runtime.may_end.set()
    assert (await site.reported(1)).key == OTHER
    assert not site.agent._aborted


async def test_called_off_the_work_ends_though_its_clean_up_fails(site: Site) -> None:
    site.runtime.clean_up_fails = True
    site.link.receive(site.order(1))
    await site.running(1)
    site.link.receive(called_off())
    await eventually(lambda: site.runtime.died == 1 and not site.agent._clearing)
    site.link.receive(site.order(2))
    await site.running(2)
    site.link.receive(called_off(), site.order(3))
    await site.running(3)
    assert site.agent.working == 1
    site.runtime.may_end.set()
    report = await site.reported(1)
    assert (report.order_id, report.outcomes[0].failure) == ("ord-3", None)
    site.link.receive(settled())
    await site.empty()
    assert site.link.reports == [report]


async def test_work_whose_time_is_over_is_reported_though_its_clean_up_fails(site: Site) -> None:
    site.runtime.clean_up_fails = True
    site.link.receive(site.order(1, remaining_s=600.0))
    await site.running(1)
    site.link.receive(site.order(2, remaining_s=0.05))
    failure = (await site.reported(1)).outcomes[0].failure
    assert failure is not None
    assert failure.code == "storage_full"


async def test_what_is_called_off_while_it_is_done_is_not_reported(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cancellation comes when nothing waits any more that could hear it."""
    outcome = Execution.outcome

    async def deaf(self: Execution, *args: object) -> object:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        site.runtime.may_end.set()
        return await outcome(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Execution, "outcome", deaf)
    site.link.receive(site.order(1))
    await eventually(lambda: site.agent.working == 1)
    site.link.receive(called_off())
    await eventually(lambda: site.runtime.began and not site.agent._clearing)
    assert (site.link.reports, site.held) == ([], ())


async def test_what_is_called_off_over_and_over_leaves_nothing(site: Site) -> None:
    for number in range(1, 6):
        site.link.receive(site.order(number), called_off())
    site.link.receive(site.order(9))
    site.runtime.may_end.set()
    assert (await site.reported(1)).order_id == "ord-9"
    site.link.receive(settled())
    await site.empty()
    await eventually(lambda: not list((site.state / "work").iterdir()))


async def test_settled_while_it_pushes_the_push_ends_and_the_client_does_not(site: Site) -> None:
    site.link.pushing.clear()
    site.runtime.may_end.set()
    site.link.receive(site.order(1))
    await eventually(lambda: site.link.pushes == 1)
    site.link.receive(called_off())
    await site.empty()
    site.link.pushing.set()
    site.link.receive(site.order(2, OTHER))
    assert (await site.reported(1)).key == OTHER


async def test_called_off_while_it_keeps_its_report_nothing_stays(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    keep, kept = Outbox.keep, asyncio.Event()
    loop = asyncio.get_running_loop()

    def slowly(self: Outbox, *args: object, **kwargs: object) -> None:
        asyncio.run_coroutine_threadsafe(meanwhile(), loop).result()
        keep(self, *args, **kwargs)  # type: ignore[arg-type]
        loop.call_soon_threadsafe(kept.set)

    async def meanwhile() -> None:
        site.link.receive(called_off())
        await eventually(lambda: not site.held)
        with suppress(AssertionError):  # nothing is cleared away while something is still being written
            await eventually(lambda: not site.agent._clearing, timeout_s=0.3)

    monkeypatch.setattr(threads, "SMALL_BYTES", 0)  # what is small is kept in one go
    monkeypatch.setattr(Outbox, "keep", slowly)
    site.runtime.may_end.set()
    site.link.receive(site.order(1))
    await kept.wait()
    monkeypatch.undo()
    await eventually(lambda: not site.agent._clearing)
    await site.empty()
    assert site.link.reports == []


async def test_called_off_while_it_compresses_what_it_carried_is_for_the_next(site: Site) -> None:
    first, second, third = (dataclasses.replace(KEY, round=number) for number in (1, 2, 3))
    site.runtime.may_end.set()
    site.link.receive(site.order(1, first, compression="top-k:0.1"))
    await site.reported(1)
    site.link.receive(settled(first))
    await site.empty()

    # A report in the outbox that takes a while to read: the compression waits for it in its thread.
    slow = site.state / "outbox" / "slow.json"
    os.mkfifo(slow)
    site.link.receive(site.order(2, second, compression="top-k:0.1"))
    reading = await eventually(lambda: _opened_if_read(slow))
    assert reading is not None
    site.link.receive(called_off(second), site.order(3, third, compression="top-k:0.1"))
    await eventually(lambda: third in site.held)
    os.close(reading)

    assert (await site.reported(2)).key == third
    held = site.agent._outbox.get(third)
    assert held is not None
    assert len(held.carried) == 1


def _opened_if_read(fifo: Path) -> int | None:
    try:
        return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return None
