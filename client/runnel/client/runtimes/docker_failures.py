"""What the end of a container means: which limit of its cage a run hit, as far as that can be told."""

from __future__ import annotations

import signal

from runnel.client.domain.cage import NO_NETWORK, Cage
from runnel.client.runtimes.docker_container import Ended
from runnel.client.runtimes.process import MORE_MEMORY, describe_status, limit_of
from runnel.client.runtimes.runtime import Limits
from runnel.common.errors import EntryPointFailed, EntryPointTimeout

_NOT_FOUND = 127
# What docker-init prints when there is no such command.
_INIT_COMPLAINT = "[FATAL tini"
_NO_MORE_PROCESSES = ("Resource temporarily unavailable", "can't start new thread", "Cannot fork")
_NO_MORE_ROOM = ("No space left on device", "File too large", "Disk quota exceeded")
_NO_WRITING = ("Read-only file system",)
_NO_NETWORK = (
    "Network is unreachable",
    "Temporary failure in name resolution",
    "Name or service not known",
    "Could not resolve host",
)


def exit_status(status: int) -> int:
    """Return a container's exit status as :mod:`subprocess` has it: negative the signal that ended the command.

    An engine tells a signal as 128 + its number, as a shell does, so a command that ends with such a number itself
    can't be told apart.

    >>> exit_status(3), exit_status(137)
    (3, -9)
    """
    number = status - 128
    return -number if number in signal.valid_signals() else status


def failed(
    entry_point: str, word: str, ended: Ended, *, cage: Cage, tail: str, limits: Limits | None = None
) -> EntryPointFailed:
    """Return the error about a run of ``entry_point``, whose command begins with ``word``, that ended badly."""
    if ended.status == _NOT_FOUND and _INIT_COMPLAINT in tail:
        return EntryPointFailed(
            f"The entry point {entry_point} should run {word!r}, which is not installed in its image.",
            hint="Install it there, or change the package.",
            entry_point=entry_point,
            exit_status=_NOT_FOUND,
            log_tail=tail,
        )
    status = exit_status(ended.status)
    limit, hint = limit_hit(ended, cage, tail, limits)
    happened = describe_status(status)
    if limit == "memory" and not ended.out_of_memory and limits is not None:
        happened += MORE_MEMORY.format(limits.memory_bytes)
    elif limit == "memory":
        happened = happened.removesuffix(" (out of memory?)") + f": it used up {_memory(cage)}"
    fields: dict[str, object] = {"entry_point": entry_point, "exit_status": status, "log_tail": tail}
    if limit:
        fields["limit"] = limit
    usual = "The last lines of its log tell more." if tail else "It printed nothing."
    return EntryPointFailed(f"The entry point {entry_point} {happened}.", hint=hint or usual, **fields)


def limit_hit(ended: Ended, cage: Cage, tail: str, limits: Limits | None = None) -> tuple[str, str]:
    """Return the limit that a container seems to have hit, and what to say of it; empty: none."""
    used_up = "memory" if ended.out_of_memory else limit_of(exit_status(ended.status), limits or Limits(), tail)
    if used_up:
        return used_up, "Let it use less, or ask the site for more."
    if _has(tail, _NO_MORE_PROCESSES):
        return "pids", f"Its container may have {cage.pids} processes and threads, and it seems to have wanted more."
    if _has(tail, _NO_MORE_ROOM):
        return "disk", (
            f"Its container may write {cage.disk_bytes:,} bytes to the run's folder, {cage.tmpfs_bytes:,} to /tmp and "
            f"{cage.shm_bytes:,} to /dev/shm."
        )
    if _has(tail, _NO_WRITING):
        return "", "In a container only the folder of its arguments and /tmp can be written."
    if cage.network == NO_NETWORK and _has(tail, _NO_NETWORK):
        return "network", "Its container has no network; data and what it needs have to be there already."
    return "", ""


def timed_out(entry_point: str, timeout_s: float, *, cage: Cage, processes: int, tail: str) -> EntryPointTimeout:
    """Return the error about a run that was ended at its time; ``processes`` is how many it had then."""
    hint = "Let it do less, or give it more time."
    fields: dict[str, object] = {"entry_point": entry_point, "timeout_s": timeout_s, "log_tail": tail, "limit": "time"}
    if processes >= cage.pids:
        hint = f"It had all of the {cage.pids} processes and threads that its container may have. {hint}"
        fields["limit"] = "pids"
    return EntryPointTimeout(
        f"The entry point {entry_point} was still running after {timeout_s:g} s and was ended.", hint=hint, **fields
    )


def disk_full(entry_point: str, *, cage: Cage, tail: str) -> EntryPointFailed:
    """Return the error about a run that was ended because it wrote too much."""
    return EntryPointFailed(
        f"The entry point {entry_point} wrote more than the {cage.disk_bytes:,} bytes of disk that its container may "
        "have and was ended.",
        hint="Let it write less, or ask the site for more.",
        entry_point=entry_point,
        exit_status=-signal.SIGKILL,
        log_tail=tail,
        limit="disk",
    )


def _has(tail: str, complaints: tuple[str, ...]) -> bool:
    return any(each in tail for each in complaints)


def _memory(cage: Cage) -> str:
    return f"the {cage.memory_bytes:,} bytes of memory that its container may have"
