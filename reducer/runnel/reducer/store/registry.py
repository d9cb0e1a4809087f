"""Packages and models in the reducer's state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import and_, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from runnel.common.errors import Conflict, Gone, NotFound, TooLarge
from runnel.common.protocol import PackageSignature
from runnel.compute_package import key_id, public_key_text, signature_of
from runnel.compute_package.signatures import MAX_SIGNATURES
from runnel.reducer.domain.values import ENDED, ClientContribution, ModelView, PackageView, Page, SignerView
from runnel.reducer.store.pages import after_cursor, page_of
from runnel.reducer.store.round_statements import PACKAGE_OF_ROUND, of_round
from runnel.reducer.store.tables import (
    ModelRow,
    PackageRow,
    RoundRow,
    RunFileRow,
    RunRow,
    SessionRow,
    SlotRow,
    TaskBlobRow,
    TokenRow,
)

_KEPT_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageUse:
    """What other tables say about a package; see :class:`runnel.reducer.domain.values.PackageView`."""

    uploaded_by: str | None = None
    sessions: int = 0
    running_sessions: tuple[str, ...] = ()


_UNKNOWN = PackageUse()


async def uses(tx: AsyncSession, organisation: str, rows: Iterable[PackageRow]) -> dict[str, PackageUse]:
    """Return by digest who brought packages of an organisation, and which sessions are to use them."""
    found = {row.digest: row.uploaded_by for row in rows}
    tokens = await tx.execute(select(TokenRow.id, TokenRow.name).where(TokenRow.id.in_(set(found.values()))))
    names = {token.id: token.name or token.id for token in tokens}
    here = (SessionRow.organisation_id == organisation, SessionRow.package_digest.in_(found))
    counts = await tx.execute(
        select(SessionRow.package_digest, func.count()).where(*here).group_by(SessionRow.package_digest)
    )
    sessions = {digest: int(count) for digest, count in counts}
    running: dict[str, list[str]] = {}
    query = select(SessionRow.package_digest, SessionRow.id).where(*here, SessionRow.phase.not_in(ENDED))
    for digest, session_id in await tx.execute(query.order_by(SessionRow.created_at, SessionRow.id)):
        running.setdefault(digest, []).append(session_id)
    return {
        digest: PackageUse(
            uploaded_by=names.get(token_id) or token_id or None,
            sessions=sessions.get(digest, 0),
            running_sessions=tuple(running.get(digest, ())),
        )
        for digest, token_id in found.items()
    }


async def package_entry(tx: AsyncSession, row: PackageRow) -> PackageView:
    """Return a package with what other tables say about it."""
    return package_view(row, (await uses(tx, row.organisation_id, [row]))[row.digest])


def package_view(row: PackageRow, use: PackageUse = _UNKNOWN) -> PackageView:
    """Return the row as a value."""
    return PackageView(
        digest=row.digest,
        name=row.name,
        version=row.version,
        size_bytes=row.size_bytes,
        organisation=row.organisation_id,
        created_at=row.created_at,
        manifest=row.manifest,
        signatures=tuple(
            SignerView(key_id=key_id(each.public_key), public_key=written["public_key"], signature=written["signature"])
            for each, written in zip(package_signatures(row), row.signatures, strict=True)
        ),
        uploaded_by=use.uploaded_by,
        retired_at=row.retired_at,
        sessions=use.sessions,
        running_sessions=use.running_sessions,
    )


async def package_of_round(tx: AsyncSession, organisation: str, session_id: str, number: int) -> PackageRow:
    """Return the package that a round of a session runs."""
    wanted = {"of_organisation": organisation, **of_round(session_id, number)}
    return (await tx.execute(PACKAGE_OF_ROUND, wanted)).scalar_one()


def package_signatures(row: PackageRow) -> tuple[PackageSignature, ...]:
    """Return who vouches for a package, as it travels to clients."""
    return tuple(signature_of(each["public_key"], each["signature"]) for each in row.signatures)


def model_view(row: ModelRow, participants: tuple[ClientContribution, ...] = ()) -> ModelView:
    """Return the row as a value."""
    return ModelView(
        model=row.id,
        digest=row.digest,
        size_bytes=row.size_bytes,
        format=row.format,
        n_params=row.n_params,
        tensors=row.tensors,
        parent=row.parent_id,
        session=row.session_id,
        round=row.round,
        package=row.package_digest,
        strategy=row.strategy,
        organisation=row.organisation_id,
        created_at=row.created_at,
        removed_at=row.removed_at,
        metrics=row.metrics,
        participants=participants,
    )


def contribution_of(row: SlotRow) -> ClientContribution:
    """Return the row as a value."""
    return ClientContribution(
        client=row.client,
        work=row.work,
        status=row.state,
        weight=row.weight,
        metrics=row.metrics,
        extra=row.extra,
        elapsed_s=row.elapsed_s,
        staleness=0 if row.counted_in is None else row.counted_in - row.round,
        error_code=row.error_code,
        error=row.error,
        log_tail=row.log_tail,
    )


async def is_package(tx: AsyncSession, organisation: str, digest: str) -> bool:
    """Whether this organisation has this archive in the registry."""
    return await tx.get(PackageRow, (organisation, digest)) is not None


async def is_used(tx: AsyncSession, digest: str) -> bool:
    """Whether any package, kept model, state of an optimizer or server functions, or file of a task, is this file."""
    kept = and_(ModelRow.digest == digest, ModelRow.removed_at.is_(None))
    models = select(ModelRow.id).where(or_(kept, ModelRow.optimizer_state == digest)).limit(1)
    packages = select(PackageRow.digest).where(PackageRow.digest == digest).limit(1)
    runs = select(RunFileRow.id).join(RunRow, RunRow.id == RunFileRow.run_id)
    results = runs.where(RunFileRow.digest == digest, RunRow.removed_at.is_(None)).limit(1)
    inputs = select(TaskBlobRow.digest).where(TaskBlobRow.digest == digest).limit(1)
    remembered = select(RoundRow.number).where(RoundRow.server_state == digest).limit(1)
    for query in (models, packages, results, inputs, remembered):
        if await tx.scalar(query) is not None:
            return True
    return False


async def stored_bytes(tx: AsyncSession, organisation: str) -> int:
    """Return the bytes of an organisation's packages, kept models, and files of tasks."""
    packages = select(func.sum(PackageRow.size_bytes)).where(PackageRow.organisation_id == organisation)
    models = select(func.sum(ModelRow.size_bytes)).where(
        ModelRow.organisation_id == organisation, ModelRow.removed_at.is_(None)
    )
    results = (
        select(func.sum(RunFileRow.size_bytes))
        .join(RunRow, RunRow.id == RunFileRow.run_id)
        .where(RunRow.organisation_id == organisation, RunRow.removed_at.is_(None))
    )
    inputs = select(func.sum(TaskBlobRow.size_bytes)).where(TaskBlobRow.organisation_id == organisation)
    return sum([await tx.scalar(each) or 0 for each in (packages, models, results, inputs)])


async def add_package(
    tx: AsyncSession,
    *,
    organisation: str,
    digest: str,
    filename: str,
    size_bytes: int,
    name: str,
    version: str,
    manifest: dict[str, Any],
    uploaded_by: str = "",
) -> tuple[PackageRow, bool]:
    """Add a package; return it and whether it is new."""
    row = await tx.get(PackageRow, (organisation, digest))
    if row is not None:
        return row, False
    row = PackageRow(
        digest=digest,
        organisation_id=organisation,
        name=name,
        version=version,
        filename=filename,
        size_bytes=size_bytes,
        manifest=manifest,
        uploaded_by=uploaded_by,
        created_at=datetime.now(UTC),
    )
    tx.add(row)
    return row, True


async def add_signature(tx: AsyncSession, organisation: str, digest: str, signature: PackageSignature) -> PackageRow:
    """Add a signature to a package, in place of an earlier one by the same key.

    Raises:
        NotFound: there is no such package.
        TooLarge: it has as many as it may have.
    """
    found = await find_package(tx, organisation, digest)
    row = await tx.get_one(PackageRow, (organisation, found.digest), with_for_update=True, populate_existing=True)
    written = {"public_key": public_key_text(signature.public_key), "signature": signature.signature.hex()}
    others = [each for each in row.signatures if each["public_key"] != written["public_key"]]
    if len(others) >= MAX_SIGNATURES:
        raise TooLarge(f"Package {row.digest[:16]} has {len(others)} signatures, and more are not kept.")
    row.signatures = [*others, written]
    return row


async def find_package(tx: AsyncSession, organisation: str, digest: str) -> PackageRow:
    """Return the package whose digest starts with ``digest``."""
    row: PackageRow = await by_prefix(tx, PackageRow, PackageRow.digest, organisation, digest, "package")
    return row


async def usable_package(tx: AsyncSession, organisation: str, digest: str) -> PackageRow:
    """Return a package that a session may be given.

    Raises:
        NotFound: there is none whose digest starts so.
        Conflict: it is retired.
    """
    row = await find_package(tx, organisation, digest)
    if row.retired_at is not None:
        raise Conflict(
            f"Package {row.digest[:16]} ({f'{row.name} {row.version}'.rstrip()}) was retired at"
            f" {row.retired_at:%Y-%m-%d %H:%M:%S} UTC; sessions are not given it any more.",
            hint=f"Give a newer version (`runnel package list`), or `runnel package retire {row.digest[:16]} --undo`.",
            package=row.digest,
        )
    return row


async def find_model(tx: AsyncSession, organisation: str, model: str) -> ModelRow:
    """Return the model whose id starts with ``model``."""
    row: ModelRow = await by_prefix(tx, ModelRow, ModelRow.id, organisation, model, "model")
    return row


async def require_file(tx: AsyncSession, row: ModelRow) -> None:
    """Refuse a model whose file was removed.

    Raises:
        Gone: it was; the hint names models of the same session that are kept.
    """
    if row.removed_at is None:
        return
    query = select(ModelRow).where(ModelRow.session_id == row.session_id, ModelRow.removed_at.is_(None))
    kept = list(await tx.scalars(query.order_by(ModelRow.created_at.desc(), ModelRow.id.desc()).limit(_KEPT_NAMED)))
    named = ", ".join(f"{model.id} (round {model.round})" for model in kept)
    raise Gone(
        f"The file of model {row.id} was removed at {row.removed_at:%Y-%m-%d %H:%M:%S} UTC, because session"
        f" {row.session_id} keeps only its newest models.",
        hint=f"Kept are, the newest first: {named}." if named else "",
        model=row.id,
        session=row.session_id,
    )


def not_there(what: str, name: str, *, listed_by: str | None = None) -> NotFound:
    """Return the error that says so; ``listed_by``: the command that shows those there are."""
    return NotFound(
        f"There is no {what} {name!r}.", hint=f"`{listed_by or f'runnel {what} list'}` shows those there are."
    )


async def by_prefix(
    tx: AsyncSession,
    table: Any,
    column: Any,
    organisation: str,
    prefix: str,
    what: str,
    least: int = 4,
    listed_by: str | None = None,
) -> Any:
    """Return the row of an organisation whose ``column`` is ``prefix``, or the only one that starts with it.

    Raises:
        NotFound: there is none, or ``prefix`` has fewer than ``least`` characters and is no whole value.
        Conflict: there are several.
    """
    exact = await tx.scalar(select(table).where(column == prefix, table.organisation_id == organisation))
    if exact is not None:
        return exact
    rows = []
    if len(prefix) >= least:
        # LIKE finds it by an index, but takes capitals for small letters in SQLite.
        starts = and_(column.startswith(prefix, autoescape=True), func.substr(column, 1, len(prefix)) == prefix)
        query = select(table).where(starts, table.organisation_id == organisation)
        rows = list(await tx.scalars(query.limit(2)))
    if not rows:
        raise not_there(what, prefix, listed_by=listed_by)
    if len(rows) > 1:
        raise Conflict(f"More than one {what} starts with {prefix!r}.", hint="Give more of its characters.")
    return rows[0]


async def packages(tx: AsyncSession, organisation: str, cursor: str | None, limit: int) -> Page[PackageView]:
    """List packages, newest first."""
    query = select(PackageRow).where(PackageRow.organisation_id == organisation)
    rows = list(await tx.scalars(after_cursor(query, PackageRow.created_at, PackageRow.digest, cursor, limit)))
    use = await uses(tx, organisation, rows)
    return page_of(rows, limit, lambda r: (r.created_at, r.digest), lambda r: package_view(r, use[r.digest]))


async def models(
    tx: AsyncSession, organisation: str, session_id: str | None, cursor: str | None, limit: int
) -> Page[ModelView]:
    """List models, newest first."""
    query = select(ModelRow).where(ModelRow.organisation_id == organisation)
    if session_id is not None:
        query = query.where(ModelRow.session_id == session_id)
    rows = list(await tx.scalars(after_cursor(query, ModelRow.created_at, ModelRow.id, cursor, limit)))
    return page_of(rows, limit, lambda r: (r.created_at, r.id), model_view)


async def participants(tx: AsyncSession, model: ModelRow) -> tuple[ClientContribution, ...]:
    """Return the updates that were asked for a model, by client."""
    if model.session_id is None:
        return ()
    query = select(SlotRow).where(
        SlotRow.session_id == model.session_id,
        func.coalesce(SlotRow.counted_in, SlotRow.round) == model.round,
        SlotRow.work == "train",
    )
    return tuple(contribution_of(row) for row in await tx.scalars(query.order_by(SlotRow.client)))
