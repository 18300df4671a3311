"""Record how the database keeps its days, and make the functions over days serve partitions and hypertables alike."""

import sqlalchemy as sa
from alembic import op

revision = "0023_store_layout"
down_revision = "0022_call_reports"
branch_labels = None
depends_on = None

OWNER, WRITER, WORKER = "wattledger_owner", "wattledger_writer", "wattledger_worker"
KEYS = {
    "device_samples": "device_id",
    "node_samples": "meter_id",
    "fabric_samples": "port_id",
    "engine_samples": "engine_id",
    "device_health": "device_id",
    "device_shares": "device_id",
    "agent_health": "epoch_id",
}
# Owner's rights, because a role sees chunks only of tables it may read. Days are of UTC, whatever the session's zone.
STORED_DAYS = """
CREATE FUNCTION stored_days() RETURNS TABLE (parent text, day date, namespace text, relation text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC'
AS $$
BEGIN
    RETURN QUERY
    SELECT p.relname::text, right(c.relname, 8)::date, 'public', c.relname::text
    FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid JOIN pg_class AS p ON p.oid = i.inhparent
    WHERE p.relkind = 'p' AND c.relkind = 'r' AND p.relnamespace = 'public'::regnamespace AND c.relname ~ '_p[0-9]{8}$';
    IF to_regclass('timescaledb_information.chunks') IS NOT NULL THEN
        RETURN QUERY EXECUTE
        'SELECT hypertable_name::text, range_start::date, chunk_schema::text, chunk_name::text '
        'FROM timescaledb_information.chunks WHERE hypertable_schema = ''public'' AND chunk_schema = ''wattledger_days''';
    END IF;
END $$
"""
# TimescaleDB makes a chunk when a row comes, and keeps others from making one until that transaction ends: an import of an
# hour would keep live writers from a new day. Its function that makes one ahead is not in the Apache edition, so a row
# that nobody ever sees is put in and taken out. Where the table refers to a site and there is none, nothing is made ahead.
MAKE_CHUNK = """
CREATE FUNCTION make_chunk(parent name, clock name, day date) RETURNS integer
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp SET client_min_messages = warning
AS $$
DECLARE
    start_at text := quote_literal(day::timestamp AT TIME ZONE 'UTC') || '::timestamptz';
    columns text;
    filling text;
    chunk regclass;
    place tid;
BEGIN
    SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum), string_agg(
        CASE WHEN a.atttypid = 'timestamptz'::regtype THEN start_at
             WHEN f.confrelid IS NOT NULL THEN format('(SELECT min(id) FROM %s)', f.confrelid::regclass)
             WHEN a.atttypid = 'boolean'::regtype THEN 'false'
             WHEN a.atttypid = 'jsonb'::regtype THEN quote_literal('{}')
             WHEN a.atttypid = 'text'::regtype THEN quote_literal('')
             ELSE '0' END, ', ' ORDER BY a.attnum)
    INTO columns, filling
    FROM pg_attribute AS a LEFT JOIN pg_constraint AS f
    ON f.conrelid = a.attrelid AND f.contype = 'f' AND f.conkey = ARRAY[a.attnum]
    WHERE a.attrelid = format('public.%I', parent)::regclass AND a.attnum > 0 AND NOT a.attisdropped
    AND (a.attname = clock OR (a.attnotnull AND NOT a.atthasdef));
    BEGIN
        EXECUTE format('INSERT INTO public.%I (%s) VALUES (%s) RETURNING tableoid::regclass, ctid', parent, columns, filling)
            INTO chunk, place;
        EXECUTE format('DELETE FROM %s WHERE ctid = %L', chunk, place);
    EXCEPTION WHEN not_null_violation THEN
        RETURN 0;
    END;
    RETURN 1;
END $$
"""
ENSURE_PARTITIONS = """
CREATE OR REPLACE FUNCTION ensure_partitions(from_day date, to_day date, only_tables text[] DEFAULT NULL) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' SET client_min_messages = warning
AS $$
DECLARE
    parent name;
    day date;
    child text;
    locked boolean := false;
    made integer := 0;
    clock name;
    known text[];
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
    IF to_regclass('timescaledb_information.chunks') IS NULL THEN RETURN made; END IF;
    known := ARRAY(SELECT format('%s_p%s', d.parent, to_char(d.day, 'YYYYMMDD')) FROM public.stored_days() AS d);
    FOR parent, clock, day IN
        SELECT t.hypertable_name, t.column_name, from_day + n
        FROM timescaledb_information.dimensions AS t
        JOIN _timescaledb_catalog.hypertable AS h ON h.schema_name = t.hypertable_schema AND h.table_name = t.hypertable_name
        CROSS JOIN generate_series(0, to_day - from_day - 1) AS n
        WHERE h.schema_name = 'public' AND h.associated_schema_name = 'wattledger_days'
        AND (only_tables IS NULL OR h.table_name = ANY (only_tables))
        ORDER BY t.hypertable_name, n
    LOOP
        CONTINUE WHEN format('%s_p%s', parent, to_char(day, 'YYYYMMDD')) = ANY (known);
        IF NOT locked THEN
            PERFORM pg_advisory_xact_lock(hashtextextended('wattledger.partitions', 0));
            locked := true;
            known := ARRAY(SELECT format('%s_p%s', d.parent, to_char(d.day, 'YYYYMMDD')) FROM public.stored_days() AS d);
            CONTINUE WHEN format('%s_p%s', parent, to_char(day, 'YYYYMMDD')) = ANY (known);
        END IF;
        made := made + public.make_chunk(parent, clock, day);
    END LOOP;
    RETURN made;
END $$
"""
CLOSE_PARTITION = """
CREATE OR REPLACE FUNCTION close_partition(parent text, day date) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' SET client_min_messages = warning
AS $$
DECLARE
    child record;
    key text := CASE parent {cases} END;
    wanted text;
BEGIN
    IF day >= (now() AT TIME ZONE 'UTC')::date THEN
        RAISE EXCEPTION 'partition % of % is still open', day, parent USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    SELECT d.namespace, d.relation INTO child FROM public.stored_days() AS d
        WHERE d.parent = close_partition.parent AND d.day = close_partition.day;
    wanted := format('%s_key_ix', child.relation);
    IF key IS NULL OR child.relation IS NULL OR to_regclass(format('%I.%I', child.namespace, wanted)) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE INDEX %I ON %I.%I (%I, at)', wanted, child.namespace, child.relation, key);
    EXECUTE format('ANALYZE %I.%I', child.namespace, child.relation);
    RETURN true;
END $$
"""
# Samples only. What a bill is made of besides them (api_calls, spans) is never dropped by age.
DROP_PARTITION = """
CREATE OR REPLACE FUNCTION drop_partition(parent text, day date) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' SET client_min_messages = warning
AS $$
DECLARE
    child record;
BEGIN
    IF parent NOT IN ({names}) THEN
        RAISE EXCEPTION 'partitions of % are kept for ever', parent USING ERRCODE = 'insufficient_privilege';
    END IF;
    SELECT d.namespace, d.relation INTO child FROM public.stored_days() AS d
        WHERE d.parent = drop_partition.parent AND d.day = drop_partition.day;
    IF child.relation IS NULL THEN RETURN false; END IF;
    IF child.namespace = 'public' THEN
        EXECUTE format('DROP TABLE public.%I', child.relation);
    ELSE
        EXECUTE format('SELECT %s.drop_chunks(%L::regclass, newer_than => %L::timestamptz, older_than => %L::timestamptz)',
            (SELECT extnamespace::regnamespace FROM pg_extension WHERE extname = 'timescaledb'), format('public.%I', parent),
            day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC');
    END IF;
    RETURN true;
END $$
"""
NATIVE_ENSURE_PARTITIONS = """
CREATE OR REPLACE FUNCTION ensure_partitions(from_day date, to_day date, only_tables text[] DEFAULT NULL) RETURNS integer
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
NATIVE_CLOSE_PARTITION = """
CREATE OR REPLACE FUNCTION close_partition(parent text, day date) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' SET client_min_messages = warning
AS $$
DECLARE
    child text := format('%s_p%s', parent, to_char(day, 'YYYYMMDD'));
    key text := CASE parent {cases} END;
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
NATIVE_DROP_PARTITION = """
CREATE OR REPLACE FUNCTION drop_partition(parent text, day date) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' SET client_min_messages = warning
AS $$
DECLARE
    child text := format('%s_p%s', parent, to_char(day, 'YYYYMMDD'));
BEGIN
    IF parent NOT IN ({names}) THEN
        RAISE EXCEPTION 'partitions of % are kept for ever', parent USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF to_regclass(format('public.%I', child)) IS NULL THEN RETURN false; END IF;
    EXECUTE format('DROP TABLE public.%I', child);
    RETURN true;
END $$
"""
# What the tables are is what counts; the reason is env.py's, of whoever migrated an empty database just now.
RECORD = """
INSERT INTO store_layout (layout, reason)
SELECT CASE relkind WHEN 'p' THEN 'native' ELSE 'hypertables' END,
       coalesce(nullif(current_setting('wattledger.layout_reason', true), ''), 'as the database was made')
FROM pg_class WHERE oid = 'public.device_samples'::regclass
"""
# The owner makes days and indexes them.
GIVE_CHUNKS = """
DO $$ BEGIN
    IF to_regnamespace('wattledger_days') IS NOT NULL THEN ALTER SCHEMA wattledger_days OWNER TO wattledger_owner; END IF;
END $$
"""


def upgrade() -> None:
    op.create_table(
        "store_layout",
        sa.Column("layout", sa.Text(), nullable=False, comment="native, hypertables"),
        sa.Column("reason", sa.Text(), nullable=False, comment="why this one, in a sentence"),
        sa.Column(
            "chosen_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC",
        ),
        sa.CheckConstraint("layout IN ('native', 'hypertables')", name=op.f("store_layout_layout_ck")),
        sa.PrimaryKeyConstraint("layout", name=op.f("store_layout_pk")),
        comment="How the days of samples, calls and spans are kept: one row, written when the database was made, never changed.",
    )
    op.execute(f"ALTER TABLE store_layout OWNER TO {OWNER}")
    op.execute(f"GRANT SELECT ON store_layout TO {WRITER}, {WORKER}")
    op.execute(RECORD)
    op.execute(GIVE_CHUNKS)
    op.execute(STORED_DAYS)
    op.execute(f"ALTER FUNCTION stored_days() OWNER TO {OWNER}")
    op.execute("REVOKE EXECUTE ON FUNCTION stored_days() FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION stored_days() TO {WRITER}, {WORKER}")
    op.execute(MAKE_CHUNK)
    op.execute(f"ALTER FUNCTION make_chunk(name, name, date) OWNER TO {OWNER}")
    op.execute("REVOKE EXECUTE ON FUNCTION make_chunk(name, name, date) FROM PUBLIC")
    op.execute(ENSURE_PARTITIONS)
    _functions(CLOSE_PARTITION, DROP_PARTITION)


def downgrade() -> None:
    _functions(NATIVE_CLOSE_PARTITION, NATIVE_DROP_PARTITION)
    op.execute(NATIVE_ENSURE_PARTITIONS)
    op.execute("DROP FUNCTION make_chunk(name, name, date)")
    op.execute("DROP FUNCTION stored_days()")
    op.drop_table("store_layout")


def _functions(close: str, drop: str) -> None:
    op.execute(close.replace("{cases}", " ".join(f"WHEN '{table}' THEN '{key}'" for table, key in KEYS.items())))
    op.execute(drop.replace("{names}", ", ".join(f"'{table}'" for table in KEYS)))
