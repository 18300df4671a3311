"""The segments' place has a mark by which it is known, and a day of samples is dropped only by who has sealed all of it.

What reads the catalog of hours is the owner's function now, so that a login of the worker alone cannot drop what is nowhere else.
"""

import sqlalchemy as sa
from alembic import op

revision = "0038_segment_place"
down_revision = "0037_run_evidence"
branch_labels = None
depends_on = None

OWNER, WORKER = "wattledger_owner", "wattledger_worker"
STREAMS = (
    "device_samples",
    "node_samples",
    "fabric_samples",
    "engine_samples",
    "device_health",
    "device_shares",
    "agent_health",
)
# Asked after the drop, which waits for writers of that day: what they committed meanwhile is seen, and an error takes all back.
ASK = """
    IF EXISTS (SELECT FROM public.sites, generate_series(0, 23) AS hour WHERE NOT EXISTS (
        SELECT FROM public.hour_catalog AS known WHERE known.site_id = sites.id AND known.state = 'sealed'
        AND known.hour_at = drop_partition.day::timestamp AT TIME ZONE 'UTC' + hour * interval '1 hour'))
    THEN
        RAISE EXCEPTION 'not every hour of % is sealed', drop_partition.day USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
"""
DROP_PARTITION = """
CREATE OR REPLACE FUNCTION drop_partition(parent text, day date) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' SET client_min_messages = warning
AS $$
DECLARE
    child record;
BEGIN
    IF parent NOT IN ({names}) THEN
        RAISE EXCEPTION 'partitions of % are kept for ever', parent USING ERRCODE = 'insufficient_privilege';
    END IF;
    SELECT d.namespace, d.relation INTO child FROM public.stored_days() AS d
        WHERE d.parent = drop_partition.parent AND d.day = drop_partition.day;
    IF child.relation IS NULL THEN RETURN false; END IF;
    IF child.namespace = 'public' THEN
        EXECUTE format('DROP TABLE public.%I', child.relation);
    ELSE
        EXECUTE format('SELECT %s.drop_chunks(%L::regclass, newer_than => %L::timestamptz, older_than => %L::timestamptz)',
            (SELECT extnamespace::regnamespace FROM pg_extension WHERE extname = 'timescaledb'), format('public.%I', parent),
            day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC');
    END IF;
    {ask}
    RETURN true;
END $$
"""


def upgrade() -> None:
    op.create_table(
        "segment_place",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False, comment="surrogate id: always 1"),
        sa.Column("mark", sa.Text(), nullable=False, comment="what the marker file in the root of the segments says"),
        sa.Column(
            "marked_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC",
        ),
        sa.CheckConstraint("id = 1", name=op.f("segment_place_one_ck")),
        sa.PrimaryKeyConstraint("id", name=op.f("segment_place_pk")),
        comment="By which the folder or bucket of the segments is known to be ours. No row: nothing was sealed yet.",
    )
    op.execute(f"ALTER TABLE segment_place OWNER TO {OWNER}")
    op.execute(f"GRANT SELECT, INSERT, UPDATE ON segment_place TO {WORKER}")
    _drop_partition(ASK)


def downgrade() -> None:
    _drop_partition("")
    op.drop_table("segment_place")


def _drop_partition(ask: str) -> None:
    names = ", ".join(f"'{table}'" for table in STREAMS)
    op.execute(DROP_PARTITION.replace("{names}", names).replace("{ask}", ask))
