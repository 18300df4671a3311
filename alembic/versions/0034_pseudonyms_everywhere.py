"""Pseudonyms wherever a person may be named, not only in the owner of a job: calls, spans, lineage and outcomes.

Where names are replaced at the door, an e-mail address in anything that is kept becomes the person's pseudonym, and so do a
session's and a user's id among the attributes of a span. While nobody has switched that on, rows without an ``@`` and without
such an attribute pay for one look at themselves.
"""

import sqlalchemy as sa
from alembic import op

revision = "0034_pseudonyms_everywhere"
down_revision = "0033_known_calls_named"
branch_labels = None
depends_on = None

OWNER = "wattledger_owner"

# The longest first: an address may end in another.
IN_TEXT = r"""
CREATE FUNCTION pseudonyms_in(given text) RETURNS text
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    address text;
    said text := given;
BEGIN
    FOR address IN SELECT mail[1] FROM regexp_matches(given,
            '[[:alnum:]._%+-]+@[[:alnum:]-]+(?:[.][[:alnum:]-]+)+', 'g') AS mail
            GROUP BY mail[1] ORDER BY length(mail[1]) DESC, mail[1] LOOP
        said := replace(said, address, public.pseudonym_of(address));
    END LOOP;
    RETURN said;
END $$
"""
# The columns are the trigger's arguments. On its way through JSON a row keeps what is not named there.
IN_ROW = """
CREATE FUNCTION pseudonyms_in_row() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    whole jsonb;
    changed jsonb := '{}';
    named text;
BEGIN
    IF NOT EXISTS (SELECT FROM public.privacy_settings WHERE pseudonyms) THEN RETURN NEW; END IF;
    whole := to_jsonb(NEW);
    FOREACH named IN ARRAY TG_ARGV LOOP
        IF (whole -> named)::text LIKE '%@%' THEN
            changed := changed || jsonb_build_object(named, public.pseudonyms_in((whole -> named)::text)::jsonb);
        END IF;
    END LOOP;
    IF changed <> '{}' THEN NEW := jsonb_populate_record(NEW, changed); END IF;
    RETURN NEW;
END $$
"""
IN_SPAN = """
CREATE FUNCTION pseudonyms_in_span() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    named text;
BEGIN
    IF NOT EXISTS (SELECT FROM public.privacy_settings WHERE pseudonyms) THEN RETURN NEW; END IF;
    FOREACH named IN ARRAY TG_ARGV LOOP
        IF jsonb_typeof(NEW.attributes -> named) = 'string' THEN
            NEW.attributes := jsonb_set(NEW.attributes, ARRAY[named], to_jsonb(public.pseudonym_of(NEW.attributes ->> named)));
        END IF;
    END LOOP;
    NEW.attributes := public.pseudonyms_in(NEW.attributes::text)::jsonb;
    NEW.name := public.pseudonyms_in(NEW.name);
    RETURN NEW;
END $$
"""
FUNCTIONS = {
    "pseudonyms_in(text)": IN_TEXT,
    "pseudonyms_in_row()": IN_ROW,
    "pseudonyms_in_span()": IN_SPAN,
}
COLUMNS = {
    "jobs": ("account", "namespace", "label", "name", "workload", "reason"),
    "queue_entries": ("account", "namespace", "label", "name", "workload", "facts"),
    "job_reports": ("facts",),
    "api_calls": ("api_key",),
    "call_reports": ("api_key",),
    "outcomes": ("kind", "label", "dataset_ids"),
    "lineage_runs": ("job_namespace", "job_name"),
    "lineage_events": ("producer", "facets"),
    "lineage_datasets": ("namespace", "name"),
}
PEOPLE = (
    "session.id",
    "gen_ai.conversation.id",
    "user.id",
    "enduser.id",
    "enduser.pseudo.id",
    "user.email",
    "user.name",
)


def upgrade() -> None:
    for signature, body in FUNCTIONS.items():
        op.execute(sa.text(body.replace(":", r"\:")))
        op.execute(f"ALTER FUNCTION {signature} OWNER TO {OWNER}")
        op.execute(f"REVOKE EXECUTE ON FUNCTION {signature} FROM PUBLIC")
    for table, columns in COLUMNS.items():
        holds = " OR ".join(f"NEW.{name}::text LIKE '%@%'" for name in columns)
        arguments = ", ".join(f"'{name}'" for name in columns)
        # Named to come after the trigger that replaces the owner of a job.
        op.execute(
            sa.text(
                f"CREATE TRIGGER pseudonyms_of_words BEFORE INSERT OR UPDATE OF {', '.join(columns)} ON {table} "
                f"FOR EACH ROW WHEN ({holds}) EXECUTE FUNCTION pseudonyms_in_row({arguments})".replace(":", r"\:")
            )
        )
    people = ", ".join(f"'{name}'" for name in PEOPLE)
    op.execute(
        sa.text(
            "CREATE TRIGGER pseudonyms_of_words BEFORE INSERT OR UPDATE OF attributes, name ON spans FOR EACH ROW "
            f"WHEN (NEW.attributes ?| ARRAY[{people}] OR NEW.attributes::text LIKE '%@%' OR NEW.name LIKE '%@%') "
            f"EXECUTE FUNCTION pseudonyms_in_span({people})".replace(":", r"\:")
        )
    )


def downgrade() -> None:
    for table in (*COLUMNS, "spans"):
        op.execute(f"DROP TRIGGER pseudonyms_of_words ON {table}")
    for signature in reversed(FUNCTIONS):
        op.execute(f"DROP FUNCTION {signature}")
