"""How many transactions were committed, which tells whether one was whose answer is lost."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("lease", schema=None) as batch_op:
        batch_op.add_column(sa.Column("writes", sa.BigInteger(), server_default="0", nullable=False))


def downgrade() -> None:
    """Take back."""
    with op.batch_alter_table("lease", schema=None) as batch_op:
        batch_op.drop_column("writes")
