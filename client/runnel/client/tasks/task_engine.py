"""The container engine for tasks: looked for when it is needed, so that a client does without where there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import structlog

from runnel.client.runtimes.installs import DEFAULT_MOST_BYTES, DEFAULT_MOST_DAYS
from runnel.common.blobs import in_thread
from runnel.common.errors import BadSettings, EnvironmentFailed, NoEngine

if TYPE_CHECKING:
    from runnel.client.tasks.open_engine import OpenEngine

_USUAL = "unix:///var/run/docker.sock"
_UNIX = "unix://"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Which engine, and how.

    ``files`` is ``mount``, ``copy`` or None, ``config`` a file with passwords of registries, ``grace_s`` from
    SIGTERM to SIGKILL; ``most_bytes`` and ``most_days`` are of images that were fetched for tasks.
    """

    client: str
    state: Path
    environ: Mapping[str, str]
    host: str | None = None
    files: str | None = None
    config: Path | None = None
    most_bytes: int = DEFAULT_MOST_BYTES
    most_days: float = DEFAULT_MOST_DAYS
    grace_s: float = 5.0

    @property
    def address(self) -> str:
        """Where it is."""
        return self.host or self.environ.get("DOCKER_HOST") or _USUAL


class TaskEngine:
    """Connects when it is first asked to, and again after a failure; an async context manager.

    Args:
        settings: which engine.
        started: is told how long each start of a container took, in seconds.
    """

    def __init__(self, settings: EngineSettings, *, started: Callable[[float], None] = lambda _: None) -> None:
        self._settings = settings
        self._started = started
        self._open: OpenEngine | None = None
        self._stack = AsyncExitStack()
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def is_open(self) -> bool:
        """Whether there is one."""
        return self._open is not None

    async def open(self) -> OpenEngine:
        """Return the engine; what an earlier start of this client left there is removed first.

        Raises:
            NoEngine: there is none, with the reason.
        """
        async with self._turn:
            if self._open is None:
                try:
                    self._open = await self._connect()
                except (BadSettings, EnvironmentFailed) as error:
                    raise NoEngine(error.message, hint="The people of that site can mend it.") from error
            return self._open

    async def _connect(self) -> OpenEngine:
        address = self._settings.address
        path = address.removeprefix(_UNIX)
        if address.startswith(_UNIX) and not await in_thread(Path(path).exists):
            raise BadSettings(f"No Docker engine answers at {address}: there is no such socket.", host=address)
        try:
            open_engine = await in_thread(_opener)
        except ModuleNotFoundError as error:
            raise BadSettings(
                f"Tasks need the module {error.name}, which is not installed; pip install 'runnel[client]' has it."
            ) from error
        async with AsyncExitStack() as undo:
            opened = await undo.enter_async_context(open_engine(self._settings, started=self._started))
            self._stack = undo.pop_all()
            return opened


def _opener() -> Callable[..., AbstractAsyncContextManager[OpenEngine]]:
    """Load what opens an engine; it takes as long as some tenths of a second."""
    from runnel.client.tasks.open_engine import open_engine

    return open_engine
