"""Lines of entry points on their way up, in batches."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from runnel.common.protocol import AssignmentKey, LogLine, LogLines

_BATCH_PAUSE_S = 0.1
_BATCH_LINES = 256
_WAITING_LINES = 10_000


class LogStream:
    """Collects lines and sends them a few times a second; idle when there are none.

    While the client is attached nowhere the newest lines wait here, up to a limit.

    Args:
        client: name of the sender.
        send: takes a batch, or returns False when it can't be sent now.
    """

    def __init__(self, client: str, send: Callable[[LogLines], bool]) -> None:
        self._client = client
        self._send = send
        self._waiting: deque[tuple[AssignmentKey, LogLine]] = deque(maxlen=_WAITING_LINES)
        self._wake = asyncio.Event()

    def add(self, key: AssignmentKey, stream: str, text: str) -> None:
        """Take one line."""
        self._waiting.append((key, LogLine(at_ms=time.time_ns() // 1_000_000, stream=stream, text=text)))
        self._wake.set()

    def flush(self) -> None:
        """Send what waits, as far as it can be sent now."""
        while self._waiting:
            key = self._waiting[0][0]
            lines: list[LogLine] = []
            for line_key, line in self._waiting:
                if line_key != key or len(lines) == _BATCH_LINES:
                    break
                lines.append(line)
            if not self._send(LogLines(key=key, client=self._client, lines=tuple(lines))):
                return
            for _ in lines:
                self._waiting.popleft()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(_BATCH_PAUSE_S)
            self._wake.clear()
            self.flush()
