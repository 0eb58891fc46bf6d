"""What happened to runs, in its order."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "events",
        sa.Column("sequence", sa.Integer, primary_key=True),
        sa.Column(
            "run_id",
            sa.String(32),
            sa.ForeignKey("runs.run_id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("code", sa.String(64), nullable=False),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("actor", sa.String(16), nullable=False),
        sa.Column("token_id", sa.String(16)),
        sa.Column("params", sa.JSON, nullable=False),
        sa.Column("reason", sa.JSON),
        sqlite_autoincrement=True,
    )
    op.create_index("events_of_run", "events", ["run_id", "sequence"])
