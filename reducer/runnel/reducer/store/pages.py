"""Paging by cursor over rows ordered by time, newest first."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Select, and_, or_

from runnel.common.errors import InvalidInput
from runnel.reducer.domain.values import Page

R = TypeVar("R")
V = TypeVar("V")


def encode_cursor(*parts: Any) -> str:
    """Return an opaque, URL-safe cursor."""
    texts = [p.isoformat() if isinstance(p, datetime) else p for p in parts]
    return base64.urlsafe_b64encode(json.dumps(texts).encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> list[Any]:
    """Return what :func:`encode_cursor` was given; raises InvalidInput."""
    try:
        parts = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, binascii.Error) as err:
        raise InvalidInput(f"{cursor!r} is no cursor of this listing.", hint="Use `next` of the page before.") from err
    if not isinstance(parts, list) or not parts:
        raise InvalidInput(f"{cursor!r} is no cursor of this listing.", hint="Use `next` of the page before.")
    return parts


def after_cursor(query: Select[Any], time: Any, key: Any, cursor: str | None, limit: int) -> Select[Any]:
    """Order by ``time`` and ``key``, newest first, and go on after ``cursor``; one row more than ``limit``."""
    if cursor is not None:
        parts = decode_cursor(cursor)
        try:
            at, last = datetime.fromisoformat(parts[0]), str(parts[1])
            if at.tzinfo is None:
                raise ValueError("a time without a zone")
        except (TypeError, ValueError, IndexError) as err:
            raise InvalidInput(f"{cursor!r} is no cursor of this listing.") from err
        query = query.where(or_(time < at, and_(time == at, key < last)))
    return query.order_by(time.desc(), key.desc()).limit(limit + 1)


def page_of(rows: Sequence[R], limit: int, position: Callable[[R], tuple[Any, ...]], view: Callable[[R], V]) -> Page[V]:
    """Make a page of rows that were asked with one more than ``limit``."""
    more = len(rows) > limit
    rows = rows[:limit]
    return Page(items=tuple(map(view, rows)), next_cursor=encode_cursor(*position(rows[-1])) if more else None)
