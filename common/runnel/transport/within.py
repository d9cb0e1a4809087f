"""Small blobs that travel within the messages of the stream instead of by calls of their own."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import TypeVar

from runnel.common.protocol import Assignment, BlobRef, Report

_MODELS = 8
_ORDERS = 64

K = TypeVar("K")
V = TypeVar("V")


class Within:
    """What came within the assignments of one attachment, and what is to go within its reports."""

    def __init__(self) -> None:
        self._models: OrderedDict[str, bytes] = OrderedDict()
        self._limits: OrderedDict[str, int] = OrderedDict()
        self._payloads: OrderedDict[str, tuple[BlobRef, bytes]] = OrderedDict()

    def take(self, assignment: Assignment) -> Assignment:
        """Keep what an assignment brought; return it without."""
        _put(self._limits, assignment.order_id, assignment.payload_within, _ORDERS)
        if not assignment.model_data:
            return assignment
        _put(self._models, assignment.model.sha256, assignment.model_data, _MODELS)
        return dataclasses.replace(assignment, model_data=b"")

    def model(self, ref: BlobRef) -> bytes | None:
        """Return the bytes that came under this name, not verified yet."""
        return self._models.get(ref.sha256)

    def allows(self, order_id: str, ref: BlobRef) -> bool:
        """Tell whether a payload may go within the report."""
        return 0 < ref.size_bytes <= self._limits.get(order_id, 0)

    def keep(self, order_id: str, ref: BlobRef, data: bytes) -> None:
        """Keep a payload for the report of its order."""
        _put(self._payloads, order_id, (ref, data), _ORDERS)

    def complete(self, report: Report) -> Report:
        """Return a report with the payload that was kept for it, if there is one."""
        ref, data = self._payloads.pop(report.order_id, (None, b""))
        return dataclasses.replace(report, payload_data=data) if ref is not None and ref == report.payload else report


def _put(kept: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > most:
        kept.popitem(last=False)
