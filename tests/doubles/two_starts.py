"""One package run both ways, by a runtime that starts each run cold and by one that forks it from a zygote."""

from __future__ import annotations

import difflib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from runnel.client.runtimes import Limits, Prepared, ProcessRuntime
from runnel.common.errors import EntryPointFailed
from tests.doubles.client_packages import Listener, run_train, write_package

ENVIRONMENT = {"PATH": os.environ["PATH"], "HOME": "/nowhere", "TZ": "UTC"}
WHOSE_CHILD = "import os; print(os.getppid())"
THIS = str(os.getpid())


class Site:
    """A client's two ways to run one package, and what the runs said."""

    def __init__(self, folder: Path, cold: ProcessRuntime, warm: ProcessRuntime) -> None:
        self._folder = folder
        self.cold = cold
        self.warm = warm

    async def package(self, train: str, **files: str) -> Prepared:
        """Write the package anew and prepare it."""
        names = {"train.py": train} | {name.replace("__", "/", 1) + ".py": text for name, text in files.items()}
        return await self.warm.prepare(write_package(self._folder, names), Listener())

    async def both(self, prepared: Prepared, *arguments: str, limits: Limits | None = None) -> tuple[str, str]:
        """Run it cold and warm; return what came of each, in words."""
        cold = await told(self.cold, prepared, *arguments, limits=limits)
        return cold, await told(self.warm, prepared, *arguments, limits=limits)


def same(results: tuple[str, str]) -> None:
    """Assert that a cold run and a warm one said the same and ended so."""
    cold, warm = (one.splitlines() for one in results)
    difference = "\n".join(difflib.unified_diff(cold, warm, "cold", "warm", lineterm="", n=0))
    assert not difference, difference


async def told(runtime: ProcessRuntime, prepared: Prepared, *arguments: str, limits: Limits | None = None) -> str:
    """Run it and return what it printed, stream by stream, and its exit status."""
    say = Listener()
    try:
        await run_train(runtime, prepared, say, *arguments, limits=limits)
        status = 0
    except EntryPointFailed as error:
        status = int(str(error.fields["exit_status"]))
    return "\n".join([*say.said("stdout"), "--", *say.said("stderr"), f"-- {status}"])


async def whose_child(runtime: ProcessRuntime, prepared: Prepared) -> str:
    """Return the parent's process id, which is the last that the script prints: the zygote's, or this process's."""
    say = Listener()
    await run_train(runtime, prepared, say)
    return say.said("stdout")[-1]


@asynccontextmanager
async def two_starts(folder: Path) -> AsyncIterator[Site]:
    """Yield both runtimes; ``folder`` takes the package."""
    async with (
        ProcessRuntime(environments=folder / "e", environ=ENVIRONMENT, grace_s=0.3) as cold,
        ProcessRuntime(environments=folder / "e", environ=ENVIRONMENT, grace_s=0.3, warm=True) as warm,
    ):
        yield Site(folder / "package", cold, warm)
