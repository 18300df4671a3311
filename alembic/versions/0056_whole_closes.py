"""What a closed month says of itself is whole: which sites it left out, what moved since it was closed before, whose key signed it.

And its hours stay frozen for everybody but the owner: before, a worker's right to write hours was enough to let one go.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0056_whole_closes"
down_revision = "0055_recorded_by_now"
branch_labels = None
depends_on = None

OWNER = "wattledger_owner"
COLUMNS: dict[str, tuple[Any, str | None, str]] = {
    "apart_site_ids": (
        postgresql.ARRAY(sa.Integer()),
        "{}",
        "surrogate ids of sites that had a period of their own when all the others were closed",
    ),
    "moved_lines": (sa.BigInteger(), "0", "lines that are not what they were when it was closed before"),
    "moved_sha256": (sa.LargeBinary(), None, "last link of the chain of those lines; null = the first close"),
    "public_key": (sa.Text(), None, "of the key that signed it, PEM; null = not signed, or not kept"),
}
"""Type, default of rows there are, comment."""
# As far as it can be told: who was closed alone, and not opened again, when the others were.
APART = """
UPDATE ledger_periods AS rest SET apart_site_ids = found.ids FROM (
    SELECT of_all.id, array_agg(DISTINCT own.site_id ORDER BY own.site_id) AS ids FROM ledger_periods AS of_all
    JOIN ledger_periods AS own ON own.site_id IS NOT NULL AND own.from_at < of_all.to_at AND own.to_at > of_all.from_at
         AND own.closed_at <= of_all.closed_at AND coalesce(own.reopened_at > of_all.closed_at, true)
    WHERE of_all.site_id IS NULL GROUP BY of_all.id
) AS found WHERE found.id = rest.id
"""
# A month is opened by the owner, who lets its hours go. A worker goes on noting beside them what they would be.
FROZEN = """
CREATE FUNCTION stays_frozen() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT pg_has_role(current_user, '{owner}', 'USAGE') THEN
        RAISE insufficient_privilege USING MESSAGE = format(
            'the hour %s of site %s is frozen in a closed month; `wattledger close reopen` opens it', OLD.hour_at, OLD.site_id
        );
    END IF;
    RETURN NEW;
END $$
"""
TRIGGER = """
CREATE TRIGGER stays_frozen BEFORE UPDATE ON ledger_hours FOR EACH ROW WHEN (
    OLD.frozen_period_id IS NOT NULL AND (OLD.frozen_period_id, OLD.revision, OLD.status) IS DISTINCT FROM (NEW.frozen_period_id, NEW.revision, NEW.status)
) EXECUTE FUNCTION stays_frozen()
"""


def upgrade() -> None:
    for name, (kind, default, comment) in COLUMNS.items():
        column: sa.Column[Any] = sa.Column(
            name, kind, nullable=default is None, server_default=default, comment=comment
        )
        op.add_column("ledger_periods", column)
    op.execute(APART)
    op.execute(sa.text(FROZEN.replace("{owner}", OWNER).replace(":", r"\:")))
    op.execute(f"ALTER FUNCTION stays_frozen() OWNER TO {OWNER}")
    op.execute("REVOKE EXECUTE ON FUNCTION stays_frozen() FROM PUBLIC")
    op.execute(TRIGGER)


def downgrade() -> None:
    op.execute("DROP TRIGGER stays_frozen ON ledger_hours")
    op.execute("DROP FUNCTION stays_frozen()")
    for name in reversed(COLUMNS):
        op.drop_column("ledger_periods", name)
