"""Finished reports: kept on disk, and offered to whoever asks for them."""

from __future__ import annotations

import asyncio
import dataclasses
from contextlib import suppress
from functools import partial

import structlog

from runnel.client.domain.jobs import JobBook
from runnel.client.elapsed import timed
from runnel.client.execution import TELLING_BYTES
from runnel.client.outbox import HeldReport, Outbox, Update
from runnel.common.blobs import by_size, in_thread
from runnel.common.crash_points import CrashPoint, reach
from runnel.common.errors import (
    Conflict,
    CorruptData,
    IllegalState,
    InvalidInput,
    RunnelError,
    StorageFull,
    TooLarge,
    Unauthenticated,
    Unreachable,
)
from runnel.common.protocol import AssignmentKey, Failure, Outcome, PayloadKind, Progress, Report, Stage
from runnel.transport import UplinkLink

log = structlog.get_logger()

_PUSH_AGAIN_S = 5.0
_PUSHES_AGAIN = 3
_PUSH_DEADLINE_S = 3600.0


class Delivery:
    """What is finished, from the outbox upward.

    Args:
        name: of the client.
        outbox: keeps the reports.
        book: knows under which order each is wanted.
        link: the way up.
    """

    def __init__(self, name: str, outbox: Outbox, book: JobBook, link: UplinkLink) -> None:
        self._name = name
        self._outbox = outbox
        self._book = book
        self._link = link
        self._newest: HeldReport | None = None  # what was kept last, which is offered next

    async def keep(self, key: AssignmentKey, outcome: Outcome, update: Update | None) -> Outcome:
        """Keep a report, or that it could not be kept; return what is kept."""
        again = _PUSHES_AGAIN
        while True:
            try:
                if update is None:
                    self._newest = await in_thread(self._outbox.keep, key, outcome, None)
                else:
                    left, carried = update.left, update.carried
                    keep = partial(self._outbox.keep, key, outcome, update.file, left=left, carried=carried)
                    self._newest = await by_size(update.file.stat().st_size, keep)
            except (StorageFull, OSError) as err:
                log.error("a finished report can't be kept", key=str(key), error=str(err))
                if update is None or (again and isinstance(err, OSError)):  # not even a failure; or it may pass
                    again -= 1
                    await asyncio.sleep(_PUSH_AGAIN_S)
                    continue
                code = err.code if isinstance(err, StorageFull) else RunnelError.code
                failure = Failure(code=code, message=f"{self._name}: {err}")
                outcome, update = dataclasses.replace(outcome, failure=failure), None
                with suppress(OSError):
                    await in_thread(self._outbox.drop, key)
            else:
                return outcome

    async def offer(self, key: AssignmentKey, order_id: str) -> None:
        """Push and report what is held, while the order wants it: again and again if there is no room for it above.

        What can't be delivered for another reason than the attachment or the order is reported as a failure.
        """
        held, self._newest = self._newest, None
        if held is None or held.key != key:
            held = await asyncio.to_thread(self._outbox.get, key)
        if held is None:
            message = f"{self._name} can't read the finished report of {key}; its log says why."
            self._report_failure(key, order_id, CorruptData(message), Outcome(client=self._name))
            return
        again = _PUSHES_AGAIN
        while self._book.wanted(key, order_id):
            try:
                await self._deliver(held, order_id)
            except StorageFull as err:
                log.error("no room above; trying again", key=str(key), error=str(err), again_in_s=_PUSH_AGAIN_S)
                self._tell_pushing(key, order_id, err.message)
                await asyncio.sleep(_PUSH_AGAIN_S)
                continue
            except (TooLarge, InvalidInput, CorruptData) as err:
                self._report_failure(key, order_id, err, held.outcome)
            except IllegalState as err:
                log.info("order closed", key=str(key), error=str(err))
            except (Unreachable, Conflict, Unauthenticated) as err:
                log.warning("update not delivered; it is kept", key=str(key), error=str(err))
            except (RunnelError, OSError) as err:  # of the files here, too
                if again:
                    again -= 1
                    log.warning("update not delivered; trying again", key=str(key), error=str(err))
                    await asyncio.sleep(_PUSH_AGAIN_S)
                    continue
                self._report_failure(key, order_id, err, held.outcome)
            return

    def _report_failure(
        self, key: AssignmentKey, order_id: str, error: RunnelError | OSError, outcome: Outcome
    ) -> None:
        """Tell that work is lost, if the order still waits for it: then it is settled, and can be done again."""
        if not self._book.wanted(key, order_id):
            return
        code = error.code if isinstance(error, RunnelError) else RunnelError.code
        message = str(error) if isinstance(error, RunnelError) else f"{self._name}: {error}"
        log.error("finished work can't be delivered", key=str(key), code=code, error=message)
        failed = dataclasses.replace(outcome, failure=Failure(code=code, message=message))
        self._link.send(Report(key=key, order_id=order_id, outcomes=(failed,)))

    async def _deliver(self, held: HeldReport, order_id: str) -> None:
        """Push the payload and report it.

        Raises:
            RunnelError: it could not be delivered.
            OSError: the payload can't be read.
        """
        outcome = held.outcome
        if held.file is not None and held.payload is not None:
            if held.payload.size_bytes > TELLING_BYTES:
                self._tell_pushing(held.key, order_id)
            elapsed_s = dict(outcome.elapsed_s)
            with timed(elapsed_s, "push"):
                await self._link.push(order_id, held.file, held.payload, deadline_s=_PUSH_DEADLINE_S)
            outcome = dataclasses.replace(outcome, elapsed_s=elapsed_s)
            reach(CrashPoint.UPDATE_PUSHED)
        if self._book.wanted(held.key, order_id):
            self._link.send(_report(held, order_id, outcome))

    def _tell_pushing(self, key: AssignmentKey, order_id: str, detail: str = "") -> None:
        self._link.send(Progress(key=key, order_id=order_id, client=self._name, stage=Stage.PUSHING, detail=detail))


def _report(held: HeldReport, order_id: str, outcome: Outcome) -> Report:
    if outcome.failure is not None or held.payload is None:
        return Report(key=held.key, order_id=order_id, outcomes=(outcome,))
    return Report(
        key=held.key,
        order_id=order_id,
        outcomes=(outcome,),
        payload_kind=PayloadKind.UPDATE,
        payload=held.payload,
        weight=outcome.weight,
    )
