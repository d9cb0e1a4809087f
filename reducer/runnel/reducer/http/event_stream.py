"""Events as server-sent events, until the caller goes or the server stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi.responses import Response
from fastapi.sse import format_sse_event
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from runnel.common.errors import RunnelError
from runnel.reducer.http.problems import problem

HEARTBEAT_S = 15.0
RECONNECT_MS = 1000
_SEND_S = 60.0


class EventStream(Response):
    """Streams ``events`` as ``text/event-stream``.

    Each has its kind as ``event``, itself as JSON ``data`` and, when it is stored, its sequence number as ``id``: a
    caller goes on after it by ``Last-Event-ID``. A comment is sent when nothing else was for a while. The stream ends
    when the caller is gone, when it takes nothing for a minute, when ``closing`` is set, or with an event ``error``
    that carries a problem.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[Mapping[str, Any]], *, closing: asyncio.Event, heartbeat_s: float = HEARTBEAT_S
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._closing = closing
        self._heartbeat_s = heartbeat_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer until something ends the stream."""
        ending = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            watchers = [
                tasks.create_task(self._until_gone(receive, ending)),
                tasks.create_task(self._until_closing(ending)),
            ]
            try:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await self._stream(tasks, send, ending, str(scope["path"]))
            finally:
                for watcher in watchers:
                    watcher.cancel()

    @staticmethod
    async def _until_gone(receive: Receive, ending: asyncio.Event) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        ending.set()

    async def _until_closing(self, ending: asyncio.Event) -> None:
        await self._closing.wait()
        ending.set()

    async def _stream(self, tasks: asyncio.TaskGroup, send: Send, ending: asyncio.Event, path: str) -> None:
        async def say(data: bytes, *, more: bool = True) -> None:
            async with asyncio.timeout(_SEND_S):
                await send({"type": "http.response.body", "body": data, "more_body": more})

        async with aclosing(_Upcoming(self._events, tasks)) as upcoming:
            end = tasks.create_task(ending.wait())
            try:
                await say(format_sse_event(retry=RECONNECT_MS, comment="runnel"))
                while not ending.is_set():
                    pending = upcoming.task()
                    await asyncio.wait({pending, end}, timeout=self._heartbeat_s, return_when=asyncio.FIRST_COMPLETED)
                    if pending.done():
                        event = upcoming.take()
                        if event is None:
                            break
                        await say(_wire(event))
                    elif not end.done():
                        await say(format_sse_event(comment="still here"))
            except RunnelError as error:
                await say(format_sse_event(event="error", data_str=bytes(problem(error, instance=path).body).decode()))
            except TimeoutError:
                # The caller took nothing for a minute; it comes again with Last-Event-ID when it lives.
                return
            finally:
                end.cancel()
            await say(b"", more=False)


class _Upcoming:
    """The next event, awaited in a task that survives heartbeats."""

    def __init__(self, events: AsyncIterator[Mapping[str, Any]], tasks: asyncio.TaskGroup) -> None:
        self._events = events
        self._tasks = tasks
        self._task: asyncio.Task[Mapping[str, Any] | RunnelError | None] | None = None

    def task(self) -> asyncio.Task[Mapping[str, Any] | RunnelError | None]:
        if self._task is None:
            self._task = self._tasks.create_task(self._next())
        return self._task

    def take(self) -> Mapping[str, Any] | None:
        """Return the event that arrived, None at the end; raises what following raised."""
        assert self._task is not None
        result = self._task.result()
        self._task = None
        if isinstance(result, RunnelError):
            raise result
        return result

    async def _next(self) -> Mapping[str, Any] | RunnelError | None:
        # An error is a result: raised here it would take down the group before the caller is told.
        try:
            return await anext(self._events, None)
        except RunnelError as error:
            return error

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        close = getattr(self._events, "aclose", None)
        if close is not None:
            await close()


def _wire(event: Mapping[str, Any]) -> bytes:
    seq = event.get("seq")
    return format_sse_event(
        event=str(event.get("kind", "message")),
        data_str=to_json(event, inf_nan_mode="null", fallback=str).decode(),
        id=None if seq is None else str(seq),
    )
