"""Models whose files were given up, and the files of them that are still to be removed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_INDEXES = (
    ("ix_model_kept", "session_id", "removed_at IS NULL"),
    ("ix_model_with_state", "session_id", "optimizer_state IS NOT NULL"),
    ("ix_model_optimizer_state", "optimizer_state", None),
)


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("model", schema=None) as batch_op:
        batch_op.add_column(sa.Column("removed_at", sa.DateTime(timezone=True), nullable=True))
    for name, column, condition in _INDEXES:
        where = None if condition is None else sa.text(condition)
        op.create_index(name, "model", [column], sqlite_where=where, postgresql_where=where)
    op.create_table(
        "removal", sa.Column("digest", sa.String(length=64), nullable=False), sa.PrimaryKeyConstraint("digest")
    )


def downgrade() -> None:
    """Take back."""
    op.drop_table("removal")
    for name, _, _ in _INDEXES:
        op.drop_index(name, "model")
    with op.batch_alter_table("model", schema=None) as batch_op:
        batch_op.drop_column("removed_at")
