"""The executors of a run, one after another, until one fails."""

from __future__ import annotations

import time
from pathlib import Path

from runnel.client.runtimes.log_capture import LogCapture
from runnel.client.runtimes.runtime import DEFAULT_OUTPUT_BYTES
from runnel.client.tasks.beneath import open_beneath, write_beneath
from runnel.client.tasks.captured import PrintedFiles, TaskCapture
from runnel.client.tasks.containers import Step, StepEnd, TaskContainers
from runnel.client.tasks.contract import STDERR, STDOUT
from runnel.client.tasks.failures import failure_of
from runnel.client.tasks.placement import where
from runnel.client.tasks.work import Work
from runnel.common.blobs import in_thread
from runnel.common.crash_points import CrashPoint, reach
from runnel.common.errors import InvalidInput, RunnelError
from runnel.common.protocol import Failure, RunState

_BLOCK_BYTES = 1 << 20


async def run_executors(work: Work, containers: TaskContainers) -> tuple[int | None, Failure | None]:
    """Run all of them; return the exit code of the last that ended, and why the run failed, if it did.

    Whatever they print is in the run's folder when this returns.
    """
    exit_code: int | None = None
    failure: Failure | None = None
    since = time.monotonic()
    folder = work.folder
    await in_thread(_begin_printed, folder)
    for number, executor in enumerate(work.spec.executors):
        which = f" {number + 1} of {len(work.images)}" if len(work.images) > 1 else ""
        word = f"The container{which} of {executor.image}"
        work.voice.state(RunState.RUNNING, f"executor{which}" if which else "")
        printed = folder / f"printed-{number}"
        await in_thread(printed.mkdir)
        left = None if work.time_s is None else max(0.0, work.time_s - (time.monotonic() - since))
        ended_by_us = False
        try:
            step = await in_thread(_step, work, number, word, printed)
            ended = await _one(work, step, containers, printed, left)
            exit_code, failure = ended.exit_code, ended.failure
        except RunnelError as error:
            # What was printed before is kept, whatever went wrong.
            failure, ended_by_us = failure_of(error), True
        problem = await in_thread(_keep_printed, work, number, printed)
        failure = failure or problem
        if failure is not None and (ended_by_us or not executor.ignore_error):
            break
        failure = None
    return exit_code, failure


def _step(work: Work, number: int, word: str, printed: Path) -> Step:
    executor = work.spec.executors[number]
    return Step(
        word=word,
        image=work.images[number],
        executor=executor,
        layout=work.layout,
        cage=work.cage,
        stdin=None if executor.stdin is None else _stdin(work, executor.stdin, printed),
        run_id=work.order.run_id,
    )


async def _one(work: Work, step: Step, containers: TaskContainers, printed: Path, time_s: float | None) -> StepEnd:
    # Opening and closing two files takes less than the way to a thread.
    with PrintedFiles(printed, most_bytes=work.limits.log_bytes) as files:
        capture = TaskCapture(files, LogCapture(work.voice.line, budget_bytes=DEFAULT_OUTPUT_BYTES))
        begun = time.monotonic()
        ended = await containers.run(step, capture, time_s=time_s, started=lambda: reach(CrashPoint.RUN_BEGUN))
        work.voice.line("runnel", f"{step.word} ended with {ended.exit_code} after {time.monotonic() - begun:.1f} s.")
        return ended


def _begin_printed(folder: Path) -> None:
    for name in (STDOUT, STDERR):
        (folder / name).touch()


def _stdin(work: Work, path: str, printed: Path) -> Path:
    """Return a copy of the file that a container is to read as its standard input: an earlier one may have made it."""
    found = where(work.layout, path)
    if found is not None:
        with open_beneath(*found) as file:
            if file is not None:
                target = printed / "stdin"
                with target.open("wb") as copy:
                    while block := file.read(_BLOCK_BYTES):
                        copy.write(block)
                return target
    raise InvalidInput(f"The standard input {path} is no file that the container would find.", path=path)


def _keep_printed(work: Work, number: int, printed: Path) -> Failure | None:
    """Add what a container printed to what the run has, and put it where the task wants it."""
    executor = work.spec.executors[number]
    problem = None
    for name, wanted in ((STDOUT, executor.stdout), (STDERR, executor.stderr)):
        (printed / name).touch()  # it was not begun, where its input can't be had
        with (work.folder / name).open("ab") as target, (printed / name).open("rb") as file:
            left = work.limits.log_bytes - target.tell()
            target.write(file.read(max(0, left)))
        if wanted is None:
            continue
        found = where(work.layout, wanted, writable=True)
        if found is None or not write_beneath(found[0], found[1], printed / name):
            message = f"What was printed can't be put at {wanted}: there is no folder that the container may write."
            problem = Failure(code=InvalidInput.code, message=message)
    return problem
