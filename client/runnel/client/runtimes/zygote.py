"""One zygote of this client: started, asked to fork runs, and missed when it ends."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

import structlog

from runnel.client.runtimes.exit_watch import ExitWatch
from runnel.client.runtimes.guard import Guard
from runnel.client.runtimes.process_group import resource_limits
from runnel.client.runtimes.runtime import Limits
from runnel.client.runtimes.script_imports import Import

READY_S = 60.0
DEFAULT_ANSWER_S = 10.0
_SCRIPT = Path(__file__).with_name("zygote_start.py")
_MESSAGE_BYTES = 1 << 16
_LAST_WORDS_BYTES = 4096

log = structlog.get_logger()


class CannotFork(Exception):
    """The run has to start cold, for the reason that this tells."""


class Zygote:
    """A process that has imported modules and forks runs, which are what a new ``python SCRIPT`` would be.

    It is a new process of its own, the leader of its own group, because this one has threads and may not fork. When it
    is gone ``ended`` is set; its runs are told to have ended too, so that their groups are killed.

    Args:
        python: the interpreter.
        folder: where it runs and its runs begin.
        env: what it and its runs see, except what each run has on top.
        guard: ends it if the client is killed.
        idle_s: seconds without a run after which it ends.
        answer_s: seconds that it has to answer, before it is killed.
    """

    def __init__(
        self,
        python: str,
        *,
        folder: Path,
        env: Mapping[str, str],
        guard: Guard,
        idle_s: float,
        answer_s: float = DEFAULT_ANSWER_S,
    ) -> None:
        self.ended = asyncio.Event()
        self.killed = False
        self.runs = 0  # with what it still owes: that it is ready, a run's exit status
        self.used_at = 0.0
        self._guard = guard
        self._idle_s = idle_s
        self._answer_s = answer_s
        self._loop = asyncio.get_running_loop()
        self._idle: asyncio.TimerHandle | None = None
        self._numbers = itertools.count(1)
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._forks: dict[int, asyncio.Future[int]] = {}
        self._reaps: dict[int, asyncio.Future[int]] = {}
        self._watches: dict[int, ExitWatch] = {}
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        with ExitStack() as undo:
            undo.enter_context(self._control)
            with theirs:
                self._process = subprocess.Popen(
                    [python, str(_SCRIPT), str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    # Pipes, as its runs have them: streams behave otherwise on files and terminals.
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    bufsize=0,
                    cwd=folder,
                    env=dict(env),
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
            self.pid = self._process.pid
            undo.enter_context(self._process)
            undo.callback(self._process.kill)
            self._descriptor = os.pidfd_open(self.pid)
            undo.callback(os.close, self._descriptor)
            guard.watch(self.pid)
            undo.pop_all()
        self._loop.add_reader(self._descriptor, self._end)
        self._loop.add_reader(self._control, self._answered)

    async def prepare(self, imports: Sequence[Import]) -> None:
        """Have it import what ``imports`` lists; return when it can fork.

        Raises:
            CannotFork: it is not fit for that, or was not ready in time.
            OSError: this process can't have another file.
        """
        self._begin_run()
        try:
            with _file({"imports": imports}) as file:
                self._send({}, [file])
            async with asyncio.timeout(READY_S):
                await self._ready
        except TimeoutError as error:
            raise CannotFork(f"importing its modules took more than {READY_S:g} s") from error
        finally:
            self._end_run()

    async def fork(
        self, *, argv: Sequence[str], folder: Path, variables: Mapping[str, str], limits: Limits
    ) -> ForkedLeader:
        """Fork a process that will be ``argv``; it waits at its gate.

        Args:
            argv: interpreter, script (relative to ``folder`` or absolute) and arguments.
            folder: where it runs.
            variables: what it sees beside the zygote's own.
            limits: what it may take.

        Raises:
            CannotFork: this run can't be forked; others may.
            OSError: this process can't have another pipe or file.
        """
        request = {
            "argv": list(argv),
            "folder": str(folder),
            "variables": dict(variables),
            "limits": resource_limits(limits),
        }
        self._begin_run()
        with ExitStack() as undo, ExitStack() as theirs:
            undo.callback(self._end_run)
            stdout, stdout_end = _pipe(undo, theirs)
            stderr, stderr_end = _pipe(undo, theirs)
            gate_end, gate = _pipe(theirs, undo)
            file = theirs.enter_context(_file(request))
            pid = await self._forked([file, stdout_end, stderr_end, gate_end])
            try:
                watch = ExitWatch(pid, descriptor=os.pidfd_open(pid))
            except OSError as error:
                self._send_off(pid)
                raise CannotFork(f"the forked process can't be watched: {error}") from error
            undo.pop_all()
        self._watches[pid] = watch
        return ForkedLeader(self, pid=pid, gate=gate, stdout=stdout, stderr=stderr, watch=watch)

    def reap(self, pid: int) -> asyncio.Future[int]:
        """Return the exit status to come of a run that has ended; it counts as killed if the zygote is."""
        answer: asyncio.Future[int] = self._loop.create_future()
        self._reaps[pid] = answer
        del self._watches[pid]
        # Until then it may not make room for others: with it the status would be lost.
        answer.add_done_callback(lambda _: self._end_run())
        if self.ended.is_set():
            self._lose()
            return answer
        slow = self._loop.call_later(self._answer_s, self.kill)
        answer.add_done_callback(lambda _: slow.cancel())
        with suppress(CannotFork):  # then it does not listen, and is killed when it has had its time
            self._send({"reap": pid})
        return answer

    def kill(self) -> None:
        """End it and what it is about to fork; ``ended`` is set when it is gone."""
        self.killed = True
        if not self.ended.is_set():
            with suppress(ProcessLookupError):  # not reaped yet, so the number of its group is its own
                os.killpg(self.pid, signal.SIGKILL)

    def _begin_run(self) -> None:
        self.runs += 1
        if self._idle is not None:
            self._idle.cancel()

    def _end_run(self) -> None:
        self.runs -= 1
        self.used_at = self._loop.time()
        if not self.runs and not self.ended.is_set():
            self._idle = self._loop.call_later(self._idle_s, self.kill)

    async def _forked(self, files: Sequence[IO[bytes]]) -> int:
        number = next(self._numbers)
        answer: asyncio.Future[int] = self._loop.create_future()
        self._forks[number] = answer
        try:
            self._send({"run": number}, files)
            async with asyncio.timeout(self._answer_s):
                return await answer
        except TimeoutError as error:
            self.kill()
            raise CannotFork("its zygote did not answer") from error
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                self._send_off(answer.result())
            raise
        finally:
            # An answer that comes later is that of a run that nobody wants.
            del self._forks[number]

    def _send_off(self, pid: int) -> None:
        """Have a run reaped that nobody wants: its gate closes, so it ends at once."""
        with suppress(CannotFork):  # then the zygote ends, and others reap its children
            self._send({"reap": pid})

    def _send(self, message: Mapping[str, object], files: Sequence[IO[bytes]] = ()) -> None:
        try:
            socket.send_fds(self._control, [json.dumps(message).encode()], [file.fileno() for file in files])
        except OSError as error:
            raise CannotFork(f"its zygote does not listen: {error}") from error

    def _answered(self) -> None:
        try:
            data = self._control.recv(_MESSAGE_BYTES)
        except (BlockingIOError, ConnectionResetError):
            return
        if not data:  # its end follows
            self._loop.remove_reader(self._control)
            return
        self._take(json.loads(data))

    def _take(self, message: dict[str, Any]) -> None:
        match message:
            case {"ready": True}:
                _settle(self._ready, None)
            case {"unfit": reason}:
                _settle(self._ready, CannotFork(reason))
            case {"number": number, "pid": pid}:
                answer = self._forks.get(number)
                if answer is None or answer.done():
                    self._send_off(pid)
                else:
                    _settle(answer, pid)
            case {"number": number, "cold": reason}:
                if (answer := self._forks.get(number)) is not None:
                    _settle(answer, CannotFork(reason))
            case {"reaped": pid, "status": status}:
                if (reaped := self._reaps.pop(pid, None)) is not None:
                    _settle(reaped, status)

    def _end(self) -> None:
        while not self.ended.is_set() and _has_news(self._control):
            self._answered()  # what it still said
        status = self._process.wait()
        self._loop.remove_reader(self._descriptor)
        self._loop.remove_reader(self._control)
        os.close(self._descriptor)
        self._control.close()
        self._guard.forget(self.pid)
        if self._idle is not None:
            self._idle.cancel()
        self.ended.set()
        _settle(
            self._ready, CannotFork(f"the process that imports its modules ended with {status}{self._last_words()}")
        )
        self._lose()

    def _lose(self) -> None:
        """Tell all who wait that nothing will come."""
        for fork in self._forks.values():
            _settle(fork, CannotFork("its zygote has ended"))
        for reaped in self._reaps.values():
            _settle(reaped, -signal.SIGKILL)
        self._reaps.clear()
        for watch in self._watches.values():
            watch.exited.set()

    def _last_words(self) -> str:
        said = b""
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)
                said = pipe.read(_LAST_WORDS_BYTES) or said
                pipe.close()
        lines = said.decode(errors="replace").split("\n")
        return f": {lines[-2].strip()}" if len(lines) > 1 else ""


class ForkedLeader:
    """A run that a zygote forked; see :class:`~runnel.client.runtimes.process_group.Leader`."""

    def __init__(
        self, zygote: Zygote, *, pid: int, gate: IO[bytes], stdout: IO[bytes], stderr: IO[bytes], watch: ExitWatch
    ) -> None:
        self.pid = pid
        self.gate = gate
        self.stdout = stdout
        self.stderr = stderr
        self.watch = watch
        self._zygote = zygote
        self._status: asyncio.Future[int] | None = None

    async def reap(self) -> int:
        """Return the exit status; may be asked again after a cancellation."""
        if self._status is None:
            self._status = self._zygote.reap(self.pid)
        await asyncio.wait([self._status])
        return self._status.result()


def _settle(future: asyncio.Future[Any], result: object) -> None:
    if future.done():
        return
    if isinstance(result, CannotFork):
        future.set_exception(result)
        future.exception()  # nobody may wait for it any more
    else:
        future.set_result(result)


def _pipe(readers: ExitStack, writers: ExitStack) -> tuple[IO[bytes], IO[bytes]]:
    read, write = os.pipe()
    return (
        readers.enter_context(os.fdopen(read, "rb", buffering=0)),
        writers.enter_context(os.fdopen(write, "wb", buffering=0)),
    )


def _file(content: Mapping[str, object]) -> IO[bytes]:
    """A file without a name: a message itself may not be long."""
    with ExitStack() as undo:
        file = undo.enter_context(os.fdopen(os.memfd_create("runnel", os.MFD_CLOEXEC), "w+b", buffering=0))
        file.write(json.dumps(content).encode())
        undo.pop_all()
    return file


def _has_news(control: socket.socket) -> bool:
    try:
        return bool(control.recv(1, socket.MSG_PEEK))
    except OSError:  # nothing there
        return False
