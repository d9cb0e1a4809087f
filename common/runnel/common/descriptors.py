"""How many connections a process can hold: its limit of open files (descriptors)."""

from __future__ import annotations

import resource

import structlog

from runnel.common.errors import BadSettings

log = structlog.get_logger()

# Of a node below: its connection, and the file of what it pushes or fetches.
_EACH = 2
# The process' own, connections that are still looked at or refused, and those to the blob port.
_OWN = 512


def room_for_nodes(wanted: int) -> int:
    """Let this process have the descriptors for ``wanted`` attached nodes; return for how many it can have them.

    The soft limit (1,024 by default on most systems) is raised as far as need be. Where the hard limit is in the way,
    what is returned is less than ``wanted``: beyond it connections would be accepted late or never, and their owners
    would hang instead of going elsewhere.

    Raises:
        BadSettings: not even one has room.
    """
    needed = wanted * _EACH + _OWN
    allowed = raise_descriptor_limit(needed)
    if allowed >= needed:
        return wanted
    room = (allowed - _OWN) // _EACH
    if room < 1:
        raise BadSettings(
            f"This process may open {allowed:,} files, and needs {_OWN + _EACH:,} to serve anybody.",
            hint="Raise the limit (`ulimit -Hn`; LimitNOFILE= in a unit of systemd).",
        )
    log.warning(
        "capacity lowered: the process may not open more files",
        capacity=room,
        wanted=wanted,
        descriptors=allowed,
        needed=needed,
        hint="raise the hard limit: ulimit -Hn, or LimitNOFILE= in a unit of systemd",
    )
    return room


def raise_descriptor_limit(needed: int) -> int:
    """Raise the soft limit to ``needed``, or as near to it as the hard limit allows; return what it allows of that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return needed
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if allowed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        log.info("descriptor limit raised", before=soft, now=allowed)
    return max(allowed, soft)
