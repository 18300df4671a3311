"""Let the read API find the call a response id names, without reading the names of others."""

from alembic import op

revision = "0027_call_named"
down_revision = "0026_calls_without_site_fk"
branch_labels = None
depends_on = None

OWNER, API = "wattledger_owner", "wattledger_api"
# Names are hashes, but the keys beside them are not of the asker's tenant alone: the role gets an answer, not the table. The
# call itself is then read under its own policy.
CALL_NAMED = """
CREATE FUNCTION call_named(name_key uuid) RETURNS TABLE (site_id integer, called_at timestamptz, dedupe_key text)
    LANGUAGE sql STABLE PARALLEL SAFE ROWS 2 SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT named.site_id, named.called_at, named.dedupe_key FROM public.sites
    JOIN public.call_keys AS named ON named.site_id = sites.id AND named.key = name_key
$$
"""


def upgrade() -> None:
    op.execute(CALL_NAMED)
    op.execute(f"ALTER FUNCTION call_named(uuid) OWNER TO {OWNER}")
    op.execute("REVOKE EXECUTE ON FUNCTION call_named(uuid) FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION call_named(uuid) TO {API}")


def downgrade() -> None:
    op.execute("DROP FUNCTION call_named(uuid)")
