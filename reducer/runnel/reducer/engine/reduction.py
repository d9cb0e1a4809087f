"""From the payloads of a round to its next model; everything here runs in a worker thread."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from runnel.common.aggregation import GatheredFile, Part, Update, make_strategy, reduce_round, reduce_updates
from runnel.common.aggregation.float64_file import Float64File
from runnel.common.aggregation.mean import part_magnitude, require_weight, update_magnitude
from runnel.common.blobs import BlobStore, require_room
from runnel.common.compression import NO_COMPRESSION, decode_in_place, parse_compression
from runnel.common.errors import BadModel, CorruptData, InvalidInput, NotFound
from runnel.common.protocol import MOST_WITHIN_BYTES, BlobRef, Failure, Gather, PayloadKind, Report, Work
from runnel.common.storage import leave_memory
from runnel.common.tensors import ModelSchema, open_npz
from runnel.reducer.engine.position import Position
from runnel.reducer.store.blobs import Blobs
from runnel.reducer.store.tables import ModelRow, PartialRow, RoundRow


@dataclass(frozen=True, slots=True, kw_only=True)
class ReducedModel:
    """A model that was just made, in the blob store; ``optimizer_state`` and ``server_state`` are SHA-256 of blobs.

    ``made_by``: the function of the package that made it; None: the strategy did.
    """

    model: BlobRef
    optimizer_state: str | None
    n_params: int
    tensors: int
    server_state: str | None = None
    made_by: str | None = None

    @property
    def digests(self) -> tuple[str, ...]:
        """The blobs that were made."""
        made = (self.model.sha256, self.optimizer_state, self.server_state)
        return tuple(digest for digest in made if digest is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """The inputs of a reduce step, all local files: where blobs and payloads lie, the global model that the payloads
    update, the state of the optimizer that belongs to it, if it has one.

    ``superseded``: a model before the global one, whose memory in the system's cache the next model may have.
    """

    blobs: BlobStore
    folder: Path
    base: BlobRef
    optimizer_state: BlobRef | None
    superseded: BlobRef | None = None

    def run(
        self,
        partials: Sequence[PartialRow],
        *,
        strategy: str,
        options: Mapping[str, float],
        weights: Mapping[tuple[int, str], float],
        round_number: int,
        bases: Mapping[int, BlobRef],
    ) -> ReducedModel:
        """Reduce ``partials`` block by block; the result depends on nothing but its inputs.

        ``weights``: of each update by the round that it was trained for and its client; what was summed has its weight
        with it. ``bases``: the model that updates of a round were trained from.
        """
        chosen = make_strategy(strategy, options)
        optimizer = chosen.optimizer
        parts = [
            Part(path=self.folder / p.filename, kind=PayloadKind(p.kind), weight=p.weight, source=p.child)
            for p in partials
        ]
        base = self.blobs.path(self.base)
        state_in = None if self.optimizer_state is None else self.blobs.path(self.optimizer_state)
        model_out, state_out = self.blobs.temporary(), self.blobs.temporary()
        # Not to take the last of the disk, which the database and other sessions need, for half a model.
        require_room(model_out, self.base.size_bytes)
        before = self.superseded
        if before is not None and before not in {self.base, *bases.values()} and self.blobs.has(before):
            leave_memory(self.blobs.path(before))
        try:
            if chosen.rule is None:
                made = reduce_round(
                    parts,
                    base=base,
                    optimizer=optimizer,
                    state_in=state_in,
                    model_out=model_out,
                    state_out=state_out if optimizer.slots else None,
                )
            else:
                ages = {p.round: round_number - p.round for p in partials}
                discounts = {n: 1.0 if chosen.buffered is None else chosen.buffered.discount(ages[n]) for n in ages}
                updates = self.updates(partials, weights, bases, discounts)
                made = reduce_updates(updates, base, chosen.rule, model_out, optimizer=optimizer)
            state = self.blobs.adopt(state_out).sha256 if optimizer.slots else None
            model = self.blobs.adopt(model_out, made.model)
        finally:
            model_out.unlink(missing_ok=True)
            state_out.unlink(missing_ok=True)
        schema = schema_of(base)
        return ReducedModel(model=model, optimizer_state=state, n_params=schema.n_params, tensors=len(schema.tensors))

    def updates(
        self,
        partials: Sequence[PartialRow],
        weights: Mapping[tuple[int, str], float],
        bases: Mapping[int, BlobRef],
        discounts: Mapping[int, float],
    ) -> list[Update]:
        """Return every update by name of its client, so that the result does not depend on who was attached where."""
        found = []
        for partial in partials:
            clients = partial.clients or []
            gathered = partial.kind == PayloadKind.UPDATES.value
            base = bases[partial.round]
            found += [
                (
                    client,
                    partial.round,
                    Update(
                        path=self.folder / partial.filename,
                        source=client,
                        weight=weights[partial.round, client],
                        place=place if gathered else None,
                        gathered=len(clients) if gathered else 0,
                        base=None if base == self.base else self.blobs.path(base),
                        discount=discounts[partial.round],
                    ),
                )
                for place, client in enumerate(clients)
            ]
        return [update for _, _, update in sorted(found, key=lambda each: each[:2])]


async def optimizer_state_of(blobs: Blobs, position: Position) -> BlobRef | None:
    """Return the optimizer's state that belongs to the model that a session goes on from; None: there is none yet.

    Raises:
        NotFound: it is gone. To begin with a fresh one would be another algorithm.
    """
    strategy = make_strategy(position.config.strategy, position.config.strategy_options)
    if position.optimizer_state is None or not strategy.optimizer.slots:
        return None
    found = await blobs.find(position.optimizer_state)
    if found is None:
        raise NotFound(
            f"The session goes on from the model {position.model_id}, and the state that {position.config.strategy} had"
            f" there, the file {position.optimizer_state}, is gone.",
            hint="Restore the file and resume the session, or push that model as a seed and start a session from it.",
            session=position.session_id,
            sha256=position.optimizer_state,
        )
    return found


def model_row(model_id: str, position: Position, current: RoundRow, reduced: ReducedModel) -> ModelRow:
    """Return the entry in the trail of the model that was made in the ``current`` round."""
    return ModelRow(
        id=model_id,
        organisation_id=position.organisation,
        digest=reduced.model.sha256,
        size_bytes=reduced.model.size_bytes,
        format=position.model_format,
        n_params=reduced.n_params,
        tensors=reduced.tensors,
        parent_id=position.model_id,
        session_id=position.session_id,
        round=current.number,
        package_digest=current.package_digest,
        strategy=reduced.made_by or position.config.strategy,
        optimizer_state=reduced.optimizer_state,
        metrics={},
        created_at=datetime.now(UTC),
    )


def schema_of(model: Path) -> ModelSchema:
    """Return the schema of a model file that was checked before."""
    with open_npz(model, source="the global model") as opened:
        return opened.schema


async def check_payload(
    report: Report, child: str, payload: Path | None, base: Path, gather: Gather, compression: str = NO_COMPRESSION
) -> Report:
    """Return the report with what its payload is worth.

    The update of a client that is attached straight to the reducer is decoded where it lies; a bad one becomes that
    client's failure. A bad weighted sum is refused whole: a combiner checks each update before it folds it.

    Raises:
        RunnelError: the report is refused.
    """
    counted = [o for o in report.outcomes if o.failure is None]
    if report.key.work is Work.VALIDATE or not counted:
        if payload is not None:
            raise InvalidInput(f"The report of {child} for {report.key} has a payload and nothing that it could count.")
        return report
    if payload is None or report.payload is None:
        raise InvalidInput(f"The report of {child} for {report.key} counts {len(counted)} updates and has no payload.")
    weight = sum(o.weight for o in counted)
    if not report.weight > 0 or abs(report.weight - weight) > 1e-9 * max(weight, report.weight):
        raise InvalidInput(
            f"The report of {child} for {report.key} has the weight {report.weight:g}; its clients sum to {weight:g}."
        )
    wanted = PayloadKind.UPDATES if gather is Gather.UPDATES else PayloadKind.WEIGHTED_SUM
    if report.payload_kind is wanted is PayloadKind.UPDATES:
        for outcome in counted:
            require_weight(outcome.weight, source=outcome.client)
        await asyncio.to_thread(_check_updates, payload, base, child, len(counted))
        return report
    if report.payload_kind is wanted:
        if report.payload.size_bytes <= MOST_WITHIN_BYTES:  # less than the way to a thread
            _check_sum(payload, base, child, report.weight)
        else:
            await asyncio.to_thread(_check_sum, payload, base, child, report.weight)
        return report
    if report.payload_kind is not PayloadKind.UPDATE or len(report.outcomes) != 1:
        raise CorruptData(
            f"The report of {child} for {report.key} has a payload of the kind {report.payload_kind.value}; expected"
            f" was {wanted.value} or the update of one client.",
            hint="It may run another version of Runnel.",
        )
    try:
        await asyncio.to_thread(_check_update, payload, base, child, report.weight, compression)
    except BadModel as err:
        bad = dataclasses.replace(report.outcomes[0], failure=Failure(code=err.code, message=str(err)))
        return dataclasses.replace(report, outcomes=(bad,), payload_kind=PayloadKind.NONE, payload=None, weight=0.0)
    return report


def _check_sum(payload: Path, base: Path, source: str, weight: float) -> None:
    schema = schema_of(base)
    with Float64File(payload, schema.n_params, source=source) as sums:
        part_magnitude(sums, weight, schema, source)


def _check_updates(payload: Path, base: Path, source: str, count: int) -> None:
    with GatheredFile(payload, schema_of(base), count, source=source) as updates:
        updates.require_finite()


def _check_update(payload: Path, base: Path, source: str, weight: float, compression: str) -> None:
    decode_in_place(payload, compression=parse_compression(compression), base=base, source=source)
    with open_npz(payload, source=source, expect=schema_of(base)) as update:
        update_magnitude(update, weight)


@contextlib.asynccontextmanager
async def inputs_here(
    blobs: Blobs, models: Iterable[BlobRef], optimizer_state: BlobRef | None, payloads: Iterable[Path]
) -> AsyncIterator[None]:
    """Have all that a reduction reads as local files while the block runs.

    Args:
        blobs: where it comes from.
        models: the global model and those that buffered updates were trained from.
        optimizer_state: its blob.
        payloads: what was pushed for the round.

    Raises:
        NotFound: one of them is gone.
        Unreachable: the store of files does not answer.
    """
    refs = set(models) if optimizer_state is None else {*models, optimizer_state}
    async with contextlib.AsyncExitStack() as held:
        for ref in refs:
            await held.enter_async_context(blobs.held(ref))
        for payload in payloads:
            await blobs.bring_payload(payload)
        yield
