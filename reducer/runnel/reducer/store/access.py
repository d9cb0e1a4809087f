"""Organisations, tokens, nodes and idempotency keys in the reducer's state."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from runnel.common.errors import Conflict, NotFound
from runnel.common.protocol import Member
from runnel.reducer.domain.values import Page, Role, TokenView
from runnel.reducer.store.pages import after_cursor, decode_cursor, encode_cursor, page_of
from runnel.reducer.store.tables import IdempotencyRow, NodeRow, OrganisationRow, TokenRow

IDEMPOTENCY_KEPT = timedelta(days=1)


def hash_secret(secret: str) -> str:
    """Return the SHA-256 of a token's secret; enough for 256 random bits, which nobody can guess through a hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


async def ensure_organisation(tx: AsyncSession, organisation: str) -> None:
    """Add an organisation unless it is there."""
    if await tx.get(OrganisationRow, organisation) is None:
        tx.add(OrganisationRow(id=organisation, created_at=datetime.now(UTC)))
        await tx.flush()


def token_view(row: TokenRow, secret: str | None = None) -> TokenView:
    """Return the row as a value."""
    return TokenView(
        id=row.id,
        role=Role(row.role),
        name=row.name,
        organisation=row.organisation_id,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        token=secret,
    )


async def add_token(
    tx: AsyncSession, token_id: str, secret: str, organisation: str, role: Role, name: str, ttl_s: float | None
) -> TokenView:
    """Store a new token by its hash."""
    await ensure_organisation(tx, organisation)
    now = datetime.now(UTC)
    row = TokenRow(
        id=token_id,
        organisation_id=organisation,
        role=role.value,
        name=name,
        secret_sha256=hash_secret(secret),
        created_at=now,
        expires_at=None if ttl_s is None else now + timedelta(seconds=ttl_s),
        revoked_at=None,
    )
    tx.add(row)
    return token_view(row, secret)


def why_not(token: TokenRow | None, now: datetime) -> str:
    """Say what is wrong with a token that is not good (any more) at ``now``."""
    if token is None:
        return "unknown"
    if token.revoked_at is not None or token.expires_at is None:
        return "revoked"
    until, clock = (moment.isoformat(sep=" ", timespec="seconds") for moment in (token.expires_at, now))
    return f"expired: it was good until {until}, and the reducer's clock says {clock}"


async def find_token(tx: AsyncSession, secret: str) -> TokenRow | None:
    """Return the token with this secret, whatever its state."""
    return await tx.scalar(select(TokenRow).where(TokenRow.secret_sha256 == hash_secret(secret)))


async def token_name(tx: AsyncSession, token_id: str) -> str:
    """Return the name of a token, its id if it has none; of nobody's, in an insecure network, nothing."""
    row = await tx.get(TokenRow, token_id) if token_id else None
    return token_id if row is None else row.name or row.id


async def tokens(tx: AsyncSession, organisation: str | None, cursor: str | None, limit: int) -> Page[TokenView]:
    """List tokens, newest first; ``organisation`` None: of all."""
    query = select(TokenRow)
    if organisation is not None:
        query = query.where(TokenRow.organisation_id == organisation)
    rows = list(await tx.scalars(after_cursor(query, TokenRow.created_at, TokenRow.id, cursor, limit)))
    return page_of(rows, limit, lambda r: (r.created_at, r.id), token_view)


async def revoke_token(tx: AsyncSession, organisation: str | None, token_id: str) -> TokenView:
    """End a token; ending it again changes nothing. ``organisation`` None: of whomever."""
    row = await tx.get(TokenRow, token_id)
    if row is None or organisation not in {None, row.organisation_id}:
        raise NotFound(f"There is no token {token_id!r}.", hint="`runnel token list` shows those there are.")
    row.revoked_at = row.revoked_at or datetime.now(UTC)
    return token_view(row)


async def note_joined(
    tx: AsyncSession, name: str, node_id: str, kind: str, organisation: str, token_id: str, *, attached: bool
) -> None:
    """Register a node that joins, or take note that it is back.

    Raises:
        Conflict: another node has this name: one of another organisation or kind, or one that is attached now.
    """
    row = await tx.get(NodeRow, name)
    now = datetime.now(UTC)
    if row is None:
        await ensure_organisation(tx, organisation)
        tx.add(
            NodeRow(
                name=name,
                node_id=node_id,
                organisation_id=organisation,
                kind=kind,
                token_id=token_id,
                first_seen_at=now,
                last_seen_at=now,
            )
        )
        return
    if row.kind != kind or row.organisation_id != organisation:
        raise Conflict(
            f"The name {name!r} belongs to a {row.kind} of another owner or kind.",
            hint="Choose another --name.",
            name=name,
        )
    if row.node_id != node_id and attached:
        raise Conflict(
            f"The name {name!r} is in use by another {kind} that is attached now (its state directory is not yours).",
            hint="Choose another --name, or stop that one first.",
            name=name,
        )
    row.node_id, row.token_id, row.last_seen_at = node_id, token_id, now


async def owners(tx: AsyncSession, members: Iterable[Member]) -> dict[str, str]:
    """Return by name whose the nodes are; one that has not joined, or under another identity, is missing."""
    told = {member.name: (member.node_id, member.kind.value) for member in members}
    query = select(NodeRow.name, NodeRow.node_id, NodeRow.kind, NodeRow.organisation_id)
    found = {}
    for names in batches(told):
        for row in await tx.execute(query.where(NodeRow.name.in_(names))):
            if (row.node_id, row.kind) == told[row.name]:
                found[row.name] = row.organisation_id
    return found


async def note_attached(tx: AsyncSession, members: Iterable[Member]) -> None:
    """Store what attached nodes say of themselves; of one that has not joined nothing is."""
    now = datetime.now(UTC)
    told = [
        {
            "node": member.name,
            "version": member.version[:64],
            "platform": member.platform[:200],
            "address": member.address or None,
            "last_seen_at": now,
        }
        for member in members
    ]
    if told:
        connection = await tx.connection()
        await connection.execute(update(NodeRow).where(NodeRow.name == bindparam("node")), told)


async def note_seen(tx: AsyncSession, names: Iterable[str]) -> None:
    """Store that nodes were there until now."""
    now = datetime.now(UTC)
    for some in batches(names):
        await tx.execute(update(NodeRow).where(NodeRow.name.in_(some)).values(last_seen_at=now))


def batches(names: Iterable[str]) -> Iterator[list[str]]:
    """Yield names or ids, as many at once as a statement of any database takes."""
    left = iter(names)
    while some := list(itertools.islice(left, 500)):
        yield some


async def nodes(
    tx: AsyncSession, organisation: str | None, cursor: str | None, limit: int
) -> tuple[list[NodeRow], str | None]:
    """List nodes by name; return rows and the next cursor."""
    query = select(NodeRow).order_by(NodeRow.name).limit(limit + 1)
    if organisation is not None:
        query = query.where(NodeRow.organisation_id == organisation)
    if cursor is not None:
        query = query.where(NodeRow.name > str(decode_cursor(cursor)[0]))
    rows = list(await tx.scalars(query))
    return rows[:limit], encode_cursor(rows[limit - 1].name) if len(rows) > limit else None


async def recall(tx: AsyncSession, key: str, caller: str, fingerprint: str) -> tuple[int, bytes] | None:
    """Return the answer given before to this key, or None.

    Raises:
        Conflict: the key was used for another request.
    """
    row = await tx.get(IdempotencyRow, (key, caller))
    if row is None or row.created_at < datetime.now(UTC) - IDEMPOTENCY_KEPT:
        return None
    if row.fingerprint != fingerprint:
        raise Conflict(
            f"The idempotency key {key!r} was used for another request.", hint="Use a new key for each new request."
        )
    return row.status, row.body


async def remember(tx: AsyncSession, key: str, caller: str, fingerprint: str, status: int, body: bytes) -> None:
    """Store an answer, and drop those that are too old."""
    now = datetime.now(UTC)
    await tx.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at < now - IDEMPOTENCY_KEPT))
    await tx.merge(
        IdempotencyRow(key=key, caller=caller, fingerprint=fingerprint, status=status, body=body, created_at=now)
    )
