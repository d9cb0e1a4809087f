"""Errors as the failures of runs."""

from __future__ import annotations

from runnel.common.errors import RunnelError
from runnel.common.protocol import Failure


def failure_of(error: RunnelError) -> Failure:
    """Return an error as the failure of a run; one that says which limit was hit has that in its code.

    >>> from runnel.common.errors import LimitReached
    >>> failure_of(LimitReached("It took too long.", limit="time")).code
    'time_limit'
    """
    limit = str(error.fields.get("limit", ""))
    code = f"{limit}_limit" if limit else error.code
    return Failure(code=code, message=str(error), log_tail=str(error.fields.get("log_tail", "")))
