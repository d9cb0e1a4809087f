"""What the end of a task's container means, in the words of whoever sent the task."""

from __future__ import annotations

from runnel.client.domain.cage import Cage
from runnel.client.runtimes.docker_container import Ended
from runnel.client.runtimes.docker_failures import exit_status, limit_hit
from runnel.client.runtimes.process import describe_status
from runnel.common.errors import LimitReached
from runnel.common.protocol import Failure

_NOT_FOUND = 127


def bad_end(word: str, ended: Ended, *, cage: Cage, tail: str) -> Failure:
    """Return the failure of an executor, named by ``word``, whose container ended with a status other than 0."""
    limit, hint = limit_hit(ended, cage, tail)
    status = exit_status(ended.status)
    if status == _NOT_FOUND:
        happened = "ended with the status 127: its command is not in the image"
    else:
        happened = describe_status(status)
    if limit == "memory":
        used_up = f": it used up the {cage.memory_bytes:,} bytes of memory that it may have"
        happened = happened.removesuffix(" (out of memory?)") + used_up
    usual = "The last lines of its log tell more." if tail else "It printed nothing."
    # A message about the network is a guess, and its cause no limit.
    code = f"{limit}_limit" if limit and limit != "network" else "exit_status"
    return Failure(code=code, message=f"{word} {happened}. {hint or usual}", log_tail=tail)


def late(word: str, time_s: float, *, cage: Cage, processes: int) -> LimitReached:
    """Return the error about an executor that was ended at its time; ``processes``: how many it had then."""
    if processes >= cage.pids:
        return LimitReached(
            f"{word} was still running after {time_s:g} s and was ended; it had all of the {cage.pids} processes and"
            " threads that it may have.",
            limit="pids",
        )
    return LimitReached(
        f"{word} was still running after the {time_s:g} s that it may have, and was ended.",
        hint="Let it do less, or ask the site for more.",
        limit="time",
    )


def disk_full(word: str, cage: Cage) -> LimitReached:
    """Return the error about an executor that was ended because it wrote too much."""
    return LimitReached(
        f"{word} wrote more than the {cage.disk_bytes:,} bytes that it may, and was ended.",
        hint="Let it write less, or ask the site for more.",
        limit="disk",
    )
