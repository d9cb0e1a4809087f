"""A round's slots are found by its number, however many rounds there were before it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    counted = sa.text("counted_in IS NOT NULL")
    op.create_index(
        "ix_slot_counted", "slot", ["session_id", "counted_in"], sqlite_where=counted, postgresql_where=counted
    )


def downgrade() -> None:
    """Take back."""
    op.drop_index("ix_slot_counted", "slot")
