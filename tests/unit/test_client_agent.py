"""The client between its link and its entry points: what is called off, asked again or interrupted half-way."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType

import numpy as np
import pytest

from runnel.client import delivery as delivery_module
from runnel.client.agent import ClientAgent
from runnel.client.execution import Execution
from runnel.client.outbox import Outbox
from runnel.client.runtimes import Call, Finished, LineSink, PackageFiles, Prepared
from runnel.common.blobs import Spares, digest_file, digest_payload, threads
from runnel.common.compression import NO_COMPRESSION
from runnel.common.errors import (
    Conflict,
    EntryPointFailed,
    IllegalState,
    RunnelError,
    StorageFull,
    Unauthenticated,
    Unreachable,
)
from runnel.common.protocol import (
    Assignment,
    AssignmentKey,
    BlobRef,
    Cancel,
    Downward,
    Hello,
    PayloadKind,
    Progress,
    Report,
    Settled,
    Settlement,
    Stage,
    Upward,
    Welcome,
    Work,
)
from runnel.common.tensors import write_npz
from runnel.compute_package import pack
from runnel.transport import Attached, Detached, Received
from runnel.transport.link_events import LinkEvent
from tests.doubles.client_packages import ADD_ONE, MEASURE, write_package
from tests.doubles.gates import open_gate
from tests.eventually import eventually

pytestmark = pytest.mark.unit

KEY = AssignmentKey(session_id="ses-1", round=1, work=Work.TRAIN)
OTHER = AssignmentKey(session_id="ses-2", round=1, work=Work.TRAIN)
COUNT = 300  # so many floats are compressed


class Link:
    """A way up that is a list; ``pushing`` holds pushes up while it is cleared, ``full`` of them find no room.

    ``faults`` are raised by one push each.
    """

    def __init__(self, blobs: dict[str, Path]) -> None:
        self._blobs = blobs
        self._events: asyncio.Queue[LinkEvent | None] = asyncio.Queue()
        self.sent: list[Upward] = []
        self.left = 0
        self.pushes = 0
        self.full = 0
        self.faults: list[Exception] = []
        self.pushing = asyncio.Event()
        self.pushing.set()

    async def __aenter__(self) -> Link:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    async def __aiter__(self) -> AsyncIterator[LinkEvent]:
        while (event := await self._events.get()) is not None:
            yield event

    def happens(self, *events: LinkEvent) -> None:
        for event in events:
            self._events.put_nowait(event)

    def receive(self, *messages: Downward) -> None:
        self.happens(*(Received(message=message) for message in messages))

    def send(self, message: Upward) -> bool:
        self.sent.append(message)
        return True

    def leave(self) -> None:
        self.left += 1

    async def fetch(self, ref: BlobRef, target: Path, *, deadline_s: float, spares: Spares | None = None) -> None:
        shutil.copyfile(self._blobs[ref.sha256], target)

    async def push(self, order_id: str, source: Path, ref: BlobRef, *, deadline_s: float) -> None:
        self.pushes += 1
        await self.pushing.wait()
        if self.full:
            self.full -= 1
            raise StorageFull("c1: No room.")
        if self.faults:
            raise self.faults.pop(0)
        assert digest_payload(source) == ref

    @property
    def reports(self) -> list[Report]:
        return [message for message in self.sent if isinstance(message, Report)]


class SlowRuntime:
    """Runs end when ``may_end`` is set, and die only when ``may_die`` is; ``fails`` of them end with status 3.

    ``clean_up_fails``: those that die raise what a full disk raises in place of their cancellation.
    """

    def __init__(self) -> None:
        self.began: list[Path] = []
        self.died = 0
        self.fails = 0
        self.clean_up_fails = False
        self.may_end = asyncio.Event()
        self.may_die = asyncio.Event()
        self.may_die.set()

    async def prepare(self, package: PackageFiles, say: LineSink) -> Prepared:
        return Prepared(package=package)

    async def run(self, prepared: Prepared, call: Call, say: LineSink) -> Finished:
        folder = Path(call.arguments[1]).parent
        self.began.append(folder)
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            await self.may_die.wait()
            self.died += 1
            if self.clean_up_fails:
                raise StorageFull("No room for the audit log.") from None
            raise
        if self.fails:
            self.fails -= 1
            raise EntryPointFailed("It ended with status 3.", exit_status=3, log_tail="oh")
        write_npz(Path(call.arguments[1]), {"w": np.full(COUNT, float(len(self.began)), np.float32)})
        return Finished(exit_status=0, elapsed_s=0.0, log_tail="")


class Site:
    """A client with a package and a model to work on."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        write_package(folder / "package", {"train.py": ADD_ONE, "validate.py": MEASURE})
        archive = pack(folder / "package", folder / "package.tar.gz").path
        model = folder / "model.npz"
        write_npz(model, {"w": np.zeros(COUNT, np.float32)})
        self.package, self.model = digest_file(archive), digest_file(model)
        self.link = Link({self.package.sha256: archive, self.model.sha256: model})
        self.runtime = SlowRuntime()
        self.hello: Callable[[], Hello]
        self.agent = self._new_agent()

    def _new_agent(self) -> ClientAgent:
        def link(hello: Callable[[], Hello]) -> Link:
            self.hello = hello
            return self.link

        return ClientAgent(
            name="a",
            node_id="id-a",
            version="0",
            state=self.state,
            link_factory=link,  # type: ignore[arg-type]
            runtime=self.runtime,
            gate=open_gate(self.state),
            databases={},
            variables={},
        )

    def order(
        self,
        number: int,
        key: AssignmentKey = KEY,
        remaining_s: float | None = None,
        compression: str = NO_COMPRESSION,
    ) -> Assignment:
        return Assignment(
            order_id=f"ord-{number}",
            key=key,
            clients=("a",),
            package=self.package,
            model=self.model,
            remaining_s=remaining_s,
            compression=compression,
        )

    async def running(self, number: int) -> None:
        await eventually(lambda: len(self.runtime.began) == number, timeout_s=10, state=lambda: self.runtime.began)

    async def reported(self, number: int) -> Report:
        await eventually(lambda: len(self.link.reports) >= number, timeout_s=10, state=lambda: self.link.sent)
        return self.link.reports[number - 1]

    async def empty(self) -> None:
        await eventually(lambda: not list((self.state / "outbox").iterdir()), timeout_s=10)

    @property
    def held(self) -> tuple[AssignmentKey, ...]:
        return self.hello().member.holding


@asynccontextmanager
async def working(site: Site) -> AsyncIterator[None]:
    async with site.agent:
        task = asyncio.create_task(site.agent.run())
        site.link.happens(Attached(welcome=Welcome(name="top", heartbeat_s=1.0), via="top", address="here"))
        try:
            yield
            assert not task.done(), "the client lives on"
        finally:
            task.cancel()
            await asyncio.wait((task,))


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    made = await asyncio.to_thread(Site, tmp_path)
    async with working(made):
        yield made


def settled(key: AssignmentKey = KEY) -> Settled:
    return Settled(key=key, clients=("a",), settlement=Settlement.COUNTED)


def called_off(key: AssignmentKey = KEY) -> Cancel:
    return Cancel(key=key, clients=("a",), reason="the round is closed")


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
    await eventually(lambda: site.link.left == 1, timeout_s=10)
    assert site.held == (KEY,)
    site.link.happens(Detached(reason="left"), there)
    await site.running(1)
    site.link.receive(settled())
    await eventually(lambda: not site.held, timeout_s=10)
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


async def test_only_of_a_run_that_lasts_is_told_that_it_runs(site: Site) -> None:
    def running() -> list[AssignmentKey]:
        return [each.key for each in site.link.sent if isinstance(each, Progress) and each.stage is Stage.RUNNING]

    site.link.receive(site.order(1))
    await eventually(running, timeout_s=5)
    site.runtime.may_end.set()
    await site.reported(1)
    site.link.receive(settled(), site.order(2, OTHER))
    await site.reported(2)
    assert running() == [site.order(1).key]


async def test_called_off_and_asked_again_at_once_the_two_runs_do_not_touch(site: Site) -> None:
    # As when a session is stopped and resumed: the first run still dies when the same work is asked for again.
    site.runtime.may_die.clear()
    site.link.receive(site.order(1))
    await site.running(1)
    site.link.receive(called_off(), site.order(2))
    await eventually(lambda: KEY in site.held and site.link._events.empty(), timeout_s=5)
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
    await eventually(lambda: site.held == (OTHER,), timeout_s=5)
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
    await eventually(lambda: site.runtime.died == 1 and not site.agent._clearing, timeout_s=5)
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
    site.link.receive(site.order(1, remaining_s=0.05))
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
    await eventually(lambda: site.agent.working == 1, timeout_s=5)
    site.link.receive(called_off())
    await eventually(lambda: site.runtime.began and not site.agent._clearing, timeout_s=5)
    assert (site.link.reports, site.held) == ([], ())


async def test_what_is_called_off_over_and_over_leaves_nothing(site: Site) -> None:
    for number in range(1, 6):
        site.link.receive(site.order(number), called_off())
    site.link.receive(site.order(9))
    site.runtime.may_end.set()
    assert (await site.reported(1)).order_id == "ord-9"
    site.link.receive(settled())
    await site.empty()
    await eventually(lambda: not list((site.state / "work").iterdir()), timeout_s=5)


async def test_settled_while_it_pushes_the_push_ends_and_the_client_does_not(site: Site) -> None:
    site.link.pushing.clear()
    site.runtime.may_end.set()
    site.link.receive(site.order(1))
    await eventually(lambda: site.link.pushes == 1, timeout_s=10)
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
        await eventually(lambda: not site.held, timeout_s=5)
        with suppress(AssertionError):  # nothing is cleared away while something is still being written
            await eventually(lambda: not site.agent._clearing, timeout_s=0.3)

    monkeypatch.setattr(threads, "SMALL_BYTES", 0)  # what is small is kept in one go
    monkeypatch.setattr(Outbox, "keep", slowly)
    site.runtime.may_end.set()
    site.link.receive(site.order(1))
    await kept.wait()
    monkeypatch.undo()
    await eventually(lambda: not site.agent._clearing, timeout_s=5)
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
    reading = await eventually(lambda: _opened_if_read(slow), timeout_s=10)
    assert reading is not None
    site.link.receive(called_off(second), site.order(3, third, compression="top-k:0.1"))
    await eventually(lambda: third in site.held, timeout_s=5)
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


async def test_a_full_disk_fails_the_work_and_not_the_client(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    keep, full = Outbox.keep, 3

    def without_room(self: Outbox, *args: object, **kwargs: object) -> None:
        nonlocal full
        if full:
            full -= 1
            raise StorageFull("No room.")
        keep(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(delivery_module, "_PUSH_AGAIN_S", 0.01)
    monkeypatch.setattr(Outbox, "keep", without_room)
    site.runtime.may_end.set()
    site.link.receive(site.order(1))
    failure = (await site.reported(1)).outcomes[0].failure
    assert failure is not None
    assert failure.code == "storage_full"
    site.link.receive(settled(), site.order(2, OTHER))
    assert (await site.reported(2)).outcomes[0].failure is None


async def test_it_drains_when_what_runs_is_reported_and_begins_nothing_else(site: Site) -> None:
    site.link.receive(site.order(1))
    await site.running(1)
    site.link.pushing.clear()
    draining = asyncio.create_task(site.agent.drain())
    await asyncio.sleep(0)
    site.link.receive(site.order(2, OTHER))
    site.runtime.may_end.set()
    await eventually(lambda: site.link.pushes == 1, timeout_s=10)
    assert not draining.done(), "what is finished is not told yet"
    site.link.pushing.set()
    await draining
    (report,) = site.link.reports
    assert (report.order_id, len(site.runtime.began), site.agent.working) == ("ord-1", 1, 0)


async def test_it_drains_at_once_when_nothing_is_under_way(site: Site) -> None:
    await asyncio.wait_for(site.agent.drain(), 1.0)


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
    await eventually(lambda: site.link.pushes == 1 and not site.agent._offers, timeout_s=10)
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
