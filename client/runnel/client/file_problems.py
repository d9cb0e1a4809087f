"""What is wrong with a file of a site's settings, in words for who wrote it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence

from pydantic_core import ErrorDetails


def problem(details: ErrorDetails, known: Callable[[list[str]], Sequence[str]]) -> str:
    """Return one sentence or two about what pydantic found.

    Args:
        details: one of its errors.
        known: returns the keys that may stand where one was found that may not, given the way to it.
    """
    place = [str(part) for part in details["loc"]]
    key = ".".join(place)
    if details["type"] == "extra_forbidden":
        keys = known(place)
        near = difflib.get_close_matches(place[-1], keys, n=1, cutoff=0.6)
        like = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(keys)}."
        return f"{key} is no key. {like}"
    if details["type"] == "missing":
        return f"{key} is needed."
    message = details["msg"].removeprefix("Value error, ").rstrip(".")
    if not place:
        return f"{message}."
    if details["type"] == "value_error" and isinstance(details["input"], dict):
        return f"{key}: {message}."
    shown = json.dumps(details["input"], default=str, ensure_ascii=False)
    return f"{key} = {shown:.100} is wrong: {message[:1].lower()}{message[1:]}."
