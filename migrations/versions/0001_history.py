"""Applications, end users, API keys, requests.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "applications",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_applications"),
        sa.UniqueConstraint("name", name="uq_applications_name"),
    )
    op.create_table(
        "end_users",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("application_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_end_users"),
        sa.ForeignKeyConstraint(["application_id"], ["applications.id"], name="fk_end_users_application_id_applications"),
        sa.UniqueConstraint("application_id", "name", name="uq_end_users_application_id_name"),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("application_id", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.ForeignKeyConstraint(["application_id"], ["applications.id"], name="fk_api_keys_application_id_applications"),
        sa.UniqueConstraint("sha256", name="uq_api_keys_sha256"),
    )
    op.create_index("ix_api_keys_application_id", "api_keys", ["application_id"])
    op.create_table(
        "requests",
        sa.Column("arrived_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("application_id", sa.BigInteger(), nullable=False),
        sa.Column("end_user_id", sa.BigInteger()),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("stream", sa.Boolean(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("http_status", sa.Integer(), nullable=False),
        sa.Column("backend", sa.Text()),
        sa.Column("error_code", sa.Text()),
        sa.Column("finish_reason", sa.Text()),
        sa.Column("sequences", sa.Integer(), nullable=False),
        sa.Column("prompt_bytes", sa.BigInteger(), nullable=False),
        sa.Column("max_tokens", sa.BigInteger()),
        sa.Column("input_tokens", sa.BigInteger()),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("predicted_tokens", sa.BigInteger()),
        sa.Column("predicted_p90_tokens", sa.BigInteger()),
        sa.Column("prediction_source", sa.Text()),
        sa.Column("queue_ms", sa.Double()),
        sa.Column("ttft_ms", sa.Double()),
        sa.Column("e2e_ms", sa.Double()),
        sa.Column("prompt", sa.Text()),
        sa.PrimaryKeyConstraint("arrived_at", "id", name="pk_requests"),
        sa.ForeignKeyConstraint(["application_id"], ["applications.id"], name="fk_requests_application_id_applications"),
        sa.ForeignKeyConstraint(["end_user_id"], ["end_users.id"], name="fk_requests_end_user_id_end_users"),
        postgresql_partition_by="RANGE (arrived_at)",
    )
    op.create_index("ix_requests_application_id_arrived_at", "requests", ["application_id", "arrived_at"])
    op.create_index("ix_requests_end_user_id_arrived_at", "requests", ["end_user_id", "arrived_at"])
    op.execute("CREATE TABLE requests_default PARTITION OF requests DEFAULT")


def downgrade() -> None:
    op.drop_table("requests")
    op.drop_table("api_keys")
    op.drop_table("end_users")
    op.drop_table("applications")
