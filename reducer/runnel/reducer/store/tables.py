"""The tables of the reducer's state.

Everything belongs to an organisation. Times are UTC; JSON columns hold what is only ever read whole.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

# SQLite increments only INTEGER keys by itself; elsewhere the logs deserve 64 bits.
_BigKey = BigInteger().with_variant(Integer(), "sqlite")


def _where(condition: str) -> dict[str, Any]:
    """Return the arguments of an index over only the rows of which ``condition`` is true."""
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


class UtcTime(TypeDecorator[datetime]):
    """A point in time; naive values are refused on the way in, UTC comes out on every database."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Store as UTC."""
        if value is not None and value.tzinfo is None:
            raise ValueError(f"a time without a zone: {value}")
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give the zone back that SQLite does not keep; PostgreSQL tells times in the zone of its session."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class ForeignText(TypeDecorator[str]):
    """Text that entry points and nodes wrote; PostgreSQL knows no NUL in a text, so it becomes U+FFFD everywhere."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Store without NUL."""
        return None if value is None else value.replace("\0", "\ufffd")


class Base(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcTime(),
        dict[str, Any]: JSON(),
    }


class OrganisationRow(Base):
    """Who owns things."""

    __tablename__ = "organisation"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    created_at: Mapped[datetime]


class TokenRow(Base):
    """A token; only the SHA-256 of its secret is kept."""

    __tablename__ = "token"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    organisation_id: Mapped[str] = mapped_column(ForeignKey("organisation.id"))
    role: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(128))
    secret_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[datetime] = mapped_column(index=True)
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class NodeRow(Base):
    """A client or combiner that joined at least once."""

    __tablename__ = "node"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    node_id: Mapped[str] = mapped_column(String(64))
    organisation_id: Mapped[str] = mapped_column(ForeignKey("organisation.id"))
    kind: Mapped[str] = mapped_column(String(16))
    version: Mapped[str] = mapped_column(String(64), default="")
    platform: Mapped[str] = mapped_column(String(200), default="")
    address: Mapped[str | None] = mapped_column(String(300))
    token_id: Mapped[str] = mapped_column(String(32), default="")
    first_seen_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]


class PackageRow(Base):
    """A compute package of an organisation, named by the SHA-256 of its archive; others may have the same."""

    __tablename__ = "package"
    organisation_id: Mapped[str] = mapped_column(ForeignKey("organisation.id"), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    version: Mapped[str] = mapped_column(String(100))
    filename: Mapped[str] = mapped_column(String(300))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    manifest: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(index=True)
    signatures: Mapped[list[dict[str, str]]] = mapped_column(JSON, default=list, server_default="[]")
    uploaded_by: Mapped[str] = mapped_column(String(32), default="", server_default=text("''"))  # id of the token
    retired_at: Mapped[datetime | None]  # no new session may start with it since


class ModelRow(Base):
    """A model of the trail."""

    __tablename__ = "model"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    organisation_id: Mapped[str] = mapped_column(ForeignKey("organisation.id"))
    digest: Mapped[str] = mapped_column(String(64), index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    format: Mapped[str] = mapped_column(String(32))  # of the seed as it was uploaded; the blob is .npz
    n_params: Mapped[int] = mapped_column(BigInteger)
    tensors: Mapped[int] = mapped_column(Integer)
    parent_id: Mapped[str | None] = mapped_column(String(32))
    session_id: Mapped[str | None] = mapped_column(String(32), index=True)
    round: Mapped[int | None]
    package_digest: Mapped[str | None] = mapped_column(String(64))
    strategy: Mapped[str | None] = mapped_column(String(64))
    optimizer_state: Mapped[str | None] = mapped_column(String(64))  # SHA-256 of a blob
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime] = mapped_column(index=True)
    removed_at: Mapped[datetime | None]  # when its file was given up; the row stays in the trail
    __table_args__ = (
        # What retention asks each round must not take longer the longer the trail is.
        Index("ix_model_kept", "session_id", **_where("removed_at IS NULL")),
        Index("ix_model_with_state", "session_id", **_where("optimizer_state IS NOT NULL")),
        Index("ix_model_optimizer_state", "optimizer_state"),
    )


class RemovalRow(Base):
    """A blob that retention has given up and whose file may still be there."""

    __tablename__ = "removal"
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)


class SessionRow(Base):
    """A session and where it is."""

    __tablename__ = "session"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    organisation_id: Mapped[str] = mapped_column(ForeignKey("organisation.id"))
    name: Mapped[str] = mapped_column(String(200))
    package_digest: Mapped[str] = mapped_column(String(64))  # of the rounds that have not begun
    seed_id: Mapped[str] = mapped_column(ForeignKey("model.id"))
    model_id: Mapped[str] = mapped_column(ForeignKey("model.id"))  # the newest
    config: Mapped[dict[str, Any]]
    seed: Mapped[int] = mapped_column(BigInteger)  # of the sampling
    phase: Mapped[str] = mapped_column(String(16), index=True)
    round: Mapped[int] = mapped_column(Integer)  # under way, or the last one; 0 before the first
    reason: Mapped[str | None] = mapped_column(ForeignText)
    created_at: Mapped[datetime] = mapped_column(index=True)
    finished_at: Mapped[datetime | None]
    __table_args__ = (
        ForeignKeyConstraint(["organisation_id", "package_digest"], ["package.organisation_id", "package.digest"]),
    )


class RoundRow(Base):
    """A round of a session."""

    __tablename__ = "round"
    session_id: Mapped[str] = mapped_column(ForeignKey("session.id"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    status: Mapped[str] = mapped_column(String(16))
    package_digest: Mapped[str] = mapped_column(String(64), server_default=text("''"))  # the session's when it began
    started_at: Mapped[datetime]
    seconds: Mapped[float | None] = mapped_column(Float)
    phases: Mapped[dict[str, Any]] = mapped_column(default=dict)  # seconds by phase
    model_id: Mapped[str | None] = mapped_column(String(32))
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)
    train_metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)
    client_settings: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # if its package said so
    server_state: Mapped[str | None] = mapped_column(String(64))  # what its package remembers: SHA-256 of a blob
    __table_args__ = (Index("ix_round_server_state", "server_state", **_where("server_state IS NOT NULL")),)


class SlotRow(Base):
    """One client's piece of work: the ledger in which an update counts once."""

    __tablename__ = "slot"
    session_id: Mapped[str] = mapped_column(ForeignKey("session.id"), primary_key=True)
    round: Mapped[int] = mapped_column(Integer, primary_key=True)
    work: Mapped[str] = mapped_column(String(16), primary_key=True)
    client: Mapped[str] = mapped_column(String(64), primary_key=True)
    state: Mapped[str] = mapped_column(String(16))  # open, counted, failed, awaiting, late
    order_id: Mapped[str | None] = mapped_column(String(32))  # of the report that counted it
    counted_in: Mapped[int | None]  # round whose model it is part of; with a buffer it may be a later one
    weight: Mapped[float | None] = mapped_column(Float)
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)
    extra: Mapped[dict[str, Any]] = mapped_column(default=dict)
    elapsed_s: Mapped[dict[str, Any]] = mapped_column(default=dict)
    error_code: Mapped[str | None] = mapped_column(String(64))
    error: Mapped[str | None] = mapped_column(ForeignText)
    log_tail: Mapped[str | None] = mapped_column(ForeignText)
    # What a round asks must not take longer the more rounds there were.
    __table_args__ = (Index("ix_slot_counted", "session_id", "counted_in", **_where("counted_in IS NOT NULL")),)


class PartialRow(Base):
    """A durable report's payload that waits for its round to be reduced; the file is in the reducer's state folder."""

    __tablename__ = "partial"
    order_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    session_id: Mapped[str] = mapped_column(ForeignKey("session.id"))
    round: Mapped[int] = mapped_column(Integer)
    counted_in: Mapped[int] = mapped_column(Integer)  # round that it is reduced in
    child: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(16))
    weight: Mapped[float] = mapped_column(Float)
    filename: Mapped[str] = mapped_column(String(128))
    clients: Mapped[list[str] | None] = mapped_column(JSON)  # whose updates are in it, in their order
    __table_args__ = (Index("ix_partial_session_counted", "session_id", "counted_in"),)


class EventRow(Base):
    """The append-only log; each entry is chained to the one before by hash."""

    __tablename__ = "event"
    seq: Mapped[int] = mapped_column(_BigKey, primary_key=True)
    organisation_id: Mapped[str] = mapped_column(String(64))
    session_id: Mapped[str | None] = mapped_column(String(32), index=True)
    at: Mapped[datetime]
    kind: Mapped[str] = mapped_column(String(64))
    data: Mapped[dict[str, Any]]
    previous_hash: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))


class LogRow(Base):
    """A line that an entry point wrote."""

    __tablename__ = "log"
    id: Mapped[int] = mapped_column(_BigKey, primary_key=True, autoincrement=True)
    session_id: Mapped[str] = mapped_column(String(32))
    round: Mapped[int] = mapped_column(Integer)
    work: Mapped[str] = mapped_column(String(16))
    client: Mapped[str] = mapped_column(String(64))
    at: Mapped[datetime]
    stream: Mapped[str] = mapped_column(String(16))
    text: Mapped[str] = mapped_column(ForeignText)
    __table_args__ = (Index("ix_log_session_round", "session_id", "round"),)


class TaskRow(Base):
    """A task: what is asked of some sites."""

    __tablename__ = "task"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    organisation_id: Mapped[str] = mapped_column(ForeignKey("organisation.id"))
    name: Mapped[str] = mapped_column(String(200))
    token_id: Mapped[str] = mapped_column(String(32))
    asked_by: Mapped[str] = mapped_column(String(200))  # name of the token then
    spec: Mapped[str] = mapped_column(ForeignText)  # JSON of a TaskSpec
    status: Mapped[str] = mapped_column(String(16))
    parent_run: Mapped[str] = mapped_column(String(32), index=True)  # of a sub-task; else empty
    created_at: Mapped[datetime] = mapped_column(index=True)
    expires_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class TaskTagRow(Base):
    """A tag of a task, to find it by."""

    __tablename__ = "task_tag"
    task_id: Mapped[str] = mapped_column(ForeignKey("task.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    value: Mapped[str] = mapped_column(ForeignText)
    __table_args__ = (Index("ix_task_tag_key", "key"),)


class TaskInputRow(Base):
    """A blob that a task names."""

    __tablename__ = "task_input"
    task_id: Mapped[str] = mapped_column(ForeignKey("task.id"), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    __table_args__ = (Index("ix_task_input_digest", "digest"),)


class TaskBlobRow(Base):
    """A file that somebody stored for tasks."""

    __tablename__ = "task_blob"
    organisation_id: Mapped[str] = mapped_column(ForeignKey("organisation.id"), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]
    kept_until: Mapped[datetime | None] = mapped_column(index=True)
    __table_args__ = (Index("ix_task_blob_digest", "digest"),)


class RunRow(Base):
    """A task at one site: the ledger by which it has one end."""

    __tablename__ = "run"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    task_id: Mapped[str] = mapped_column(ForeignKey("task.id"), index=True)
    organisation_id: Mapped[str] = mapped_column(ForeignKey("organisation.id"))
    client: Mapped[str] = mapped_column(String(64), index=True)
    state: Mapped[str] = mapped_column(String(24))
    detail: Mapped[str] = mapped_column(ForeignText)
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]  # when it was first heard to prepare
    finished_at: Mapped[datetime | None]
    exit_code: Mapped[int | None]
    error_code: Mapped[str | None] = mapped_column(String(64))
    error: Mapped[str | None] = mapped_column(ForeignText)
    log_tail: Mapped[str | None] = mapped_column(ForeignText)
    image_digest: Mapped[str] = mapped_column(ForeignText)
    attempt: Mapped[int] = mapped_column(Integer)
    elapsed_s: Mapped[dict[str, Any]] = mapped_column(default=dict)
    released: Mapped[bool | None]  # what somebody who is not at the site decided about its results
    released_by: Mapped[str] = mapped_column(String(200))
    released_why: Mapped[str] = mapped_column(ForeignText)
    kept_until: Mapped[datetime | None] = mapped_column(index=True)
    removed_at: Mapped[datetime | None]  # when its files were given up
    __table_args__ = (Index("ix_run_open", "client", **_where("finished_at IS NULL")),)


class RunFileRow(Base):
    """A file that a run pushed. ``name`` NULL: it has not ended, so nobody said yet what it is."""

    __tablename__ = "run_file"
    id: Mapped[int] = mapped_column(_BigKey, primary_key=True, autoincrement=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"), index=True)
    digest: Mapped[str] = mapped_column(String(64), index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    name: Mapped[str | None] = mapped_column(String(64))
    media_type: Mapped[str] = mapped_column(String(200))


class RunLineRow(Base):
    """A line that a run wrote, for who watches."""

    __tablename__ = "run_line"
    id: Mapped[int] = mapped_column(_BigKey, primary_key=True, autoincrement=True)
    run_id: Mapped[str] = mapped_column(String(32), index=True)
    at: Mapped[datetime]
    stream: Mapped[str] = mapped_column(String(16))
    text: Mapped[str] = mapped_column(ForeignText)


class IdempotencyRow(Base):
    """The answer that was given to a request, for when it is sent again."""

    __tablename__ = "idempotency"
    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    caller: Mapped[str] = mapped_column(String(64), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    status: Mapped[int] = mapped_column(Integer)
    body: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime]


class LeaseRow(Base):
    """Who acts on this state, in one row; SQLite has a lock on the file instead and leaves the table empty."""

    __tablename__ = "lease"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)  # always 1
    token: Mapped[int] = mapped_column(BigInteger)  # one more for each holder: what fences the one before
    name: Mapped[str] = mapped_column(String(64))
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int] = mapped_column(BigInteger)
    since: Mapped[datetime]
    expires_at: Mapped[datetime]  # by the clock of the database
    writes: Mapped[int] = mapped_column(BigInteger, server_default="0")  # transactions committed under leases
