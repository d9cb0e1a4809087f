"""Room for many connections in this process."""

from __future__ import annotations

from runnel.common.descriptors import raise_descriptor_limit
from runnel.common.errors import CapacityExceeded

_SPARE = 100


def require_descriptors(connections: int) -> None:
    """Let this process have so many open connections.

    Raises:
        CapacityExceeded: the system's hard limit is below that.
    """
    wanted = connections + _SPARE
    allowed = raise_descriptor_limit(wanted)
    if allowed < wanted:
        raise CapacityExceeded(
            f"A process may have {allowed:,} open files here, and {connections:,} connections need {wanted:,}.",
            hint="Raise the limit (`ulimit -Hn`, LimitNOFILE=), or measure with fewer clients.",
        )
