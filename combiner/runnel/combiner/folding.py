"""Folding updates into one weighted sum for each order, in worker threads."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path

from runnel.common.aggregation import WeightedSum
from runnel.common.blobs import digest_file
from runnel.common.errors import BadModel
from runnel.common.protocol import BlobRef, PayloadKind, Report
from runnel.common.tensors import ModelSchema, open_npz


class Fold:
    """The weighted sum of one order.

    Updates are folded one at a time in the order in which they came; each is checked whole before the first number of
    it is added. The memory is that of one sum, however many updates there are.

    Args:
        path: where the sum is kept.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sum: WeightedSum | None = None
        self._schema: ModelSchema | None = None
        self._turn = asyncio.Lock()

    async def add(self, report: Report, payload: Path, model: Path, source: str) -> None:
        """Fold the payload of a report; ``model`` is the global model that it must look like.

        Raises:
            RunnelError: the payload is bad; the sum is as it was.
        """
        weight = sum(o.weight for o in report.outcomes if o.failure is None)
        if report.payload_kind is PayloadKind.WEIGHTED_SUM and abs(report.weight - weight) > 1e-9 * max(weight, 1.0):
            raise BadModel(f"{source} reported a sum of weight {report.weight:g}, and clients of {weight:g} together.")
        async with self._turn:
            await asyncio.to_thread(functools.partial(self._add, report, payload, model, source))

    def _add(self, report: Report, payload: Path, model: Path, source: str) -> None:
        if self._schema is None:
            with open_npz(model, source="the global model") as opened:
                self._schema = opened.schema
        if self._sum is None:
            self._sum = WeightedSum.create(self._path, self._schema)
        if report.payload_kind is PayloadKind.WEIGHTED_SUM:
            self._sum.merge(payload, report.weight, source=source)
        else:
            with open_npz(payload, source=source, expect=self._schema) as update:
                self._sum.add(update, report.outcomes[0].weight)

    async def finish(self) -> tuple[Path, BlobRef]:
        """Return the file of the sum and its name."""
        async with self._turn:
            if self._sum is None:
                raise ValueError("nothing was folded")
            path = await asyncio.to_thread(self._sum.finish)
            return path, await asyncio.to_thread(digest_file, path)

    async def drop(self) -> None:
        """Remove the sum, after what is being folded now."""
        async with self._turn:
            self._sum = None
            await asyncio.to_thread(self._path.unlink, missing_ok=True)
