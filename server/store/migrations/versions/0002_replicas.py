"""How many replicas a deployment has."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the number; what is deployed has one."""
    op.add_column(
        "deployments", sa.Column("replicas", sa.Integer, nullable=False, server_default="1")
    )
