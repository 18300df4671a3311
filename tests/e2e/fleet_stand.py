"""A simulated fleet before a real server: databases of its own, `wattledger serve` as a process, batches as they are sent.

Shared by the tests that compare the books with the simulator's truth and by those that make bad weather.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from collector import wire
from ingest.store.embedded import EmbeddedServer
from ingest.store.engine import URL_VARIABLE, Database
from wattledger.demo import furnish
from wattledger.ports import free_port_or_explain
from wattledger.runtime import Secret
from wattledger.simulate.fleet import Fleet
from wattledger.simulate.otlp import TRACES_CONTENT_TYPE, TRACES_PATH
from wattledger.simulate.spec import BLOCK_US, FleetSpec

REPOSITORY = Path(__file__).parents[2]
HOUR = timedelta(hours=1)
ORIGIN_SIMULATED = int(wire.Origin.SIMULATED)
_numbers = itertools.count()


def instant(at_us: int) -> datetime:
    return datetime.fromtimestamp(at_us // 1_000_000, UTC).replace(microsecond=at_us % 1_000_000)


def yesterday_us() -> int:
    """Return yesterday's midnight, UTC: past, and still inside hot retention."""
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)
    return int(midnight.timestamp()) * 1_000_000


@contextmanager
def copied(server: EmbeddedServer, template: Database) -> Iterator[Database]:
    """A migrated database that lives as long as the block."""
    name = f"wattledger_fleet_{next(_numbers)}"
    with server.database("postgres").connect("admin", autocommit=True) as admin:
        admin.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER wattledger_owner").format(
                sql.Identifier(name), sql.Identifier(template.name)
            )
        )
        try:
            yield server.database(name)
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def introduce(database: Database, fleet: Fleet, until_us: int, folder: Path) -> str:
    """Furnish a database for the fleet and make its nodes, devices and jobs known, in one order; return the token.

    Ids are given out in order of arrival and break ties when a billionth is left over. With the ids equal, two databases
    that saw the same fleet must have the same books to the byte.
    """
    spec = fleet.spec
    token = Secret(folder / f"simulator-{database.name}.token")
    furnish(database, spec, token, now=datetime.now(UTC))
    with database.connect("admin") as connection:
        for node in range(spec.nodes):
            connection.execute(
                "INSERT INTO nodes (site_id, name) SELECT id, %s FROM sites WHERE name = %s",
                (spec.node_name(node), spec.site),
            )
            connection.cursor().executemany(
                "INSERT INTO devices (uuid, vendor, model, kind, memory_bytes) VALUES (%s, %s, %s, %s, %s)",
                [(ref.uuid, ref.vendor, ref.model, ref.kind, ref.memory_bytes) for ref in spec.device_refs(node)],
            )
        connection.cursor().executemany(
            "INSERT INTO jobs (site_id, cluster, native_id, started_at, workload_kind, origin, source) "
            "SELECT id, %s, %s, %s, %s, %s, 'agent' FROM sites WHERE name = %s",
            [
                (job.cluster, job.native_id, instant(job.start_us), job.workload_kind, ORIGIN_SIMULATED, spec.site)
                for job in fleet.jobs(spec.start_at_us, until_us)
            ],
        )
    secret = token.read()
    assert secret is not None
    return secret


def free_port() -> int:
    return free_port_or_explain(0, "--port", "127.0.0.1")


def await_true(
    claim: Callable[[], bool], within_s: float, what: str, *logs: Path, database: Database | None = None
) -> None:
    """Wait until the claim holds; if it never does, tell of the processes by the ends of their logs and by the database's sessions."""
    deadline = time.monotonic() + within_s
    while not claim():
        assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {what}\n{seen(*logs, database=database)}"
        time.sleep(0.02)


def await_end(process: subprocess.Popen[Any], within_s: float, *logs: Path, database: Database | None = None) -> int:
    """Wait until a process ends and return its exit code."""
    await_true(lambda: process.poll() is not None, within_s, f"{process.args!r} ends", *logs, database=database)
    return int(process.returncode)


@contextmanager
def impatience(process: subprocess.Popen[Any], within_s: float) -> Iterator[None]:
    """Kill a process that has not said in time what is read from it inside the block: the read ends instead of hanging."""
    watchdog = threading.Timer(within_s, process.kill)
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


def seen(*logs: Path, database: Database | None = None) -> str:
    """Return the ends of logs, of all of them where a folder is named, and what the sessions of a database do."""
    files = [file for log in logs for file in (sorted(log.glob("*.log")) if log.is_dir() else [log])]
    told = [
        f"--- {file}\n{file.read_text(errors='replace')[-6000:] if file.exists() else 'not there'}" for file in files
    ]
    return "\n".join(told if database is None else [*told, sessions(database)])


def sessions(database: Database) -> str:
    """Return what each session of a database does, for how long, and who keeps it from going on."""
    asked = (
        "SELECT pid, usename, application_name, state, wait_event_type || '/' || wait_event AS waits_for, "
        "pg_blocking_pids(pid) AS blocked_by, now() - xact_start AS in_transaction, now() - state_change AS in_state, "
        "left(query, 300) AS query FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    try:
        with database.connect("admin", autocommit=True) as connection:
            found = connection.cursor(row_factory=dict_row).execute(asked).fetchall()
    except psycopg.Error as error:
        return f"--- sessions: {error}"
    return "\n".join(["--- sessions", *map(str, found)])


@contextmanager
def command(
    words: Sequence[str], log: Path, env: Mapping[str, str] | None = None, *, module: str = "wattledger"
) -> Iterator[subprocess.Popen[bytes]]:
    """Run one of our commands as a process; killed at the end if it still runs."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            cwd=REPOSITORY,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


@contextmanager
def serving(database: Database, folder: Path) -> Iterator[str]:
    """Run `wattledger serve` for a database; yield its URL."""
    port = free_port()
    log = folder / f"serve-{database.name}.log"
    words = ["--home", str(folder), "serve", "--port", str(port)]
    with command(words, log, {URL_VARIABLE: database.url}) as process:
        url = f"http://127.0.0.1:{port}"

        def is_ready() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                return httpx.get(f"{url}/readyz", timeout=2).is_success
            except httpx.TransportError:
                return False

        await_true(is_ready, 180, "serve answers", log)
        yield url


@dataclass(frozen=True)
class Body:
    """One request as the feed would send it."""

    path: str
    content: bytes
    headers: Mapping[str, str]


def bodies(fleet: Fleet, until_us: int) -> list[Body]:
    """Return everything that reaches ingest until then, in order of arrival."""
    samples = {"Content-Type": wire.CONTENT_TYPE, "Content-Encoding": wire.CONTENT_ENCODING}
    start_us = fleet.spec.start_at_us
    found = [Body(wire.SAMPLES_PATH, batch.body, samples) for batch in fleet.batches(start_us, until_us)]
    traces = {"Content-Type": TRACES_CONTENT_TYPE}
    return found + [Body(TRACES_PATH, export.body, traces) for export in fleet.traces(start_us, until_us)]


def send(url: str, token: str, wanted: Sequence[Body]) -> None:
    """Send bodies, eight at a time; each must be taken."""
    with (
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60) as client,
        ThreadPoolExecutor(8) as threads,
    ):

        def post(body: Body) -> None:
            answer = client.post(body.path, content=body.content, headers=dict(body.headers))
            assert answer.is_success, f"{body.path}: {answer.status_code} {answer.text[:400]}"

        list(threads.map(post, wanted))


def hours_of(spec: FleetSpec, hours: int) -> list[datetime]:
    return [instant(spec.start_at_us + number * BLOCK_US) for number in range(hours)]


def rows(database: Database, query: str, parameters: Any = None) -> list[tuple[Any, ...]]:
    with database.connect("admin", autocommit=True) as connection:
        return connection.execute(query.encode(), parameters).fetchall()


_CONTENT = """
SELECT hour_at, md5(string_agg(told, chr(10) ORDER BY told)) FROM (
    SELECT used.hour_at, ROW(device.uuid, coalesce(job.native_id, used.holder), used.state, used.energy_mj, used.estimated_mj,
        used.energy_low_mj, used.energy_high_mj, used.held_us, used.covered_us, used.active_us, used.idle_us, used.throttled_us,
        used.reserved_us, used.down_us, used.accelerators, used.method, used.reason, used.source, used.coverage, used.feed,
        used.origin)::text AS told
    FROM current_usage_hours AS used JOIN devices AS device ON device.id = used.device_id LEFT JOIN jobs AS job ON job.id = used.job_id
    UNION ALL
    SELECT line.hour_at, ROW(tenant.path, line.holder_key, line.api_key, line.pool, line.device_model, line.charge_category, line.quantity,
        line.quantity_unit, line.energy_mj, line.energy_low_mj, line.energy_high_mj, line.facility_mj, line.carbon_gco2e, line.billed_cost,
        line.effective_cost, line.currency, line.status, line.source, line.coverage, line.origin, line.method)::text
    FROM current_ledger_lines AS line LEFT JOIN tenants AS tenant ON tenant.id = line.tenant_id
) AS books JOIN ledger_hours USING (hour_at) WHERE hour_at = ANY (%s) AND ledger_hours.status = 'closed' GROUP BY hour_at
"""


def content(database: Database, hours: Sequence[datetime]) -> dict[datetime, str]:
    """Return a digest of each closed hour's books by names: ids are the database's own, and those of chassis as their meters came."""
    return dict(rows(database, _CONTENT, (list(hours),)))
