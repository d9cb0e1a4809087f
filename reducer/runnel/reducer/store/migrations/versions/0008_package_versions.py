"""Who brought a package, whether it is retired, and which package each round runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("package", schema=None) as batch_op:
        batch_op.add_column(_text("uploaded_by", 32))
        batch_op.add_column(sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True))
    with op.batch_alter_table("round", schema=None) as batch_op:
        batch_op.add_column(_text("package_digest", 64))
    # Until now a session ran all its rounds with one package.
    op.execute(
        "UPDATE round SET package_digest ="
        " (SELECT session.package_digest FROM session WHERE session.id = round.session_id)"
    )


def downgrade() -> None:
    """Take back."""
    with op.batch_alter_table("round", schema=None) as batch_op:
        batch_op.drop_column("package_digest")
    with op.batch_alter_table("package", schema=None) as batch_op:
        batch_op.drop_column("retired_at")
        batch_op.drop_column("uploaded_by")


def _text(name: str, length: int) -> sa.Column[str]:
    return sa.Column(name, sa.String(length=length), server_default=sa.text("''"), nullable=False)
