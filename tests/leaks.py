"""What a test may leave behind: nothing. Used by conftest for every test."""

from __future__ import annotations

import gc
import threading
import time
from dataclasses import dataclass

import psutil

# Made once and kept for good by the libraries that need them.
_LASTING_PROCESSES = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
_FORK_SERVER = "tests.process.fork_server"  # what it has forked is called the same, and is no child of ours
_LASTING_CONNECTIONS = (psutil.CONN_NONE, psutil.CONN_CLOSE)
# Sockets and children close and end in the background, on a busy machine a good moment after their owner said so.
PATIENCE_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What this process holds: open files, sockets, child processes and threads, in words for people."""

    descriptors: int
    open: frozenset[str]

    @classmethod
    def now(cls, *, children: bool) -> Holdings:
        """Look; ``children`` False spares the tests without processes the walk over the process table."""
        me = psutil.Process()
        found = {f"file {file.path} (descriptor {file.fd})" for file in me.open_files() if file.fd > 2}
        for socket in me.net_connections(kind="inet"):
            if socket.status not in _LASTING_CONNECTIONS:
                found.add(f"socket {socket.laddr} {socket.raddr or ''} {socket.status} (descriptor {socket.fd})")
        if children:
            found |= {f"process {pid}: {command}" for pid, command in _children(me)}
        found |= _threads()
        return cls(descriptors=me.num_fds(), open=frozenset(found))

    def left_since(self, *, children: bool) -> list[str]:
        """Return what is held now and was not held then, after giving it a moment to go."""
        if not children and psutil.Process().num_fds() <= self.descriptors and _threads() <= self.open:
            return []
        end = time.monotonic() + PATIENCE_S
        while True:
            left = sorted(Holdings.now(children=children).open - self.open)
            if not left or time.monotonic() >= end:
                return left
            gc.collect()
            time.sleep(0.02)


def _threads() -> set[str]:
    return {f"thread {thread.name}" for thread in threading.enumerate() if not thread.daemon}


def _children(me: psutil.Process) -> list[tuple[int, str]]:
    found = []
    for child in me.children(recursive=True):
        try:
            command = " ".join(child.cmdline())
            if child.status() == psutil.STATUS_ZOMBIE or any(name in command for name in _LASTING_PROCESSES):
                continue
            if _FORK_SERVER in command and child.ppid() == me.pid:
                continue
        except psutil.NoSuchProcess:
            continue  # It ended while we looked.
        found.append((child.pid, command))
    return found
