"""What a tenant's token can see: its subtree, on every table that bears a tenant, and nothing when nothing is set."""

import time
from collections.abc import Iterator

import psycopg
import pytest
import sqlalchemy as sa

from ingest.store import tenancy
from ingest.store.engine import Database
from ingest.store.tables import metadata, views

pytestmark = pytest.mark.db

HOUR = "2026-11-21 10:00+00"
# Whoever adds a table with a tenant finds it here, and fails until it has a policy and a row below.
TENANT_BEARING = [
    *sorted(table.name for table in metadata.sorted_tables if "tenant_id" in table.c),
    "allocations",
    "tenants",
]
API_READS = ["current_ledger_lines", "current_usage_hours", *TENANT_BEARING]
PATHS = {1: "acme", 2: "acme/research", 3: "acme/research/nlp", 4: "acme/research2", 5: "umbrella"}
ROWS = {
    "tenant_details": "(tenant_id, valid_from) VALUES ({t}, now())",
    "bindings": "(position, tenant_id, valid_from) VALUES ({t}, {t}, now())",
    "jobs": "(site_id, cluster, native_id, started_at, tenant_id, origin, source) "
    f"VALUES (1, 'c', '{{t}}', '{HOUR}', {{t}}, 1, 'test')",
    "allocations": f"(job_id, site_id, device_id, start_at, evidence) VALUES ({{t}}, 1, 1, '{HOUR}', 'cgroup')",
    "api_calls": "(called_at, dedupe_key, site_id, tenant_id, provider, model, usage_known, source, origin) "
    f"VALUES ('{HOUR}', '{{t}}', 1, {{t}}, 'p', 'm', true, 'log', 1)",
    "call_reports": "(site_id, source, dedupe_key, counted_at, counted_key, called_at, tenant_id, provider, model, usage_known, "
    f"status, origin) VALUES (1, 'log', '{{t}}', '{HOUR}', '{{t}}', '{HOUR}', {{t}}, 'p', 'm', true, 'ok', 1)",
    "spans": "(started_at, trace_id, span_id, name, kind, site_id, tenant_id, attributes, origin) "
    f"VALUES ('{HOUR}', 't', '{{t}}', 'n', 'tool', 1, {{t}}, '{{{{}}}}', 1)",
    "lineage_runs": "(site_id, tenant_id, run_id, job_namespace, job_name, state, first_event_at, origin) "
    f"VALUES (1, {{t}}, '{{t}}', 'ns', 'j', 'start', '{HOUR}', 1)",
    "outcomes": "(site_id, tenant_id, dedupe_key, response_id, kind, judged_at, source, origin) "
    f"VALUES (1, {{t}}, '{{t}}', 'r', 'thumbs', '{HOUR}', 'api', 1)",
    "imported_charges": "(site_id, tenant_id, import_id, line, identity_sha256, content_sha256, provider, billing_account_id, "
    "period_start_at, period_end_at, charge_start_at, charge_end_at, category, is_correction, billed_cost, effective_cost, currency, "
    "origin) VALUES (1, {t}, 1, {t}, '', '', 'p', 'b', '2026-11-01Z', '2026-12-01Z', '2026-11-01Z', '2026-12-01Z', 'usage', false, "
    "1, 1, 'USD', 1)",
    "usage_hours": "(site_id, hour_at, revision, device_id, holder, job_id, tenant_id, state, held_us, covered_us, "
    "accelerators, source, coverage, origin) "
    f"VALUES (1, '{HOUR}', 2, 1, 'job:{{t}}', {{t}}, {{t}}, 'used', 1, 1, 1, 'measured', 1, 1)",
    "hour_jobs": f"(site_id, hour_at, revision, job_id, tenant_id) VALUES (1, '{HOUR}', 2, {{t}}, {{t}})",
    "tenant_moves": "(tenant_id, to_tenant_id, valid_from) VALUES ({t}, 1, now())",
    "bill_lines": "(span_id, tenant_id, pool, charge_category, currency, lines, unpriced_lines, usage_unknown_calls, sources, origins) "
    "VALUES (1, {t}, 'job', 'gpu_owned', 'USD', 1, 0, 0, 1, 2)",
    "bill_times": "(span_id, tenant_id, pool, held_us, covered_us) VALUES (1, {t}, 'job', 1, 1)",
    "bill_waste": "(span_id, tenant_id, kind, currency, avoidable_cash) VALUES (1, {t}, 'throttling', 'USD', 1)",
    "capacity_holds": "(site_id, kind, tenant_id, valid_from) VALUES (1, 'reservation', {t}, now())",
    "idle_policies": "(site_id, policy, tenant_id, fixed_ppm, valid_from) VALUES (1, 'fixed', {t}, 1, now())",
    "tenant_minutes": f"(site_id, minute_at, tenant_id, energy_mj) VALUES (1, '{HOUR}', {{t}}, 1)",
    "ledger_lines": "(site_id, hour_at, revision, line_key, tenant_id, pool, charge_category, quantity, "
    "quantity_unit, currency, status, source, coverage, origin) "
    f"VALUES (1, '{HOUR}', 2, 'k{{t}}', {{t}}, 'job', 'electricity', 1, 'mJ', 'USD', 'closed', 'measured', 1, 1)",
    "ledger_corrections": "(site_id, hour_at, posted_hour_at, from_revision, revision, run_id, reason, line_key, tenant_id, pool, "
    "charge_category, quantity, quantity_unit, currency, source, coverage, origin, ordinal, chain_sha256) "
    f"VALUES (1, '{HOUR}', '2027-01-01Z', 1, 2, (SELECT min(id) FROM ledger_runs), 'r', 'c{{t}}', {{t}}, 'job', 'electricity', -1, 'mJ', "
    "'USD', 'measured', 1, 1, {t}, '')",
    "line_disputes": "(site_id, hour_at, line_sha256, line, tenant_id, currency, opened_by, reason) "
    f"VALUES (1, '{HOUR}', '', 'l', {{t}}, 'USD', 'ada', 'r')",
    "findings": "(dedupe_key, site_id, kind, tenant_id, start_at, end_at, evidence, confidence, origin) "
    f"VALUES ('{{t}}', 1, 'idle_waste', {{t}}, '{HOUR}', '{HOUR}', '{{{{}}}}', 1, 1)",
    "budgets": "(tenant_id, name, period, time_zone, measure, limit_value, ladder, protect, policy_sha256, policy_line, "
    "valid_from) VALUES ({t}, 'b', 'month', 'UTC', 'cost', 1, '{{}}', '{{}}', '', 1, now())",
    "decisions": "(budget_id, tenant_id, decided_at, period_start_at, rung, spent, limit_value, reason, evidence, "
    "origin) VALUES ({t}, {t}, now(), now(), 'warn', 1, 1, 'r', '{{}}', 1)",
    "actions": "(decision_id, tenant_id, idempotency_key, kind, plane, target, status, dry_run, evidence) "
    "VALUES ({t}, {t}, 'a{t}', 'webhook', 'webhook', '{{}}', 'planned', true, '{{}}')",
}


@pytest.fixture
def filled(db: Database) -> Database:
    """Five tenants with one row each in every tenant-bearing table, of revision 2, which counts."""
    with db.connect("admin") as admin:
        admin.execute("INSERT INTO sites (name) VALUES ('s')")
        admin.execute("INSERT INTO nodes (site_id, name) VALUES (1, 'n')")
        admin.execute("INSERT INTO devices (uuid, vendor, model, kind) VALUES ('GPU-1', 'nvidia', 'H100', 'gpu')")
        admin.execute("SELECT ensure_partitions('2026-11-21', '2026-11-22')")
        admin.execute("INSERT INTO imports (site_id, kind, sha256, scope, file_name) VALUES (1, 'focus', '', '', 'f')")
        for path in PATHS.values():
            admin.execute("INSERT INTO tenants (path) VALUES (%s)", [path])
        admin.execute(
            "INSERT INTO ledger_runs (site_id, hour_at, revision, code_version, as_of_at, seen_xid, inputs_sha256, "
            "content_sha256, reason) VALUES (1, %s, 2, 'v', now(), '5', '', '', 'first close')",
            [HOUR],
        )
        admin.execute(
            "INSERT INTO bill_spans (site_id, from_at, to_at, revisions) VALUES (1, '2026-11-21Z', '2026-11-22Z', '')"
        )
        for table, row in ROWS.items():
            for tenant_id in PATHS:
                admin.execute(f"INSERT INTO {table} {row.format(t=tenant_id)}".encode())
        admin.execute(
            "INSERT INTO ledger_hours (site_id, hour_at, revision, run_id, status, seen_xid, content_sha256) "
            "VALUES (1, %s, 2, 1, 'closed', '5', '')",
            [HOUR],
        )
    return db


@pytest.fixture
def api(filled: Database) -> Iterator[sa.Connection]:
    engine = filled.create_engine("api")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def seen(count: int) -> dict[str, int]:
    """What each table shows where so many tenants are visible: of lines also the corrections."""
    return dict.fromkeys(API_READS, count) | {"current_ledger_lines": 2 * count}


def visible(conn: sa.Connection, table: str) -> int:
    return int(conn.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar_one())


def test_every_tenant_bearing_table_is_filled_by_these_tests() -> None:
    assert set(TENANT_BEARING) == {*ROWS, "tenants"}


@pytest.mark.parametrize("table", TENANT_BEARING)
def test_every_tenant_bearing_table_forces_row_level_security(database: Database, table: str) -> None:
    with database.connect("admin") as connection:
        row = connection.execute(
            "SELECT relrowsecurity, relforcerowsecurity FROM pg_class WHERE oid = %s::regclass", [table]
        ).fetchone()
    assert row == (True, True)


def test_unset_and_empty_show_nothing_anywhere(api: sa.Connection) -> None:
    assert {table: visible(api, table) for table in API_READS} == seen(0)
    with tenancy.tenant_scope(api, None):
        assert {table: visible(api, table) for table in API_READS} == seen(0)


def test_the_star_shows_every_row_of_every_table(api: sa.Connection) -> None:
    with tenancy.tenant_scope(api, "*"):
        assert {table: visible(api, table) for table in API_READS} == seen(5)


def test_a_subtree_shows_itself_and_below_but_not_its_namesake(api: sa.Connection) -> None:
    # acme/research and acme/research/nlp, not acme above it and not acme/research2 beside it.
    with tenancy.tenant_scope(api, "acme/research"):
        assert {table: visible(api, table) for table in API_READS} == seen(2)
        assert api.execute(sa.text("SELECT path FROM tenants ORDER BY path")).scalars().all() == [
            "acme/research",
            "acme/research/nlp",
        ]
    with tenancy.tenant_scope(api, "acme"):
        assert visible(api, "ledger_lines") == 4


@pytest.mark.parametrize("path", ["acme/%", "acme/research_", "nobody"])
def test_a_path_is_no_pattern(api: sa.Connection, path: str) -> None:
    with tenancy.tenant_scope(api, path):
        assert visible(api, "ledger_lines") == 0


def test_rows_of_no_tenant_are_seen_by_the_star_alone(filled: Database, api: sa.Connection) -> None:
    with filled.connect("worker") as worker:
        worker.execute("UPDATE jobs SET tenant_id = NULL WHERE id = 3")
    with tenancy.tenant_scope(api, "acme/research/nlp"):
        assert visible(api, "jobs") == 0
        assert visible(api, "allocations") == 0
    with tenancy.tenant_scope(api, "*"):
        assert visible(api, "jobs") == 5


def test_the_scope_ends_with_its_block_with_its_transaction_and_with_an_error(api: sa.Connection) -> None:
    with tenancy.tenant_scope(api, "*"):
        assert visible(api, "jobs") == 5
    assert visible(api, "jobs") == 0
    with tenancy.tenant_scope(api, "*"):
        api.commit()
        assert visible(api, "jobs") == 0
    with pytest.raises(ZeroDivisionError), tenancy.tenant_scope(api, "*"):
        raise ZeroDivisionError
    assert visible(api, "jobs") == 0
    with pytest.raises(sa.exc.DBAPIError), tenancy.tenant_scope(api, "*"):
        api.execute(sa.text("SELECT 1/0"))
    assert visible(api, "jobs") == 0


def test_an_inner_scope_gives_back_the_outer_one(api: sa.Connection) -> None:
    with tenancy.tenant_scope(api, "acme"):
        with tenancy.tenant_scope(api, "umbrella"):
            assert visible(api, "jobs") == 1
        assert visible(api, "jobs") == 4


def test_only_the_revision_that_counts_is_current(filled: Database, api: sa.Connection) -> None:
    with filled.connect("admin") as admin:
        admin.execute("UPDATE ledger_lines SET revision = 1 WHERE tenant_id = 5")
    lines = views.current_ledger_lines
    with tenancy.tenant_scope(api, "*"):
        paths = api.execute(sa.select(lines.c.tenant_id).where(lines.c.status == "closed")).scalars().all()
        assert sorted(paths) == [1, 2, 3, 4]
        assert visible(api, "ledger_lines") == 5


@pytest.mark.parametrize(
    "path", ["", "/", "/acme", "acme/", "acme//nlp", " acme", "acme\nnlp", "a" * 513], ids=lambda path: repr(path)[:12]
)
def test_what_is_no_path_is_refused_before_it_reaches_the_database(api: sa.Connection, path: str) -> None:
    with pytest.raises(tenancy.TenantPathError), tenancy.tenant_scope(api, path):
        pass


def test_a_subtree_covers_itself_and_below() -> None:
    assert tenancy.covers("acme/research", "acme/research")
    assert tenancy.covers("acme/research", "acme/research/nlp")
    assert not tenancy.covers("acme/research", "acme/research2")
    assert not tenancy.covers("acme/research", "acme")
    assert tenancy.covers("*", "anyone")
    assert not tenancy.covers(None, "acme")
    assert not tenancy.covers("", "acme")


def test_no_role_is_superuser_or_above_row_level_security(database: Database) -> None:
    with database.connect("admin") as connection:
        rows = connection.execute(
            "SELECT rolname, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb FROM pg_roles "
            "WHERE rolname LIKE 'wattledger%' ORDER BY rolname"
        ).fetchall()
    names = [f"wattledger_{role}" for role in ("api", "owner", "worker", "writer")]
    assert rows == [(name, False, False, False, False) for name in names]


def test_the_api_role_cannot_reach_samples_even_through_a_partition(filled: Database) -> None:
    with filled.connect("owner") as owner:
        days = owner.execute(
            "SELECT format('%I.%I', namespace, relation), relation, namespace FROM stored_days() WHERE parent IN ('device_samples', 'api_calls')"
        ).fetchall()
    assert len(days) >= 2
    for name, table, schema in [("device_samples", "device_samples", "public"), *days]:
        denied = f"denied for (table {table}|schema {schema})"
        with filled.connect("api") as api, pytest.raises(psycopg.errors.InsufficientPrivilege, match=denied):
            api.execute(f"SELECT * FROM {name}".encode())


def test_the_api_role_cannot_write_a_bill_or_lift_its_own_policy(filled: Database) -> None:
    for statement in (
        b"UPDATE ledger_lines SET billed_cost = 0",
        b"INSERT INTO actions (kind) VALUES ('undo')",
        b"ALTER TABLE jobs DISABLE ROW LEVEL SECURITY",
        b"SET ROLE wattledger_owner",
    ):
        with filled.connect("api") as api, pytest.raises(psycopg.errors.InsufficientPrivilege):
            api.execute(statement)


def test_a_writer_fills_a_temporary_table_because_copy_stops_at_row_level_security(filled: Database) -> None:
    with filled.connect("writer") as writer:
        with pytest.raises(psycopg.errors.FeatureNotSupported), writer.cursor() as cursor:  # noqa: SIM117
            with cursor.copy("COPY spans FROM STDIN") as copy:
                copy.write(b"")
        writer.rollback()
        writer.execute("CREATE TEMPORARY TABLE taken (LIKE spans) ON COMMIT DROP")
        columns = "started_at, trace_id, span_id, name, kind, site_id, tenant_id, attributes, status, origin"
        with writer.cursor() as cursor, cursor.copy(f"COPY taken ({columns}) FROM STDIN".encode()) as copy:
            copy.write_row((HOUR, "t", "9", "n", "tool", 1, 5, "{}", "ok", 1))
        writer.execute(f"INSERT INTO spans ({columns}) SELECT {columns} FROM taken".encode())
        assert writer.execute("SELECT count(*) FROM spans").fetchone() == (6,)


def test_the_tenant_set_is_computed_once_per_query(filled: Database) -> None:
    with filled.connect("admin") as admin:
        admin.execute(
            "INSERT INTO ledger_lines (site_id, hour_at, revision, line_key, tenant_id, pool, charge_category, quantity, "
            "quantity_unit, currency, status, source, coverage, origin) SELECT 1, %s, 2, 'x' || n, 1 + n %% 5, 'job', "
            "'electricity', 1, 'mJ', 'USD', 'closed', 'measured', 1, 1 FROM generate_series(1, 100000) n",
            [HOUR],
        )
        begin = time.perf_counter()
        admin.execute("SELECT count(*), sum(quantity) FROM ledger_lines WHERE tenant_id IN (2, 3)").fetchone()
        plain_s = time.perf_counter() - begin
    with filled.connect("api") as api:
        api.execute("SELECT set_config('wattledger.tenant', 'acme/research', true)")
        begin = time.perf_counter()
        row = api.execute("SELECT count(*), sum(quantity) FROM ledger_lines").fetchone()
        scoped_s = time.perf_counter() - begin
    assert row == (40_002, 40_002)
    # Per row it would be a query each: seconds. A generous bound that only such a plan breaks.
    assert scoped_s < plain_s * 20 + 0.2
