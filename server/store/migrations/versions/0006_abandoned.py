"""How long nobody could have reached what an owner has."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "abandoned",
        sa.Column("owner", sa.String(64), primary_key=True),
        sa.Column("seconds", sa.Float, nullable=False),
    )
