"""What a session's package decides of its rounds: asked, tried again when it fails, and written with the round."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from runnel.common.blobs import in_thread
from runnel.common.errors import ServerFunctionFailed, ServerFunctionsRefused
from runnel.common.protocol import AssignmentKey, BlobRef, LogLine, LogLines, Work
from runnel.compute_package import ServerCode
from runnel.reducer.engine.position import Position, server_code
from runnel.reducer.engine.reduction import ReducedModel, Reduction, schema_of
from runnel.reducer.engine.retention import Retention
from runnel.reducer.server_functions.functions import Asked, Beginning, ServerFunctions
from runnel.reducer.store import ledger, registry, server_states
from runnel.reducer.store.journal import Journal, Transaction
from runnel.reducer.store.tables import PackageRow, PartialRow, RoundRow, SessionRow

log = structlog.get_logger()

SPEAKER = "reducer:server.py"
"""Whose lines in the session's log these are; no node can have a name with a colon."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A round whose package has functions for the server: whom to ask, the state that the round began with, if it was
    asked then, and that which the rounds before left.
    """

    asked: Asked
    began: str | None
    before: str | None


class Stopped(Exception):
    """Raised when the session is to stop."""


class ServerRounds:
    """Asks the package of one session.

    What it answers is committed with the step that acts on it, so a reducer that is started again asks only for what
    was not acted on yet, and then with the same inputs.

    Args:
        position: where the session is; not modified.
        functions: runs the package; None: this reducer runs none.
        journal: the durable state.
        retention: removes states that nobody needs any more.
        say: takes what the package prints.
        pause: waits before another try, the first of which is number 0.
    """

    def __init__(
        self,
        position: Position,
        *,
        functions: ServerFunctions | None,
        journal: Journal,
        retention: Retention,
        say: Callable[[LogLines], None],
        pause: Callable[[int], Awaitable[None]],
    ) -> None:
        self._position = position
        self._functions = functions
        self._journal = journal
        self._retention = retention
        self._say = say
        self._pause = pause
        self._begins: dict[str, bool] = {}  # by digest of a package
        self._stopping = False
        self._scope: asyncio.Timeout | None = None

    def stop(self) -> None:
        """End what is under way, which raises :class:`Stopped` then."""
        self._stopping = True
        if self._scope is not None and not self._scope.expired():  # asked twice, while a thread still ends
            self._scope.reschedule(asyncio.get_running_loop().time())

    async def begins(self, tx: Transaction, row: SessionRow) -> bool:
        """Tell whether the package of a session's next round has to be asked before its clients are."""
        digest = row.package_digest
        if digest not in self._begins:  # once for each package: what one says of itself never changes
            package = await tx.session.get_one(PackageRow, (row.organisation_id, digest))
            code = server_code(package, self._position.config)
            self._begins[digest] = code is not None and code.begins
        return self._begins[digest]

    async def begin(self, clients: Callable[[], Sequence[str]]) -> Beginning | None:
        """Ask how the round begins, which has been entered; None: its package has no say in that.

        Args:
            clients: returns who may be asked, for each try anew: others may have attached meanwhile.

        Raises:
            ServerFunctionFailed: it failed as often as the session allows.
            ServerFunctionsRefused: this reducer does not run it.
            Stopped: the session is to stop.
        """
        position = self._position
        async with self._journal.database.read() as tx:
            turn = await self.turn(tx)
        if turn is None or not turn.asked.code.begins:
            return None
        functions, asked, before = self._require(turn.asked), turn.asked, turn.before
        return await self._tried(
            lambda: functions.begin(
                asked, clients=clients(), least=position.config.min_clients, model=position.model, state=before
            )
        )

    async def write(self, tx: Transaction, number: int, beginning: Beginning) -> None:
        """Write how a round begins."""
        position = self._position
        row = await tx.session.get_one(RoundRow, (position.session_id, number))
        row.server_state = beginning.state
        if beginning.settings is not None:
            row.client_settings = {**position.config.client_settings, **beginning.settings}
        await tx.record(
            "round.directed",
            position.organisation,
            position.session_id,
            round=number,
            clients=None if beginning.clients is None else list(beginning.clients),
            client_settings=row.client_settings,
        )

    async def reduced(
        self,
        turn: Turn | None,
        reduction: Reduction,
        partials: Sequence[PartialRow],
        counted: Sequence[ledger.CountedUpdate],
    ) -> ReducedModel | None:
        """Have the package make the round's model; None: that is for the strategy.

        The inputs are local files, as for :meth:`Reduction.run`. Raises as :meth:`begin`.
        """
        if turn is None or turn.asked.code.aggregator is None:
            return None
        functions, asked = self._require(turn.asked), turn.asked
        state = turn.began if asked.code.begins else turn.before
        known = {(each.round, each.client): each for each in counted}
        number = self._position.round
        updates = [
            (update, _metadata(known[number, update.source]))
            for update in reduction.updates(
                partials,
                {key: each.weight for key, each in known.items()},
                {each.round: reduction.base for each in counted},
                {each.round: 1.0 for each in counted},
            )
        ]
        model_out = reduction.blobs.temporary()
        try:
            left = await self._tried(
                lambda: functions.aggregate(
                    asked, updates=updates, model=reduction.base, model_out=model_out, state=state
                )
            )
            model, n_params, tensors = await in_thread(_adopted, reduction, model_out)
        finally:
            await in_thread(model_out.unlink, missing_ok=True)
        return ReducedModel(
            model=model,
            optimizer_state=None,
            n_params=n_params,
            tensors=tensors,
            server_state=left,
            made_by=f"package: {asked.code.aggregator}",
        )

    async def keep(self, turn: Turn | None, tx: Transaction, current: RoundRow, reduced: ReducedModel) -> None:
        """Write what the package remembers with the round's model."""
        if turn is not None:
            left = current.server_state if reduced.made_by is None else reduced.server_state
            await server_states.put_state(tx.session, current, left)

    async def settle(self, turn: Turn | None) -> None:
        """Remove the files of states that :meth:`keep` let go."""
        if turn is not None:
            await self._retention.remove_files()

    async def turn(self, tx: AsyncSession) -> Turn | None:
        """Read whom to ask in the present round; None: its package has no functions for the server."""
        position = self._position
        package = await registry.package_of_round(tx, position.organisation, position.session_id, position.round)
        code = server_code(package, position.config)
        if code is None:
            return None
        row = await tx.get_one(RoundRow, (position.session_id, position.round))
        before = await server_states.state_before(tx, row)
        return Turn(asked=self._asked(package, code), began=row.server_state, before=before)

    def _asked(self, package: PackageRow, code: ServerCode) -> Asked:
        position = self._position
        key = AssignmentKey(session_id=position.session_id, round=position.round, work=Work.TRAIN)

        def say(stream: str, text: str) -> None:
            line = LogLine(at_ms=int(time.time() * 1000), stream=stream, text=text)
            self._say(LogLines(key=key, client=SPEAKER, lines=(line,)))

        return Asked(
            package=BlobRef(sha256=package.digest, size_bytes=package.size_bytes),
            code=code,
            signatures=registry.package_signatures(package),
            seed=f"{position.seed}/{position.round}/{position.phase.value}",
            say=say,
        )

    def _require(self, asked: Asked) -> ServerFunctions:
        if self._functions is None:
            raise ServerFunctionsRefused("This reducer runs no functions of packages.", package=asked.package.sha256)
        self._functions.require_allowed(asked)
        return self._functions

    async def _tried(self, take: Callable[[], Awaitable[T]]) -> T:
        """Take a step, and again if the package fails, as often as the session tries its rounds."""
        position = self._position
        for attempt in range(position.config.retries + 1):
            try:
                return await self._stoppable(take)
            except ServerFunctionFailed as err:
                log.warning("server function failed", session_id=position.session_id, round=position.round)
                async with self._journal.transaction() as tx:
                    await tx.record(
                        "server_function.failed",
                        position.organisation,
                        position.session_id,
                        round=position.round,
                        attempt=attempt + 1,
                        message=str(err)[:4000],
                    )
                if attempt == position.config.retries:
                    raise
            await self._pause(attempt)
        raise AssertionError("the last attempt returns or raises")

    async def _stoppable(self, take: Callable[[], Awaitable[T]]) -> T:
        if self._stopping:
            raise Stopped
        try:
            async with asyncio.timeout(None) as self._scope:
                return await take()
        except TimeoutError:
            raise Stopped from None
        finally:
            self._scope = None


def _metadata(update: ledger.CountedUpdate) -> Mapping[str, Any]:
    """Return what a client's package wrote beside its update, as far as it came up, with the weight that counts."""
    weight = int(update.weight) if update.weight == int(update.weight) else update.weight
    return {**update.extra, **update.metrics, "num_examples": weight}


def _adopted(reduction: Reduction, model: Path) -> tuple[BlobRef, int, int]:
    schema = schema_of(model)
    return reduction.blobs.adopt(model), schema.n_params, len(schema.tensors)
