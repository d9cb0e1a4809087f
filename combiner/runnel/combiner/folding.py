"""Folding updates into one weighted sum for each order, or one file of all of them, in worker threads."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from runnel.combiner.payloads import Payload
from runnel.common.aggregation import Gathering, SumMemory, WeightedSum
from runnel.common.aggregation.mean import require_weight
from runnel.common.blobs import Source, in_thread, storage_errors
from runnel.common.compression import NO_COMPRESSION, decoded_update, parse_compression
from runnel.common.errors import BadModel
from runnel.common.protocol import Gather, PayloadKind, Report
from runnel.common.tensors import ModelSchema, NpzModel, open_npz
from runnel.transport import SMALL_BYTES

_FEW = 4  # small updates that are folded at once without a thread


@dataclass(slots=True, kw_only=True, eq=False)
class _Waiting:
    """An answer that is to be folded, and what was wrong with it."""

    report: Report
    payload: Payload
    source: str
    model: Path | None
    error: Exception | None = None

    @property
    def is_slight(self) -> bool:
        """Whether it came within its report, and is an update: no file is needed to add it."""
        return not isinstance(self.payload, Path) and self.report.payload_kind is PayloadKind.UPDATE


class Fold:
    """The weighted sum of one order, or all its updates where a rule above needs every one.

    Updates are folded one at a time in the order in which they came; one that turns out bad leaves nothing behind. One
    that can't be read to its end after that breaks the sum, and all that are in it have to come once more. The memory
    is that of one sum, however many updates there are; gathered updates take a block of memory, and disk for each of
    them.

    Args:
        path: where updates are kept; a sum is kept in memory.
        gather: which of the two.
        compression: of the updates of clients; each is decoded to a file beside it while it is folded.
        memory: of sums.

    Raises:
        InvalidInput: there is no such compression.
    """

    def __init__(
        self,
        path: Path,
        gather: Gather = Gather.SUM,
        compression: str = NO_COMPRESSION,
        memory: SumMemory | None = None,
    ) -> None:
        self.clients: list[str] = []
        self.payload_kind = PayloadKind.UPDATES if gather is Gather.UPDATES else PayloadKind.WEIGHTED_SUM
        self._compression = parse_compression(compression)
        self._memory = memory
        self._path = path
        self._base = path.with_suffix(".base")
        self._held: WeightedSum | Gathering | None = None
        self._schema: ModelSchema | None = None
        self._turn = asyncio.Lock()
        self._waiting: list[_Waiting] = []

    @property
    def begun(self) -> bool:
        """Whether the global model is known, so that :meth:`add` needs it no more."""
        return self._schema is not None

    @property
    def broken(self) -> bool:
        """Whether the sum is of no use any more, for an update is in it in part only."""
        return isinstance(self._held, WeightedSum) and self._held.broken

    async def add(self, report: Report, payload: Payload, source: str, *, model: Path | None) -> None:
        """Fold the payload of a report; ``model`` is the global model that it must look like, until it is known.

        Raises:
            RunnelError: the payload is bad, or there is no room; what was folded before is as it was.
        """
        counted = [o for o in report.outcomes if o.failure is None]
        weight = sum(o.weight for o in counted)
        if report.payload_kind not in {PayloadKind.UPDATE, self.payload_kind}:
            raise BadModel(
                f"{source} answered {report.key} with a payload of the kind {report.payload_kind.value}; expected was"
                f" {self.payload_kind.value}.",
                hint="It may run another version of Runnel.",
            )
        if report.payload_kind is PayloadKind.UPDATE and len(counted) != 1:
            raise BadModel(f"{source} reported one update for {report.key}, and {len(counted)} clients.")
        if report.payload_kind is PayloadKind.WEIGHTED_SUM and abs(report.weight - weight) > 1e-9 * max(weight, 1.0):
            raise BadModel(f"{source} reported a sum of weight {report.weight:g}, and clients of {weight:g} together.")
        mine = _Waiting(report=report, payload=payload, source=source, model=model)
        self._waiting.append(mine)
        async with self._turn:
            if batch := self._batch(mine):
                if self._is_slight(batch):
                    self._add_all(batch)
                else:
                    await in_thread(self._add_all, batch)
        if mine.error is not None:
            raise mine.error

    def _batch(self, mine: _Waiting) -> Sequence[_Waiting]:
        """Take what is to be folded now: all that wait, as for a small update the way to a thread is the larger part.

        But of large ones no more than up to ``mine``: the file of each is gone as soon as who brought it goes on.
        """
        if mine not in self._waiting:
            return ()
        large = any(
            each.report.payload is not None and each.report.payload.size_bytes > SMALL_BYTES for each in self._waiting
        )
        last = self._waiting.index(mine) + 1 if large else len(self._waiting)
        batch, self._waiting = self._waiting[:last], self._waiting[last:]
        return batch

    def _is_slight(self, batch: Sequence[_Waiting]) -> bool:
        """Whether a few small updates are to be summed in memory: then others wait less than the way takes."""
        sums = self.payload_kind is PayloadKind.WEIGHTED_SUM and self._compression.is_none
        return sums and len(batch) <= _FEW and all(each.is_slight for each in batch)

    def _add_all(self, batch: Sequence[_Waiting]) -> None:
        for each in batch:
            try:
                self._begin(each.model)
                self._add(each.report, each.payload, each.source)
            except Exception as error:  # noqa: BLE001 - told to the one whose update it is
                each.error = error
            else:
                self.clients += [outcome.client for outcome in each.report.outcomes if outcome.failure is None]

    def _begin(self, model: Path | None) -> None:
        if self._schema is None:
            assert model is not None
            if not self._compression.is_none:
                self._own(model)
            with open_npz(model, source="the global model") as opened:
                self._schema = opened.schema

    def _add(self, report: Report, payload: Payload, source: str) -> None:
        assert self._schema is not None
        counted = [o for o in report.outcomes if o.failure is None]
        if self.payload_kind is PayloadKind.UPDATES:
            held = self._held = self._held or Gathering(self._path, self._schema)
            assert isinstance(held, Gathering)
            for outcome in counted:
                require_weight(outcome.weight, source=outcome.client)
            if report.payload_kind is PayloadKind.UPDATES:
                with self._file(payload) as file:
                    held.merge(file, len(counted), source=source)
            else:
                with self._update(payload, source) as update:
                    held.add(update)
            return
        total = self._held = self._held or WeightedSum(self._schema, self._memory)
        assert isinstance(total, WeightedSum)
        if report.payload_kind is PayloadKind.WEIGHTED_SUM:
            with self._file(payload) as file:
                total.merge(file, report.weight, source=source)
        else:
            with self._update(payload, source) as update:
                total.add(update, counted[0].weight)

    @contextmanager
    def _update(self, payload: Payload, source: str) -> Iterator[NpzModel]:
        if self._compression.is_none:
            with open_npz(payload, source=source, expect=self._schema) as update:
                yield update
            return
        with (
            self._file(payload) as file,
            decoded_update(file, compression=self._compression, base=self._base, source=source) as plain,
            open_npz(plain, source=source, expect=self._schema) as update,
        ):
            yield update

    @contextmanager
    def _file(self, payload: Payload) -> Iterator[Path]:
        if isinstance(payload, Path):
            yield payload
            return
        file = self._path.with_suffix(".payload")
        try:
            with storage_errors(file, need_bytes=len(payload)):
                file.write_bytes(payload)
            yield file
        finally:
            file.unlink(missing_ok=True)

    def _own(self, model: Path) -> None:
        """Give the global model a name of this order's own: the cache may drop it while updates still come."""
        if not self._base.exists():
            try:
                self._base.hardlink_to(model)
            except OSError:  # a filesystem without links
                with storage_errors(self._base):
                    shutil.copyfile(model, self._base)

    async def finish(self) -> Source:
        """Return the bytes of the sum or the file of the updates; nothing may be added after that."""
        async with self._turn:
            if self._held is None:
                raise ValueError("nothing was folded")
            return await in_thread(self._held.finish)

    def release(self) -> None:
        """What was folded is delivered: let the next order have the memory of the sum."""
        if isinstance(self._held, WeightedSum):
            self._held.release()
            self._held = None

    async def drop(self) -> None:
        """Remove the file, after what is being folded now."""
        async with self._turn:
            if isinstance(self._held, Gathering):
                self._held.close()
            self._held = None
            if self.payload_kind is PayloadKind.UPDATES or not self._compression.is_none:
                await asyncio.to_thread(self._remove)

    def _remove(self) -> None:
        self._path.unlink(missing_ok=True)
        self._base.unlink(missing_ok=True)
