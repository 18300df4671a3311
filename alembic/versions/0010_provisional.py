"""Let the worker replace the open window's rows (revision 0), and only those: closed revisions stay append-only."""

from alembic import op

revision = "0010_provisional"
down_revision = "0009_service_functions"
branch_labels = None
depends_on = None

OWNER, WORKER = "wattledger_owner", "wattledger_worker"

CLEAR_PROVISIONAL = """
CREATE FUNCTION clear_provisional(site integer, hour timestamptz) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    DELETE FROM public.usage_hours WHERE site_id = site AND hour_at = hour AND revision = 0;
    DELETE FROM public.ledger_lines WHERE site_id = site AND hour_at = hour AND revision = 0;
$$
"""


def upgrade() -> None:
    op.execute(CLEAR_PROVISIONAL)
    op.execute(f"ALTER FUNCTION clear_provisional(integer, timestamptz) OWNER TO {OWNER}")
    op.execute("REVOKE EXECUTE ON FUNCTION clear_provisional(integer, timestamptz) FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION clear_provisional(integer, timestamptz) TO {WORKER}")


def downgrade() -> None:
    op.execute("DROP FUNCTION clear_provisional(integer, timestamptz)")
