"""Processes of other systems, with all that they start: their peak memory, and their end."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from benchmarks.usage import peak_bytes
from runnel.client.runtimes import Guard

_LOOK_S = 0.25
_GRACE_S = 10.0
_TAIL_LINES = 15


class ProcessEnded(RuntimeError):
    """A process ended, or said nothing in time; the message has the last lines of its log."""


class ProcessTrees:
    """Starts processes, each in a session and with a log of its own; made by :func:`process_trees`.

    ``peaks``: the most resident memory of each server process so far, by what ``name_of`` calls it from its arguments;
    processes that it calls None are not counted, nor what starts with ``counted=False``. Looked at four times a second:
    what a process took in its last quarter of a second may be missed.
    """

    def __init__(
        self, *, folder: Path, environ: Mapping[str, str], name_of: Callable[[Sequence[str]], str | None]
    ) -> None:
        self.peaks: dict[str, int] = {}
        self._folder = folder
        self._environ = environ
        self._name_of = name_of
        self._roots: dict[str, psutil.Popen] = {}
        self._counted: set[str] = set()
        self._known: set[psutil.Process] = set()
        self._guard = Guard()
        self._looking = threading.Lock()

    def log(self, name: str) -> Path:
        """Return the file that a process writes to."""
        return self._folder / f"{name}.log"

    def start(self, name: str, argv: Sequence[str], *, counted: bool = False) -> None:
        """Start a process that is to run until the end."""
        with self.log(name).open("wb") as log:
            self._roots[name] = psutil.Popen(
                argv,
                cwd=self._folder,
                env=dict(self._environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._guard.watch(self._roots[name].pid)
        if counted:
            self._counted.add(name)

    async def run(self, name: str, argv: Sequence[str], *, timeout_s: float) -> None:
        """Run a process to its end.

        Raises:
            ProcessEnded: with a status other than 0, or not in time.
        """
        self.start(name, argv)
        process = self._roots[name]
        try:
            async with asyncio.timeout(timeout_s):
                while process.poll() is None:  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError as error:
            raise ProcessEnded(f"{name} took longer than {timeout_s:g} s. {self._tail(name)}") from error
        del self._roots[name]
        self._guard.forget(process.pid)
        if process.returncode:
            raise ProcessEnded(f"{name} ended with {process.returncode}. {self._tail(name)}")

    async def until(self, holds: Callable[[], bool], *, what: str, timeout_s: float) -> None:
        """Wait until ``holds``, while all that was started stays alive.

        Raises:
            ProcessEnded: one ended, or it took too long.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not await asyncio.to_thread(holds):
                    for name, process in self._roots.items():
                        if process.poll() is not None:
                            raise ProcessEnded(f"{name} ended with {process.returncode}. {self._tail(name)}")
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError as error:
            tails = " ".join(self._tail(name) for name in self._counted)
            raise ProcessEnded(f"{what}: not after {timeout_s:g} s. {tails}") from error

    async def watch(self) -> None:
        """Keep ``peaks`` until cancelled."""
        while True:
            await asyncio.to_thread(self._look)
            await asyncio.sleep(_LOOK_S)

    def _look(self) -> None:
        with self._looking:
            for name, root in tuple(self._roots.items()):
                for process in _tree(root):
                    self._known.add(process)
                    if name in self._counted:
                        self._count(process)

    def _count(self, process: psutil.Process) -> None:
        try:
            called = self._name_of(process.cmdline())
            peak = peak_bytes(process.pid)
        except (psutil.Error, OSError, KeyError):
            return  # it has just ended, or is about to
        if called is not None:
            self.peaks[called] = max(self.peaks.get(called, 0), peak)

    async def end(self) -> None:
        """Ask all to end, then end what is left: also what has left the session that it was started in."""
        await asyncio.to_thread(self._end)
        await self._guard.close()

    def _end(self) -> None:
        self._look()
        roots = list(self._roots.values())
        for root in roots:
            if root.poll() is None:
                root.terminate()
        psutil.wait_procs(roots, timeout=_GRACE_S)
        left = [process for process in self._known if process.is_running()]
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue  # it has ended meanwhile
        psutil.wait_procs([*roots, *left], timeout=_GRACE_S)
        for root in roots:
            self._guard.forget(root.pid)

    def _tail(self, name: str) -> str:
        lines = self.log(name).read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        return "\n".join([f"{name} said:", *lines])


def _tree(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@asynccontextmanager
async def process_trees(
    folder: Path, environ: Mapping[str, str], name_of: Callable[[Sequence[str]], str | None]
) -> AsyncIterator[ProcessTrees]:
    """Yield what starts processes in ``folder``; none of them is alive afterwards."""
    trees = ProcessTrees(folder=folder, environ=environ, name_of=name_of)
    watching = asyncio.create_task(trees.watch(), name="watch memory")
    try:
        yield trees
    finally:
        watching.cancel()
        await asyncio.wait([watching])
        await trees.end()
        if not watching.cancelled():
            watching.result()
