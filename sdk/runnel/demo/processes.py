"""The processes of the demonstration: none outlives it, and one that ends on its own ends it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path

from runnel.client.runtimes import Guard, LogCapture, describe_status
from runnel.client.runtimes.process_group import run_group
from runnel.common.errors import DeadlineExceeded, RunnelError

# From SIGTERM to SIGKILL. The network keeps its finished work through both.
GRACE_S = 3.0
_LOG_BYTES = 64 << 20
_READY = re.compile(r"\bevent=ready\b")
TAIL_LINES = 15
# Small matrices: more threads than one per process only get in each other's way.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
}


class DemoFailed(RunnelError):
    """Something that the demonstration runs ended although it should not have, or not so.

    ``process`` (also a field) is its name, ``tail`` the last lines that it wrote; they are not part of the message.
    """

    code = "demo_failed"

    def __init__(
        self, message: str, *, hint: str = "", process: str, tail: Sequence[str] = (), **fields: object
    ) -> None:
        super().__init__(message, hint=hint, process=process, **fields)
        self.process = process
        self.tail = tuple(tail)


class _Output:
    """What one process writes: a file, and the lines of its standard output."""

    def __init__(self, file: Path, *, keep: bool) -> None:
        self.ready = asyncio.Event()
        self.lines: list[str] = []
        self.capture = LogCapture(self._say, budget_bytes=_LOG_BYTES)
        self._keep = keep
        self._file = file.open("a", encoding="utf-8", buffering=1)

    def close(self) -> None:
        self._file.close()

    def tail(self) -> list[str]:
        return self.capture.tail.splitlines()[-TAIL_LINES:]

    def _say(self, stream: str, text: str) -> None:
        self._file.write(f"{text}\n")
        if self._keep and stream == "stdout":
            self.lines.append(text)
        if not self.ready.is_set() and _READY.search(text):
            self.ready.set()


class Processes:
    """Starts processes in groups of their own, in ``work``, with a log file each; made by :func:`own_processes`."""

    def __init__(self, *, work: Path, environ: Mapping[str, str], guard: Guard, group: asyncio.TaskGroup) -> None:
        self.logs = work / "logs"
        self._work = work
        # Settings of the person's own network are none of the demonstration's.
        self._environ = {key: value for key, value in environ.items() if not key.startswith("RUNNEL_")} | ONE_THREAD
        self._guard = guard
        self._group = group
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, name: str, argv: Sequence[str], *, timeout_s: float) -> None:
        """Start a component and return when it says that it is ready. When it ends, everything ends.

        Raises:
            DeadlineExceeded: it was not ready in time.
        """
        output = _Output(self.logs / f"{name}.log", keep=False)
        self._tasks.append(self._group.create_task(self._serve(name, argv, output), name=name))
        try:
            async with asyncio.timeout(timeout_s):
                await output.ready.wait()
        except TimeoutError as error:
            said = output.tail()
            raise DeadlineExceeded(
                f"{name} was not ready after {timeout_s:g} s; its last line was {said[-1] if said else 'none'!r}.",
                hint="Is the machine very busy? Otherwise --keep keeps the logs.",
                process=name,
            ) from error

    async def run(self, name: str, argv: Sequence[str], *, timeout_s: float) -> list[str]:
        """Run a program to its end and return the lines of its standard output.

        Raises:
            DemoFailed: with a status other than 0.
            DeadlineExceeded: not in time.
        """
        with closing(_Output(self.logs / f"{name}.log", keep=True)) as output:
            try:
                status = await self._group_of(argv, output, timeout_s)
            except TimeoutError as error:
                raise DeadlineExceeded(f"{name} did not end within {timeout_s:g} s.", process=name) from error
            if status:
                raise DemoFailed(f"{name} {describe_status(status)}.", tail=output.tail(), process=name)
            return output.lines

    def stop(self) -> None:
        """Ask all components to end; whoever made them waits for that."""
        for task in self._tasks:
            task.cancel()

    async def _serve(self, name: str, argv: Sequence[str], output: _Output) -> None:
        with closing(output):
            status = await self._group_of(argv, output, None)
            raise DemoFailed(f"{name} {describe_status(status)} while it was needed.", tail=output.tail(), process=name)

    async def _group_of(self, argv: Sequence[str], output: _Output, timeout_s: float | None) -> int:
        return await run_group(
            argv,
            cwd=self._work,
            env=self._environ,
            guard=self._guard,
            capture=output.capture,
            timeout_s=timeout_s,
            grace_s=GRACE_S,
        )


@asynccontextmanager
async def own_processes(work: Path, environ: Mapping[str, str]) -> AsyncIterator[Processes]:
    """Yield what starts processes; when the block is left, however that happens, none of them is alive any more.

    Also a ``kill -9`` of this process ends them: a guard sees it and kills their groups.

    Raises:
        ExceptionGroup: the block failed, or a component ended on its own (:class:`DemoFailed`).
    """
    await asyncio.to_thread((work / "logs").mkdir, exist_ok=True)
    guard = Guard()
    try:
        async with asyncio.TaskGroup() as group:
            processes = Processes(work=work, environ=environ, guard=guard, group=group)
            try:
                yield processes
            finally:
                processes.stop()
    finally:
        await guard.close()
