"""Runs a command as a process group of its own and leaves nothing of it behind."""

from __future__ import annotations

import asyncio
import math
import os
import resource
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Protocol

import psutil
import structlog

from runnel.client.runtimes.exit_watch import ExitWatch
from runnel.client.runtimes.guard import Guard
from runnel.client.runtimes.log_capture import LogCapture
from runnel.client.runtimes.runtime import Limits
from runnel.common.blobs import in_thread

DEFAULT_GRACE_S = 5.0
# Output of a process that left the group (a daemon) may keep the pipes open for ever.
_DRAIN_S = 1.0
_SLOW_DEATH_S = 10.0
_LOOK_AGAIN_S = 0.02
# Between SIGXCPU, which says why, and SIGKILL, which can't be ignored.
_CPU_GRACE_S = 5

# Waits until the guard knows the group, so that no run is ever without one, then becomes the command. A shell costs
# about 1 ms here, an interpreter in its place 8 ms; a preexec_fn would run Python between fork and exec of a process
# with threads. Limits are set here because they must hold from the first instruction.
_GATE = 'read -r go || exit 125; ulimit -c 0; {limits}exec "$@" </dev/null'

log = structlog.get_logger()


async def run_group(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    guard: Guard,
    capture: LogCapture,
    limits: Limits | None = None,
    timeout_s: float | None = None,
    grace_s: float = DEFAULT_GRACE_S,
) -> int:
    """Run ``argv`` without a shell and return its exit status, negative the signal that ended it.

    The command is the leader of its own session and process group, reads nothing, and sees ``env`` only. When it has
    ended, what is left of its group is killed. When its time is over, or the awaiting task is cancelled, the group gets
    SIGTERM, after ``grace_s`` (or at a second cancellation) SIGKILL. However it ends, this returns or raises only when
    nothing of the group is alive and all that it printed is captured.

    Raises:
        OSError: the command could not be started.
        TimeoutError: it was still running after ``timeout_s``.
    """
    # Starting takes about 1 ms, mostly the kernel's; a thread for it could leave a process that nobody knows of.
    process = subprocess.Popen(  # noqa: ASYNC220
        ["/bin/sh", "-c", _GATE.format(limits=_limit_commands(limits or Limits())), "sh", *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        cwd=cwd,
        env=dict(env),
        start_new_session=True,
    )
    leader = _OwnLeader(process)
    return await run_leader(leader, guard=guard, capture=capture, timeout_s=timeout_s, grace_s=grace_s)


class Leader(Protocol):
    """The first process of a group, started and waiting until ``go`` and a line's end come through its gate.

    ``watch`` tells when it has ended; until :meth:`reap` returns, its number belongs to nobody else.
    """

    pid: int
    gate: IO[bytes]
    stdout: IO[bytes]
    stderr: IO[bytes]
    watch: ExitWatch

    async def reap(self) -> int:
        """Return the exit status of this process, which has ended; negative the signal that ended it."""
        ...


async def run_leader(
    leader: Leader,
    *,
    guard: Guard,
    capture: LogCapture,
    timeout_s: float | None = None,
    grace_s: float = DEFAULT_GRACE_S,
) -> int:
    """Let ``leader`` go and do for its group what :func:`run_group` does; its pipes are closed at the end."""
    with leader.watch as watch:
        group = _Group(leader=leader, exited=watch.exited, guard=guard, capture=capture)
        try:
            guard.watch(leader.pid)
            await group.connect()
            group.let_go()
            async with asyncio.timeout(timeout_s):
                await watch.exited.wait()
        finally:
            await group.end(grace_s)
    return group.status


class _OwnLeader:
    """A child of this process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid
        self.gate, self.stdout, self.stderr = map(_pipe, (process.stdin, process.stdout, process.stderr))
        self.watch = ExitWatch(process.pid)

    async def reap(self) -> int:
        return self._process.wait()


class _Lines(asyncio.Protocol):
    """Hands what comes out of one pipe to the capture."""

    def __init__(self, stream: str, capture: LogCapture) -> None:
        self.closed = asyncio.Event()
        self._stream = stream
        self._capture = capture

    def data_received(self, data: bytes) -> None:
        self._capture.feed(self._stream, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()


@dataclass(slots=True, kw_only=True)
class _Group:
    """One running process group."""

    leader: Leader
    exited: asyncio.Event
    guard: Guard
    capture: LogCapture
    readers: list[tuple[asyncio.BaseTransport, _Lines]] = field(default_factory=list)
    cancelled: asyncio.CancelledError | None = None
    status: int = 0

    async def connect(self) -> None:
        """Start reading what the group prints."""
        loop = asyncio.get_running_loop()
        for stream, pipe in (("stdout", self.leader.stdout), ("stderr", self.leader.stderr)):
            transport, lines = await loop.connect_read_pipe(partial(_Lines, stream, self.capture), pipe)
            self.readers.append((transport, lines))

    def let_go(self) -> None:
        """Let the gate become the command."""
        gate = self.leader.gate
        try:
            os.write(gate.fileno(), b"go\n")
        except BrokenPipeError:
            log.warning("a run was killed before it began", pid=self.leader.pid)  # its exit status tells
        gate.close()

    async def end(self, grace_s: float) -> None:
        """Return when nothing is alive, whatever it takes; a cancellation that comes meanwhile is raised at the end."""
        if not self.exited.is_set():
            self._signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(grace_s):
                    await self.exited.wait()
                    # A shell ends at once, and what it started may still be saving its work.
                    while await in_thread(_alive, self.leader.pid):  # noqa: ASYNC110 (nobody tells)
                        await asyncio.sleep(_LOOK_AGAIN_S)
            except TimeoutError:
                log.info("a run did not end when asked to and is killed", pid=self.leader.pid, grace_s=grace_s)
            except asyncio.CancelledError as error:
                self.cancelled = error
        self._signal(signal.SIGKILL)
        await self._insist(self._gone)
        await self._insist(self._drain)
        for transport, _ in self.readers:
            transport.close()
        for pipe in (self.leader.gate, self.leader.stdout, self.leader.stderr):
            pipe.close()
        self.guard.forget(self.leader.pid)
        self.capture.close()
        if self.cancelled is not None:
            raise self.cancelled

    def _signal(self, number: signal.Signals) -> None:
        # The leader is not reaped yet, so the number of the group is still its own.
        try:
            os.killpg(self.leader.pid, number)
        except (ProcessLookupError, PermissionError):  # macOS refuses when only the zombie of the leader is left
            log.debug("no process to signal", pid=self.leader.pid, signal=number.name)

    async def _insist(self, wait: Callable[[], Awaitable[None]]) -> None:
        """Await ``wait`` to its end although the task is cancelled meanwhile."""
        while True:
            try:
                return await wait()
            except asyncio.CancelledError as error:
                self.cancelled = error

    async def _gone(self) -> None:
        """Wait for the leader, reap it, then for the others: nobody tells about them, so they are looked for."""
        try:
            async with asyncio.timeout(_SLOW_DEATH_S):
                await self.exited.wait()
        except TimeoutError:
            log.warning("a killed run does not die; waiting on", pid=self.leader.pid)
            await self.exited.wait()
        self.status = await self.leader.reap()
        pause_s = 0.001
        while _exists(self.leader.pid):
            if pause_s > 0.01 and not await in_thread(_alive, self.leader.pid):
                return
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.1)

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(_DRAIN_S):
                for _, lines in self.readers:
                    await lines.closed.wait()
        except TimeoutError:
            log.warning("a process that left its group keeps the output of a run open", pid=self.leader.pid)


def resource_limits(limits: Limits) -> list[tuple[int, int, int]]:
    """Return (kind, soft, hard) for ``setrlimit``, never above what the client itself may have."""
    found = []
    if limits.memory_bytes is not None:
        # The shell counts in KiB.
        size = _at_most(limits.memory_bytes, resource.RLIMIT_DATA) // 1024 * 1024
        found.append((resource.RLIMIT_DATA, size, size))
    if limits.cpu_s is not None:
        seconds = _at_most(max(1, math.ceil(limits.cpu_s)), resource.RLIMIT_CPU)
        found.append((resource.RLIMIT_CPU, seconds, _at_most(seconds + _CPU_GRACE_S, resource.RLIMIT_CPU)))
    return found


def _limit_commands(limits: Limits) -> str:
    """The shell's words for ``limits``."""
    commands = ""
    for kind, soft, hard in resource_limits(limits):
        flag, unit = {resource.RLIMIT_DATA: ("d", 1024), resource.RLIMIT_CPU: ("t", 1)}[kind]
        commands += f"ulimit -S -{flag} {soft // unit} && ulimit -H -{flag} {hard // unit} || exit 125; "
    return commands


def _at_most(wanted: int, kind: int) -> int:
    _, hard = resource.getrlimit(kind)
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


def _exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _alive(group: int) -> bool:
    """Whether a member of ``group`` is more than a zombie that its new parent has not reaped yet."""
    for process in psutil.process_iter(["status"]):
        try:
            member = os.getpgid(process.pid) == group
        except ProcessLookupError:
            continue
        if member and process.info["status"] != psutil.STATUS_ZOMBIE:
            return True
    return False


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise AssertionError("started with three pipes")
    return pipe
