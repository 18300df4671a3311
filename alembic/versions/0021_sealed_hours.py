"""Seal hours: files by stream and generation, a place for late rows of every stream, and a worker that may do it."""

import sqlalchemy as sa
from alembic import op

revision = "0021_sealed_hours"
down_revision = "0020_lineage"
branch_labels = None
depends_on = None

OWNER, WRITER, WORKER = "wattledger_owner", "wattledger_writer", "wattledger_worker"
STREAMS = ("node_samples", "fabric_samples", "engine_samples", "device_health", "device_shares", "agent_health")
LATE = tuple(f"late_{stream}" for stream in STREAMS)

DROP_PARTITION = """
CREATE OR REPLACE FUNCTION drop_partition(parent text, day date) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' SET client_min_messages = warning
AS $$
DECLARE
    child text := format('%s_p%s', parent, to_char(day, 'YYYYMMDD'));
BEGIN
    IF parent NOT IN ({droppable}) THEN
        RAISE EXCEPTION 'partitions of % are kept for ever', parent USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF to_regclass(format('public.%I', child)) IS NULL THEN RETURN false; END IF;
    EXECUTE format('DROP TABLE public.%I', child);
    RETURN true;
END $$
"""


def upgrade() -> None:
    for stream, late in zip(STREAMS, LATE, strict=True):
        op.execute(f"CREATE TABLE {late} (LIKE {stream} INCLUDING COMMENTS)")
        op.execute(f"ALTER TABLE {late} ADD COLUMN received_at timestamptz NOT NULL DEFAULT now()")
        op.execute(f"COMMENT ON COLUMN {late}.received_at IS 'instant, UTC'")
        op.execute(
            f"COMMENT ON TABLE {late} IS 'Rows of {stream} for hours already sealed or older than hot retention, until merged.'"
        )
        op.create_index(f"{late}_at_ix", late, ["at"])
        op.execute(f"ALTER TABLE {late} OWNER TO {OWNER}")
        op.execute(f"GRANT INSERT ON {late} TO {WRITER}")
        op.execute(f"GRANT SELECT ON {late} TO {WORKER}")
    op.create_table(
        "hour_segments",
        sa.Column("site_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("hour_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column("stream", sa.Text(), nullable=False, comment="collector.wire.Stream"),
        sa.Column("generation", sa.Integer(), nullable=False, comment="of the hour, in which this file was made"),
        sa.Column("path", sa.Text(), nullable=False, comment="below the segments' root"),
        sa.Column("rows", sa.BigInteger(), nullable=False, comment="count or ordinal"),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False, comment="bytes"),
        sa.Column("sha256", sa.LargeBinary(), nullable=False, comment="SHA-256 digest of the file, 32 bytes"),
        sa.Column(
            "feeds",
            sa.ARRAY(sa.SmallInteger()),
            nullable=False,
            comment="collector.wire.Feed of its rows, each once, in order",
        ),
        sa.Column(
            "published_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC",
        ),
        sa.Column(
            "retired_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="instant, UTC: a later generation took its place; null = read from here",
        ),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("hour_segments_site_id_fk")),
        sa.PrimaryKeyConstraint("site_id", "hour_at", "stream", "generation", name=op.f("hour_segments_pk")),
        comment="Files of sealed hours, one a stream; of a stream and hour the one that is not retired is read.",
    )
    op.execute(f"ALTER TABLE hour_segments OWNER TO {OWNER}")
    op.execute(f"GRANT SELECT, INSERT, DELETE ON hour_segments TO {WORKER}")
    op.execute(f"GRANT UPDATE (retired_at, path, rows, size_bytes, sha256, feeds) ON hour_segments TO {WORKER}")
    op.execute(f"GRANT INSERT, UPDATE ON hour_catalog TO {WORKER}")
    op.execute(f"GRANT DELETE ON late_samples, {', '.join(LATE)} TO {WORKER}")
    op.execute("COMMENT ON COLUMN hour_catalog.segment IS 'folder of the sealed segments, below the segments'' root'")
    _droppable("device_samples", *STREAMS)


def downgrade() -> None:
    _droppable("device_samples", "node_samples", "fabric_samples", "engine_samples")
    op.execute("COMMENT ON COLUMN hour_catalog.segment IS 'URI of the sealed segment'")
    op.execute(f"REVOKE INSERT, UPDATE ON hour_catalog FROM {WORKER}")
    op.execute(f"REVOKE DELETE ON late_samples FROM {WORKER}")
    op.drop_table("hour_segments")
    for late in LATE:
        op.drop_table(late)


def _droppable(*tables: str) -> None:
    op.execute(DROP_PARTITION.replace("{droppable}", ", ".join(f"'{table}'" for table in tables)))
