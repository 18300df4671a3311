"""The books refer to what they name by statement instead of by row.

A foreign key looks up and locks a row for each row that names it: of an hour of 10,000 boards, 17,600 usage hours, 7,600 findings and 3,200 lines
with four or five such columns each, that was 370 of the 506 ms of processor time the server spent on saving it (now 170). Here one look a
statement and column says whether all that it wrote names something there is. What is named is neither deleted nor renumbered nor truncated:
whoever tries waits for statements that write, which are then seen.
"""

from collections.abc import Iterable

import sqlalchemy as sa
from alembic import op

revision = "0052_books_by_statement"
down_revision = "0051_lines_by_job"
branch_labels = None
depends_on = None

OWNER = "wattledger_owner"
NAMED = {
    "usage_hours": {
        "site_id": "sites",
        "device_id": "devices",
        "job_id": "jobs",
        "tenant_id": "tenants",
        "intensity_id": "intensity",
    },
    "ledger_lines": {
        "site_id": "sites",
        "tenant_id": "tenants",
        "job_id": "jobs",
        "price_id": "prices",
        "tariff_id": "tariffs",
    },
    "findings": {"site_id": "sites", "device_id": "devices", "job_id": "jobs", "tenant_id": "tenants"},
    "tenant_minutes": {"site_id": "sites", "tenant_id": "tenants"},
}
"""Tables by table and column."""
# Arguments: column and the table it names, in turns. As the owner, as a foreign key looks: whoever writes need not see what is named, and
# pg_restore, which turns row security off, need not either.
KNOWN = """
CREATE FUNCTION names_what_is_known() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = on
AS $$
DECLARE
    unknown text;
BEGIN
    FOR place IN 0 .. TG_NARGS / 2 - 1 LOOP
        EXECUTE format(
            'SELECT min(named.id)::text FROM (SELECT DISTINCT %1$I AS id FROM written WHERE %1$I IS NOT NULL) AS named '
            'WHERE NOT EXISTS (SELECT FROM public.%2$I AS known WHERE known.id = named.id)',
            TG_ARGV[2 * place], TG_ARGV[2 * place + 1]
        ) INTO unknown;
        IF unknown IS NOT NULL THEN
            RAISE foreign_key_violation USING TABLE = TG_TABLE_NAME, COLUMN = TG_ARGV[2 * place], MESSAGE = format(
                'a row of %s names %s %s, and %s has no such id', TG_TABLE_NAME, TG_ARGV[2 * place], unknown, TG_ARGV[2 * place + 1]
            );
        END IF;
    END LOOP;
    RETURN NULL;
END $$
"""
# Arguments: table and its column, in turns. Before the row is gone, and after the lock: what was written until then is seen, and what
# is written later does not find the row.
KEPT = """
CREATE FUNCTION stays_while_named() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = on
AS $$
DECLARE
    is_named boolean;
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.id = OLD.id THEN
        RETURN NEW;
    END IF;
    FOR place IN 0 .. TG_NARGS / 2 - 1 LOOP
        EXECUTE format('LOCK TABLE public.%I IN SHARE ROW EXCLUSIVE MODE', TG_ARGV[2 * place]);
        IF TG_OP = 'TRUNCATE' THEN
            EXECUTE format('SELECT EXISTS (SELECT FROM public.%I WHERE %I IS NOT NULL)', TG_ARGV[2 * place], TG_ARGV[2 * place + 1])
            INTO is_named;
        ELSE
            EXECUTE format('SELECT EXISTS (SELECT FROM public.%I WHERE %I = $1)', TG_ARGV[2 * place], TG_ARGV[2 * place + 1])
            INTO is_named USING OLD.id;
        END IF;
        IF is_named THEN
            RAISE foreign_key_violation USING TABLE = TG_TABLE_NAME, MESSAGE = format(
                'rows of %s name what is to go from %s by %s; they go first', TG_ARGV[2 * place], TG_TABLE_NAME, TG_ARGV[2 * place + 1]
            );
        END IF;
    END LOOP;
    RETURN CASE TG_OP WHEN 'UPDATE' THEN NEW ELSE OLD END;
END $$
"""


def upgrade() -> None:
    for function, body in (("names_what_is_known()", KNOWN), ("stays_while_named()", KEPT)):
        op.execute(sa.text(body.replace(":", r"\:")))
        op.execute(f"ALTER FUNCTION {function} OWNER TO {OWNER}")
        op.execute(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC")
    for table, names in NAMED.items():
        for column in names:
            op.drop_constraint(op.f(f"{table}_{column}_fk"), table, type_="foreignkey")
        for event in ("INSERT", "UPDATE"):
            op.execute(
                f"CREATE TRIGGER known_after_{event.lower()} AFTER {event} ON {table} REFERENCING NEW TABLE AS written "
                f"FOR EACH STATEMENT EXECUTE FUNCTION names_what_is_known({_listed(names.items())})"
            )
    for named, places in _by_named().items():
        given = f"EXECUTE FUNCTION stays_while_named({_listed(places)})"
        op.execute(f"CREATE TRIGGER stays_while_named BEFORE DELETE OR UPDATE OF id ON {named} FOR EACH ROW {given}")
        op.execute(f"CREATE TRIGGER stays_whole_while_named BEFORE TRUNCATE ON {named} FOR EACH STATEMENT {given}")


def downgrade() -> None:
    for named in _by_named():
        op.execute(f"DROP TRIGGER stays_whole_while_named ON {named}")
        op.execute(f"DROP TRIGGER stays_while_named ON {named}")
    for table, names in NAMED.items():
        for event in ("insert", "update"):
            op.execute(f"DROP TRIGGER known_after_{event} ON {table}")
        for column, named in names.items():
            op.create_foreign_key(op.f(f"{table}_{column}_fk"), table, named, [column], ["id"])
    op.execute("DROP FUNCTION stays_while_named()")
    op.execute("DROP FUNCTION names_what_is_known()")


def _by_named() -> dict[str, list[tuple[str, str]]]:
    """Return tables and columns by the table they name."""
    found: dict[str, list[tuple[str, str]]] = {}
    for table, names in NAMED.items():
        for column, named in names.items():
            found.setdefault(named, []).append((table, column))
    return found


def _listed(pairs: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"'{word}'" for pair in pairs for word in pair)
