"""Entry points in containers of a Docker engine, one for each run."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from runnel.client.domain.cage import Cage
from runnel.client.runtimes import docker_failures as failures
from runnel.client.runtimes.docker_container import Container, Stop, container_config, small_volume
from runnel.client.runtimes.docker_copies import CopiedFiles
from runnel.client.runtimes.docker_engine import Engine
from runnel.client.runtimes.docker_files import Files, FileSharing, MountedFiles, Placed, host_view
from runnel.client.runtimes.docker_images import Image, Images
from runnel.client.runtimes.docker_leftovers import labels_of, sweep
from runnel.client.runtimes.docker_paths import PACKAGE_IN_RUN, Layout, layout
from runnel.client.runtimes.docker_python import ImagePythons
from runnel.client.runtimes.installs import Installs
from runnel.client.runtimes.log_capture import LogCapture
from runnel.client.runtimes.process_group import DEFAULT_GRACE_S
from runnel.client.runtimes.runtime import Call, Finished, LineSink, PackageFiles, Prepared
from runnel.common.blobs import in_thread
from runnel.common.errors import BadPackage, BadSettings, EntryPointFailed
from runnel.compute_package import ManifestKind

_PYTHON = "python3"
# They run before others do, and may leave something for these in the package's folder.
_MAKE_FILES = ("startup", "build")
_FROM_CLIENT = ("LANG", "LANGUAGE", "TZ")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedImage(Prepared):
    """A package with the image that it runs in."""

    image: Image

    @property
    def runs_with(self) -> str:
        """See :attr:`Prepared.runs_with`."""
        return f"the image {self.image.id}"


class DockerRuntime:
    """Runs each entry point in a container of its own, which is removed when the run is over.

    What a container may reach and take is its :class:`~runnel.client.domain.cage.Cage`. It sees the package at
    ``/runnel/package``, where it is started and which only ``startup`` and ``build`` may write, the folder of the run
    at ``/runnel/run``, and the databases that are files or folders below ``/runnel/data`` and ``/runnel/databases``,
    read-only. Paths in arguments and variables are translated.

    Not one container for many runs: mounts are fixed when a container is made, so it would have to see the folders of
    all its runs; what a run leaves in memory or in ``/tmp`` would count against the next; and who ends the processes
    that a run leaves would be running among them.

    Use as an async context manager; runs are to be ended before it is left.

    Args:
        client: identity of the client; with ``state`` it tells whose containers are left over from a killed client.
        state: absolute state folder of the client.
        environ: the client's variables.
        host: address of the engine; None: ``DOCKER_HOST`` of ``environ``, or its usual socket.
        config: file with passwords of registries; None: that of Docker's command.
        cage: of each run.
        base_image: for packages that name no image; see :class:`~runnel.client.runtimes.docker_images.Images`.
        installs: what the site says about what packages require.
        sharing: how files go to containers; None: as mounts where the engine's host has them, otherwise as copies.
        grace_s: seconds between SIGTERM and SIGKILL.
    """

    def __init__(
        self,
        *,
        client: str,
        state: Path,
        environ: Mapping[str, str],
        host: str | None = None,
        config: Path | None = None,
        cage: Cage | None = None,
        base_image: str = "",
        installs: Installs | None = None,
        sharing: FileSharing | None = None,
        grace_s: float = DEFAULT_GRACE_S,
    ) -> None:
        self._engine = Engine(host, environ, config)
        self._state = state
        self._labels = labels_of(client, state)
        self._cage = cage or Cage()
        self._owner = self._cage.owner((os.geteuid(), os.getegid()))
        self._env = {key: value for key, value in environ.items() if key in _FROM_CLIENT or key.startswith("LC_")}
        self._images = Images(self._engine, state, base=base_image, installs=installs)
        self._pythons = ImagePythons(self._engine, cage=self._cage, owner=self._owner, labels=self._labels)
        self._sharing = sharing
        self._grace_s = grace_s
        self._files: Files | None = None
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Connect, and remove what an earlier start of this client left.

        Raises:
            BadSettings: no engine answers, or it can't have the files of this client.
        """
        async with AsyncExitStack() as undo:
            await undo.enter_async_context(self._engine)
            await sweep(self._engine, self._labels)
            self._files = await self._choose_files()
            undo.push_async_callback(self._files.close)
            self._open = undo.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    async def _choose_files(self) -> Files:
        if self._sharing is not FileSharing.COPY:
            view = await host_view(self._engine)
            if view is not None and (self._sharing is not None or view.shares(self._state)):
                return MountedFiles(self._engine, view, owner=self._owner, most=self._cage.disk_bytes)
            if self._sharing is not None:
                raise BadSettings(
                    f"The Docker engine at {self._engine.host} is not known to have this client's files to mount.",
                    hint="Set --docker-files copy.",
                )
        log.info("files go to containers as copies", host=self._engine.host)
        return CopiedFiles(self._engine, owner=self._owner, cage=self._cage, labels=self._labels)

    def follow(self, *, installs: Installs, cage: Cage) -> None:
        """Take over what the site says from now on; what runs keeps the cage that it began in."""
        self._images.follow(installs)
        self._cage = cage
        if self._files is not None:
            self._files.limit(cage)

    async def prepare(self, package: PackageFiles, say: LineSink) -> PreparedImage:
        """Build or fetch the package's image, or find it, and hold it to the Python that the package asks for.

        See :meth:`Runtime.prepare`.
        """
        image = await self._images.prepare(package, say)
        await self._pythons.require(package.manifest, image.id)
        await self._shared_files.prepare(package.root, image.id)
        return PreparedImage(package=package, image=image)

    async def run(self, prepared: Prepared, call: Call, say: LineSink) -> Finished:
        """Run one entry point; see :meth:`Runtime.run`.

        An image that was evicted since the package was prepared is made again.

        Raises:
            EnvironmentFailed: the engine, or the image, is gone.
        """
        if not isinstance(prepared, PreparedImage):
            raise TypeError(f"prepared by another runtime: {prepared!r}")
        if self._images.is_gone(prepared.image):
            prepared = await self.prepare(prepared.package, say)
        await self._images.used(prepared.image)
        # FEDn tells `build` no path: it writes ../seed.npz, and beside its folder nothing else can be written.
        in_run = call.entry_point == "build" and prepared.package.manifest.kind is ManifestKind.FEDN
        if in_run:
            await in_thread((call.workdir / PACKAGE_IN_RUN.name).mkdir, exist_ok=True)
        seen = await in_thread(
            layout,
            package=prepared.package.root,
            run=call.workdir,
            env=call.env,
            package_writable=call.entry_point in _MAKE_FILES,
            in_run=in_run,
        )
        arguments = tuple(map(seen.translate, call.arguments))
        argv = prepared.package.manifest.argv(call.entry_point, arguments, python=_PYTHON)
        await in_thread(_check_program, argv[0], call.entry_point, prepared.package.root)
        capture, cage = LogCapture(say, budget_bytes=call.limits.output_bytes), self._cage
        started = time.perf_counter()
        async with self._shared_files.placed(seen, prepared.image.id) as placed:
            container = self._container(prepared, call, argv, seen, placed, capture, cage)
            try:
                await self._to_its_end(container, placed, call, argv[0], cage)
            finally:
                await container.remove()
        return Finished(exit_status=0, elapsed_s=time.perf_counter() - started, log_tail=capture.tail)

    @property
    def _shared_files(self) -> Files:
        if self._files is None:
            raise AssertionError("not entered")
        return self._files

    def _container(
        self,
        prepared: PreparedImage,
        call: Call,
        argv: list[str],
        seen: Layout,
        placed: Placed,
        capture: LogCapture,
        cage: Cage,
    ) -> Container:
        env = {"HOME": "/tmp"} | self._env | {name: seen.translate(value) for name, value in call.env.items()}  # noqa: S108 (inside)
        env["PYTHONUNBUFFERED"] = "1"
        config = container_config(
            image=prepared.image.id,
            argv=argv,
            env=env,
            folder=str(seen.package.inside),
            mounts=[*placed.mounts, *(small_volume(path, cage) for path in prepared.image.volumes)],
            cage=cage,
            owner=self._owner,
            limits=call.limits,
            cpus=self._engine.facts.cpus,
            labels=self._labels,
        )
        name = f"runnel-{secrets.token_hex(8)}"
        return Container(
            engine=self._engine,
            name=name,
            config=config,
            capture=capture,
            grace_s=self._grace_s,
            full=placed.over,
        )

    async def _to_its_end(self, container: Container, placed: Placed, call: Call, word: str, cage: Cage) -> None:
        name, timeout_s = call.entry_point, call.timeout_s
        stop, processes = Stop.ENDED, 0
        try:
            await container.create()
            await container.start()
            stop = await container.wait(timeout_s)
            if stop is Stop.LATE:
                processes = await container.processes()
        finally:
            await container.end(politely=stop is not Stop.FULL)
        tail = container.capture.tail
        if stop is Stop.FULL:
            raise failures.disk_full(name, cage=cage, tail=tail)
        if stop is Stop.LATE and timeout_s is not None:
            raise failures.timed_out(name, timeout_s, cage=cage, processes=processes, tail=tail)
        ended = await container.result()
        if ended.status:
            raise failures.failed(name, word, ended, cage=cage, tail=tail, limits=call.limits)
        await placed.take()


def _check_program(word: str, entry_point: str, root: Path) -> None:
    """Say clearly that a command of the package is not there; what is in the image is found out by starting it."""
    if "/" not in word or word.startswith("/"):
        return
    program = root / word
    if not program.exists():
        raise BadPackage(
            f"The entry point {entry_point} should run {word}, which the package does not have.",
            entry_point=entry_point,
        )
    if not os.access(program, os.X_OK):
        raise EntryPointFailed(
            f"The entry point {entry_point} should run {word!r}, which is not executable.",
            hint="Make it executable in the package.",
            entry_point=entry_point,
            exit_status=127,
            log_tail="",
        )
