"""A client with a way up that is a list and entry points that end when they are told."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType

import numpy as np

from runnel.client.agent import ClientAgent
from runnel.client.runtimes import Call, Finished, LineSink, PackageFiles, Prepared
from runnel.common.blobs import Spares, digest_file, digest_payload
from runnel.common.compression import NO_COMPRESSION
from runnel.common.errors import (
    EntryPointFailed,
    StorageFull,
)
from runnel.common.protocol import (
    Assignment,
    AssignmentKey,
    BlobRef,
    Cancel,
    Downward,
    Hello,
    Report,
    Settled,
    Settlement,
    Upward,
    Welcome,
    Work,
)
from runnel.common.tensors import write_npz
from runnel.compute_package import pack
from runnel.transport import Attached, Received
from runnel.transport.link_events import LinkEvent
from tests.doubles.client_packages import ADD_ONE, MEASURE, write_package
from tests.doubles.gates import open_gate
from tests.eventually import eventually

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

    ``clean_up_fails``: those that die raise what a full disk raises in place of their cancellation. An update has
    ``count`` numbers.
    """

    def __init__(self, count: int) -> None:
        self.count = count
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
        write_npz(Path(call.arguments[1]), {"w": np.full(self.count, float(len(self.began)), np.float32)})
        return Finished(exit_status=0, elapsed_s=0.0, log_tail="")


class Site:
    """A client with a package and a model to work on."""

    def __init__(self, folder: Path, *, count: int = COUNT) -> None:
        self.state = folder / "state"
        write_package(folder / "package", {"train.py": ADD_ONE, "validate.py": MEASURE})
        archive = pack(folder / "package", folder / "package.tar.gz").path
        model = folder / "model.npz"
        write_npz(model, {"w": np.zeros(count, np.float32)})
        self.package, self.model = digest_file(archive), digest_file(model)
        self.link = Link({self.package.sha256: archive, self.model.sha256: model})
        self.runtime = SlowRuntime(count)
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
        await eventually(lambda: len(self.runtime.began) == number, state=lambda: self.runtime.began)

    async def reported(self, number: int) -> Report:
        await eventually(lambda: len(self.link.reports) >= number, state=lambda: self.link.sent)
        return self.link.reports[number - 1]

    async def empty(self) -> None:
        await eventually(lambda: not list((self.state / "outbox").iterdir()))

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


def settled(key: AssignmentKey = KEY) -> Settled:
    return Settled(key=key, clients=("a",), settlement=Settlement.COUNTED)


def called_off(key: AssignmentKey = KEY) -> Cancel:
    return Cancel(key=key, clients=("a",), reason="the round is closed")
