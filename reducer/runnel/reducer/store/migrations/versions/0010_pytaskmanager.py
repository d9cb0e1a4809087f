"""Sites, tasks and results by the integers that PyTaskManager's scripts know."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "ptm_site",
        _number(),
        sa.Column("organisation_id", sa.String(length=64), sa.ForeignKey("organisation.id"), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("node", sa.Boolean(), nullable=False),
        sa.Column("token_id", sa.String(length=32), nullable=False),
        sa.Column("email", sa.Text(), nullable=True),
        sa.Column("institute", sa.Text(), nullable=True),
        sa.Column("country", sa.Text(), nullable=True),
        sa.Column("ip", sa.String(length=255), nullable=True),
        sa.Column("last_seen", sa.DateTime(timezone=True), nullable=True),
        sa.UniqueConstraint("organisation_id", "name", "node", name="uq_ptm_site_name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "ptm_task",
        _number(),
        sa.Column("organisation_id", sa.String(length=64), sa.ForeignKey("organisation.id"), nullable=False),
        sa.Column("site_id", sa.Integer(), sa.ForeignKey("ptm_site.id"), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("image", sa.Text(), nullable=False),
        sa.Column("input", sa.Text(), nullable=False),
        sa.Column("task_id", sa.String(length=32), nullable=True),
        sa.Column("ended", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_ptm_task_site_id", "ptm_task", ["site_id"])
    op.create_table(
        "ptm_result",
        _number(),
        sa.Column("ptm_task_id", sa.Integer(), sa.ForeignKey("ptm_task.id"), nullable=False),
        sa.Column("response", sa.Text(), nullable=False),
        sa.Column("log", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_ptm_result_ptm_task_id", "ptm_result", ["ptm_task_id"])


def downgrade() -> None:
    """Take back."""
    for table in ("ptm_result", "ptm_task", "ptm_site"):
        op.drop_table(table)


def _number() -> sa.Column[int]:
    return sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True)
