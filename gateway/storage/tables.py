"""The database's tables. `migrations/` creates them; a test compares the two."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    false,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

applications = Table(
    "applications",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

end_users = Table(
    "end_users",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("application_id", ForeignKey("applications.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    UniqueConstraint("application_id", "name"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("application_id", ForeignKey("applications.id"), nullable=False, index=True),
    Column("sha256", LargeBinary, nullable=False, unique=True),
    Column("prefix", Text, nullable=False),
    Column("label", Text, nullable=False, server_default=""),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("revoked_at", DateTime(timezone=True)),
)

requests = Table(
    "requests",
    metadata,
    Column("arrived_at", DateTime(timezone=True), primary_key=True),
    Column("id", Uuid, primary_key=True),
    Column("request_id", Text, nullable=False),
    Column("application_id", ForeignKey("applications.id"), nullable=False),
    Column("end_user_id", ForeignKey("end_users.id")),
    Column("model", Text, nullable=False),
    Column("route", Text, nullable=False),
    Column("stream", Boolean, nullable=False),
    Column("status", Text, nullable=False),
    Column("http_status", Integer, nullable=False),
    Column("backend", Text),
    Column("error_code", Text),
    Column("finish_reason", Text),
    Column("sequences", Integer, nullable=False),
    Column("prompt_bytes", BigInteger, nullable=False),
    Column("max_tokens", BigInteger),
    Column("input_tokens", BigInteger),
    Column("output_tokens", BigInteger, nullable=False),
    Column("predicted_tokens", BigInteger),
    Column("predicted_p90_tokens", BigInteger),
    Column("prediction_source", Text),
    Column("queue_ms", Double),
    Column("ttft_ms", Double),
    Column("e2e_ms", Double),
    Column("prompt", Text),
    Column("features", LargeBinary),
    Column("features_version", Text),
    Column("template", Text),
    Index(None, "application_id", "arrived_at"),
    Index(None, "end_user_id", "arrived_at"),
    Index(None, "features_version", "arrived_at"),
    postgresql_partition_by="RANGE (arrived_at)",
)
"""One row per finished request. There is one partition per UTC day (see `partitions`)."""

length_models = Table(
    "length_models",
    metadata,
    Column("version", BigInteger, Identity(always=True), primary_key=True),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("status", Text, nullable=False),
    Column("served_at", DateTime(timezone=True)),
    Column("rows", Integer, nullable=False),
    Column("window_start", DateTime(timezone=True), nullable=False),
    Column("window_end", DateTime(timezone=True), nullable=False),
    Column("fitted_until", DateTime(timezone=True), nullable=False),
    Column("features_version", Text, nullable=False),
    Column("metrics", JSONB, nullable=False),
    Column("artifact", LargeBinary, nullable=False),
    CheckConstraint("status IN ('challenger', 'serving', 'retired', 'rejected')", name="status"),
    Index("uq_length_models_serving", "status", unique=True, postgresql_where=text("status = 'serving'")),
)
"""Every trained length model.

`served_at` is the last time that it began to serve. It was fitted to rows that arrived from `window_start` to
`fitted_until`, and evaluated on those from `fitted_until` to `window_end`.
"""

backends = Table(
    "backends",
    metadata,
    Column("name", Text, primary_key=True),
    Column("fields", JSONB, nullable=False),
    Column("draining", Boolean, nullable=False, server_default=false()),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("changed_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)
"""Backends that were added at run time. `fields` contains their settings, including API keys."""

DEFAULT_PARTITION = "requests_default"
"""Contains the rows of days that have no partition yet."""


def is_declared(name: str | None, type_: str, _parents: object = None) -> bool:
    """Return whether Alembic compares the object: the tables above, but not the daily partitions."""
    return type_ != "table" or name in metadata.tables
