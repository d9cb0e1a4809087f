"""Signatures of packages."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("package", schema=None) as batch_op:
        batch_op.add_column(sa.Column("signatures", sa.JSON(), server_default="[]", nullable=False))


def downgrade() -> None:
    """Take back."""
    with op.batch_alter_table("package", schema=None) as batch_op:
        batch_op.drop_column("signatures")
