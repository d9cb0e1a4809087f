"""Which runs start warm: a zygote for each package and environment, made when it is first wanted."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from runnel.client.runtimes.guard import Guard
from runnel.client.runtimes.runtime import Limits
from runnel.client.runtimes.script_imports import ImportsPrepared, installed_imports
from runnel.client.runtimes.zygote import DEFAULT_ANSWER_S, CannotFork, ForkedLeader, Zygote
from runnel.common.blobs import in_thread

DEFAULT_IDLE_S = 600.0
DEFAULT_MOST = 4
# What tells runs of one package apart. A zygote is started with all other variables, so that its runs see what a new
# interpreter would, in whatever way it looks at them.
_OF_ONE_RUN = "RUNNEL_"
# They change how an interpreter starts in ways that a fork does not repeat, except these.
_HARMLESS = frozenset(
    {"PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED", "PYTHONIOENCODING", "PYTHONUNBUFFERED", "PYTHONUTF8"}
)
_DEATHS = 3
_PACKAGES_REMEMBERED = 64

_Key = tuple[str, Path, frozenset[tuple[str, str]]]

log = structlog.get_logger()


@dataclass(slots=True)
class _Package:
    """What is known of one package in one environment; ``cold``: why its runs start cold, for good."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    zygote: Zygote | None = None
    cold: str = ""
    deaths: int = 0
    told: bool = False


class WarmStarts:
    """Forks the runs of packages from zygotes that have imported what their scripts import.

    A run that can't be forked faithfully starts cold, and the log tells once why. Leave it with :meth:`close`.

    Args:
        guard: ends the zygotes if the client is killed.
        idle_s: seconds without a run after which a zygote ends.
        most: how many zygotes there may be; the one that was not used for longest makes room.
        answer_s: seconds that a zygote has to answer, before it is killed.
    """

    def __init__(
        self,
        *,
        guard: Guard,
        idle_s: float = DEFAULT_IDLE_S,
        most: int = DEFAULT_MOST,
        answer_s: float = DEFAULT_ANSWER_S,
    ) -> None:
        self._guard = guard
        self._idle_s = idle_s
        self._most = most
        self._answer_s = answer_s
        self._packages: OrderedDict[_Key, _Package] = OrderedDict()
        self._zygotes: set[Zygote] = set()

    @staticmethod
    def supported() -> bool:
        """Whether this system can: Linux 5.3 or newer, in a sandbox that allows what it takes."""
        if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
            return False
        try:
            os.close(os.pidfd_open(os.getpid()))
            os.close(os.memfd_create("runnel"))
        except OSError:
            return False
        return True

    async def fork(
        self, argv: Sequence[str], *, folder: Path, env: Mapping[str, str], limits: Limits, scripts: Iterable[str]
    ) -> ForkedLeader | None:
        """Return a forked process that waits to be ``argv``, or None if that has to start cold.

        Args:
            argv: interpreter, script and arguments.
            folder: the package's, in which it runs.
            env: all variables that it sees.
            limits: what it may take.
            scripts: all scripts of the package whose imports a zygote for it has.
        """
        of_run = {name: value for name, value in env.items() if name.startswith(_OF_ONE_RUN)}
        lasting = {name: value for name, value in env.items() if name not in of_run}
        package = self._package((argv[0], folder, frozenset(lasting.items())))
        if package.cold:
            return None
        try:
            zygote = await self._zygote(package, argv[0], folder, lasting, scripts)
            return await zygote.fork(argv=argv, folder=folder, variables=of_run, limits=limits)
        except (CannotFork, OSError) as error:
            if not package.told:
                log.info("runs of a package start cold", folder=folder.name, reason=str(error))
            package.told = True
            return None

    async def close(self) -> None:
        """End the zygotes. Their runs are to be ended before."""
        for zygote in self._zygotes:
            zygote.kill()
        for zygote in self._zygotes:
            await zygote.ended.wait()
        self._zygotes.clear()

    def _package(self, key: _Key) -> _Package:
        package = self._packages.setdefault(key, _Package())
        self._packages.move_to_end(key)
        while len(self._packages) > _PACKAGES_REMEMBERED:
            self._packages.popitem(last=False)
        return package

    async def _zygote(
        self, package: _Package, python: str, folder: Path, env: Mapping[str, str], scripts: Iterable[str]
    ) -> Zygote:
        async with package.turn:
            if package.zygote is not None and (package.zygote.killed or package.zygote.ended.is_set()):
                package.deaths += not package.zygote.killed
                package.zygote = None
            if package.zygote is None:
                if package.deaths >= _DEATHS:
                    package.cold = f"its zygote ended by itself {package.deaths} times"
                for name in env:
                    if name.startswith("PYTHON") and name not in _HARMLESS:
                        package.cold = f"{name} is set"
                if package.cold:
                    raise CannotFork(package.cold)
                package.zygote = await self._start(package, python, folder, env, scripts)
            return package.zygote

    async def _start(
        self, package: _Package, python: str, folder: Path, env: Mapping[str, str], scripts: Iterable[str]
    ) -> Zygote:
        try:
            imports = await in_thread(installed_imports, [folder / script for script in scripts])
        except ImportsPrepared as error:
            package.cold = str(error)
            raise CannotFork(package.cold) from error
        self._make_room()
        started = asyncio.get_running_loop().time()
        zygote = Zygote(python, folder=folder, env=env, guard=self._guard, idle_s=self._idle_s, answer_s=self._answer_s)
        self._zygotes.add(zygote)
        try:
            await zygote.prepare(imports)
        except CannotFork as error:
            package.cold = str(error)
            zygote.kill()
            raise
        except BaseException:
            zygote.kill()
            raise
        log.info(
            "runs of a package start warm",
            folder=folder.name,
            zygote=zygote.pid,
            elapsed_s=asyncio.get_running_loop().time() - started,
        )
        return zygote

    def _make_room(self) -> None:
        self._zygotes = {zygote for zygote in self._zygotes if not zygote.ended.is_set()}
        alive = sorted((one for one in self._zygotes if not one.killed), key=lambda one: one.used_at)
        while len(alive) >= self._most:
            idle = next((one for one in alive if not one.runs), None)
            if idle is None:
                raise CannotFork(f"{self._most} other packages are running")
            idle.kill()
            alive.remove(idle)
