"""What orders have become so far: a sum or the gathered updates of each, from the first payload to the report."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import structlog

from runnel.combiner.blob_cache import BlobCache
from runnel.combiner.domain import Fold as FoldDecision
from runnel.combiner.domain import OrderBook
from runnel.combiner.domain.outcomes import fitting, in_order
from runnel.combiner.folding import Fold
from runnel.combiner.payloads import Payloads
from runnel.common.aggregation import SumMemory
from runnel.common.blobs import Source, digest_payload
from runnel.common.crash_points import CrashPoint, reach
from runnel.common.errors import (
    BadModel,
    IllegalState,
    RunnelError,
    StorageFull,
    Unauthenticated,
    Unreachable,
)
from runnel.common.protocol import (
    MOST_WITHIN_BYTES,
    BlobRef,
    Failure,
    PayloadKind,
    Progress,
    Released,
    Report,
    Stage,
    Work,
)
from runnel.transport import TransferQueue, UplinkLink

log = structlog.get_logger()

_PUSH_DEADLINE_S = 3600.0
_AGAIN_S = 5.0
_IDLE_S = 30.0  # until memory is given back that the next round would use


class NotFolded(Exception):
    """An update was not folded, which is not its fault; the text says why, for people."""


class Partials:
    """The partial aggregates of all living orders.

    Args:
        folder: scratch, for what is not kept in memory.
        book: the orders.
        payloads: what those below pushed.
        cache: has the global models.
        link: the way up.

    Those below who push wait in ``queue`` while several updates are here that are not folded yet.
    """

    def __init__(
        self, folder: Path, *, book: OrderBook, payloads: Payloads, cache: BlobCache, link: UplinkLink
    ) -> None:
        self._folder = folder
        self._book = book
        self._payloads = payloads
        self._cache = cache
        self._link = link
        self._folds: dict[str, Fold] = {}
        self.queue = TransferQueue()
        self._memory = SumMemory()
        self._forgetting: asyncio.TimerHandle | None = None

    async def wipe(self) -> None:
        """Remove what an earlier process left."""
        await asyncio.to_thread(_empty_folder, self._folder)

    async def close(self) -> None:
        """Drop all."""
        for fold in list(self._folds.values()):
            await fold.drop()

    async def fold(self, decision: FoldDecision) -> Failure | None:
        """Fold the payload of a report, and remove it; return why it was refused, if it was.

        Raises:
            NotFolded: there is no room here, no memory, no file to be had.
        """
        report, order_id = decision.report, decision.order_id
        fold = None
        ref, payload = self._payloads.take(order_id, decision.child)
        try:
            if payload is None or ref is None or ref != report.payload or report.payload_kind is PayloadKind.NONE:
                raise BadModel(f"{decision.child} reported an update for {report.key} that it did not push.")
            order = self._book.orders.get(order_id)
            if order is None:
                return None
            asked, fold = order.assignment, self._folds.get(order_id)
            async with contextlib.AsyncExitStack() as held:
                model = None
                if fold is None or not fold.begun:
                    model = await held.enter_async_context(self._cache.held(asked.model))
                if order_id not in self._book.orders:
                    return None  # fenced meanwhile
                fold = fold or Fold(self._folder / f"{order_id}.sum", asked.gather, asked.compression, self._memory)
                fold = self._folds.setdefault(order_id, fold)
                with self.queue.working_off(ref.size_bytes):
                    await fold.add(report, payload, decision.child, model=model)
                if fold.broken:
                    raise NotFolded("The sum that it was in is lost.")
            reach(CrashPoint.UPDATE_FOLDED)
        except StorageFull as err:
            log.error("no room to fold an update", client=decision.child, key=str(report.key), error=str(err))
            raise NotFolded(err.message) from err
        except RunnelError as err:
            if fold is not None and fold.broken:
                raise NotFolded(err.message) from err
            log.warning("update refused", client=decision.child, key=str(report.key), code=err.code, error=str(err))
            return Failure(code=err.code, message=str(err))
        except NotFolded:
            raise
        except Exception as err:
            # No memory for the sum, a file that can't be read: of this session alone, and others go on.
            log.exception("update not folded", client=decision.child, key=str(report.key))
            raise NotFolded(f"It could not be folded: {str(err) or type(err).__name__}.") from err
        finally:
            await self._payloads.spend(payload)
            if order_id not in self._book.orders:
                await self.drop(order_id)
        return None

    async def lost(self, order_id: str) -> Sequence[str]:
        """Give the sum of an order up if it is broken; return whose updates were in it."""
        fold = self._folds.get(order_id)
        if fold is None or not fold.broken:
            return ()
        del self._folds[order_id]
        await fold.drop()
        return fold.clients

    async def report(self, order_id: str) -> None:
        """Push what was folded for an order, send its report and forget it."""
        order = self._book.orders.get(order_id)
        if order is None:
            return
        fold = self._folds.get(order_id)
        outcomes = fitting(in_order(order.outcomes, () if fold is None else fold.clients))
        report = Report(key=order.assignment.key, order_id=order_id, outcomes=outcomes)
        try:
            if order.assignment.key.work is Work.TRAIN and order.weight > 0 and fold is not None:
                ref = await self._push(order_id, await fold.finish())
                fold.release()
                self._forget_later()
                reach(CrashPoint.SUM_PUSHED)
                report = Report(
                    key=report.key,
                    order_id=order_id,
                    outcomes=report.outcomes,
                    payload_kind=fold.payload_kind,
                    payload=ref,
                    weight=order.weight,
                )
            if order_id in self._book.orders:
                self._link.send(report)
        except (Unreachable, Unauthenticated, IllegalState, FileNotFoundError) as err:
            # Away from the node above, or fenced by it, and the sum dropped while it was pushed: the clients still hold
            # their updates and are asked again.
            log.warning("report not delivered", key=str(report.key), order_id=order_id, error=str(err))
        except RunnelError as err:
            # Those who wait for it have to know.
            log.exception("sum refused", key=str(report.key), order_id=order_id)
            failure = Failure(code=err.code, message=str(err))
            failed = tuple(dataclasses.replace(each, failure=each.failure or failure) for each in report.outcomes)
            self._link.send(dataclasses.replace(report, outcomes=failed))
        except Exception:
            # No file to be had, no memory: no fault of the updates, which their clients still have.
            log.exception("sum not delivered", key=str(report.key), order_id=order_id, again_in_s=_AGAIN_S)
            await asyncio.sleep(_AGAIN_S)
            counted = tuple(each.client for each in report.outcomes if each.failure is None)
            self._link.send(Released(order_id=order_id, clients=counted))
            failed = tuple(each for each in report.outcomes if each.failure is not None)
            self._link.send(dataclasses.replace(report, outcomes=failed))
        self._book.orders.pop(order_id, None)
        await self.drop(order_id)

    async def drop(self, order_id: str) -> None:
        """Remove all that belongs to an order, after what is being folded for it now."""
        self._payloads.drop(order_id)
        if (fold := self._folds.pop(order_id, None)) is not None:
            await fold.drop()

    def _forget_later(self) -> None:
        if self._forgetting is not None:
            self._forgetting.cancel()
        self._forgetting = asyncio.get_running_loop().call_later(_IDLE_S, self._memory.forget)

    async def _push(self, order_id: str, source: Source) -> BlobRef:
        # A small sum has its name at once, so that it can go within the report; that of a large one is found meanwhile.
        small = isinstance(source, memoryview) and source.nbytes <= MOST_WITHIN_BYTES
        ref = digest_payload(source) if small else None
        while True:
            try:
                return await self._link.push(order_id, source, ref, deadline_s=_PUSH_DEADLINE_S)
            except StorageFull as err:
                log.error("no room above; trying again", order_id=order_id, error=str(err), again_in_s=_AGAIN_S)
                await self._wait_for_room(order_id, err)

    async def _wait_for_room(self, order_id: str, error: StorageFull) -> None:
        self._tell_no_room(order_id, error)
        await asyncio.sleep(_AGAIN_S)
        if order_id not in self._book.orders:
            raise Unreachable("The order is no longer wanted.") from error

    def _tell_no_room(self, order_id: str, error: StorageFull) -> None:
        """Let those who wait for the report know why it does not come."""
        if (order := self._book.orders.get(order_id)) is not None:
            for outcome in sorted(order.outcomes.values(), key=lambda each: each.failure is not None):  # told together
                stage = Stage.COUNTED if outcome.failure is None else Stage.FAILED
                key = order.assignment.key
                told = Progress(key=key, order_id=order_id, client=outcome.client, stage=stage, detail=error.message)
                self._link.send(told)


def _empty_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
