"""What runs promise beside what the settings say."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "objectives",
        sa.Column(
            "run_id",
            sa.String(32),
            sa.ForeignKey("runs.run_id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("environment", sa.String(32), primary_key=True),
        sa.Column("availability", sa.Float),
        sa.Column("latency_seconds", sa.Float),
        sa.Column("latency_share", sa.Float),
        sa.Column("seconds", sa.Float),
    )
