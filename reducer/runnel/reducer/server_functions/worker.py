"""Runs the program of one step as a process, and reads what it left."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import structlog

from runnel.common.blobs import in_thread, storage_errors, to_its_end
from runnel.common.errors import InvalidInput, ServerFunctionFailed, ServerFunctionsRefused
from runnel.common.json_object import read_object
from runnel.common.tensors.regular_file import open_regular
from runnel.reducer.server_functions.step import Confinement, Files, Step
from runnel.reducer.server_functions.walls import NOBODY

Say = Callable[[str, str], None]
"""Takes what the package prints: the stream and a line."""

_PROGRAM = "runnel.reducer.server_functions.program"
_ANSWER_BYTES = 16 << 20
_LINE_CHARACTERS = 8_000
_TAIL_LINES = 20
# A process that left its group may keep the output open; without walls nobody stops it.
_DRAIN_S = 1.0
_ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "OMP", "MKL")}

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The folder of one step, which is gone after it."""

    folder: Path

    @property
    def inputs(self) -> Path:
        """Where the caller puts what the step reads."""
        return self.folder / "in"

    @property
    def unpacked(self) -> Path:
        """Where the caller unpacks the package."""
        return self.folder / "unpacked"

    def files(self, package: Path) -> Files:
        """Return all its files; ``package`` is the root of the package that was unpacked."""
        parts = {name: str(self.folder / name) for name in ("answer", "result", "state")}
        return Files(package=str(package), inputs=str(self.inputs), **parts)

    @property
    def mountpoint(self) -> Path:
        """Where the walls are built."""
        return self.folder / "root"


@asynccontextmanager
async def new_place(root: Path) -> AsyncIterator[Place]:
    """Give a fresh folder below ``root``, which is removed however the block ends.

    Raises:
        StorageFull: there is no room.
    """
    place = Place(folder=await in_thread(_make, root))
    try:
        yield place
    finally:
        await to_its_end(asyncio.to_thread(shutil.rmtree, place.folder, ignore_errors=True))


def _make(root: Path) -> Path:
    with storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        folder = Path(mkdtemp(dir=root, prefix="step-")).resolve()
        for name in ("in", "root"):
            (folder / name).mkdir()
        for name in ("answer", "result", "state"):
            (folder / name).touch()
    return folder


def open_up(place: Place) -> None:
    """Let the user that a step runs as read what it is given and write its three files. Blocks."""
    for path in (place.inputs, *place.inputs.rglob("*"), place.unpacked, *place.unpacked.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    if os.geteuid() == 0:
        for name in ("answer", "result", "state"):
            os.chown(place.folder / name, NOBODY, NOBODY)


async def take_step(step: Step, place: Place, *, timeout_s: float, what: str, say: Say) -> Mapping[str, Any]:
    """Take a step and return its answer, a JSON object; ``result`` and ``state`` are files that nobody has checked.

    However this ends, no process of the step is left (without walls: none that stayed in its process group).

    Args:
        step: what to do; its inputs are in place.
        place: its folder.
        timeout_s: seconds that it may take.
        what: which functions of which package, for messages.
        say: takes what is printed.

    Raises:
        ServerFunctionFailed: the package's code ended with an error, took too long, was killed, or answered nonsense;
            the field ``log_tail`` has the last lines that it printed.
        ServerFunctionsRefused: the walls can't be built on this machine.
    """
    tail: deque[str] = deque(maxlen=_TAIL_LINES)

    def heard(stream: str, line: str) -> None:
        tail.append(line)
        say(stream, line)

    try:
        async with asyncio.timeout(timeout_s):
            status = await _run(step, place, heard)
    except TimeoutError:
        raise _failed(what, f"took more than {timeout_s:g} s and were ended", tail) from None
    answer = await in_thread(_read_answer, Path(step.files.answer), what, tail)
    if answer is None:
        raise _failed(what, _told(status, step), tail)
    if "no_walls" in answer:
        raise ServerFunctionsRefused(
            f"This reducer is to run functions of packages within walls, and its machine does not allow them:"
            f" {answer['no_walls']}.",
            hint="Run the reducer as root or where users may make namespaces; or let its operator accept"
            " --server-functions unconfined; or start the session with --no-server-functions.",
        )
    if "error" in answer:
        failed = _failed(what, f"failed: {answer['error']}", tail)
        for line in str(answer["error"]).splitlines():
            say("stderr", line)
        raise failed
    return answer


async def _run(step: Step, place: Place, heard: Say) -> int:
    # Sets of text have an order that depends on a seed: it is to be the same when a step is taken again.
    environ = {"PATH": os.defpath, "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}  # noqa: S108 (its own)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-s", "-B", "-u", "-m", _PROGRAM),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=place.folder,
        env=environ | _ONE_THREAD,
        start_new_session=True,
    )
    readers = [
        asyncio.ensure_future(_lines(stream, name, heard))
        for name, stream in (("stdout", process.stdout), ("stderr", process.stderr))
        if stream is not None
    ]
    try:
        if process.stdin is None:
            raise AssertionError("started with a pipe")
        process.stdin.write(json.dumps(step.as_json()).encode())
        process.stdin.close()
        return await process.wait()
    finally:
        await to_its_end(_end(process, readers))


async def _end(process: asyncio.subprocess.Process, readers: list[asyncio.Task[None]]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # nobody is left in the group
        log.debug("no process to end", pid=process.pid)
    await process.wait()
    _, late = await asyncio.wait(readers, timeout=_DRAIN_S)
    for reader in late:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)


async def _lines(stream: asyncio.StreamReader, name: str, heard: Say) -> None:
    rest = ""
    while chunk := await stream.read(1 << 16):
        *lines, rest = (rest + chunk.decode("utf-8", "replace")).split("\n")
        for line in lines:
            heard(name, line[:_LINE_CHARACTERS])
        if len(rest) > _LINE_CHARACTERS:
            heard(name, rest[:_LINE_CHARACTERS])
            rest = ""
    if rest:
        heard(name, rest)


def _read_answer(path: Path, what: str, tail: deque[str]) -> Mapping[str, Any] | None:
    try:
        with open_regular(path) as file:
            text = file.read(_ANSWER_BYTES + 1).decode("utf-8")
        return read_object(text, what="the answer", most_bytes=_ANSWER_BYTES) if text else None
    except (OSError, ValueError, InvalidInput) as error:
        raise _failed(what, f"left an answer that can't be read: {error}", tail) from error


def _told(status: int, step: Step) -> str:
    number = -status if status < 0 else status - 128
    if number == signal.SIGXCPU:
        return f"used up their {step.limits.cpu_s:,} s of processor time"
    if number == signal.SIGXFSZ:
        return f"wrote more than the {step.limits.file_bytes:,} bytes that a file may have"
    if number > 0:
        name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
        return f"were killed by {name}" + (" (out of memory?)" if number == signal.SIGKILL else "")
    walls = "" if step.confinement is Confinement.UNCONFINED else " within their walls"
    return f"ended with exit status {status}{walls} and without an answer"


def _failed(what: str, how: str, tail: deque[str]) -> ServerFunctionFailed:
    lines = "\n".join(tail)
    hint = "What they print is in the session's log." + (f" Its last lines:\n{lines}" if lines else "")
    return ServerFunctionFailed(f"{what} {how.rstrip('.')}.", hint=hint, log_tail=lines)
