"""The records of a site's audit log and the chain that holds them together.

A record is one line of JSON: ``seq`` (from 1), ``at`` (UTC), ``kind``, ``data``, ``prev`` and ``hash``. The hash is the
SHA-256 of the line without it, with sorted keys and no spaces, and ``prev`` is the hash of the record before: a record
that is changed, taken out, put in or moved breaks the chain from there on. What a chain can't show is that its newest
records were cut off; who knows the hash of one of them can (``runnel client audit --contains``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

FIRST = "0" * 64
"""What the first record has as ``prev``."""

_KEYS = frozenset({"seq", "at", "kind", "data", "prev", "hash"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One entry. ``kind``: such as ``run.started``; ``data``: what JSON can say."""

    seq: int
    at: datetime
    kind: str
    data: Mapping[str, Any]
    prev: str
    hash: str

    def line(self) -> bytes:
        """Return it as it is written, with the end of the line."""
        return f"{_text(_document(self) | {'hash': self.hash})}\n".encode()


class BrokenChain(ValueError):
    """The record on line ``number`` (from 1) is not what follows the one before it."""

    def __init__(self, number: int, problem: str) -> None:
        super().__init__(f"line {number}: {problem}")
        self.number = number
        self.problem = problem


def following(before: Record | None, at: datetime, kind: str, data: Mapping[str, Any]) -> Record:
    """Return the record that follows ``before`` (None: the first)."""
    at = at.astimezone(UTC)
    made = Record(
        seq=1 if before is None else before.seq + 1,
        at=at.replace(microsecond=at.microsecond // 1000 * 1000),
        kind=kind,
        data=data,
        prev=FIRST if before is None else before.hash,
        hash="",
    )
    return dataclasses.replace(made, hash=_hash(_document(made)))


def read_record(line: bytes, number: int) -> Record:
    """Return the record on a line, whatever comes before it.

    Raises:
        BrokenChain: it is no record, or not what its hash was made of.
    """
    try:
        told = json.loads(line)
        if not isinstance(told, dict) or told.keys() != _KEYS:
            raise BrokenChain(number, "it is no record")
        record = Record(**{**told, "at": datetime.fromisoformat(told["at"])})
    except (ValueError, TypeError) as error:
        if isinstance(error, BrokenChain):
            raise
        raise BrokenChain(number, "it is no record") from error
    del told["hash"]
    if _hash(told) != record.hash:
        raise BrokenChain(number, "it was changed after it was written")
    return record


def read_chain(lines: Iterable[bytes]) -> Iterator[Record]:
    """Yield the records of a whole log, in order.

    Raises:
        BrokenChain: at the first line that does not belong there.
    """
    before: Record | None = None
    for number, line in enumerate(lines, start=1):
        record = read_record(line, number)
        expected = (FIRST, 1) if before is None else (before.hash, before.seq + 1)
        if (record.prev, record.seq) != expected:
            raise BrokenChain(number, f"record {record.seq} does not follow the one before; something is missing")
        yield record
        before = record


def _document(record: Record) -> dict[str, Any]:
    at = record.at.isoformat(timespec="milliseconds")
    return {"seq": record.seq, "at": at, "kind": record.kind, "data": dict(record.data), "prev": record.prev}


def _hash(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(document).encode()).hexdigest()


def _text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
