"""What is read back and what belongs to the ramp: samples, rollovers, and how long an agent's ramp is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns; what is stored already was written without a ramp and not read back."""
    op.add_column("agents", sa.Column("ramp_seconds", sa.Float, nullable=False, server_default="0"))
    op.add_column("rollovers", sa.Column("ramp_bytes", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("rollovers", sa.Column("read_seconds", sa.Float))
    op.add_column("samples", sa.Column("read_bytes", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("samples", sa.Column("read_histogram", sa.Text))
