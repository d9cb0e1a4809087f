"""Folding updates into one weighted sum for each order, or one file of all of them, in worker threads."""

from __future__ import annotations

import asyncio
import functools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runnel.common.aggregation import Gathering, WeightedSum
from runnel.common.aggregation.mean import require_weight
from runnel.common.blobs import digest_file, storage_errors
from runnel.common.compression import NO_COMPRESSION, decoded_update, parse_compression
from runnel.common.errors import BadModel
from runnel.common.protocol import BlobRef, Gather, PayloadKind, Report
from runnel.common.tensors import ModelSchema, NpzModel, open_npz


class Fold:
    """The weighted sum of one order, or all its updates where a rule above needs every one.

    Updates are folded one at a time in the order in which they came; one that turns out bad leaves nothing behind. The
    memory is that of one sum, however many updates there are; gathered updates take a block of memory, and disk for
    each of them.

    Args:
        path: where the sum or the updates are kept.
        gather: which of the two.
        compression: of the updates of clients; each is decoded to a file beside it while it is folded.

    Raises:
        InvalidInput: there is no such compression.
    """

    def __init__(self, path: Path, gather: Gather = Gather.SUM, compression: str = NO_COMPRESSION) -> None:
        self.clients: list[str] = []
        self.payload_kind = PayloadKind.UPDATES if gather is Gather.UPDATES else PayloadKind.WEIGHTED_SUM
        self._compression = parse_compression(compression)
        self._path = path
        self._base = path.with_suffix(".base")
        self._held: WeightedSum | Gathering | None = None
        self._schema: ModelSchema | None = None
        self._turn = asyncio.Lock()

    async def add(self, report: Report, payload: Path, model: Path, source: str) -> None:
        """Fold the payload of a report; ``model`` is the global model that it must look like.

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
        async with self._turn:
            await asyncio.to_thread(functools.partial(self._add, report, payload, model, source))
            self.clients += [outcome.client for outcome in counted]

    def _add(self, report: Report, payload: Path, model: Path, source: str) -> None:
        if self._schema is None:
            with open_npz(model, source="the global model") as opened:
                self._schema = opened.schema
        counted = [o for o in report.outcomes if o.failure is None]
        if self.payload_kind is PayloadKind.UPDATES:
            held = self._held = self._held or Gathering(self._path, self._schema)
            assert isinstance(held, Gathering)
            for outcome in counted:
                require_weight(outcome.weight, source=outcome.client)
            if report.payload_kind is PayloadKind.UPDATES:
                held.merge(payload, len(counted), source=source)
            else:
                with self._update(payload, model, source) as update:
                    held.add(update)
            return
        total = self._held = self._held or WeightedSum.create(self._path, self._schema)
        assert isinstance(total, WeightedSum)
        if report.payload_kind is PayloadKind.WEIGHTED_SUM:
            total.merge(payload, report.weight, source=source)
        else:
            with self._update(payload, model, source) as update:
                total.add(update, counted[0].weight)

    @contextmanager
    def _update(self, payload: Path, model: Path, source: str) -> Iterator[NpzModel]:
        base = model if self._compression.is_none else self._own(model)
        with (
            decoded_update(payload, compression=self._compression, base=base, source=source) as plain,
            open_npz(plain, source=source, expect=self._schema) as update,
        ):
            yield update

    def _own(self, model: Path) -> Path:
        """Return the global model under a name of this order's own: the cache may drop it while updates still come."""
        if not self._base.exists():
            try:
                self._base.hardlink_to(model)
            except OSError:  # a filesystem without links
                with storage_errors(self._base):
                    shutil.copyfile(model, self._base)
        return self._base

    async def finish(self) -> tuple[Path, BlobRef]:
        """Return the file of the sum or of the updates, and its name."""
        async with self._turn:
            if self._held is None:
                raise ValueError("nothing was folded")
            path = await asyncio.to_thread(self._held.finish)
            return path, await asyncio.to_thread(digest_file, path)

    async def drop(self) -> None:
        """Remove the file, after what is being folded now."""
        async with self._turn:
            if isinstance(self._held, Gathering):
                self._held.close()
            self._held = None
            await asyncio.to_thread(self._path.unlink, missing_ok=True)
            await asyncio.to_thread(self._base.unlink, missing_ok=True)
