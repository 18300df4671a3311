"""The few things a role may do only through a function of the owner: make, close and drop partitions, look up a token."""

from alembic import op

revision = "0009_service_functions"
down_revision = "0008_row_level_security"
branch_labels = None
depends_on = None

OWNER, WRITER, WORKER, API = "wattledger_owner", "wattledger_writer", "wattledger_worker", "wattledger_api"

# CREATE … PARTITION OF would lock out every reader and writer of the parent; LIKE + ATTACH does not.
# Names are looked up by query: to_regclass answers from a cache that waiting for an advisory lock does not refresh.
# The days are bounded because a sender's wild clock must not be able to fill the catalog with tables.
ENSURE_PARTITIONS = """
CREATE FUNCTION ensure_partitions(from_day date, to_day date, only_tables text[] DEFAULT NULL) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' SET client_min_messages = warning
AS $$
DECLARE
    parent name;
    day date;
    child text;
    locked boolean := false;
    made integer := 0;
BEGIN
    IF from_day < date '2000-01-01' OR to_day > (now() AT TIME ZONE 'UTC')::date + 400 OR to_day - from_day > 4000 THEN
        RAISE EXCEPTION 'partitions from % to % are out of bounds', from_day, to_day
            USING ERRCODE = 'datetime_field_overflow', HINT = 'days must lie between 2000-01-01 and 400 days from now, 4000 at a time';
    END IF;
    FOR parent, day IN
        SELECT c.relname, d.day
        FROM pg_partitioned_table p JOIN pg_class c ON c.oid = p.partrelid
        CROSS JOIN generate_series(0, to_day - from_day - 1) AS n CROSS JOIN LATERAL (SELECT from_day + n AS day) AS d
        WHERE c.relnamespace = 'public'::regnamespace AND (only_tables IS NULL OR c.relname = ANY (only_tables))
        ORDER BY c.relname, d.day
    LOOP
        child := format('%s_p%s', parent, to_char(day, 'YYYYMMDD'));
        CONTINUE WHEN EXISTS (SELECT FROM pg_class WHERE relname = child AND relnamespace = 'public'::regnamespace);
        IF NOT locked THEN
            PERFORM pg_advisory_xact_lock(hashtextextended('wattledger.partitions', 0));
            locked := true;
            CONTINUE WHEN EXISTS (SELECT FROM pg_class WHERE relname = child AND relnamespace = 'public'::regnamespace);
        END IF;
        EXECUTE format('CREATE TABLE public.%I (LIKE public.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE)', child, parent);
        EXECUTE format('ALTER TABLE public.%I ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)',
            parent, child, day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC');
        made := made + 1;
    END LOOP;
    RETURN made;
END $$
"""
# api_calls and spans need no further index: their unique keys serve while open and closed alike.
CLOSE_PARTITION = """
CREATE FUNCTION close_partition(parent text, day date) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' SET client_min_messages = warning
AS $$
DECLARE
    child text := format('%s_p%s', parent, to_char(day, 'YYYYMMDD'));
    key text := CASE parent WHEN 'device_samples' THEN 'device_id' WHEN 'node_samples' THEN 'meter_id'
                            WHEN 'fabric_samples' THEN 'port_id' WHEN 'engine_samples' THEN 'engine_id' END;
    wanted text := format('%s_key_ix', child);
BEGIN
    IF day >= (now() AT TIME ZONE 'UTC')::date THEN
        RAISE EXCEPTION 'partition % is still open', child USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF key IS NULL OR to_regclass(format('public.%I', child)) IS NULL OR to_regclass(format('public.%I', wanted)) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE INDEX %I ON public.%I (%I, at)', wanted, child, key);
    EXECUTE format('ANALYZE public.%I', child);
    RETURN true;
END $$
"""
# Samples only. What a bill is made of besides them (api_calls, spans) is never dropped by age.
DROP_PARTITION = """
CREATE FUNCTION drop_partition(parent text, day date) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' SET client_min_messages = warning
AS $$
DECLARE
    child text := format('%s_p%s', parent, to_char(day, 'YYYYMMDD'));
BEGIN
    IF parent NOT IN ('device_samples', 'node_samples', 'fabric_samples', 'engine_samples') THEN
        RAISE EXCEPTION 'partitions of % are kept for ever', parent USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF to_regclass(format('public.%I', child)) IS NULL THEN RETURN false; END IF;
    EXECUTE format('DROP TABLE public.%I', child);
    RETURN true;
END $$
"""
# The services verify tokens but cannot list them.
LOOK_UP = """
CREATE FUNCTION token_by_digest(digest bytea) RETURNS SETOF tokens
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT * FROM public.tokens WHERE sha256 = digest $$
"""
FUNCTIONS = {
    "ensure_partitions(date, date, text[])": (ENSURE_PARTITIONS, (WRITER, WORKER)),
    "close_partition(text, date)": (CLOSE_PARTITION, (WORKER,)),
    "drop_partition(text, date)": (DROP_PARTITION, (WORKER,)),
    "token_by_digest(bytea)": (LOOK_UP, (WRITER, API)),
}


def upgrade() -> None:
    for signature, (body, callers) in FUNCTIONS.items():
        op.execute(body)
        op.execute(f"ALTER FUNCTION {signature} OWNER TO {OWNER}")
        op.execute(f"REVOKE EXECUTE ON FUNCTION {signature} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {signature} TO {', '.join(callers)}")


def downgrade() -> None:
    for signature in FUNCTIONS:
        op.execute(f"DROP FUNCTION {signature}")
