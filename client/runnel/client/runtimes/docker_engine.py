"""The connection to a Docker engine, and what its errors mean to a client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import structlog
from aiodocker import Docker
from aiodocker.exceptions import DockerError

from runnel.client.domain.task_policy import registry_of
from runnel.client.runtimes.registry_passwords import RegistryPasswords
from runnel.common.blobs import in_thread
from runnel.common.errors import BadSettings, EnvironmentFailed

DEFAULT_HOST = "unix:///var/run/docker.sock"
_CONNECT_S = 10.0
# Of Docker 20.10: private namespaces for control groups.
_LEAST_API = (1, 41)
_RECURSIVE_READ_ONLY_API = (1, 44)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What an engine said of itself: its ``version``, ``api``, and the number of its processors."""

    version: str
    api: tuple[int, int]
    cpus: int

    @property
    def deep_read_only(self) -> bool:
        """Whether a read-only mount can be had that makes what is mounted below it read-only as well."""
        return self.api >= _RECURSIVE_READ_ONLY_API


class Engine:
    """A Docker engine; an async context manager.

    Args:
        host: its address, ``unix://…`` or ``tcp://…``; None: ``DOCKER_HOST`` of ``environ``, or its usual socket.
        environ: the client's variables.
        config: file with passwords of registries; see :class:`.registry_passwords.RegistryPasswords`.
    """

    def __init__(self, host: str | None, environ: Mapping[str, str], config: Path | None = None) -> None:
        self.host = host or environ.get("DOCKER_HOST") or DEFAULT_HOST
        self._passwords = RegistryPasswords(config, environ)
        self._docker: Docker | None = None
        self._facts: EngineFacts | None = None

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            BadSettings: no engine answers there, or one that is too old.
        """
        try:
            self._docker = Docker(url=self.host)
        except (ValueError, AssertionError) as error:
            raise BadSettings(f"{self.host!r} is no address of a Docker engine: {error}.", host=self.host) from error
        try:
            self._facts = await self._ask()
        except BaseException:
            await self._docker.close()
            raise
        log.info("docker engine found", host=self.host, version=self._facts.version)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.docker.close()

    @property
    def docker(self) -> Docker:
        """The connection."""
        if self._docker is None:
            raise AssertionError("not entered")
        return self._docker

    @property
    def facts(self) -> EngineFacts:
        """What the engine said of itself when it was connected."""
        if self._facts is None:
            raise AssertionError("not entered")
        return self._facts

    async def pull(self, image: str) -> AsyncIterator[dict[str, Any]]:
        """Have an image fetched, with the site's password for its registry if there is one; yield what is told of it.

        Raises:
            DockerError: the engine or the registry refused.
            EnvironmentFailed: the site's passwords can't be read.
        """
        auth = await in_thread(self._passwords.of, image)
        registry = registry_of(image)
        # With a password the library wants to know whose it is.
        name = image if auth is None or image.startswith(f"{registry}/") else f"{registry}/{_whole(image)}"
        async for line in self.docker.images.pull(name, auth=auth, stream=True):
            yield line

    async def _ask(self) -> EngineFacts:
        try:
            async with asyncio.timeout(_CONNECT_S):
                version = await self.docker.version()
                info = await self.docker.system.info()
        except (DockerError, aiohttp.ClientError, OSError, TimeoutError) as error:
            why = str(error) or f"nothing came within {_CONNECT_S:g} s"
            raise BadSettings(
                f"No Docker engine answers at {self.host}: {why}.",
                hint="Start it, name it with --docker-host, or run this client with --runtime process.",
                host=self.host,
            ) from error
        major, _, minor = str(version["ApiVersion"]).partition(".")
        facts = EngineFacts(version=str(version["Version"]), api=(int(major), int(minor)), cpus=int(info["NCPU"]))
        if facts.api < _LEAST_API:
            raise BadSettings(
                f"The Docker engine at {self.host} is version {facts.version}; 20.10 or newer is needed.",
                host=self.host,
            )
        return facts


def _whole(image: str) -> str:
    """Return the name of an image of Docker's own registry as it is there."""
    return image if "/" in image else f"library/{image}"


@contextmanager
def engine_errors(doing: str) -> Iterator[None]:
    """Turn what goes wrong between client and engine into an error that says what was being done.

    Raises:
        EnvironmentFailed: the engine refused, or is gone.
    """
    try:
        yield
    except DockerError as error:
        raise EnvironmentFailed(
            f"The Docker engine could not {doing}: {error.message}",
            hint="Look at the engine of this client." if error.status in (900, 500) else "",
        ) from error
    except (aiohttp.ClientError, ConnectionError) as error:
        raise EnvironmentFailed(
            f"The Docker engine was lost where it should {doing}: {error or type(error).__name__}.",
            hint="Look at the engine of this client.",
        ) from error


async def inspected(engine: Engine, name: str) -> Mapping[str, Any] | None:
    """Return what an engine knows of an image; None: it does not have it.

    Raises:
        EnvironmentFailed: it does not answer.
    """
    try:
        with engine_errors(f"look for the image {name}"):
            return await engine.docker.images.inspect(name)
    except EnvironmentFailed as error:
        if isinstance(error.__cause__, DockerError) and error.__cause__.status == 404:
            return None
        raise
