"""Following events, over broken connections and restarts of the network."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator

import httpx
from httpx_sse import EventSource, SSEError

from runnel.common.errors import RunnelError, Unreachable
from runnel.sdk.connection import Busy, Connection
from runnel.sdk.values import Event, read

# The server says something every 15 seconds; one that is silent for three times that is gone.
SILENCE_S = 45.0
PATIENCE_S = 120.0
_FIRST_PAUSE_S = 0.1
_MAX_PAUSE_S = 3.0


def follow(
    connection: Connection,
    path: str,
    *,
    after: int = 0,
    patience_s: float = PATIENCE_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Event]:
    """Yield the events at ``path`` after the sequence number ``after``, without an end.

    A connection that breaks is made again and goes on after the last event that was kept; what only passes (without a
    sequence number) may be missed then.

    Raises:
        Unreachable: the network did not answer for ``patience_s`` seconds.
    """
    seen = after
    pauses = _Pauses(patience_s, clock, sleep)
    while True:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store", "Last-Event-ID": str(seen)}
        try:
            with connection.stream(path, headers=headers, silence_s=SILENCE_S) as response:
                for event in _events(response):
                    pauses.reset()
                    seen = seen if event.seq is None else event.seq
                    yield event
        except (httpx.TransportError, Busy):
            if pauses.exhausted:
                with connection.unreachable():
                    raise
        # A stream that just ended is that of a server that stops, and that may come again.
        pauses.wait()


class _Pauses:
    """Growing, jittered pauses between connections, until patience is at its end."""

    def __init__(self, patience_s: float, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self._patience_s, self._clock, self._sleep = patience_s, clock, sleep
        self.reset()

    def reset(self) -> None:
        self._since: float | None = None
        self._pause_s = _FIRST_PAUSE_S

    @property
    def exhausted(self) -> bool:
        return self._since is not None and self._clock() - self._since > self._patience_s

    def wait(self) -> None:
        if self._since is None:
            self._since = self._clock()
        self._sleep(self._pause_s * random.uniform(0.5, 1.0))  # noqa: S311 (spreads callers, hides nothing)
        self._pause_s = min(2 * self._pause_s, _MAX_PAUSE_S)


def _events(response: httpx.Response) -> Iterator[Event]:
    try:
        for sent in EventSource(response).iter_sse():
            if not sent.data:
                continue
            document = json.loads(sent.data)
            if sent.event == "error":
                raise RunnelError.from_wire({**document, "message": document.get("detail", "")})
            yield read(Event, document)
    except (SSEError, ValueError) as error:
        raise Unreachable(
            f"{response.url} answered what is no stream of events: {error}.",
            hint="Is the address that of a reducer's HTTP interface? Set it by --url or RUNNEL_URL.",
        ) from error
