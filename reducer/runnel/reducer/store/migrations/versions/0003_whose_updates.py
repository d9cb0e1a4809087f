"""Whose updates a payload has, in their order."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("partial", schema=None) as batch_op:
        batch_op.add_column(sa.Column("clients", sa.JSON(), nullable=True))


def downgrade() -> None:
    """Take back."""
    with op.batch_alter_table("partial", schema=None) as batch_op:
        batch_op.drop_column("clients")
