"""One container: what it is made of, and its life from creation to removal."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import aiohttp
import structlog
from aiodocker.containers import DockerContainer
from aiodocker.exceptions import DockerError
from aiodocker.stream import Stream

from runnel.client.domain.cage import Cage
from runnel.client.runtimes.docker_engine import Engine, engine_errors
from runnel.client.runtimes.runtime import Limits

_GONE = (404, 409)
_NOT_RUNNING = (304, 404, 409)
_STREAMS = {1: "stdout", 2: "stderr"}
_DRAIN_S = 5.0
_LOOK_S = 0.25
_COUNT_S = 3.0
# Between SIGXCPU, which says why, and SIGKILL, which can't be ignored.
_CPU_GRACE_S = 5

log = structlog.get_logger()


def container_config(
    *,
    image: str,
    argv: Sequence[str] | None,
    env: Mapping[str, str],
    folder: str | None,
    mounts: Sequence[Mapping[str, Any]],
    cage: Cage,
    owner: tuple[int, int],
    limits: Limits,
    cpus: int,
    labels: Mapping[str, str],
) -> dict[str, Any]:
    """Return what the engine is to create: the one place where a cage becomes the engine's words.

    Args:
        image: its identity, not a name that may come to mean another.
        argv: the command, in place of all that the image would run; None: what it would.
        env: variables beside those of the image.
        folder: working directory inside; None: the image's own.
        mounts: in the engine's form.
        cage: what it may reach and take.
        owner: uid and gid of its processes.
        limits: of this run, for each process.
        cpus: how many processors the engine has; it refuses to promise more.
        labels: by which it is found again.
    """
    command: dict[str, Any] = {} if argv is None else {"Entrypoint": [], "Cmd": list(argv)}
    if folder is not None:
        command["WorkingDir"] = folder
    return command | {
        "Image": image,
        "Env": [f"{name}={value}" for name, value in env.items()],
        "User": f"{owner[0]}:{owner[1]}",
        "Hostname": "runnel",
        "Labels": dict(labels),
        "OpenStdin": False,
        "Tty": False,
        "AttachStdout": True,
        "AttachStderr": True,
        "NetworkDisabled": cage.network == "none",
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "Mounts": [dict(mount) for mount in mounts],
            "NetworkMode": cage.network,
            "ReadonlyRootfs": True,
            "Tmpfs": {"/tmp": f"rw,nosuid,nodev,size={cage.tmpfs_bytes},mode=1777"},  # noqa: S108 (inside)
            "ShmSize": cage.shm_bytes,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "Privileged": False,
            # Reaps what is orphaned, passes signals on, and gives a command the signals' usual meaning.
            "Init": True,
            "IpcMode": "private",
            "CgroupnsMode": "private",
            "PidsLimit": cage.pids,
            "Memory": cage.memory_bytes,
            "MemorySwap": cage.memory_bytes,
            "NanoCpus": int(min(cage.cpus, cpus) * 1e9),
            "Ulimits": _ulimits(cage, limits),
            # What it prints is taken from the stream; the engine would keep a copy without limit.
            "LogConfig": {"Type": "none"},
            "RestartPolicy": {"Name": "no"},
        },
    }


def small_volume(path: str, cage: Cage) -> dict[str, Any]:
    """Return the mount that stands in the place of a volume which an image wants at ``path``."""
    return {
        "Type": "tmpfs",
        "Target": path,
        "ReadOnly": False,
        "TmpfsOptions": {"SizeBytes": cage.tmpfs_bytes, "Mode": 0o1777},
    }


def _ulimits(cage: Cage, limits: Limits) -> list[dict[str, Any]]:
    # A single file can't run past the limit between two looks at the folder.
    found = [("core", 0, 0), ("fsize", cage.disk_bytes, cage.disk_bytes)]
    if limits.memory_bytes is not None:
        found.append(("data", limits.memory_bytes, limits.memory_bytes))
    if limits.cpu_s is not None:
        seconds = max(1, math.ceil(limits.cpu_s))
        found.append(("cpu", seconds, seconds + _CPU_GRACE_S))
    return [{"Name": name, "Soft": soft, "Hard": hard} for name, soft, hard in found]


class Stop(Enum):
    """Why one waits no longer for a container: it has ended, its time is over, or it has written too much."""

    ENDED = "ended"
    LATE = "late"
    FULL = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a container ended: ``status`` as the engine has it, and whether it used up its memory."""

    status: int
    out_of_memory: bool


class Capture(Protocol):
    """Takes what a container prints, on the event loop; ``tail``: the last lines, for messages."""

    @property
    def tail(self) -> str:
        """See above."""
        ...

    def feed(self, stream: str, data: bytes) -> None:
        """Take the next bytes of ``stdout`` or ``stderr``."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


@dataclass(slots=True, kw_only=True)
class Container:
    """A container that exists from :meth:`create` until :meth:`remove` has returned, whatever is cancelled meanwhile.

    Args:
        engine: whose it is.
        name: of the container.
        config: from :func:`container_config`.
        capture: takes what it prints.
        grace_s: seconds between SIGTERM and SIGKILL.
        full: tells whether it has written more than it may.
    """

    engine: Engine
    name: str
    config: Mapping[str, Any]
    capture: Capture
    grace_s: float
    full: Callable[[], Awaitable[bool]]
    _container: DockerContainer | None = None
    _stream: Stream | None = None
    _reading: asyncio.Task[None] | None = None
    _waiting: asyncio.Task[int] | None = None
    _cancelled: asyncio.CancelledError | None = field(default=None)

    async def create(self) -> None:
        """Make it; it does not run yet."""

        async def make() -> None:
            with engine_errors("create a container"):
                self._container = await self.engine.docker.containers.create(dict(self.config), name=self.name)

        # A request that is dropped half way may still make one.
        await self._insist(make)
        self._raise_cancellation()

    @property
    def handle(self) -> DockerContainer:
        """The engine's own, between :meth:`create` and :meth:`remove`."""
        if self._container is None:
            raise AssertionError("not created")
        return self._container

    async def start(self) -> None:
        """Let it run. From here on what it prints is captured."""
        with engine_errors("run a container"):
            self._stream = self.handle.attach(stdout=True, stderr=True)
            # The first read attaches; waiting for the end has to begin before it starts too.
            await self._stream.__aenter__()
            self._reading = asyncio.create_task(self._read(self._stream), name=f"output of {self.name}")
            await self.handle.start()
            self._waiting = asyncio.create_task(self._wait(), name=f"end of {self.name}")

    async def wait(self, timeout_s: float | None) -> Stop:
        """Wait for its end, for ``timeout_s`` at most, or until it has written too much."""
        if self._waiting is None:
            raise AssertionError("not started")
        try:
            async with asyncio.timeout(timeout_s):
                while not (await asyncio.wait([self._waiting], timeout=_LOOK_S))[0]:
                    if await self.full():
                        return Stop.FULL
        except TimeoutError:
            return Stop.LATE
        # It may have been quicker than one looks.
        return Stop.FULL if await self.full() else Stop.ENDED

    async def end(self, *, politely: bool = True) -> None:
        """Ask it to end if it still runs, then kill it; return when nothing of it is alive and all output is taken."""
        if politely and self._waiting is not None and not self._waiting.done():
            await self._signal("SIGTERM")
            try:
                if await self.wait(self.grace_s) is Stop.LATE:
                    log.info("a run did not end when asked to and is killed", container=self.name, grace_s=self.grace_s)
            except asyncio.CancelledError as error:
                self._cancelled = error
        await self._insist(self._kill)
        await self._insist(self._drain)
        self._raise_cancellation()

    async def result(self) -> Ended:
        """Return how it ended, after :meth:`end`."""
        if self._waiting is None:
            raise AssertionError("not started")
        with engine_errors("tell how a container ended"):
            status = self._waiting.result()
            state = (await self.handle.show())["State"] if status else {}
        return Ended(status=status, out_of_memory=bool(state.get("OOMKilled")))

    async def remove(self) -> None:
        """Remove it, and what is left of it."""
        await self._insist(self._remove)
        self._raise_cancellation()

    async def processes(self) -> int:
        """Return how many processes and threads it has now; 0 if the engine can't tell."""
        try:
            async with asyncio.timeout(_COUNT_S):
                shown = await self.handle.top(ps_args="-eLo pid,lwp")
        except (DockerError, aiohttp.ClientError, TimeoutError):  # it is only for a better message
            return 0
        return len(shown.get("Processes") or ())

    async def _read(self, stream: Stream) -> None:
        while (message := await stream.read_out()) is not None:
            self.capture.feed(_STREAMS.get(message.stream, "stdout"), message.data)

    async def _wait(self) -> int:
        return int((await self.handle.wait())["StatusCode"])

    async def _signal(self, signal: str) -> None:
        try:
            await self.handle.kill(signal=signal)
        except DockerError as error:
            if error.status not in _NOT_RUNNING:
                log.warning("a container could not be signalled", container=self.name, error=error.message)
        except (aiohttp.ClientError, ConnectionError) as error:
            log.warning("a container could not be signalled", container=self.name, error=str(error))

    async def _kill(self) -> None:
        if self._waiting is None:
            return
        if not self._waiting.done():
            await self._signal("SIGKILL")
            await asyncio.wait([self._waiting])
        if (error := self._waiting.exception()) is not None:
            log.warning("the end of a run was not told", container=self.name, error=str(error))

    async def _drain(self) -> None:
        if self._reading is not None:
            # Nothing comes from one that was not started, and nothing ends its stream.
            await asyncio.wait([self._reading], timeout=0 if self._waiting is None else _DRAIN_S)
            self._reading.cancel()
            await asyncio.wait([self._reading])
            if not self._reading.cancelled() and (error := self._reading.exception()) is not None:
                log.warning("the output of a run was cut off", container=self.name, error=str(error))
        if self._stream is not None:
            await self._stream.close()
        self.capture.close()

    async def _remove(self) -> None:
        if self._container is None:
            return
        try:
            await self._container.delete(force=True, v=True)
        except DockerError as error:
            if error.status not in _GONE:
                log.warning("a container could not be removed", container=self.name, error=error.message)
        except (aiohttp.ClientError, ConnectionError) as error:
            log.warning("a container could not be removed", container=self.name, error=str(error))
        self._container = None

    async def _insist(self, do: Callable[[], Awaitable[None]]) -> None:
        """Do it to its end although the task is cancelled meanwhile, and keep the cancellation for later."""
        try:
            await whole(do())
        except asyncio.CancelledError as error:
            self._cancelled = error

    def _raise_cancellation(self) -> None:
        if self._cancelled is not None:
            raised, self._cancelled = self._cancelled, None
            raise raised


async def whole(work: Awaitable[None]) -> None:
    """Await ``work`` to its end although the task is cancelled meanwhile; then the cancellation goes on."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
