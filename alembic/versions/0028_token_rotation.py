"""Tokens are rotated with a grace period and say when they were last used; the audit can be read, and never changed.

A rotated token keeps the hash of its former secret until the grace is over. The use of a token is noted at most every
quarter of an hour. Replicas of the version before know neither and go on: they refuse a former secret.
"""

import sqlalchemy as sa
from alembic import op

revision = "0028_token_rotation"
down_revision = "0027_call_named"
branch_labels = None
depends_on = None

OWNER, WRITER, WORKER, API = "wattledger_owner", "wattledger_writer", "wattledger_worker", "wattledger_api"

LOOK_UP = """
CREATE OR REPLACE FUNCTION token_by_digest(digest bytea) RETURNS SETOF tokens
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT * FROM public.tokens WHERE sha256 = digest{former} $$
"""
# What other replicas note at the same moment is skipped, and a server that cannot write has nothing to note.
USED = """
CREATE FUNCTION tokens_used(ids integer[]) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    noted integer := 0;
BEGIN
    IF pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean THEN RETURN 0; END IF;
    UPDATE public.tokens SET last_used_at = now() WHERE id IN (
        SELECT id FROM public.tokens WHERE id = ANY (ids)
            AND (last_used_at IS NULL OR last_used_at < now() - interval '15 minutes') FOR UPDATE SKIP LOCKED);
    GET DIAGNOSTICS noted = ROW_COUNT;
    RETURN noted;
END $$
"""
# Grants keep the services from changing the audit; this keeps the owner, who is above grants.
REFUSE = """
CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$ BEGIN RAISE EXCEPTION 'the audit is append-only' USING ERRCODE = 'insufficient_privilege'; END $$
"""


def upgrade() -> None:
    op.add_column(
        "tokens",
        sa.Column("previous_sha256", sa.LargeBinary(), nullable=True, comment="of the secret before the last rotation"),
    )
    op.add_column(
        "tokens",
        sa.Column(
            "previous_until_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="instant, UTC: the former secret is taken until then",
        ),
    )
    op.add_column(
        "tokens",
        sa.Column(
            "last_used_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="instant, UTC: to a quarter of an hour; null = never",
        ),
    )
    op.create_unique_constraint("tokens_previous_sha256_uq", "tokens", ["previous_sha256"])
    op.execute(LOOK_UP.format(former=" OR previous_sha256 = digest"))
    op.execute(USED)
    op.execute(f"ALTER FUNCTION tokens_used(integer[]) OWNER TO {OWNER}")
    op.execute("REVOKE EXECUTE ON FUNCTION tokens_used(integer[]) FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION tokens_used(integer[]) TO {WRITER}, {API}")
    op.execute(REFUSE)
    op.execute(f"ALTER FUNCTION audit_is_append_only() OWNER TO {OWNER}")
    op.execute(
        "CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only()"
    )
    # The audit tells of every tenant: whoever asks for one of them sees none of it.
    op.execute("ALTER TABLE audit ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE audit FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY service ON audit TO {OWNER}, {WRITER}, {WORKER} USING (true) WITH CHECK (true)")
    op.execute(f"CREATE POLICY all_tenants ON audit FOR SELECT TO {API} USING ((SELECT sees_all_tenants()))")
    op.execute(f"GRANT SELECT ON audit TO {API}")


def downgrade() -> None:
    op.execute(f"REVOKE SELECT ON audit FROM {API}")  # noqa: S608 (a constant)
    op.execute("DROP POLICY all_tenants ON audit")
    op.execute("DROP POLICY service ON audit")
    op.execute("ALTER TABLE audit NO FORCE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE audit DISABLE ROW LEVEL SECURITY")
    op.execute("DROP TRIGGER append_only ON audit")
    op.execute("DROP FUNCTION audit_is_append_only()")
    op.execute("DROP FUNCTION tokens_used(integer[])")
    op.execute(LOOK_UP.format(former=""))
    op.drop_constraint("tokens_previous_sha256_uq", "tokens", type_="unique")
    for column in ("last_used_at", "previous_until_at", "previous_sha256"):
        op.drop_column("tokens", column)
