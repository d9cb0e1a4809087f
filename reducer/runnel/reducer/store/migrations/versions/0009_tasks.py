"""Tasks at sites: what was asked, how far each run is, and the files that go in and come out."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_TABLES = ("run_line", "run_file", "run", "task_blob", "task_input", "task_tag", "task")


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "task",
        _text("id", 32),
        _text("organisation_id", 64),
        _text("name", 200),
        _text("token_id", 32),
        _text("asked_by", 200),
        sa.Column("spec", sa.Text(), nullable=False),
        _text("status", 16),
        _text("parent_run", 32),
        _time("created_at", nullable=False),
        _time("expires_at"),
        _time("finished_at"),
        sa.ForeignKeyConstraint(["organisation_id"], ["organisation.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    _index("task", "parent_run")
    _index("task", "created_at")
    op.create_table(
        "task_tag",
        _text("task_id", 32),
        _text("key", 200),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"]),
        sa.PrimaryKeyConstraint("task_id", "key"),
    )
    _index("task_tag", "key")
    op.create_table(
        "task_input",
        _text("task_id", 32),
        _text("digest", 64),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"]),
        sa.PrimaryKeyConstraint("task_id", "digest"),
    )
    _index("task_input", "digest")
    op.create_table(
        "task_blob",
        _text("organisation_id", 64),
        _text("digest", 64),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        _time("created_at", nullable=False),
        _time("kept_until"),
        sa.ForeignKeyConstraint(["organisation_id"], ["organisation.id"]),
        sa.PrimaryKeyConstraint("organisation_id", "digest"),
    )
    _index("task_blob", "kept_until")
    _index("task_blob", "digest")
    op.create_table(
        "run",
        _text("id", 32),
        _text("task_id", 32),
        _text("organisation_id", 64),
        _text("client", 64),
        _text("state", 24),
        sa.Column("detail", sa.Text(), nullable=False),
        _time("created_at", nullable=False),
        _time("started_at"),
        _time("finished_at"),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("error_code", sa.String(length=64), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("log_tail", sa.Text(), nullable=True),
        sa.Column("image_digest", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("elapsed_s", sa.JSON(), nullable=False),
        sa.Column("released", sa.Boolean(), nullable=True),
        _text("released_by", 200),
        sa.Column("released_why", sa.Text(), nullable=False),
        _time("kept_until"),
        _time("removed_at"),
        sa.ForeignKeyConstraint(["organisation_id"], ["organisation.id"]),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    for column in ("task_id", "client", "kept_until"):
        _index("run", column)
    still_open = sa.text("finished_at IS NULL")
    op.create_index("ix_run_open", "run", ["client"], sqlite_where=still_open, postgresql_where=still_open)
    op.create_table(
        "run_file",
        _number(),
        _text("run_id", 32),
        _text("digest", 64),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=True),
        _text("media_type", 200),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    _index("run_file", "run_id")
    _index("run_file", "digest")
    op.create_table(
        "run_line",
        _number(),
        _text("run_id", 32),
        _time("at", nullable=False),
        _text("stream", 16),
        sa.Column("text", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    _index("run_line", "run_id")


def downgrade() -> None:
    """Take back."""
    for table in _TABLES:
        op.drop_table(table)


def _text(name: str, length: int) -> sa.Column[str]:
    return sa.Column(name, sa.String(length=length), nullable=False)


def _time(name: str, *, nullable: bool = True) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _number() -> sa.Column[int]:
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column("id", kind, autoincrement=True, nullable=False)


def _index(table: str, column: str) -> None:
    op.create_index(f"ix_{table}_{column}", table, [column])
