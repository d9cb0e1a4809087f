"""In which round an update counts, which with a buffer may be a later one than that it was trained for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("slot", schema=None) as batch_op:
        batch_op.add_column(sa.Column("counted_in", sa.Integer(), nullable=True))
    with op.batch_alter_table("partial", schema=None) as batch_op:
        batch_op.add_column(sa.Column("counted_in", sa.Integer(), nullable=True))
    op.execute("UPDATE slot SET counted_in = round WHERE state = 'counted'")
    op.execute("UPDATE partial SET counted_in = round")
    with op.batch_alter_table("partial", schema=None) as batch_op:
        batch_op.alter_column("counted_in", nullable=False)
        batch_op.drop_index("ix_partial_session_round")
        batch_op.create_index("ix_partial_session_counted", ["session_id", "counted_in"])


def downgrade() -> None:
    """Take back."""
    with op.batch_alter_table("partial", schema=None) as batch_op:
        batch_op.drop_index("ix_partial_session_counted")
        batch_op.create_index("ix_partial_session_round", ["session_id", "round"])
        batch_op.drop_column("counted_in")
    with op.batch_alter_table("slot", schema=None) as batch_op:
        batch_op.drop_column("counted_in")
