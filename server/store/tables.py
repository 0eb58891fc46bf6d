"""The tables of the database."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

sessions = Table(
    "sessions",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("data", Text, nullable=False),
    Column("expires", Float, nullable=False, index=True),
)

runs = Table(
    "runs",
    metadata,
    Column("run_id", String(32), primary_key=True),
    Column("owner", String(64), nullable=False, index=True),
    Column("model", String(64), nullable=False),
    Column("file_name", String(255), nullable=False),
    Column("size_bytes", Integer, nullable=False),
    Column("digest", String(64), nullable=False, index=True),
    Column("created_at", String(32), nullable=False),
)

preparations = Table(
    "preparations",
    metadata,
    Column("run_id", String(32), ForeignKey("runs.run_id", ondelete="CASCADE"), primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("resumed", Integer, nullable=False),
    Column("phase", String(16), nullable=False),
    Column("device", String(96), nullable=False),
    Column("steps", JSON, nullable=False),
    Column("model_kind", String(32), nullable=False),
    Column("model_file", String(255), nullable=False),
    Column("sample", String(255)),
    Column("environment", String(64), nullable=False),
    Column("passport", JSON),
    Column("updated_at", String(32)),
)

leases = Table(
    "leases",
    metadata,
    Column("gpu_id", String(96), primary_key=True),
    Column(
        "run_id",
        String(32),
        ForeignKey("runs.run_id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    Column("taken_at", String(32), nullable=False),
)

deployments = Table(
    "deployments",
    metadata,
    Column("owner", String(64), primary_key=True),
    Column("model", String(64), primary_key=True),
    Column("environment", String(32), primary_key=True),
    Column("port", Integer, nullable=False),
    Column("wanted", String(16), nullable=False),
    Column("version", Integer, nullable=False),
    Column("run_id", String(32), nullable=False),
    Column("wanted_at", String(32), nullable=False),
    Column("first_wanted_at", String(32), nullable=False),
    Column("serving_version", Integer),
    Column("serving_run_id", String(32)),
    Column("failed_version", Integer),
    Column("message", JSON),
    Column("seen_at", String(32)),
    Column("replicas", Integer, nullable=False, server_default="1"),
)

tokens = Table(
    "tokens",
    metadata,
    Column("token_id", String(16), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("owner", String(64), nullable=False, index=True),
    Column("name", String(64), nullable=False),
    Column("scope", String(16), nullable=False),
    Column("model", String(64)),
    Column("created_at", String(32), nullable=False),
    Column("expires_at", String(32)),
    Column("revoked_at", String(32)),
    Column("used_at", String(32)),
)

events = Table(
    "events",
    metadata,
    # Never given twice, though the newest ones are deleted: else a reader would miss what has its number.
    Column("sequence", Integer, primary_key=True),
    Column("run_id", String(32), ForeignKey("runs.run_id", ondelete="CASCADE"), nullable=False),
    Column("code", String(64), nullable=False),
    Column("at", String(32), nullable=False),
    Column("actor", String(16), nullable=False),
    Column("token_id", String(16)),
    Column("params", JSON, nullable=False),
    Column("reason", JSON),
    Index("events_of_run", "run_id", "sequence"),
    sqlite_autoincrement=True,
)

objectives = Table(
    "objectives",
    metadata,
    Column("run_id", String(32), ForeignKey("runs.run_id", ondelete="CASCADE"), primary_key=True),
    Column("environment", String(32), primary_key=True),
    Column("availability", Float),
    Column("latency_seconds", Float),
    Column("latency_share", Float),
    Column("seconds", Float),
)

abandoned = Table(
    "abandoned",
    metadata,
    Column("owner", String(64), primary_key=True),
    Column("seconds", Float, nullable=False),
)
