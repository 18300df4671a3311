"""A tenant sees what a rating gave it where that rating counts, and nowhere else.

Before, whoever was named in any revision of an hour saw the usage hours of its jobs: also where the hour was closed anew for somebody
else, and where the rating was of what a closed month owes.
"""

from alembic import op

revision = "0054_rated_where_it_counts"
down_revision = "0053_open_holdings"
branch_labels = None
depends_on = None

BY_TENANT = "(SELECT sees_all_tenants()) OR tenant_id = ANY ((SELECT visible_tenant_ids())::integer[])"
# Uncorrelated, so it is asked once a query; the policy of hour_jobs applies inside.
COUNTS = """
OR (site_id, hour_at, job_id) IN (SELECT site_id, hour_at, job_id FROM hour_jobs JOIN ledger_hours USING (site_id, hour_at, revision))
"""
EVER = " OR (site_id, hour_at, job_id) IN (SELECT site_id, hour_at, job_id FROM hour_jobs)"


def upgrade() -> None:
    op.execute(f"ALTER POLICY tenant_subtree ON usage_hours USING ({BY_TENANT}{COUNTS})")


def downgrade() -> None:
    op.execute(f"ALTER POLICY tenant_subtree ON usage_hours USING ({BY_TENANT}{EVER})")
