"""A site that is attached to no network: jobs and images come in a folder, results go to another one.

To the runs it is a network like any other: a job is an order that the client holds on its disk before the file is filed
away, and is settled when its results are published. So it is carried out once, whoever is killed when.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Literal

import aiohttp
import structlog
from aiodocker.exceptions import DockerError
from pydantic import BaseModel, ConfigDict, Field

from runnel.client.audit import AUDIT_FILE, AuditLog, utc_now
from runnel.client.policy_file import default_policy, read_policy
from runnel.client.runtimes.docker_engine import Engine
from runnel.client.runtimes.registry_passwords import RegistryPasswords
from runnel.client.tasks.book import read_runs, result_path
from runnel.client.tasks.exchange_folder import ExchangeFolder
from runnel.client.tasks.pytaskmanager_site import read_pytaskmanager
from runnel.client.tasks.release import RUNS
from runnel.client.tasks.site_graph import site_tasks
from runnel.client.tasks.site_tasks import SiteTasks
from runnel.client.tasks.task_engine import EngineSettings
from runnel.common.blobs import Source, in_thread
from runnel.common.disk import state_folder
from runnel.common.errors import BadSettings, InvalidInput, RunnelError
from runnel.common.protocol import BlobRef, RunState, TaskNews, TaskOrder, TaskSettled
from runnel.common.settings import OWN_PREFIX_ONLY
from runnel.common.tasks import Contract, task_spec
from runnel.common.tasks.pytaskmanager import RUN_ID_TAG
from runnel.transport.way_up import load_or_create_identity

ASKER = "exchange"
"""Who asks for these runs, in the words of policies and of the site's log: organisation and user."""

_HELD_S = 30.0
_BLOCK_BYTES = 1 << 20

log = structlog.get_logger()


class ExchangeSettings(BaseModel):
    """Read from flags, ``RUNNEL_EXCHANGE_…``, a TOML file and these defaults, in this order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: Path = Field(description="Folder in which jobs (`.ptmjob`) and images (`.dockerimage`) are dropped.")
    output: Path | None = Field(None, description="Folder of the results; by default `FOLDER_output`.")
    state: Path = Field(
        Path("exchange-state"),
        json_schema_extra={OWN_PREFIX_ONLY: True},
        description="Folder of the identity, the runs that are held and the site's log.",
    )
    policy: Path | None = Field(None, description="What may run here (TOML); by default any image that is there.")
    pytaskmanager: Path | None = Field(
        None, description="`config.json` of PyTaskManager's client, whose endpoint and `dockerHost` its images find."
    )
    docker_host: str | None = Field(
        None, description="Address of the Docker engine; by default `DOCKER_HOST`, or the engine's usual socket."
    )
    docker_config: Path | None = Field(
        None,
        description="Passwords of registries; by default `config.json` of `DOCKER_CONFIG`, or of `~/.docker`.",
    )
    docker_files: Literal["mount", "copy"] | None = Field(
        None, description="How files go to containers; by default what the engine can."
    )
    parallel: int = Field(1, ge=1, description="How many jobs may run at once.")
    interval_s: float = Field(2.0, gt=0, description="Between two looks at the folder.")
    grace_s: float = Field(10.0, ge=0, description="Seconds for what is under way when it is told to stop.")


class FolderNetwork:
    """The way up of :class:`runnel.client.tasks.site_tasks.SiteTasks`, where there is a folder instead of a network."""

    def __init__(self, folder: ExchangeFolder) -> None:
        self._folder = folder
        self._expected: dict[str, asyncio.Event] = {}
        self.ended: dict[str, TaskNews] = {}
        self.something = asyncio.Event()

    @property
    def attached(self) -> bool:
        """It never goes away."""
        return True

    def expect(self, run_id: str) -> asyncio.Event:
        """Return what is set when a run is held on the disk."""
        return self._expected.setdefault(run_id, asyncio.Event())

    def send(self, message: TaskNews) -> bool:
        """Hear of a run."""
        if (held := self._expected.pop(message.run_id, None)) is not None:
            held.set()
        if message.result is not None:
            self.ended[message.run_id] = message
            self.something.set()
        return True

    def offer(self, message: TaskNews) -> bool:
        """Lines are in the results."""
        return True

    def leave(self) -> None:
        """There is nowhere else."""

    async def push(self, order_id: str, source: Source, ref: BlobRef, *, deadline_s: float) -> None:
        """Files are copied when they are published."""

    async def fetch(self, ref: BlobRef, target: Path, *, deadline_s: float) -> None:
        """Bring an input."""
        await in_thread(self._folder.fetch, ref, target)


class Exchange:
    """Takes jobs and publishes results, look after look.

    Args:
        folder: of the files.
        network: as which the runs see it.
        tasks: the runs.
        name: of the client.
        runs: folder of the book of runs.
        engine: address of the engine, and the process's variables.
        interval_s: between two looks.
    """

    def __init__(
        self,
        *,
        folder: ExchangeFolder,
        network: FolderNetwork,
        tasks: SiteTasks,
        name: str,
        runs: Path,
        engine: tuple[str | None, Mapping[str, str]],
        interval_s: float,
    ) -> None:
        self._folder = folder
        self._network = network
        self._tasks = tasks
        self._name = name
        self._runs = runs
        self._engine = engine
        self._interval_s = interval_s

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            self._network.something.clear()
            try:
                await self.look()
            except (RunnelError, OSError) as error:
                log.error("the exchange could not be served; trying again", error=str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._network.something.wait()

    async def look(self) -> None:
        """Publish what has ended and take what was dropped."""
        for run_id, news in list(self._network.ended.items()):
            await self._publish(run_id, news)
        dropped = await in_thread(self._folder.look)
        if not self._tasks.slots:
            return  # without an engine nothing of it can be done now
        loaded = [await self._load(path) for path in dropped.images]
        # A job that came with its image needs that.
        if all(loaded) and not dropped.images_come:
            for path in dropped.jobs:
                await self._take(path)

    async def _take(self, path: Path) -> None:
        run_id = await in_thread(self._folder.run_id, path)
        name = str(path.relative_to(self._folder.folder))
        try:
            job = await in_thread(self._folder.read, path)
            text = job.spec(await in_thread(self._folder.store, job)).as_json()
        except InvalidInput as error:
            log.warning("a job was not taken", job=name, error=str(error))
            told = {"state": RunState.REJECTED.value, "error": {"code": error.code, "message": str(error)}}
            await in_thread(self._folder.publish, name, run_id, told, {})
            await in_thread(self._folder.file_away, path)
            return
        held = self._network.expect(run_id)
        self._tasks.received(
            TaskOrder(run_id=run_id, client=self._name, task_id=name, organisation=ASKER, user=ASKER, spec=text)
        )
        try:
            async with asyncio.timeout(_HELD_S):
                await held.wait()
        except TimeoutError:
            log.error("a job is not held yet; trying again", job=name)
            return
        # Not before it is on the disk: whoever is killed in between, the file is there or the run is.
        await in_thread(self._folder.file_away, path)
        log.info("job taken", job=name, run=run_id)

    async def _publish(self, run_id: str, news: TaskNews) -> None:
        held = {each.run_id: each for each in await in_thread(read_runs, self._runs)}
        result = news.result
        if result is None or run_id not in held:
            self._network.ended.pop(run_id, None)
            return
        name = held[run_id].order.task_id
        spec = task_spec(held[run_id].order.spec, source=name)
        failure = result.failure
        told = {
            "image": spec.executors[0].image,
            "imageDigest": result.image_digest,
            "runId": spec.tags.get(RUN_ID_TAG, ""),
            "state": news.state.value,
            "exitCode": result.exit_code,
            "error": None if failure is None else {"code": failure.code, "message": failure.message},
            "attempt": result.attempt,
        }
        files = {
            each.name: (each.media_type, result_path(self._runs, run_id, number))
            for number, each in enumerate(result.files)
        }
        where = await in_thread(self._folder.publish, name, run_id, told, files)
        # A client that was killed before it filed the job away must not find it when the run is forgotten.
        if (left := await in_thread(self._folder.still_there, name, run_id)) is not None:
            await in_thread(self._folder.file_away, left)
        log.info("results published", job=name, run=run_id, state=news.state.value, folder=str(where))
        self._network.ended.pop(run_id, None)
        self._tasks.received(TaskSettled(run_id=run_id, client=self._name))
        specs = [task_spec(each.order.spec, source=name) for key, each in held.items() if key != run_id]
        blobs = [each.payload.blob for each in specs if each.payload is not None]
        await in_thread(self._folder.keep_inputs, {blob.sha256 for blob in blobs if blob is not None})

    async def _load(self, path: Path) -> bool:
        """Give an image to the engine; a second time does no harm, so the file goes when that is done.

        Returns:
            Whether there is nothing left to be done about it.
        """

        async def blocks() -> AsyncIterator[bytes]:
            file = await in_thread(path.open, "rb")
            with contextlib.closing(file):
                while block := await in_thread(file.read, _BLOCK_BYTES):
                    yield block

        host, environ = self._engine
        log.info("loading an image", file=path.name)
        try:
            async with Engine(host, environ) as engine:
                async for line in engine.docker.images.import_image(blocks(), stream=True):
                    if "error" in line:
                        raise InvalidInput(f"The engine does not take the image {path.name}: {line['error']}.")
        except BadSettings as error:
            log.warning("no engine takes the image now; trying again", file=path.name, error=str(error))
            return False
        except (InvalidInput, DockerError) as error:
            why = error.message if isinstance(error, DockerError) else str(error)
            log.error("an image was not taken", file=path.name, error=why)
            told = {"state": RunState.REJECTED.value, "error": {"code": InvalidInput.code, "message": why}}
            name = f"{path.name}{path.suffix}"  # the results of a job of the same name are another folder
            await in_thread(self._folder.publish, name, await in_thread(self._folder.run_id, path), told, {})
            await in_thread(self._folder.file_away, path)
        except aiohttp.ClientError as error:
            log.warning("the engine broke off; trying again", file=path.name, error=str(error))
            return False
        else:
            await in_thread(path.unlink, missing_ok=True)
            log.info("image loaded", file=path.name)
        return True


async def run_exchange(
    settings: ExchangeSettings, stop: asyncio.Event, environ: Mapping[str, str] | None = None
) -> None:
    """Serve the folder until ``stop`` is set; then end what runs, for ``grace_s`` at most, and go.

    Raises:
        BadSettings: a setting, a file or the policy does not fit.
        CorruptData: the audit log was changed by somebody; nothing runs then.
    """
    environ = os.environ if environ is None else environ
    state, source = settings.state.absolute(), settings.folder.absolute()
    await in_thread(state_folder, state)
    output = (settings.output or source.with_name(f"{source.name}_output")).absolute()
    folder = ExchangeFolder(source, output, state / "inputs")
    await in_thread(folder.prepare)
    site = default_policy(loopback=True) if settings.policy is None else await in_thread(read_policy, settings.policy)
    own = {} if settings.pytaskmanager is None else await in_thread(read_pytaskmanager, settings.pytaskmanager)
    await in_thread(RegistryPasswords(settings.docker_config, environ).require)
    identity = await in_thread(load_or_create_identity, state, kind="exchange", name=None)
    audit = AuditLog(state / AUDIT_FILE)
    note = {"client": identity.name, "folder": str(source), "policy": site.source, "fingerprint": site.fingerprint}
    await in_thread(audit.append, "exchange.started", note)
    network = FolderNetwork(folder)
    tasks = await in_thread(
        site_tasks,
        network,
        name=identity.name,
        state=state,
        engine=EngineSettings(
            client=identity.node_id,
            state=state,
            environ=environ,
            host=settings.docker_host,
            files=settings.docker_files,
            config=settings.docker_config,
        ),
        policy=lambda: site.policy,
        audit=audit,
        parallel=settings.parallel,
        databases={},
        variables={},
        settings={Contract.PYTASKMANAGER: own},
        time_s=None,
        clock=utc_now,
    )
    exchange = Exchange(
        folder=folder,
        network=network,
        tasks=tasks,
        name=identity.name,
        runs=state / RUNS,
        engine=(settings.docker_host, environ),
        interval_s=settings.interval_s,
    )
    async with tasks, asyncio.TaskGroup() as group:
        looking = group.create_task(exchange.run(), name="exchange")
        log.info("ready", name=identity.name, folder=str(source), output=str(output), policy=site.source)
        await stop.wait()
        looking.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settings.grace_s):
                await tasks.drain()
