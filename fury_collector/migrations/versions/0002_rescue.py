"""How long an agent may take to deliver, and what came of its journal: rescued, refused, damaged."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns and the table of refused events."""
    op.add_column("agents", sa.Column("drain_seconds", sa.Float, nullable=False, server_default="60"))
    op.add_column("agents", sa.Column("rescued_events", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("agents", sa.Column("journal_damage", sa.Text))
    op.create_table(
        "refused",
        sa.Column("agent_ref", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("epoch", sa.String(16), primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("sentence", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
