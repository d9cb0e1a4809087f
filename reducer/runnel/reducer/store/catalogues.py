"""What sites publish of their data, in the reducer's state: the newest that each has told, and nothing older."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import ForeignKey, String, delete, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from runnel.common.catalogue import Catalogue, PublishedDataset, read_dataset
from runnel.reducer.store.access import batches
from runnel.reducer.store.tables import Base, ForeignText, NodeRow


class CatalogueRow(Base):
    """That a client publishes something; ``digest``: the SHA-256 that it told of the whole."""

    __tablename__ = "catalogue"
    client: Mapped[str] = mapped_column(ForeignKey("node.name"), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))


class DatasetRow(Base):
    """A dataset at one client; ``digest``: of ``document``, which is the same at many sites."""

    __tablename__ = "dataset"
    client: Mapped[str] = mapped_column(ForeignKey("node.name"), primary_key=True)
    id: Mapped[str] = mapped_column(String(64), primary_key=True, index=True)
    title: Mapped[str] = mapped_column(ForeignText)
    creator: Mapped[str] = mapped_column(ForeignText)
    description: Mapped[str] = mapped_column(ForeignText)
    digest: Mapped[str] = mapped_column(String(64))
    document: Mapped[str] = mapped_column(ForeignText)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A dataset at one site, as listings show it."""

    site: str
    id: str
    title: str
    creator: str
    description: str


async def digests(tx: AsyncSession) -> dict[str, str]:
    """Return what each client told of the whole that it publishes."""
    return {row.client: row.digest for row in await tx.scalars(select(CatalogueRow))}


async def put(tx: AsyncSession, client: str, digest: str, told: Catalogue) -> None:
    """Store what a client publishes, in place of what it published before."""
    await forget(tx, [client])
    tx.add(CatalogueRow(client=client, digest=digest))
    for each in told.datasets:
        document = each.as_json()
        tx.add(
            DatasetRow(
                client=client,
                id=each.id,
                title=each.title,
                creator=each.creator,
                description=each.description,
                digest=hashlib.sha256(document.encode()).hexdigest(),
                document=document,
            )
        )


async def forget(tx: AsyncSession, clients: Iterable[str]) -> None:
    """Remove what clients published."""
    for some in batches(clients):
        await tx.execute(delete(DatasetRow).where(DatasetRow.client.in_(some)))
        await tx.execute(delete(CatalogueRow).where(CatalogueRow.client.in_(some)))


async def listed(tx: AsyncSession, organisation: str) -> Sequence[Listed]:
    """Return the datasets of an organisation, by id and site."""
    columns = (DatasetRow.client, DatasetRow.id, DatasetRow.title, DatasetRow.creator, DatasetRow.description)
    query = select(*columns).join(NodeRow, NodeRow.name == DatasetRow.client)
    rows = await tx.execute(query.where(NodeRow.organisation_id == organisation))
    found = [
        Listed(site=row.client, id=row.id, title=row.title, creator=row.creator, description=row.description)
        for row in rows
    ]
    # Not by the database, which may know another order of capitals.
    return sorted(found, key=lambda each: (each.id, each.site))


async def at_sites(tx: AsyncSession, organisation: str, dataset: str) -> dict[str, PublishedDataset]:
    """Return what each site says of a dataset, by site; a description that many share is read once."""
    here = (
        select(DatasetRow.client, DatasetRow.digest)
        .join(NodeRow, NodeRow.name == DatasetRow.client)
        .where(NodeRow.organisation_id == organisation, DatasetRow.id == dataset)
    )
    digest_at = {row.client: row.digest for row in await tx.execute(here)}
    one_of_each = {digest: client for client, digest in digest_at.items()}
    documents: dict[str, PublishedDataset] = {}
    for some in batches(one_of_each.values()):
        query = select(DatasetRow).where(DatasetRow.client.in_(some), DatasetRow.id == dataset)
        documents |= {row.digest: read_dataset(row.document) for row in await tx.scalars(query)}
    return {client: documents[digest] for client, digest in sorted(digest_at.items())}
