"""What packages say of their rounds: the clients' settings, and what they remember."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    kept = sa.text("server_state IS NOT NULL")
    with op.batch_alter_table("round", schema=None) as batch_op:
        batch_op.add_column(sa.Column("client_settings", sa.JSON(none_as_null=True), nullable=True))
        batch_op.add_column(sa.Column("server_state", sa.String(length=64), nullable=True))
        batch_op.create_index("ix_round_server_state", ["server_state"], sqlite_where=kept, postgresql_where=kept)


def downgrade() -> None:
    """Take back."""
    with op.batch_alter_table("round", schema=None) as batch_op:
        batch_op.drop_index("ix_round_server_state")
        batch_op.drop_column("server_state")
        batch_op.drop_column("client_settings")
