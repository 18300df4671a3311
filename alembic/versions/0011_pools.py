"""Pools: devices of kind pool for allocations of which only (pool, model, count) is known.

Allocations known before this get their devices here; their hours are due again, so that their time is billed.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011_pools"
down_revision = "0010_provisional"
branch_labels = None
depends_on = None

MAKE_DEVICES = """
INSERT INTO devices (uuid, vendor, model, kind)
SELECT DISTINCT 'pool:' || replace(replace(sites.name, '%', '%25'), '/', '%2F')
       || '/' || replace(replace(held.pool, '%', '%25'), '/', '%2F')
       || '/' || replace(replace(coalesce(held.model, 'unknown'), '%', '%25'), '/', '%2F') AS uuid,
       'unknown', coalesce(held.model, 'unknown'), 'pool'
FROM allocations AS held JOIN sites ON sites.id = held.site_id
WHERE held.pool IS NOT NULL AND held.superseded_at IS NULL
ORDER BY uuid ON CONFLICT (uuid) DO NOTHING
"""
MARK_CHANGED = """
INSERT INTO changes (site_id, from_at, to_at, kind)
SELECT site_id, lower(part), coalesce(upper(part), greatest(now() + interval '1 hour', lower(part))), 'allocations'
FROM (SELECT site_id, unnest(range_agg(tstzrange(start_at, end_at, '[]'))) AS part FROM allocations
      WHERE pool IS NOT NULL AND superseded_at IS NULL GROUP BY site_id) AS parts
"""


def upgrade() -> None:
    _kinds("'gpu', 'mig', 'node', 'pool'")
    op.alter_column(
        "devices",
        "kind",
        existing_type=sa.Text(),
        existing_nullable=False,
        comment="gpu, mig, node, or pool: accelerators known only by (pool, model, count)",
        existing_comment="gpu, mig or node",
    )
    op.alter_column(
        "devices",
        "uuid",
        existing_type=sa.Text(),
        existing_nullable=False,
        comment="vendor UUID; node:<site>/<name> for a node metered as a whole; pool:<site>/<pool>/<model>",
        existing_comment="vendor UUID; node:<site>/<name> for a node metered as a whole",
    )
    op.create_table_comment(
        "devices",
        "One accelerator, one MIG instance, one node that only has a node meter, or one pool of which no device is known.",
        existing_comment="One accelerator, one MIG instance, or one node that only has a node meter.",
    )
    op.create_index(
        "allocations_open_pools_ix",
        "allocations",
        ["site_id", "start_at"],
        postgresql_where=sa.text("pool IS NOT NULL AND end_at IS NULL AND superseded_at IS NULL"),
    )
    op.execute(sa.text(MAKE_DEVICES))
    op.execute(sa.text(MARK_CHANGED))


def downgrade() -> None:
    """Refused by the foreign keys where books refer to pools: they could not be read without them."""
    op.execute(sa.text("DELETE FROM devices WHERE kind = 'pool'"))
    op.drop_index("allocations_open_pools_ix", table_name="allocations")
    op.create_table_comment(
        "devices",
        "One accelerator, one MIG instance, or one node that only has a node meter.",
        existing_comment=None,
    )
    op.alter_column(
        "devices",
        "uuid",
        existing_type=sa.Text(),
        existing_nullable=False,
        comment="vendor UUID; node:<site>/<name> for a node metered as a whole",
    )
    op.alter_column("devices", "kind", existing_type=sa.Text(), existing_nullable=False, comment="gpu, mig or node")
    _kinds("'gpu', 'mig', 'node'")


def _kinds(kinds: str) -> None:
    op.drop_constraint(op.f("devices_kind_ck"), "devices", type_="check")
    op.create_check_constraint(op.f("devices_kind_ck"), "devices", f"kind IN ({kinds})")
