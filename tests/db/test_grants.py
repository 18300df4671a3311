"""What each role may do to each table: the whole of it, so that a right nobody asked for shows."""

from __future__ import annotations

from collections import defaultdict

import pytest

from ingest.store.engine import Database

pytestmark = pytest.mark.db

# Reading and writing of whole tables as r, w (insert), u (update), d (delete); an update of some columns names them.
WRITER = {
    "rwd": "api_calls",
    "rwud": "call_reports kube_pods",
    "w": "agent_health changes device_events device_health device_shares engine_samples fabric_samples "
    "late_agent_health late_device_health late_device_shares late_engine_samples late_fabric_samples late_node_samples "
    "late_samples node_events node_samples",
    "w r(at,device_id)": "device_samples",
    "rw": "allocation_events begun_anew engines epochs fabric_ports findings hold_events lineage_events meters nodes "
    "outcomes spans",
    "rw u(accelerators,account,eligible_at,ended_at,label,name,namespace,partition,qos,reason,source,started_at,state,"
    "submitted_at,suspended_us,user_name,workload,workload_kind,workload_kind_source)": "jobs",
    "rwu": "call_keys job_reports kube_exporters lineage_datasets lineage_runs queue_entries queue_reasons series_nodes series_xids",
    "rw u(accelerators,described_at,kind,memory_bytes,mig_profile,model,parent_device_id,slice_ratio,vendor)": "devices",
    "rw u(superseded_at)": "allocations placements topology",
    "rw u(last_at,node_id)": "device_sightings",
    "rw u(last_seen_at,received)": "spools",
    "rw u(replayed_at)": "dead_letters",
    "rw u(rows)": "rejections",
    "r": "alembic_version call_name_window hour_catalog sites store_layout",
    "r(holder,name,updated_at)": "watermarks",
    "r(id,path)": "tenants",
    "r u(fetched_at)": "agent_commands",
}
WORKER = {
    "r": "alembic_version allocations api_calls assets bindings budgets call_reports capacity_holds current_ledger_lines current_usage_hours "
    "dead_letters device_events engines epochs "
    "fabric_ports facility_factors fx_rates hold_events idle_policies imported_charges imports invoice_totals intensity job_ends job_reports "
    "ledger_periods line_disputes meter_readings meter_words meters model_aliases node_events nodes overhead_models period_hours placements price_books price_policies prices queue_entries queue_reasons rejections shared_it sites spans spools store_layout tariffs tenant_details tenant_moves tenants topology",
    "rd": "call_keys late_agent_health late_device_health late_device_shares late_engine_samples late_fabric_samples late_node_samples "
    "late_samples",
    "rwd": "bill_spans changes tenant_minutes",
    "rwd u(feeds,path,pinned,retired_at,rows,sha256,size_bytes)": "hour_segments",
    "rwud": "minute_rollups",
    "rwu": "actions call_name_window findings hour_catalog ledger_hours outbox segment_place watermarks",
    "rw": "agent_commands agent_health audit bill_lines bill_times bill_waste decisions device_health device_samples device_shares engine_samples fabric_samples "
    "devices hour_jobs ledger_corrections ledger_lines ledger_runs node_samples usage_hours",
    "r u(binding_id,tenant_id)": "jobs",
}
API = {
    "r": "actions alembic_version allocations api_calls audit bill_lines bill_spans bill_times bill_waste bindings budgets call_reports capacity_holds current_ledger_lines current_usage_hours decisions "
    "devices facility_factors findings hour_jobs idle_policies imported_charges intensity jobs ledger_corrections ledger_hours ledger_lines ledger_periods lineage_datasets lineage_events lineage_runs "
    "meter_readings meter_words meters minute_rollups model_aliases nodes outcomes period_hours placements price_books price_policies prices sites spans tariffs tenant_details tenant_minutes tenant_moves tenants usage_hours",
    "r(hour_at,id,kind,reason,revision,site_id,usage_revision)": "ledger_runs",
    "rw u(resolution,resolved_at,resolved_by)": "line_disputes",
}
LETTER = {"SELECT": "r", "INSERT": "w", "UPDATE": "u", "DELETE": "d"}


def granted(database: Database, role: str) -> dict[str, set[str]]:
    """Return tables by what the role may do to them, as the tables above spell it."""
    with database.connect("admin") as connection:
        rows = connection.execute(
            "SELECT cl.relname, acl.privilege_type, NULL::name FROM pg_class AS cl, aclexplode(cl.relacl) AS acl "
            "WHERE cl.relnamespace = 'public'::regnamespace AND NOT cl.relispartition AND acl.grantee = %(role)s::regrole "
            "UNION ALL SELECT cl.relname, acl.privilege_type, col.attname FROM pg_class AS cl "
            "JOIN pg_attribute AS col ON col.attrelid = cl.oid, aclexplode(col.attacl) AS acl "
            "WHERE cl.relnamespace = 'public'::regnamespace AND acl.grantee = %(role)s::regrole",
            {"role": f"wattledger_{role}"},
        ).fetchall()
    whole: dict[str, set[str]] = defaultdict(set)
    columns: dict[tuple[str, str], list[str]] = defaultdict(list)
    for table, privilege, column in rows:
        if column is None:
            whole[str(table)].add(LETTER[str(privilege)])
        else:
            columns[str(table), LETTER[str(privilege)]].append(str(column))
    found: dict[str, set[str]] = defaultdict(set)
    for table in {*whole, *(table for table, _ in columns)}:
        parts = ["".join(letter for letter in "rwud" if letter in whole[table])]
        parts += [f"{letter}({','.join(sorted(names))})" for (of, letter), names in columns.items() if of == table]
        found[" ".join(filter(None, parts))].add(table)
    return dict(found)


@pytest.mark.parametrize(("role", "expected"), [("writer", WRITER), ("worker", WORKER), ("api", API)])
def test_a_role_may_do_this_and_nothing_else(database: Database, role: str, expected: dict[str, str]) -> None:
    assert granted(database, role) == {rights: set(tables.split()) for rights, tables in expected.items()}


def test_no_service_may_do_anything_to_tokens_or_make_tables(database: Database) -> None:
    with database.connect("admin") as connection:
        for role in ("writer", "worker", "api"):
            row = connection.execute(
                "SELECT has_table_privilege(%(role)s, 'tokens', 'SELECT, INSERT, UPDATE, DELETE'), "
                "has_schema_privilege(%(role)s, 'public', 'CREATE')",
                {"role": f"wattledger_{role}"},
            ).fetchone()
            assert row == (False, False)
