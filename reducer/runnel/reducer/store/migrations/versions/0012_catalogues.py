"""What sites publish of their data."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "catalogue",
        sa.Column("client", sa.String(length=64), sa.ForeignKey("node.name"), primary_key=True),
        sa.Column("digest", sa.String(length=64), nullable=False),
    )
    op.create_table(
        "dataset",
        sa.Column("client", sa.String(length=64), sa.ForeignKey("node.name"), primary_key=True),
        sa.Column("id", sa.String(length=64), primary_key=True),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("creator", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
    )
    op.create_index("ix_dataset_id", "dataset", ["id"])


def downgrade() -> None:
    """Take back."""
    op.drop_index("ix_dataset_id", "dataset")
    op.drop_table("dataset")
    op.drop_table("catalogue")
