"""How the page and its files are served, and where a caller stands; what they do is told by tests/browser."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from runnel.reducer.domain.values import Role
from runnel.reducer.http.bearings import newest_event
from runnel.reducer.service import Caller
from runnel.reducer.web.page import STATIC
from tests.doubles.reducer_service import VIEWER_TOKEN, InMemoryReducer
from tests.doubles.serving import Served, serving

pytestmark = pytest.mark.network

ANYBODY = Caller(token_id="", role=Role.OPERATOR, organisation="default")
FILES = sorted(path.name for path in STATIC.iterdir())


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path, insecure=False) as it:
        yield it


@pytest.fixture
async def stranger(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=served.url, trust_env=False, timeout=20) as http:
        yield http


async def test_anybody_gets_the_page_and_it_lets_nothing_foreign_in(stranger: httpx.AsyncClient) -> None:
    for path in ("/", *(f"/web/{name}" for name in FILES)):
        answer = await stranger.get(path)
        assert answer.status_code == 200, path
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert {policy[f"{what}-src"] for what in ("script", "style", "img", "connect")} == {"'self'"}
        assert policy["frame-ancestors"] == "'none'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-cache"
        again = await stranger.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    page = await stranger.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert (await stranger.get("/web/main.js")).headers["content-type"].split(";")[0].endswith("javascript")
    assert (await stranger.head("/")).status_code == 200


def test_the_files_name_nothing_outside() -> None:
    for name in FILES:
        text = (STATIC / name).read_text()
        addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.[a-z]+[^\s\"'`)]*", text))
        allowed = {"http://www.w3.org/2000/svg", "https://html.spec.whatwg.org/#parsing-an-event-stream."}
        assert addresses <= allowed, name
        if name.endswith(".js"):
            assert {each for each in re.findall(r'(?:from|import) "([^"]+)"', text) if each[2:] not in FILES} == set()
    html = (STATIC / "index.html").read_text()
    assert re.findall(r"<script(?![^>]*\bsrc=)|\bon\w+=|<style|\bstyle=", html) == []


@pytest.mark.parametrize("path", ["/web/nothing.js", "/web/%2e%2e/page.py", "/web/..%2fpage.py", "/web/", "/page.py"])
async def test_nothing_else_is_served(stranger: httpx.AsyncClient, path: str) -> None:
    answer = await stranger.get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_bearings_tell_who_asks(served: Served, stranger: httpx.AsyncClient) -> None:
    served.reducer.happen("node.attached", None, {})
    mine = (await served.http.get("/bearings")).json()
    assert mine == {"role": "operator", "organisation": "default", "insecure": False, "newest_event": 1}
    headers = {"Authorization": f"Bearer {VIEWER_TOKEN}"}
    assert (await served.http.get("/bearings", headers=headers)).json()["role"] == "viewer"
    assert (await stranger.get("/api/v1/bearings")).status_code == 401


async def test_an_insecure_network_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path, insecure=True) as served:
        bearings = (await served.http.get("/bearings")).json()
    assert (bearings["insecure"], bearings["newest_event"]) == (True, 0)


@pytest.mark.parametrize("count", [0, 1, 2, 499, 500, 501, 1000, 1001, 1500, 1501, 7777])
@pytest.mark.parametrize("gap", [1, 3, 900])
async def test_the_newest_event_is_found_also_among_gaps(tmp_path: Path, count: int, gap: int) -> None:
    reducer = InMemoryReducer(tmp_path)
    for number in range(count):
        reducer.happen("node.attached", None, {"number": number})
    # The events of others are not seen: only every gap-th is one's own.
    reducer.log = [event for event in reducer.log if event.seq % gap == 0]
    expected = reducer.log[-1].seq if reducer.log else 0
    assert await newest_event(reducer, ANYBODY) == expected
