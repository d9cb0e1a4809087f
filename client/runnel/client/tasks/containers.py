"""The containers of a run, one after another, each in the cage that the site has for tasks."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import structlog
from aiodocker.exceptions import DockerError

from runnel.client.domain.cage import Cage
from runnel.client.runtimes.docker_container import Capture, Container, Ended, Stop, container_config, small_volume
from runnel.client.runtimes.docker_engine import Engine
from runnel.client.runtimes.runtime import Limits
from runnel.client.tasks import container_ends
from runnel.client.tasks.contract import Layout
from runnel.client.tasks.file_ways import FileWay
from runnel.client.tasks.images import TaskImage
from runnel.common.blobs import in_thread
from runnel.common.protocol import Failure
from runnel.common.tasks import Executor

_TMP = "/tmp"  # noqa: S108 (inside)
_BLOCK_BYTES = 1 << 16

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One executor of a run.

    Args:
        word: what it is called in messages.
        image: that it runs in.
        executor: as the task has it.
        layout: what it finds.
        cage: what it may reach and take.
        stdin: file of the client that it reads as standard input; None: that is empty.
        run_id: of the run.
    """

    word: str
    image: TaskImage
    executor: Executor
    layout: Layout
    cage: Cage
    stdin: Path | None = None
    run_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEnd:
    """How an executor ended by itself: ``failure`` None is well."""

    exit_code: int
    failure: Failure | None = None


class TaskContainers:
    """Runs steps at an engine.

    Args:
        engine: where.
        files: how they come to see files.
        labels: of what is made.
        owner: uid and gid of the client's own processes.
        grace_s: seconds between SIGTERM and SIGKILL.
        took: is told how long each start took, in seconds.
    """

    def __init__(
        self,
        engine: Engine,
        files: FileWay,
        *,
        labels: Mapping[str, str],
        owner: tuple[int, int],
        grace_s: float,
        took: Callable[[float], None],
    ) -> None:
        self._engine = engine
        self._files = files
        self._labels = labels
        self._owner = owner
        self._grace_s = grace_s
        self._took = took

    async def run(self, step: Step, capture: Capture, *, time_s: float | None, started: Callable[[], None]) -> StepEnd:
        """Run ``step`` to its end; whoever cancels this gets the cancellation when nothing of it is alive.

        ``started`` is called when it runs.

        Raises:
            LimitReached: it was ended, because its time was over or it wrote too much.
            EnvironmentFailed: the engine refused, or is gone.
            InvalidInput: something is to be where nothing can be.
        """
        cage, stop, processes = step.cage, Stop.ENDED, 0
        async with self._files.placed(step.layout.mounts, step.image.id, cage) as placed:
            container = Container(
                engine=self._engine,
                name=f"runnel-task-{secrets.token_hex(8)}",
                config=self._config(step, placed.mounts),
                capture=capture,
                grace_s=self._grace_s,
                full=placed.over,
            )
            try:
                try:
                    since = time.monotonic()
                    await container.create()
                    await container.start()
                    self._took(time.monotonic() - since)
                    started()
                    async with self._fed(container, step.stdin):
                        stop = await container.wait(time_s)
                    if stop is Stop.LATE:
                        processes = await container.processes()
                finally:
                    await container.end(politely=stop is not Stop.FULL)
                ended = await container.result()
                await placed.take()
            finally:
                await container.remove()
        if stop is Stop.FULL:
            raise container_ends.disk_full(step.word, cage)
        if stop is Stop.LATE and time_s is not None:
            raise container_ends.late(step.word, time_s, cage=cage, processes=processes)
        return _end(step, ended, capture.tail)

    def _config(self, step: Step, mounts: list[dict[str, object]]) -> dict[str, object]:
        executor, layout, cage = step.executor, step.layout, step.cage
        mounted = {str(mount["Target"]) for mount in mounts}
        volumes = [small_volume(path, cage) for path in step.image.volumes if path not in mounted]
        env = {"HOME": _TMP} | dict(layout.env) | executor.env
        config = container_config(
            image=step.image.id,
            argv=None,
            env=env,
            folder=executor.workdir,
            mounts=[*mounts, *volumes],
            cage=cage,
            owner=cage.owner(self._owner),
            limits=Limits(),
            cpus=self._engine.facts.cpus,
            labels={**self._labels, LABEL_RUN: step.run_id},
        )
        if executor.command is not None:
            config["Cmd"] = list(executor.command)
        if step.stdin is not None:
            config |= {"OpenStdin": True, "StdinOnce": True}
        host = config["HostConfig"]
        tmpfs = host["Tmpfs"]
        for path in layout.tmpfs:
            tmpfs[path] = tmpfs[_TMP]
        host["Tmpfs"] = {path: options for path, options in tmpfs.items() if path not in mounted}
        if layout.hosts:
            host["ExtraHosts"] = [f"{name}:{address}" for name, address in layout.hosts.items()]
        if layout.network is not None:
            host["NetworkMode"], config["NetworkDisabled"] = layout.network.name, False
        return config

    @contextlib.asynccontextmanager
    async def _fed(self, container: Container, stdin: Path | None) -> AsyncIterator[None]:
        if stdin is None:
            yield
            return
        feeding = asyncio.create_task(_feed(container, stdin), name=f"input of {container.name}")
        try:
            yield
        finally:
            feeding.cancel()
            await asyncio.wait([feeding])
            if not feeding.cancelled() and (error := feeding.exception()) is not None:
                raise error


LABEL_RUN = "runnel.run"
"""Label of a run's containers."""


async def _feed(container: Container, path: Path) -> None:
    stream = container.handle.attach(stdin=True, stdout=False, stderr=False)
    try:
        with path.open("rb") as file:
            async with stream:
                while block := await in_thread(file.read, _BLOCK_BYTES):
                    await stream.write_in(block)
    except (DockerError, aiohttp.ClientError, ConnectionError, AssertionError) as error:
        # It has ended without reading all of it, which is its own affair.
        log.debug("a container did not take all of its input", container=container.name, error=str(error))


def _end(step: Step, ended: Ended, tail: str) -> StepEnd:
    if not ended.status:
        return StepEnd(exit_code=0)
    return StepEnd(exit_code=ended.status, failure=container_ends.bad_end(step.word, ended, cage=step.cage, tail=tail))
