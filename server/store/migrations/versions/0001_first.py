"""The first tables: sessions, runs, preparations, leases, deployments."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "sessions",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("data", sa.Text, nullable=False),
        sa.Column("expires", sa.Float, nullable=False, index=True),
    )
    op.create_table(
        "runs",
        sa.Column("run_id", sa.String(32), primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False, index=True),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("file_name", sa.String(255), nullable=False),
        sa.Column("size_bytes", sa.Integer, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False, index=True),
        sa.Column("created_at", sa.String(32), nullable=False),
    )
    op.create_table(
        "preparations",
        sa.Column(
            "run_id",
            sa.String(32),
            sa.ForeignKey("runs.run_id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("resumed", sa.Integer, nullable=False),
        sa.Column("phase", sa.String(16), nullable=False),
        sa.Column("device", sa.String(96), nullable=False),
        sa.Column("steps", sa.JSON, nullable=False),
        sa.Column("model_kind", sa.String(32), nullable=False),
        sa.Column("model_file", sa.String(255), nullable=False),
        sa.Column("sample", sa.String(255)),
        sa.Column("environment", sa.String(64), nullable=False),
        sa.Column("passport", sa.JSON),
        sa.Column("updated_at", sa.String(32)),
    )
    op.create_table(
        "leases",
        sa.Column("gpu_id", sa.String(96), primary_key=True),
        sa.Column(
            "run_id",
            sa.String(32),
            sa.ForeignKey("runs.run_id", ondelete="CASCADE"),
            nullable=False,
            index=True,
        ),
        sa.Column("taken_at", sa.String(32), nullable=False),
    )
    op.create_table(
        "deployments",
        sa.Column("owner", sa.String(64), primary_key=True),
        sa.Column("model", sa.String(64), primary_key=True),
        sa.Column("environment", sa.String(32), primary_key=True),
        sa.Column("port", sa.Integer, nullable=False),
        sa.Column("wanted", sa.String(16), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("run_id", sa.String(32), nullable=False),
        sa.Column("wanted_at", sa.String(32), nullable=False),
        sa.Column("first_wanted_at", sa.String(32), nullable=False),
        sa.Column("serving_version", sa.Integer),
        sa.Column("serving_run_id", sa.String(32)),
        sa.Column("failed_version", sa.Integer),
        sa.Column("message", sa.JSON),
        sa.Column("seen_at", sa.String(32)),
    )
