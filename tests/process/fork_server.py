"""A process that has imported what components are made of, and forks one for each request.

It is started by :mod:`tests.process.forked_process`, which says why. Its argument is the descriptor of a socket, on
which each packet is a request, JSON with three descriptors beside it: where standard output and error go, and a pipe on
which it tells the process id of the child, a line, and when that has ended its exit code, as :mod:`subprocess` has it.
When nobody can ask any more it ends, and the children with it.

It has one thread, and has made nothing but modules, so that a child is what a new interpreter would be.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# With what these import it is nearly all that components and people's commands have loaded when they serve or are done.
PRELOADED = (
    "anyio._backends._asyncio",
    "prometheus_client",
    "runnel.cli.main",
    "runnel.cli.client_command",
    "runnel.cli.combiner_command",
    "runnel.cli.reducer_command",
    "runnel.client.app",
    "runnel.combiner.app",
    "runnel.reducer.app",
    "runnel.sdk",
    "uvicorn.lifespan.off",
    "uvicorn.protocols.http.h11_impl",
)
MAX_REQUEST_BYTES = 200_000
_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a child becomes."""

    arguments: list[str]
    environ: dict[str, str]
    cwd: str
    output: int
    error: int

    def become(self) -> None:
        """Make this process, just forked, one that was started so."""
        null = os.open(os.devnull, os.O_RDONLY)
        for descriptor, target in ((null, 0), (self.output, 1), (self.error, 2)):
            os.dup2(descriptor, target)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.environ.clear()
        os.environ.update(self.environ)
        os.chdir(self.cwd)
        sys.path[0] = self.cwd
        sys.argv = ["runnel", *self.arguments]


def preload() -> None:
    """Import; raise if that has started or opened anything."""
    before = _descriptors()
    for name in PRELOADED:
        importlib.import_module(name)
    threads, opened = len(list(Path("/proc/self/task").iterdir())), _descriptors() - before
    if threads > 1 or opened:
        raise RuntimeError(f"importing made {threads - 1} threads and opened {opened}: what forks may do neither")
    gc.collect()
    gc.freeze()


def _descriptors() -> set[str]:
    return {each.name for each in Path("/proc/self/fd").iterdir()}


def serve(requests: socket.socket) -> Request | None:
    """Fork for each request; return in each child what it was asked for, and at the end, in the server, None."""
    me, libc = os.getpid(), ctypes.CDLL(None)
    told_at: dict[int, tuple[int, int]] = {}  # by the descriptor of a child's process: its id, and who waits for it
    waiting = select.poll()
    waiting.register(requests, select.POLLIN)
    while True:
        for descriptor, _ in waiting.poll():
            if descriptor in told_at:
                waiting.unregister(descriptor)
                _tell_end(*told_at.pop(descriptor))
                os.close(descriptor)
                continue
            packet, descriptors, _, _ = socket.recv_fds(requests, MAX_REQUEST_BYTES, 3)
            if not packet:
                return None
            output, error, told = descriptors
            child = os.fork()
            if child == 0:
                libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                if os.getppid() != me:
                    os._exit(1)
                requests.detach()
                asked: dict[str, Any] = json.loads(packet)
                return Request(output=output, error=error, **asked)
            os.close(output)
            os.close(error)
            process = os.pidfd_open(child)
            told_at[process] = child, told
            waiting.register(process, select.POLLIN)
            _tell(told, child)


def _tell_end(child: int, told: int) -> None:
    _, status = os.waitpid(child, 0)
    _tell(told, os.waitstatus_to_exitcode(status))
    os.close(told)


def _tell(told: int, number: int) -> None:
    with suppress(BrokenPipeError):  # nobody waits for it any more
        os.write(told, b"%d\n" % number)


def main() -> int:
    """Serve; in a child, be the command."""
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: whoever asks ends what it started
    preload()
    asked = serve(socket.socket(fileno=int(sys.argv[1])))
    if asked is None:
        return 0
    signal.signal(signal.SIGINT, interrupt)
    asked.become()
    from runnel.cli.main import main as runnel

    return runnel()


if __name__ == "__main__":
    sys.exit(main())
