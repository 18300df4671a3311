"""The demo: a simulated fleet's 48 hours through the real wire into real books. Everything it shows is marked simulated.

What it needs beside samples (prices, tariff, intensity, bindings, budgets) is written once per home through the very
functions that imports and policies use.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Final

import psycopg
import sqlalchemy as sa

from analytics.io import bindings_store, budgets
from analytics.io.hours import due_hours
from analytics.io.spend import load_spend
from analytics.model.budget import Decision, decide
from ingest.store import import_rates, tokens
from ingest.store.engine import Database
from ingest.store.import_rates import DatedRows
from ingest.store.price_terms import price_row
from ingest.store.sites import set_zones
from wattledger.home import Home
from wattledger.runtime import Secret
from wattledger.simulate import reference
from wattledger.simulate.fleet import Fleet
from wattledger.simulate.spec import FleetSpec
from wattledger.simulate.tenants import bindings_yaml
from wattledger.supervise import Supervisor

HISTORY_H: Final = 48
US_PER_H: Final = 3_600_000_000
_KEPT: Final = ("start_at_us", "seed", "nodes")


@dataclass(frozen=True, slots=True)
class Demo:
    """The fleet of one demo home and how it is let in."""

    fleet: Fleet
    token: Secret
    cursor_path: Path


def prepare(home: Home, database: Database, *, nodes: int, seed: int, now: datetime) -> Demo:
    """Set up the demo's site, tenants, prices and budgets; a home that has a fleet keeps it."""
    spec = _fleet_spec(home.root / "demo.json", nodes=nodes, seed=seed, now=now)
    token = Secret(home.secrets / "simulator.token")
    furnish(database, spec, token, now=now)
    return Demo(Fleet(spec), token, home.spool / "simulator.json")


def furnish(database: Database, spec: FleetSpec, token: Secret, *, now: datetime) -> None:
    """Write what the fleet's hours are priced and mapped with, and a token to send it with; again changes nothing."""
    engine = sa.create_engine("postgresql+psycopg://", creator=lambda: database.connect("admin"), poolclass=sa.NullPool)
    with engine.begin() as connection:
        site_id = set_zones(connection, spec.site, grid_zone=reference.GRID_ZONE)
        _write_rates(connection, spec, site_id)
        budgets.apply(connection, BUDGETS, now, actor="wattledger demo")
        if token.read() is None:
            issued = tokens.create(
                connection,
                "simulator",
                {tokens.Scope.AGENT, tokens.Scope.WRITE},
                actor="wattledger demo",
                site_id=site_id,
            )
            token.write(issued.secret)
    with database.connect("admin") as raw:
        bindings_store.apply(raw, bindings_yaml(spec.cluster), now)


def wait_for_books(
    database: Database, report: Callable[[int], None], *, timeout_s: float = 300.0, until: Callable[[], bool]
) -> None:
    """Wait until every finished hour is in the books; ``report`` gets the hours still due, ``until`` may end it early."""
    deadline = time.monotonic() + timeout_s
    left = -1
    while not until():
        # A PostgreSQL that was killed is back in a moment; how long that may take the deadline says.
        with suppress(psycopg.OperationalError):
            left = _unclosed(database)
            report(left)
        if not left:
            return
        if time.monotonic() > deadline:
            waited_for = "the database does not answer" if left < 0 else f"{left} hours are not in the books"
            raise TimeoutError(f"{waited_for} after {timeout_s:.0f} s; see the worker's log")
        time.sleep(0.25)


def tended(supervisor: Supervisor, work: Callable[[threading.Event], None]) -> None:
    """Do ``work`` in a thread while the supervisor restarts whatever is killed; raise what it raises.

    ``work`` is told by its event to come to an end soon: the supervisor was asked to stop, or gave up on a child.
    """
    stop = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work(stop)
        except BaseException as error:  # noqa: BLE001 - carried to the main thread, which reports it
            failures.append(error)

    thread = threading.Thread(target=run, name="demo")
    thread.start()
    try:
        supervisor.run(until=lambda: not thread.is_alive())
    finally:
        stop.set()
        thread.join(timeout=30)
    if failures:
        raise failures[0]


def budgets_now(database: Database, now: datetime) -> tuple[Decision, ...]:
    """Return what each budget in force concludes from the books as they are; records and does nothing."""
    engine = database.create_engine("worker", pool_size=1, application="wattledger-demo")
    try:
        with engine.connect() as connection:
            return tuple(
                decide(budget, load_spend(connection, budget, now), now) for budget in budgets.in_force(connection, now)
            )
    finally:
        engine.dispose()


def _unclosed(database: Database) -> int:
    """Count hours due that no run has written; the open window counts only until its first run."""
    with database.connect("worker", autocommit=True, application="wattledger-demo") as connection:
        return sum(1 for hour in due_hours(connection, datetime.now(UTC)) if hour.run_id is None)


def _fleet_spec(path: Path, *, nodes: int, seed: int, now: datetime) -> FleetSpec:
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        return FleetSpec(start_at_us=int(kept["start_at_us"]), seed=int(kept["seed"]), nodes=int(kept["nodes"]))
    hour_us = int(now.timestamp()) // 3600 * US_PER_H
    spec = FleetSpec(start_at_us=hour_us - HISTORY_H * US_PER_H, seed=seed, nodes=nodes)
    path.write_text(json.dumps({name: getattr(spec, name) for name in _KEPT}), encoding="utf-8")
    return spec


def _write_rates(connection: sa.Connection, spec: FleetSpec, site_id: int) -> None:
    first_us = spec.start_at_us
    prices = [
        price_row(
            line,
            (first_us, None),
            (price.provider, price.model, price.meter),
            (Decimal(price.amount), price.unit, price.currency),
        )
        for line, price in enumerate(reference.prices(spec), 1)
    ]
    tariffs = [
        (line, rate.valid_from_us, rate.valid_to_us, site_id, "facility", rate.amount, reference.CURRENCY)
        for line, rate in enumerate(reference.tariffs(spec), 1)
    ]
    intensity = [
        (line, rate.valid_from_us, rate.valid_to_us, reference.GRID_ZONE, "location", False, rate.amount, False)
        for line, rate in enumerate(reference.intensity(spec), 1)
    ]
    factor = reference.facility_factor()
    factors = [(1, first_us, None, site_id, factor.amount, 1)]
    for series, rows in (
        (import_rates.PRICES, prices),
        (import_rates.TARIFFS, tariffs),
        (import_rates.INTENSITY, intensity),
        (import_rates.FACILITY_FACTORS, factors),
    ):
        dated = DatedRows(connection, series)
        dated.add(rows)
        dated.store(reference.SOURCE, until_next=False, site_id=site_id)
        for staging in ("import_dated", "import_fresh", "import_rest"):
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {staging}")


BUDGETS: Final = """\
# Budgets of the demo. Nothing here is armed, and simulated data could not arm it anyway.
version: 1
budgets:
  - name: nlp-week
    tenant: acme/research/nlp
    period: week
    currency: USD
    limits: {cost: 3200}
    ladder:
      - {at: 80%, do: warn}
      - {at: 100%, do: cancel, approval: MANUAL, grace: 10m}
  - name: research-week
    tenant: acme/research
    period: week
    limits: {energy_kwh: 2500, carbon_kgco2e: 600}
    ladder:
      - {at: 90%, do: warn}
  - name: quant-day
    tenant: globex/quant
    period: day
    currency: USD
    limits: {cost: 1500}
    ladder:
      - {at: 100%, do: warn}
"""
