"""Kills the runs of a client that was itself killed.

A client that dies by ``kill -9`` or of lack of memory can clean up nothing. ``PR_SET_PDEATHSIG`` would reach only the
process that the client started, not what that one started, needs a launcher of its own in each run, and is bound to the
thread that forked. Instead one tiny shell per client holds the other end of a pipe: it is told each run's process group
before the run begins, and when the pipe closes, because the client is gone in whichever way, it kills those that are
left.
"""

from __future__ import annotations

import os
import subprocess
from typing import IO

import structlog

from runnel.client.runtimes.exit_watch import ExitWatch

# Ignores the signals that end its client, so that it is still there when the client has to be killed after them.
_SCRIPT = """
trap '' HUP INT TERM
groups=
while read -r verb group; do
  case $verb in
    watch) groups="$groups $group" ;;
    forget)
      kept=
      for one in $groups; do [ "$one" = "$group" ] || kept="$kept $one"; done
      groups=$kept ;;
  esac
done
for one in $groups; do kill -s KILL -- "-$one" 2>/dev/null; done
"""

log = structlog.get_logger()


class Guard:
    """The shell that outlives a client just long enough to end its runs. It starts with the first group to watch."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._groups: set[int] = set()

    def watch(self, group: int) -> None:
        """Have process group ``group`` killed when this process is gone. Returns when that is certain."""
        self._groups.add(group)
        if self._process is not None:
            try:
                self._tell(f"watch {group}\n")
            except BrokenPipeError:
                log.warning("runs had no guard", reason="it was killed; another is started")
                self._reap()
            else:
                return
        self._start()
        self._tell("".join(f"watch {one}\n" for one in sorted(self._groups)))

    def forget(self, group: int) -> None:
        """Stop watching ``group``: nothing of it is alive."""
        self._groups.discard(group)
        if self._process is None:
            return
        try:
            self._tell(f"forget {group}\n")
        except BrokenPipeError:
            self._reap()  # the next watch starts another

    async def close(self) -> None:
        """End the shell. What is still watched is killed, so runs are to be ended before."""
        process, self._process = self._process, None
        if process is None:
            return
        _pipe_of(process).close()
        with ExitWatch(process.pid) as watch:
            await watch.exited.wait()
        process.wait()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            env={},
            start_new_session=True,
        )

    def _tell(self, text: str) -> None:
        # A pipe takes this little without blocking, and once it is in, the shell reads it before it sees the end.
        if self._process is not None:
            os.write(_pipe_of(self._process).fileno(), text.encode())

    def _reap(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            _pipe_of(process).close()
            process.kill()
            process.wait()


def _pipe_of(process: subprocess.Popen[bytes]) -> IO[bytes]:
    if process.stdin is None:
        raise AssertionError("started with a pipe")
    return process.stdin
