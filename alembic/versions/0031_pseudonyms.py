"""Pseudonyms of people: one key of the installation, applied where names enter the tables, and to names older than they are kept.

The key lies in a table that no service's role may read; functions of the owner apply it. Off until somebody turns it on
(`wattledger privacy set`); a name becomes an HMAC-SHA256 of itself, so one person stays one person on every bill.
"""

import sqlalchemy as sa
from alembic import op

revision = "0031_pseudonyms"
down_revision = "0030_segment_retention"
branch_labels = None
depends_on = None

OWNER, WORKER = "wattledger_owner", "wattledger_worker"

# HMAC as RFC 2104 writes it, from the two padded keys; 80 bits of it are enough to tell people apart.
PSEUDONYM = """
CREATE FUNCTION pseudonym_of(name text) RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN name ~ '^(user|erased)-[0-9a-f]{20}$' THEN name ELSE coalesce((
        SELECT 'user-' || left(encode(sha256(outer_pad || sha256(inner_pad || convert_to(name, 'UTF8'))), 'hex'), 20)
        FROM public.privacy_settings), name) END
$$
"""
AT_THE_DOOR = """
CREATE FUNCTION pseudonym_at_the_door() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM public.privacy_settings WHERE pseudonyms) THEN
        IF TG_TABLE_NAME <> 'job_reports' THEN
            NEW.user_name := public.pseudonym_of(NEW.user_name);
        END IF;
        IF TG_TABLE_NAME <> 'jobs' THEN  -- which has no such column: it may not even be named in an expression
            IF NEW.facts #>> '{user_name,1}' IS NOT NULL THEN
                NEW.facts := jsonb_set(NEW.facts, '{user_name,1}', to_jsonb(public.pseudonym_of(NEW.facts #>> '{user_name,1}')));
            END IF;
        END IF;
    END IF;
    RETURN NEW;
END $$
"""
# Of jobs that are over; a running one's owner is asked for again before anything is done to it.
ROUND = """
CREATE FUNCTION pseudonym_round(most integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    kept interval := (SELECT make_interval(days => names_kept_days) FROM public.privacy_settings);
    ids bigint[];
BEGIN
    IF kept IS NULL THEN RETURN 0; END IF;
    ids := ARRAY(SELECT id FROM public.jobs WHERE ended_at < now() - kept AND user_name !~ '^(user|erased)-[0-9a-f]{20}$'
                 ORDER BY id LIMIT most FOR UPDATE SKIP LOCKED);
    UPDATE public.jobs SET user_name = public.pseudonym_of(user_name) WHERE id = ANY (ids);
    UPDATE public.job_reports SET facts = jsonb_set(facts, '{user_name,1}', to_jsonb(public.pseudonym_of(facts #>> '{user_name,1}')))
        WHERE job_id = ANY (ids) AND facts #>> '{user_name,1}' IS NOT NULL;
    UPDATE public.queue_entries SET user_name = public.pseudonym_of(user_name),
        facts = CASE WHEN facts #>> '{user_name,1}' IS NULL THEN facts
            ELSE jsonb_set(facts, '{user_name,1}', to_jsonb(public.pseudonym_of(facts #>> '{user_name,1}'))) END
        WHERE submitted_at < now() - kept AND user_name !~ '^(user|erased)-[0-9a-f]{20}$';
    RETURN cardinality(ids);
END $$
"""
FUNCTIONS = {
    "pseudonym_of(text)": PSEUDONYM,
    "pseudonym_at_the_door()": AT_THE_DOOR,
    "pseudonym_round(integer)": ROUND,
}
DOORS = {"jobs": "user_name", "queue_entries": "user_name, facts", "job_reports": "facts"}


def upgrade() -> None:
    op.create_table(
        "privacy_settings",
        sa.Column("id", sa.SmallInteger(), nullable=False, comment="surrogate id: always 1", autoincrement=False),
        sa.Column(
            "pseudonyms",
            sa.Boolean(),
            server_default="false",
            nullable=False,
            comment="whether names are replaced at the door",
        ),
        sa.Column(
            "names_kept_days",
            sa.Integer(),
            nullable=True,
            comment="days after a job's end its owner's name is kept; null = for ever",
        ),
        sa.Column("inner_pad", sa.LargeBinary(), nullable=False, comment="the key as HMAC pads it inside, 64 bytes"),
        sa.Column("outer_pad", sa.LargeBinary(), nullable=False, comment="the key as HMAC pads it outside, 64 bytes"),
        sa.CheckConstraint("id = 1", name=op.f("privacy_settings_one_ck")),
        sa.CheckConstraint("names_kept_days > 0", name=op.f("privacy_settings_kept_ck")),
        sa.PrimaryKeyConstraint("id", name=op.f("privacy_settings_pk")),
        comment="How people's names are kept. No service's role may read it.",
    )
    op.execute(f"ALTER TABLE privacy_settings OWNER TO {OWNER}")
    for signature, body in FUNCTIONS.items():
        op.execute(body)
        op.execute(f"ALTER FUNCTION {signature} OWNER TO {OWNER}")
        op.execute(f"REVOKE EXECUTE ON FUNCTION {signature} FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION pseudonym_round(integer) TO {WORKER}")
    for table, columns in DOORS.items():
        op.execute(
            f"CREATE TRIGGER pseudonyms BEFORE INSERT OR UPDATE OF {columns} ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION pseudonym_at_the_door()"
        )


def downgrade() -> None:
    for table in DOORS:
        op.execute(f"DROP TRIGGER pseudonyms ON {table}")
    for signature in reversed(FUNCTIONS):
        op.execute(f"DROP FUNCTION {signature}")
    op.drop_table("privacy_settings")
