"""Length models, and the features that they learn from.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("requests", sa.Column("features", sa.LargeBinary()))
    op.add_column("requests", sa.Column("features_version", sa.Text()))
    op.add_column("requests", sa.Column("template", sa.Text()))
    op.create_index("ix_requests_features_version_arrived_at", "requests", ["features_version", "arrived_at"])
    op.create_table(
        "length_models",
        sa.Column("version", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("served_at", sa.DateTime(timezone=True)),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("window_start", sa.DateTime(timezone=True), nullable=False),
        sa.Column("window_end", sa.DateTime(timezone=True), nullable=False),
        sa.Column("fitted_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("features_version", sa.Text(), nullable=False),
        sa.Column("metrics", postgresql.JSONB(), nullable=False),
        sa.Column("artifact", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint(
            "status IN ('challenger', 'serving', 'retired', 'rejected')", name="ck_length_models_status"
        ),
        sa.PrimaryKeyConstraint("version", name="pk_length_models"),
    )
    op.create_index(
        "uq_length_models_serving",
        "length_models",
        ["status"],
        unique=True,
        postgresql_where=sa.text("status = 'serving'"),
    )


def downgrade() -> None:
    op.drop_table("length_models")
    op.drop_index("ix_requests_features_version_arrived_at", "requests")
    op.drop_column("requests", "template")
    op.drop_column("requests", "features_version")
    op.drop_column("requests", "features")
