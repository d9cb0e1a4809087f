"""Server-sent events of the HTTP interface."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import ServerSentEvent, aconnect_sse
from starlette.types import Message

from runnel.reducer.http.event_stream import EventStream
from tests.doubles.serving import Served, serving
from tests.eventually import eventually

pytestmark = pytest.mark.network


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as it:
        yield it


async def take(events: AsyncIterator[ServerSentEvent], number: int) -> list[ServerSentEvent]:
    taken: list[ServerSentEvent] = []
    async with asyncio.timeout(30):
        while len(taken) < number:
            event = await anext(events)
            if event.data:
                taken.append(event)
    return taken


async def test_kept_events_then_those_that_happen(served: Served) -> None:
    served.reducer.happen("node.attached", None, {"name": "site-1"})
    async with aconnect_sse(served.http, "GET", "/events") as source:
        assert source.response.headers["content-type"].startswith("text/event-stream")
        events = source.aiter_sse()
        (first,) = await take(events, 1)
        assert (first.event, first.id) == ("node.attached", "1")
        served.reducer.progress("ses-1", {"round": 1, "stages": {"é": "running"}, "loss": float("inf")})
        served.reducer.happen("node.left", None, {"name": "site-1"})
        passing, second = await take(events, 2)
        assert passing.event == "progress"
        assert json.loads(passing.data)["data"]["stages"] == {"é": "running"}
        assert "Infinity" not in passing.data
        # What passes has no number: a caller goes on after the last that has.
        assert (second.event, second.id) == ("node.left", "2")


@pytest.mark.parametrize(
    ("headers", "query", "first"),
    [
        ({}, {}, 1),
        ({}, {"after": "2"}, 3),
        ({"Last-Event-ID": "1"}, {}, 2),
        ({"Last-Event-ID": "2"}, {"after": "0"}, 3),
    ],
)
async def test_goes_on_after_what_was_seen(
    served: Served, headers: dict[str, str], query: dict[str, str], first: int
) -> None:
    for number in range(4):
        served.reducer.happen("node.attached", None, {"number": number})
    async with aconnect_sse(served.http, "GET", "/events", headers=headers, params=query) as source:
        taken = await take(source.aiter_sse(), 5 - first)
    assert [event.id for event in taken] == [str(number) for number in range(first, 5)]


async def test_ends_when_the_caller_goes(served: Served) -> None:
    async with aconnect_sse(served.http, "GET", "/events"):
        await eventually(lambda: served.reducer.following == 1)
    await eventually(lambda: served.reducer.following == 0)


async def test_ends_when_the_server_stops(tmp_path: Path) -> None:
    async with asyncio.timeout(30), httpx.AsyncClient(timeout=20) as http:
        async with serving(tmp_path) as served, asyncio.TaskGroup() as tasks:
            got: list[ServerSentEvent] = []
            opened = asyncio.Event()

            async def listen() -> None:
                async with aconnect_sse(http, "GET", f"{served.url}/api/v1/events") as source:
                    opened.set()
                    got.extend([event async for event in source.aiter_sse()])

            listening = tasks.create_task(listen())
            await opened.wait()
            await eventually(lambda: served.reducer.following == 1)
            await served.server.__aexit__(None, None, None)
            await listening
        assert served.reducer.following == 0
        assert [event for event in got if event.data] == []


async def test_an_error_on_the_way_is_said_before_the_end(served: Served) -> None:
    served.reducer.happen("node.attached", None, {})
    served.reducer.follow_fails = True
    async with aconnect_sse(served.http, "GET", "/events") as source:
        events = [event async for event in source.aiter_sse() if event.data]
    assert [event.event for event in events] == ["node.attached", "error"]
    assert json.loads(events[-1].data)["code"] == "illegal_state"


async def test_says_that_it_is_still_there() -> None:
    async def silent() -> AsyncIterator[Mapping[str, Any]]:
        await asyncio.Event().wait()
        yield {}

    sent: list[bytes] = []
    enough, closing = asyncio.Event(), asyncio.Event()

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))
        if sent.count(b": still here\n\n") == 3:
            enough.set()

    async def receive() -> Message:
        await enough.wait()
        return {"type": "http.disconnect"}

    async with asyncio.timeout(30):
        stream = EventStream(silent(), closing=closing, heartbeat_s=0.01)
        await stream({"type": "http", "path": "/events"}, receive, send)
    assert enough.is_set()
