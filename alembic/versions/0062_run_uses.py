"""Runs say which provider-models their lines are priced by, so that a price of others leaves their hours alone.

Runs that count get it from the lines they wrote (a pass over the lines of all hours that count); where a line does not say what it is of,
and of all other runs, nothing is said, and any price concerns their hours as before.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0062_run_uses"
down_revision = "0061_lines_wide"
branch_labels = None
depends_on = None

# As analytics/model/uses.py has it.
SAID = r"""
UPDATE ledger_runs AS runs SET uses = said.words FROM (
    SELECT line.run_id, array_agg(DISTINCT lower(each.word) ORDER BY lower(each.word)) FILTER (WHERE each.word IS NOT NULL) AS words
    FROM (
        SELECT run.id AS run_id, price.provider || '/' || price.model AS priced, line.price_id IS NULL OR (line.pool = 'api' AND line.source <> 'measured') AS is_open,
               CASE WHEN line.pool = 'api' THEN regexp_replace(substr(line.holder_key, 5), '/[^/]*$', '')
                    WHEN line.charge_category = 'gpu_owned' THEN 'owned/' || line.device_model END AS name
        FROM ledger_hours AS hour JOIN ledger_runs AS run ON run.id = coalesce(hour.shadow_run_id, hour.run_id)
        JOIN ledger_lines AS line ON line.site_id = run.site_id AND line.hour_at = run.hour_at AND line.revision = run.revision
        LEFT JOIN prices AS price ON price.id = line.price_id
    ) AS line CROSS JOIN LATERAL unnest(ARRAY[
        priced, name, split_part(name, '/', 1) || '/', CASE WHEN is_open THEN split_part(name, '/', 1) || '/*' END]) AS each (word)
    GROUP BY line.run_id
) AS said WHERE said.run_id = runs.id AND NOT EXISTS (
    SELECT FROM ledger_lines AS nameless WHERE nameless.site_id = runs.site_id AND nameless.hour_at = runs.hour_at
    AND nameless.revision = runs.revision AND nameless.pool = 'api' AND nameless.holder_key IS NULL)
"""


def upgrade() -> None:
    comment = "provider/model its lines hang on, as scopes of changes have them; null = not said, any price counts"
    op.add_column("ledger_runs", sa.Column("uses", postgresql.ARRAY(sa.Text()), nullable=True, comment=comment))
    op.execute(sa.text(SAID.replace(":", r"\:")))


def downgrade() -> None:
    op.drop_column("ledger_runs", "uses")
