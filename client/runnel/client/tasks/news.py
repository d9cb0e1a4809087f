"""What a client says of its runs: each change at once, lines in batches, and the newest again after each attachment."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from runnel.common.protocol import MAX_DETAIL, MAX_LINE, LogLine, RunResult, RunState, TaskNews

_BATCH_PAUSE_S = 0.1
_BATCH_LINES = 200
_WAITING_LINES = 2000

Send = Callable[[TaskNews], bool]


@dataclass(slots=True)
class _Newest:
    news: TaskNews
    lines: deque[LogLine] = field(default_factory=lambda: deque(maxlen=_WAITING_LINES))


class RunNews:
    """Keeps the newest of each run.

    Args:
        client: name of the sender.
        send: takes what must arrive as far as the connection goes.
        offer: takes what may be lost when much waits: lines. While the client is attached nowhere the newest lines of
            each run are kept.
    """

    def __init__(self, client: str, send: Send, offer: Send) -> None:
        self._client = client
        self._send = send
        self._offer = offer
        self._newest: dict[str, _Newest] = {}
        self._wake = asyncio.Event()

    def state(self, run_id: str, state: RunState, detail: str = "", result: RunResult | None = None) -> None:
        """Say that a run is in ``state`` now."""
        news = TaskNews(run_id=run_id, client=self._client, state=state, detail=detail[:MAX_DETAIL], result=result)
        known = self._newest.get(run_id)
        if known is None:
            known = self._newest[run_id] = _Newest(news)
        elif known.news == news and result is None:
            return
        # What was written before is told before.
        self._flush(known)
        known.news = news
        self._send(news)

    def line(self, run_id: str, stream: str, text: str) -> None:
        """Say that a run wrote a line."""
        known = self._newest.get(run_id)
        if known is not None:
            known.lines.append(LogLine(at_ms=time.time_ns() // 1_000_000, stream=stream, text=text[:MAX_LINE]))
            self._wake.set()

    def again(self, run_id: str) -> None:
        """Say the newest of a run again."""
        if (known := self._newest.get(run_id)) is not None:
            self._send(known.news)

    def forget(self, run_id: str) -> None:
        """Say nothing more of a run."""
        self._newest.pop(run_id, None)

    async def run(self) -> None:
        """Tell lines, a few times a second, until cancelled."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(_BATCH_PAUSE_S)
            self._wake.clear()
            for known in list(self._newest.values()):
                self._flush(known)

    def _flush(self, known: _Newest) -> None:
        while known.lines:
            batch = [known.lines[index] for index in range(min(_BATCH_LINES, len(known.lines)))]
            if not self._offer(dataclasses.replace(known.news, lines=tuple(batch))):
                return
            for _ in batch:
                known.lines.popleft()
