"""Components as forks of a process that has imported everything: most of what a start costs is importing.

They are processes as others are, with an id, an environment, descriptors and an end of their own. What differs: they
have loaded the modules of all components, their command line in the process table is that of the server, and they do
not outlive it, nor it this process. Tests for which that matters start by exec.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from tests.process.fork_server import MAX_REQUEST_BYTES

ROOT = Path(__file__).parents[2]
RUNNEL = (sys.executable, "-m", "runnel.cli.main")
_START_S = 60.0
# Read when an interpreter or a library is loaded: a fork can't follow where these differ.
_READ_AT_LOAD = (
    *("GLIBC_", "GRPC_", "LANG", "LC_", "LD_", "MALLOC_", "MKL_", "NUMPY_", "NPY_", "OMP_", "OPENBLAS_", "OPENSSL_"),
    *("PYDANTIC_", "PYTHON", "TZ"),
)


class ForkedProcess:
    """A ``runnel`` command as a child of the fork server; what tests use of :class:`subprocess.Popen`.

    Args:
        arguments: of the command.
        env: all of its variables; :func:`can_fork` says whether it can have them.
        stdout: of its output.
        stderr: of its errors.
        cwd: of its folder; None: that of this process.

    Raises:
        RuntimeError: the server has ended, or did not answer for a minute.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        stdout: IO[bytes],
        stderr: IO[bytes],
        cwd: Path | None = None,
    ) -> None:
        self.args = [*RUNNEL, *arguments]
        self.returncode: int | None = None
        asked = {"arguments": list(arguments), "environ": dict(env), "cwd": str(cwd or Path.cwd())}
        told, tells = os.pipe()
        with os.fdopen(tells, "wb"):
            _server().ask(json.dumps(asked).encode(), [stdout.fileno(), stderr.fileno(), tells])
        self._told: IO[bytes] = os.fdopen(told, "rb", buffering=0)
        line = self._line(_START_S)
        if not line:
            self._told.close()
            raise RuntimeError(f"the fork server {'has ended' if line == b'' else 'does not answer'}")
        self.pid = int(line)

    def poll(self) -> int | None:
        if self.returncode is None and (line := self._line(0)) is not None:
            self._told.close()
            self.returncode = int(line or -signal.SIGKILL)
            if not line:
                raise RuntimeError(f"the fork server has ended, and {self.args} with it")
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and self._has_told(timeout):
            self.poll()
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it ended meanwhile
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _has_told(self, timeout_s: float | None) -> bool:
        waiting = select.poll()
        waiting.register(self._told, select.POLLIN)
        return bool(waiting.poll(None if timeout_s is None else timeout_s * 1000))

    def _line(self, timeout_s: float) -> bytes | None:
        """Return the next line, empty if there will be none; None: it has not come."""
        return self._told.readline() if self._has_told(timeout_s) else None


def can_fork(environ: Mapping[str, str]) -> bool:
    """Tell whether a process with these variables may be a fork."""
    return sys.platform == "linux" and _at_load(environ) == _server().at_load


def run_runnel(
    arguments: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None, timeout_s: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with nothing on its standard input.

    Raises:
        subprocess.TimeoutExpired: it did not end in that time, and was killed.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = start_runnel(arguments, env=env, stdout=out, stderr=err, cwd=cwd)
        try:
            status = process.wait(timeout_s)
        finally:
            process.kill()
            process.wait()
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode())
    return subprocess.CompletedProcess([*RUNNEL, *arguments], status, *said)


def start_runnel(
    arguments: Sequence[str], *, env: Mapping[str, str], stdout: IO[bytes], stderr: IO[bytes], cwd: Path | None = None
) -> ForkedProcess | subprocess.Popen[bytes]:
    """Start a command as a fork, or by exec where it can't be one."""
    if can_fork(env):
        return ForkedProcess(arguments, env=env, stdout=stdout, stderr=stderr, cwd=cwd)
    return subprocess.Popen(
        [*RUNNEL, *arguments], env=env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=cwd
    )


class _Server:
    """The process that forks; it ends when this one does, however that ends."""

    def __init__(self) -> None:
        self.at_load = _at_load(os.environ)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("RUNNEL_")}
        # What the command sets by itself before it imports; and of the threads of a pool a fork has none.
        environ = {"GRPC_VERBOSITY": "NONE", "PYDANTIC_DISABLE_PLUGINS": "__all__"} | environ
        environ["OPENBLAS_NUM_THREADS"] = "1"
        self._lock = threading.Lock()
        self._requests, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.process.fork_server", str(its.fileno())],
                cwd=ROOT,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[its.fileno()],
            )
        atexit.register(self.end)

    def ask(self, packet: bytes, descriptors: list[int]) -> None:
        assert len(packet) < MAX_REQUEST_BYTES
        with self._lock:
            socket.send_fds(self._requests, [packet], descriptors)

    def end(self) -> None:
        self._requests.close()
        self._process.wait()


_started: list[_Server] = []
_starting = threading.Lock()


def _server() -> _Server:
    with _starting:
        if not _started:
            _started.append(_Server())
        return _started[0]


def _at_load(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name.startswith(_READ_AT_LOAD)}
