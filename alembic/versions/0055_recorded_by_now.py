"""When something was recorded or superseded, the store's own clock has the last word.

A command on a machine whose clock is ahead wrote rows of the future: the books did not see them at once, and were told of them only once.
"""

from alembic import op

revision = "0055_recorded_by_now"
down_revision = "0054_rated_where_it_counts"
branch_labels = None
depends_on = None

_STAMP = """
CREATE OR REPLACE FUNCTION stamp_dated() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    {by_now}
    IF TG_OP = 'INSERT' THEN
        NEW.recorded_xid := coalesce(NEW.recorded_xid, public.stamped_transaction());
        IF NEW.superseded_at IS NOT NULL THEN
            NEW.superseded_xid := coalesce(NEW.superseded_xid, public.stamped_transaction());
        END IF;
    ELSIF NEW.superseded_at IS DISTINCT FROM OLD.superseded_at THEN
        NEW.superseded_xid := CASE WHEN NEW.superseded_at IS NOT NULL THEN public.stamped_transaction() END;
    END IF;
    RETURN NEW;
END $$
"""
# Allocations are dated by the store's own clock already, and stay in their order when that steps back. least() passes over null.
_BY_NOW = """
    IF TG_TABLE_NAME <> 'allocations' THEN
        NEW.recorded_at := least(NEW.recorded_at, clock_timestamp());
        IF NEW.superseded_at IS NOT NULL THEN
            NEW.superseded_at := least(NEW.superseded_at, clock_timestamp());
        END IF;
    END IF;
"""


def upgrade() -> None:
    op.execute(_STAMP.format(by_now=_BY_NOW))


def downgrade() -> None:
    op.execute(_STAMP.format(by_now=""))
