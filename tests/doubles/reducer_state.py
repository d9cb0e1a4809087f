"""A reducer's durable state for tests: a database in a folder, with rows to begin with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession

from runnel.reducer.domain.values import SessionConfig, SessionStatus
from runnel.reducer.store import access, ledger
from runnel.reducer.store.database import Database
from runnel.reducer.store.tables import ModelRow, PackageRow, RoundRow, SessionRow

START = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def url_in(folder: Path) -> str:
    """Return the URL of a folder's database: of a file in it, if the fixture ``each_database`` says nothing else."""
    return f"sqlite:///{folder / 'reducer.db'}"


@asynccontextmanager
async def database_in(folder: Path) -> AsyncIterator[Database]:
    """Open the database of ``folder``, made and migrated if it is not there."""
    async with Database(url_in(folder)) as database:
        yield database


def model_row(
    model_id: str, *, organisation: str = "default", after_s: float = 0.0, digest: str = "d" * 64
) -> ModelRow:
    return ModelRow(
        id=model_id,
        organisation_id=organisation,
        digest=digest,
        size_bytes=1 << 40,
        format="npz",
        n_params=1 << 33,
        tensors=2,
        metrics={},
        created_at=START + timedelta(seconds=after_s),
    )


def package_row(digest: str, *, organisation: str = "default", after_s: float = 0.0) -> PackageRow:
    return PackageRow(
        digest=digest,
        organisation_id=organisation,
        name="digits",
        version="1",
        filename="digits.tar.gz",
        size_bytes=10,
        manifest={"entry_points": {"train": "python train.py"}},
        created_at=START + timedelta(seconds=after_s),
    )


async def add_session(
    tx: AsyncSession,
    session_id: str = "ses-aaaaaaaaaa",
    *,
    organisation: str = "default",
    config: SessionConfig | None = None,
    phase: SessionStatus = SessionStatus.SEEDED,
    round_number: int = 0,
    after_s: float = 0.0,
    model: ModelRow | None = None,
) -> SessionRow:
    """Add a session with its package and seed, and its round if ``round_number`` is not 0."""
    await access.ensure_organisation(tx, organisation)
    seed = model or model_row(f"mod-{session_id[4:]}", organisation=organisation)
    digest = (session_id.encode().hex() * 8)[:64]
    tx.add_all([seed, package_row(digest, organisation=organisation)])
    await tx.flush()
    row = SessionRow(
        id=session_id,
        organisation_id=organisation,
        name="a session",
        package_digest=digest,
        seed_id=seed.id,
        model_id=seed.id,
        config=ledger.config_to_json(config or SessionConfig(rounds=3)),
        seed=7,
        phase=phase.value,
        round=round_number,
        created_at=START + timedelta(seconds=after_s),
    )
    tx.add(row)
    await tx.flush()
    if round_number:
        tx.add(
            RoundRow(
                session_id=session_id,
                number=round_number,
                status=phase.value,
                package_digest=digest,
                started_at=START,
                phases={},
            )
        )
        await tx.flush()
    return row
