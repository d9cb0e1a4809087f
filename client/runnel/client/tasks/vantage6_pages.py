"""Listings in pages, as the algorithm clients of vantage6 ask for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from runnel.common.errors import InvalidInput

UNPAGED = web.AppKey("UNPAGED", bool)
"""Whether listings are as in releases 2 and 3: bare lists, whole where no page is asked for."""

_PER_PAGE, _MOST_PER_PAGE = 10, 100


def integer(text: str, name: str) -> int:
    """Return a number of a question, which is called ``name`` there.

    Raises:
        InvalidInput: it is none.
    """
    if not (text.isascii() and text.isdecimal() and len(text) < 12):
        raise InvalidInput(f"{name} is a number, not {text!r:.40}.")
    return int(text)


def page_asked(request: web.Request, total: int) -> tuple[int, int]:
    """Return which page of ``total`` entries is asked for, from 1, and how many entries it has.

    Raises:
        InvalidInput: there are no such pages.
    """
    if request.app[UNPAGED] and "page" not in request.query:
        return 1, max(1, total)
    page = integer(request.query.get("page", "1"), "page")
    size = integer(request.query.get("per_page", str(_PER_PAGE)), "per_page")
    if page < 1 or not 0 < size <= _MOST_PER_PAGE:
        raise InvalidInput(f"Pages count from 1, and have 1 to {_MOST_PER_PAGE} entries.")
    return page, size


def page(request: web.Request, entries: Sequence[Any]) -> web.Response:
    """Return one page of a listing; as long as there is a next one, ``links`` has it."""
    number, size = page_asked(request, len(entries))
    last = max(1, math.ceil(len(entries) / size))

    def to(other: int) -> str:
        return str(request.rel_url.update_query({"page": str(other)}))

    links = {"first": to(1), "self": to(number), "last": to(last)}
    if number > 1:
        links["previous"] = to(number - 1)
    if number < last:
        links["next"] = to(number + 1)
    data = list(entries[(number - 1) * size : number * size])
    bare = request.app[UNPAGED] and request.query.get("include") != "metadata"
    return web.json_response(
        data if bare else {"data": data, "links": links}, headers={"total-count": str(len(entries))}
    )
