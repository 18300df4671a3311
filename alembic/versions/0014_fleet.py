"""Nodes that join by themselves, and orders to their agents."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0014_fleet"
down_revision = "0013_agent_streams"
branch_labels = None
depends_on = None

OWNER, WRITER, WORKER = "wattledger_owner", "wattledger_writer", "wattledger_worker"
SIGNATURE = "enrol_node(bytea, text, bytea)"

# The service that answers agents can make no token but this way: of a node, of the join token's own site, and never a
# second one while the first is valid, so that a join token that leaked cannot take over a node that is already there.
ENROL = """
CREATE FUNCTION enrol_node(join_sha256 bytea, node_name text, agent_sha256 bytea) RETURNS TABLE (outcome text, token_id integer)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    joining public.tokens;
    known integer;
BEGIN
    SELECT * INTO joining FROM public.tokens WHERE sha256 = join_sha256 AND 'join' = ANY (scopes)
        AND (revoked_at IS NULL OR revoked_at > now()) AND (expires_at IS NULL OR expires_at > now());
    IF joining.id IS NULL OR joining.site_id IS NULL THEN
        RETURN QUERY SELECT 'refused', NULL::integer;
        RETURN;
    END IF;
    INSERT INTO public.nodes (site_id, name) VALUES (joining.site_id, node_name) ON CONFLICT (site_id, name) DO NOTHING;
    SELECT id INTO known FROM public.nodes WHERE site_id = joining.site_id AND name = node_name FOR UPDATE;
    IF EXISTS (SELECT FROM public.tokens WHERE node_id = known AND 'agent' = ANY (scopes)
               AND (revoked_at IS NULL OR revoked_at > now()) AND (expires_at IS NULL OR expires_at > now())) THEN
        RETURN QUERY SELECT 'taken', NULL::integer;
        RETURN;
    END IF;
    INSERT INTO public.tokens (name, sha256, scopes, site_id, node_id)
        VALUES ('agent of ' || node_name, agent_sha256, ARRAY['agent'], joining.site_id, known) RETURNING id INTO known;
    INSERT INTO public.audit (actor, action, subject, detail) VALUES ('token/' || joining.id, 'token.enrol',
        'token/' || known, jsonb_build_object('node', node_name, 'site_id', joining.site_id));
    RETURN QUERY SELECT 'enrolled', known;
END $$
"""


def upgrade() -> None:
    op.create_table(
        "agent_commands",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("node_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("verb", sa.Text(), nullable=False, comment="e.g. power_limit"),
        sa.Column("args", postgresql.JSONB(astext_type=sa.Text()), nullable=False, comment="JSON, units in the names"),
        sa.Column("nonce", sa.Text(), nullable=False, comment="text"),
        sa.Column("issued_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column(
            "signature", sa.Text(), nullable=False, comment="HMAC-SHA256 in hex under a key this database never sees"
        ),
        sa.Column("fetched_at", sa.DateTime(timezone=True), nullable=True, comment="instant, UTC: first handed out"),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("agent_commands_node_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("agent_commands_pk")),
        sa.UniqueConstraint("node_id", "nonce", name=op.f("agent_commands_node_id_nonce_uq")),
        comment="Orders to agents, signed by an operator and carried to the node that asks for them.",
    )
    op.execute(f"ALTER TABLE agent_commands OWNER TO {OWNER}")
    op.execute(f"GRANT SELECT, UPDATE (fetched_at) ON agent_commands TO {WRITER}")
    op.execute(f"GRANT SELECT, INSERT ON agent_commands TO {WORKER}")
    op.execute(ENROL)
    op.execute(f"ALTER FUNCTION {SIGNATURE} OWNER TO {OWNER}")
    op.execute(f"REVOKE EXECUTE ON FUNCTION {SIGNATURE} FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION {SIGNATURE} TO {WRITER}")


def downgrade() -> None:
    op.execute(f"DROP FUNCTION {SIGNATURE}")
    op.drop_table("agent_commands")
