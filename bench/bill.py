"""bill.month: the bill of a month for 200 tenants from the API, of the books of 10,000 accelerators; simulated books, made by SQL.

Asked over HTTP: token, row-level security, JSON and all. The month's last day is not over: some hours of it are closed, the last
three open. Beside it the same question before anything was summed, which reads every line and usage hour; both answers are compared.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx

from analytics.io.bill_spans import sum_spans
from bench.api import api
from bench.report import Result
from bench.stand import stand
from bench.trace_stand import size_of
from ingest.store.engine import Database

TARGET_MS: Final = 100.0
TENANTS: Final = 200
JOBS: Final = 1_000
_FROM_AT: Final = datetime(2026, 10, 1, tzinfo=UTC)
_TO_AT: Final = datetime(2026, 11, 1, tzinfo=UTC)
_OPEN_HOURS: Final = 3
_LEFT_OF_THE_DAY: Final = 10
_ROUNDS: Final = 9
# Nobody reads these rows but bills: references are as real books have them, figures are counted up.
_FURNISH: Final = (
    "SET session_replication_role = replica",
    "INSERT INTO sites (id, name) OVERRIDING SYSTEM VALUE VALUES (1, 'bench')",
    "INSERT INTO tenants (id, path) OVERRIDING SYSTEM VALUE SELECT n, 'org' || n %% 10 || '/team' || n FROM generate_series(1, %(tenants)s) AS n",
    """INSERT INTO ledger_hours (site_id, hour_at, revision, run_id, status, seen_xid, content_sha256)
       SELECT 1, at, CASE WHEN at < %(open_at)s THEN 1 ELSE 0 END, 1, CASE WHEN at < %(open_at)s THEN 'closed' ELSE 'provisional' END, '1', ''
       FROM generate_series(%(from_at)s, %(last_at)s, interval '1 hour') AS at""",
    """INSERT INTO ledger_lines (site_id, hour_at, revision, line_key, tenant_id, job_id, pool, device_model, charge_category, quantity,
           quantity_unit, energy_mj, carbon_gco2e, billed_cost, effective_cost, currency, status, source, coverage, origin)
       SELECT 1, hour_at, revision, category || job, 1 + job %% %(tenants)s, job, 'job', 'H100', category, 3600000000, unit,
           CASE WHEN category = 'gpu_owned' THEN 1000000 + job END, CASE WHEN category = 'gpu_owned' THEN 0.123456789 END,
           1.000000001 * job, 1.000000001 * job, 'USD', status, 'measured', 1.0, 4
       FROM ledger_hours, generate_series(1, %(jobs)s) AS job,
           (VALUES ('gpu_owned', 'accelerator-us'), ('electricity', 'mJ')) AS made (category, unit)""",
    """INSERT INTO usage_hours (site_id, hour_at, revision, device_id, holder, job_id, tenant_id, state, energy_mj, estimated_mj, held_us,
           covered_us, active_us, idle_us, throttled_us, accelerators, source, coverage, origin)
       SELECT 1, hour_at, revision, device, 'job:' || device %% %(jobs)s, device %% %(jobs)s, 1 + device %% %(jobs)s %% %(tenants)s, 'used',
           1000000, 0, 3600000000, 3600000000, 3000000000, 600000000, 0, 1, 'measured', 1.0, 4
       FROM ledger_hours, generate_series(1, %(rows)s) AS device""",
    """INSERT INTO findings (dedupe_key, site_id, kind, device_id, tenant_id, start_at, end_at, evidence, avoidable_cash, currency,
           confidence, origin)
       SELECT hour_at || '|' || n, 1, 'idle_waste', n, 1 + n %% %(tenants)s, hour_at, hour_at + interval '1 hour', '{}', 0.5, 'USD', 0.9, 4
       FROM ledger_hours, generate_series(1, %(found)s) AS n""",
    "SET session_replication_role = DEFAULT",
)


def run() -> list[Result]:
    rows = size_of("WATTLEDGER_BENCH_BILL_USAGE_ROWS", 12_000)
    with stand() as on:
        hours = furnish(on.database, rows)
        with api(on) as client:
            began_s = time.perf_counter()
            of_lines = _asked(client)
            lines_ms = (time.perf_counter() - began_s) * 1e3
            began_s = time.perf_counter()
            with on.database.connect("worker", autocommit=True) as connection:
                made = sum_spans(connection, for_s=600.0).made
            sum_s = time.perf_counter() - began_s
            if _asked(client) != of_lines:
                raise RuntimeError("the bill of sums is not the bill of the lines")
            took_ms = [_timed_ms(lambda: _asked(client)) for _ in range(_ROUNDS)]
    value = statistics.median(took_ms)
    detail = {
        "simulated": True,
        "hours": hours,
        "lines": hours * JOBS * 2,
        "usage_rows": hours * rows,
        "tenants": TENANTS,
        "worst_ms": round(max(took_ms), 1),
        "spans": made,
        "summed_in_s": round(sum_s, 1),
    }
    met = value <= TARGET_MS
    return [Result("bill.month", round(value, 1), "ms", f"<= {TARGET_MS:g} ms", met, round(lines_ms, 1), detail)]


def furnish(database: Database, rows: int) -> int:
    """Fill a month of books but for the end of its last day; return its hours."""
    last_at = _TO_AT - timedelta(hours=_LEFT_OF_THE_DAY + 1)
    facts: dict[str, Any] = {
        "tenants": TENANTS,
        "jobs": JOBS,
        "rows": rows,
        "found": rows // 50,
        "from_at": _FROM_AT,
        "last_at": last_at,
        "open_at": last_at - timedelta(hours=_OPEN_HOURS - 1),
    }
    with database.connect("admin", autocommit=True) as connection:
        for statement in _FURNISH:
            connection.execute(statement, facts if "%(" in statement else None)
        connection.execute("VACUUM ANALYZE")
    return int((last_at - _FROM_AT) / timedelta(hours=1)) + 1


def _asked(client: httpx.Client) -> dict[str, Any]:
    period = {"from": _FROM_AT.isoformat(), "to": _TO_AT.isoformat()}
    answer = client.get("/v1/bill", params=period | {"limit": 1_000})
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    if len(found["rows"]) != TENANTS:
        raise RuntimeError(f"{len(found['rows'])} rows on the bill, not {TENANTS}")
    return found


def _timed_ms(ask: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    ask()
    return (time.perf_counter() - began_s) * 1e3
