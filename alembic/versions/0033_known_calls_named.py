"""Name the calls that were in before calls had names, an hour of them at a time, while others go on writing.

Not in the migration that made the table: it holds api_calls while it adds a column, and naming takes 16 µs a call. Nothing
here is one transaction: each hour is committed by itself, what was named stays, and an interrupted run begins again and finds
it. Coming last it also names what replicas of the version before wrote meanwhile. Calls with an id are named by
their ids, others by their own key, as ingest does it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0033_known_calls_named"
down_revision = "0032_device_sightings"
branch_labels = None
depends_on = None

HOURS = "SELECT DISTINCT date_trunc('hour', called_at, 'UTC') AS hour_at FROM api_calls ORDER BY 1"
# In the order of the keys, as ingest writes them: two that name the same calls wait for each other, never in a circle.
NAME_AN_HOUR = """
INSERT INTO call_keys (site_id, key, called_at, dedupe_key)
SELECT DISTINCT ON (site_id, name_key) site_id, name_key, called_at, dedupe_key FROM (
    SELECT site_id, called_at, dedupe_key, substr(encode(sha256(convert_to(name, 'UTF8')), 'hex'), 1, 32)::uuid AS name_key
    FROM (SELECT site_id, called_at, dedupe_key, unnest(CASE WHEN response_id IS NULL AND request_id IS NULL
                 THEN ARRAY['key/' || dedupe_key] ELSE ARRAY['id/' || response_id, 'id/' || request_id] END) AS name
          FROM api_calls WHERE called_at >= :hour_at AND called_at < CAST(:hour_at AS timestamptz) + interval '1 hour') AS told
    WHERE name IS NOT NULL) AS named
ORDER BY site_id, name_key, called_at ON CONFLICT DO NOTHING
"""


def upgrade() -> None:
    with op.get_context().autocommit_block():
        connection = op.get_bind()
        for (hour_at,) in connection.execute(sa.text(HOURS)).fetchall():
            connection.execute(sa.text(NAME_AN_HOUR), {"hour_at": hour_at})


def downgrade() -> None:
    """Names stay: the version before gives the same."""
