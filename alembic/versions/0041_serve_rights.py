"""Let `serve` do without the worker's and the owner's rights: it may see when a worker was last heard of, and whether anybody has a token."""

from alembic import op

revision = "0041_serve_rights"
down_revision = "0040_rating_runs"
branch_labels = None
depends_on = None

OWNER, WRITER, API = "wattledger_owner", "wattledger_writer", "wattledger_api"


def upgrade() -> None:
    op.execute(f"GRANT SELECT (name, holder, updated_at) ON watermarks TO {WRITER}")
    # Yes or no, and nothing of whose they are: the services' roles may not read tokens.
    op.execute(
        """
        CREATE FUNCTION somebody_has_a_token(besides text, at timestamptz) RETURNS boolean
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
            SELECT EXISTS (SELECT FROM public.tokens WHERE name <> besides AND revoked_at IS NULL
                           AND (expires_at IS NULL OR expires_at > at))
        $$
        """
    )
    op.execute(f"ALTER FUNCTION somebody_has_a_token(text, timestamptz) OWNER TO {OWNER}")
    op.execute("REVOKE ALL ON FUNCTION somebody_has_a_token(text, timestamptz) FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION somebody_has_a_token(text, timestamptz) TO {API}")


def downgrade() -> None:
    op.execute("DROP FUNCTION somebody_has_a_token(text, timestamptz)")
    op.execute(f"REVOKE SELECT (name, holder, updated_at) ON watermarks FROM {WRITER}")  # noqa: S608 (names of ours)
