"""JSON objects that somebody else wrote and everybody is to read: bounded in size and depth, without NaN."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from runnel.common.errors import InvalidInput

MAX_DEPTH = 64


def read_object(text: str, *, what: str, most_bytes: int) -> dict[str, Any]:
    """Return the object that ``text`` writes; an empty text is an empty object.

    Args:
        text: JSON.
        what: what it is, for messages.
        most_bytes: how many bytes of UTF-8 it may have.

    Raises:
        InvalidInput: it is larger, no JSON (which knows no NaN and no infinity), no object, or nested deeper than 64.

    >>> read_object('{"classes": [1, 2]}', what="the notes", most_bytes=100)
    {'classes': [1, 2]}
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > most_bytes:
        raise InvalidInput(f"{what} may have at most {most_bytes:,} bytes of JSON and has {size:,}.")
    try:
        value = json.loads(text or "{}", parse_constant=_refuse, parse_float=_finite)
        deep = _deeper_than(value, MAX_DEPTH)
    except RecursionError:
        deep = True
    except ValueError as error:
        raise InvalidInput(f"{what} should be JSON but is not: {error}.") from error
    if deep:
        raise InvalidInput(f"{what} is JSON nested deeper than {MAX_DEPTH} levels.")
    if not isinstance(value, dict):
        raise InvalidInput(f"{what} should be a JSON object but is {text[:60]!r}.")
    return value


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is beyond float64")
    return number


def _deeper_than(value: object, levels: int) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    if levels == 0:
        return True
    return any(_deeper_than(item, levels - 1) for item in (value.values() if isinstance(value, dict) else value))
