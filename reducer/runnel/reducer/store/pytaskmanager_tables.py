"""The tables behind PyTaskManager's routes: its integer ids, and the sites and results that only those routes know."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, Integer, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from runnel.reducer.store.tables import Base, ForeignText


class PtmSiteRow(Base):
    """A site by its number. ``node`` false: it only asks by HTTP, with the token ``token_id``, and runs no client."""

    __tablename__ = "ptm_site"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    organisation_id: Mapped[str] = mapped_column(ForeignKey("organisation.id"))
    name: Mapped[str] = mapped_column(String(255))
    node: Mapped[bool]
    token_id: Mapped[str] = mapped_column(String(32))
    email: Mapped[str | None] = mapped_column(ForeignText)
    institute: Mapped[str | None] = mapped_column(ForeignText)
    country: Mapped[str | None] = mapped_column(ForeignText)
    ip: Mapped[str | None] = mapped_column(String(255))
    last_seen: Mapped[datetime | None]
    __table_args__ = (
        UniqueConstraint("organisation_id", "name", "node", name="uq_ptm_site_name"),
        {"sqlite_autoincrement": True},
    )


class PtmTaskRow(Base):
    """A task for one site by its number. ``task_id``: of the network's task; None at a site that only asks by HTTP."""

    __tablename__ = "ptm_task"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    organisation_id: Mapped[str] = mapped_column(ForeignKey("organisation.id"))
    site_id: Mapped[int] = mapped_column(ForeignKey("ptm_site.id"), index=True)
    run_id: Mapped[str] = mapped_column(ForeignText)
    image: Mapped[str] = mapped_column(ForeignText)
    input: Mapped[str] = mapped_column(ForeignText)
    task_id: Mapped[str | None] = mapped_column(String(32))
    ended: Mapped[bool]  # as far as it was looked
    created_at: Mapped[datetime]
    __table_args__ = ({"sqlite_autoincrement": True},)


class PtmResultRow(Base):
    """What a site that only asks by HTTP told of a task."""

    __tablename__ = "ptm_result"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    ptm_task_id: Mapped[int] = mapped_column(ForeignKey("ptm_task.id"), index=True)
    response: Mapped[str] = mapped_column(ForeignText)
    log: Mapped[str] = mapped_column(ForeignText)
    created_at: Mapped[datetime]
    __table_args__ = ({"sqlite_autoincrement": True},)
