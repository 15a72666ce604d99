"""The first schema: runs, agents, epochs, events of all kinds, messages, transitions, and what was refused."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make all tables."""
    op.create_table(
        "runs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("run_id", sa.String(64), nullable=False, unique=True),
        sa.Column("created_at", sa.String(64), nullable=False),
        sa.Column("plan", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("boot_id", sa.String(64)),
        sa.Column("start_mono_s", sa.Float),
        sa.Column("start_wall", sa.Float),
        sa.Column("stop_reason", sa.Text),
        sa.Column("end_wall", sa.Float),
    )
    op.create_table(
        "agents",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("run_ref", sa.Integer, sa.ForeignKey("runs.id"), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("chunk_mb", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("directory", sa.Text, nullable=False),
        sa.Column("ready", sa.Text),
        sa.Column("health", sa.String(16)),
        sa.Column("reachable", sa.Boolean),
        sa.Column("cleanup", sa.String(16)),
        sa.Column("cleanup_detail", sa.Text),
        sa.Column("drain_seconds", sa.Float, nullable=False, server_default="60"),
        sa.Column("rescued_events", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("journal_damage", sa.Text),
        sa.UniqueConstraint("run_ref", "name"),
    )
    op.create_table(
        "epochs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("agent_ref", sa.Integer, sa.ForeignKey("agents.id"), nullable=False),
        sa.Column("epoch", sa.String(16), nullable=False),
        sa.Column("stored", sa.BigInteger, nullable=False),
        sa.Column("top_seq", sa.BigInteger, nullable=False),
        sa.Column("start_seq", sa.BigInteger),
        sa.Column("heartbeat_seq", sa.BigInteger),
        sa.Column("final_seq", sa.BigInteger),
        sa.Column("last_t_mono_ns", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("agent_ref", "epoch"),
    )
    op.create_table(
        "rollovers",
        sa.Column("epoch_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("t_mono_ns", sa.BigInteger, nullable=False),
        sa.Column("t_wall", sa.Float, nullable=False),
        sa.Column("chunk", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("fsync_seconds", sa.Float, nullable=False),
        sa.Column("write_p50_s", sa.Float, nullable=False),
        sa.Column("write_p99_s", sa.Float, nullable=False),
        sa.Column("write_max_s", sa.Float, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "samples",
        sa.Column("epoch_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("t_mono_ns", sa.BigInteger, nullable=False),
        sa.Column("t_wall", sa.Float, nullable=False),
        sa.Column("interval_s", sa.Float, nullable=False),
        sa.Column("written_bytes", sa.BigInteger, nullable=False),
        sa.Column("agent_cpu_ratio", sa.Float, nullable=False),
        sa.Column("agent_rss_bytes", sa.BigInteger, nullable=False),
        sa.Column("host_cpu_ratio", sa.Float),
        sa.Column("host_memory_used_bytes", sa.BigInteger),
        sa.Column("host_memory_total_bytes", sa.BigInteger),
        sa.Column("disk_free_bytes", sa.BigInteger, nullable=False),
        sa.Column("write_histogram", sa.Text, nullable=False),
        sa.Column("fsync_histogram", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "events",
        sa.Column("epoch_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("t_mono_ns", sa.BigInteger, nullable=False),
        sa.Column("t_wall", sa.Float, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "messages",
        sa.Column("run_ref", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("n", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("t_wall", sa.Float, nullable=False),
        sa.Column("level", sa.String(16), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "transitions",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("agent_ref", sa.Integer, sa.ForeignKey("agents.id"), nullable=False),
        sa.Column("t_wall", sa.Float, nullable=False),
        sa.Column("health", sa.String(16), nullable=False),
        sa.Column("silent_s", sa.Float, nullable=False),
    )
    op.create_table(
        "refused",
        sa.Column("agent_ref", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("epoch", sa.String(16), primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("sentence", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
