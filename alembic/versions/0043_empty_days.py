"""Let the worker drop days of API calls and spans that have never had a row: one of each is made ahead every day."""

from alembic import op

revision = "0043_empty_days"
down_revision = "0042_charge_instants"
branch_labels = None
depends_on = None

OWNER, WORKER = "wattledger_owner", "wattledger_worker"
# Whether a day is empty is told by the size of its file, which no row policy hides anything of; under the lock that keeps
# writers out it is the truth. A hypertable's chunk may have its rows in another relation, so chunks are left alone.
DROP_EMPTY_DAY = """
CREATE FUNCTION drop_empty_day(parent text, day date) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s' SET client_min_messages = warning
AS $$
DECLARE
    child text := format('public.%I', format('%s_p%s', parent, to_char(day, 'YYYYMMDD')));
BEGIN
    IF parent NOT IN ('api_calls', 'spans') OR day >= (now() AT TIME ZONE 'UTC')::date - 7 THEN
        RAISE EXCEPTION 'day % of % is not one to drop', day, parent USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF to_regclass(child) IS NULL OR pg_relation_size(child) > 0 THEN RETURN false; END IF;
    EXECUTE format('LOCK TABLE ONLY public.%I IN ACCESS EXCLUSIVE MODE', parent);
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', child);
    IF pg_relation_size(child) > 0 THEN RETURN false; END IF;
    EXECUTE format('DROP TABLE %s', child);
    RETURN true;
END $$
"""


def upgrade() -> None:
    op.execute(DROP_EMPTY_DAY)
    op.execute(f"ALTER FUNCTION drop_empty_day(text, date) OWNER TO {OWNER}")
    op.execute("REVOKE EXECUTE ON FUNCTION drop_empty_day(text, date) FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION drop_empty_day(text, date) TO {WORKER}")


def downgrade() -> None:
    op.execute("DROP FUNCTION drop_empty_day(text, date)")
