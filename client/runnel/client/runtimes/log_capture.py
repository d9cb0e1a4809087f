"""From the bytes that a run prints to lines that are fit to be sent, shown and kept: bounded, decoded, harmless."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field

from runnel.client.runtimes.runtime import DEFAULT_OUTPUT_BYTES, LineSink

LINE_BYTES = 8 * 1024
TAIL_BYTES = 4 * 1024
TAIL_LINES = 100
LEAST_LINE_COST = 32  # a line travels with its time and stream: empty ones must not be free
CUT_MARK = " … (line cut)"

# Terminal sequences and control characters would let a package repaint the terminal of whoever reads its log.
_TERMINAL_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(0x20), 0x7F, *range(0x80, 0xA0)) if code != 0x09}


@dataclass(slots=True)
class _Partial:
    """The line of one stream that has not ended yet; ``cut``: it was longer than is kept."""

    text: bytearray = field(default_factory=bytearray)
    cut: bool = False


class LogCapture:
    r"""Splits the streams of one run into lines and hands them on, within a budget.

    A line ends at ``\n``; of a line that was repainted with ``\r`` (a progress bar) what a terminal would show is kept.
    Lines longer than 8 KiB are cut. Bytes that are not UTF-8 and control characters become U+FFFD; colour codes go.
    When the lines handed on have reached ``budget_bytes`` the rest is dropped and :meth:`close` says how much.

    Args:
        say: takes the lines.
        budget_bytes: bytes of lines handed on, over all streams; a line counts 32 bytes at least.
    """

    __slots__ = (
        "_dropped_bytes",
        "_dropped_lines",
        "_full",
        "_limit",
        "_partial",
        "_room",
        "_say",
        "_tail",
        "_tail_bytes",
    )

    def __init__(self, say: LineSink, *, budget_bytes: int = DEFAULT_OUTPUT_BYTES) -> None:
        self._say = say
        self._limit = self._room = budget_bytes
        self._full = False
        self._dropped_bytes = 0
        self._dropped_lines = 0
        self._partial: dict[str, _Partial] = {}
        self._tail: deque[str] = deque()
        self._tail_bytes = 0

    @property
    def tail(self) -> str:
        """The last lines of all streams in order of arrival, at most 100 and 4 KiB of UTF-8, whatever the budget."""
        return "\n".join(self._tail)

    def feed(self, stream: str, data: bytes) -> None:
        """Take the next bytes of ``stream``."""
        partial = self._partial.setdefault(stream, _Partial())
        start = 0
        while start < len(data) and not self._full:
            self._take(stream, partial, data[start : start + LINE_BYTES])
            start += LINE_BYTES
        if start < len(data):
            self._take(stream, partial, self._skip(partial, data[start:]))

    def _take(self, stream: str, partial: _Partial, data: bytes) -> None:
        *ended, rest = data.split(b"\n")
        for piece in ended:
            self._extend(partial, piece)
            self._end_line(stream, partial)
        self._extend(partial, rest)

    def close(self) -> None:
        """Hand on the lines that were not ended, and say how much was dropped, if anything."""
        for stream, partial in self._partial.items():
            if partial.text or partial.cut:
                self._end_line(stream, partial)
        self._partial.clear()
        if self._dropped_lines:
            self._say(
                "runnel",
                f"{self._dropped_lines:,} lines ({self._dropped_bytes:,} bytes) more were printed and not kept: "
                f"the limit is {self._limit:,} bytes a run.",
            )
            self._dropped_lines = self._dropped_bytes = 0

    def _skip(self, partial: _Partial, data: bytes) -> bytes:
        """Drop what can't be in the tail, without looking at each line: a flood must not keep the event loop busy."""
        first, *last = data.rsplit(b"\n", TAIL_LINES + 1)
        if len(last) <= TAIL_LINES:
            return data
        end = len(first) + 1
        self._dropped_lines += data.count(b"\n", 0, end)
        self._dropped_bytes += end + len(partial.text)
        partial.text.clear()
        partial.cut = False
        return data[end:]

    def _extend(self, partial: _Partial, piece: bytes) -> None:
        if partial.cut:
            self._dropped_bytes += len(piece)
            return
        text = partial.text
        text += piece
        if len(text) > LINE_BYTES:
            del text[: text.rfind(b"\r", 0, len(text) - 1) + 1]
        if len(text) > LINE_BYTES:
            partial.cut = True
            del text[LINE_BYTES:]

    def _end_line(self, stream: str, partial: _Partial) -> None:
        size = len(partial.text) + 1
        cost = max(size, LEAST_LINE_COST)
        text = readable(bytes(partial.text))
        if partial.cut:
            text += CUT_MARK
        partial.text.clear()
        partial.cut = False
        self._remember(text)
        if self._full or cost > self._room:
            self._full = True
            self._dropped_lines += 1
            self._dropped_bytes += size
        else:
            self._room -= cost
            self._say(stream, text)

    def _remember(self, text: str) -> None:
        encoded = text.encode()
        if len(encoded) >= TAIL_BYTES:
            text = encoded[-TAIL_BYTES + 1 :].decode(errors="ignore")
            encoded = text.encode()
        self._tail.append(text)
        self._tail_bytes += len(encoded) + 1
        while self._tail_bytes > TAIL_BYTES or len(self._tail) > TAIL_LINES:
            self._tail_bytes -= len(self._tail.popleft().encode()) + 1


def readable(line: bytes) -> str:
    r"""Return ``line`` (bytes without ``\n``) as a person may see it.

    >>> readable(b"10 %\r20 %\r")
    '20 %'
    >>> readable(b"\x1b[31mred\x1b[0m caf\xc3\xa9 \xff")
    'red café �'
    """
    line = line.removesuffix(b"\r")
    text = line[line.rfind(b"\r") + 1 :].decode(errors="replace")
    return _TERMINAL_SEQUENCE.sub("", text).translate(_CONTROLS)
