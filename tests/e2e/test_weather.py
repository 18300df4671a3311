"""Bad weather in the middle of the load: whatever is killed, stopped or gone, nothing is lost and nothing counted twice.

Real processes on a PostgreSQL of their own. The measure is a run of the same fleet that nothing disturbed: the same rows,
each once, and books equal to the byte. A full disk needs a file system of its own, hence root: test_weather_disk.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from analytics.io.hours import due_hours
from ingest.store.embedded import EmbeddedServer
from ingest.store.engine import URL_VARIABLE, Database
from tests.e2e.fleet_processes import Place, answers
from tests.e2e.fleet_stand import (
    await_end,
    await_true,
    command,
    content,
    copied,
    free_port,
    hours_of,
    instant,
    introduce,
    rows,
    seen,
    serving,
    yesterday_us,
)
from tests.scratch import quick_folder
from wattledger.simulate.feed import Feed
from wattledger.simulate.fleet import Fleet
from wattledger.simulate.spec import BLOCK_US, FleetSpec
from wattledger.standing import down, status

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

HOURS = 22
PATIENCE_S = 240.0
"""For what takes seconds on an idle machine."""


@dataclass(frozen=True)
class Calm:
    """The undisturbed run."""

    spec: FleetSpec
    database: Database
    content: dict[datetime, str]

    @property
    def until_us(self) -> int:
        return self.spec.start_at_us + HOURS * BLOCK_US

    @property
    def hours(self) -> list[datetime]:
        """Return the hours compared: the last one fed has no reading behind it yet."""
        return hours_of(self.spec, HOURS - 1)


@pytest.fixture(scope="module")
def calm(server: EmbeddedServer, database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Calm]:
    folder = tmp_path_factory.mktemp("calm")
    spec = FleetSpec(start_at_us=yesterday_us(), nodes=4, devices_per_node=2)
    fleet = Fleet(spec)
    until_us = spec.start_at_us + HOURS * BLOCK_US
    with copied(server, database) as fresh:
        token = introduce(fresh, fleet, until_us, folder)
        with serving(fresh, folder) as url, Feed(fleet, url, token) as feed:
            feed.catch_up(until_us)
        with command(["--home", str(folder), "worker", "--interval", "0.5"], folder / "log", {URL_VARIABLE: fresh.url}):
            closed = "the undisturbed books close"
            await_true(lambda: is_closed(fresh, spec), PATIENCE_S, closed, folder / "log", database=fresh)
        found = content(fresh, hours_of(spec, HOURS - 1))
        assert len(found) == HOURS - 1
        yield Calm(spec, fresh, found)


def is_closed(database: Database, spec: FleetSpec) -> bool:
    """Say whether the worker is at rest: every hour closed, and no change left that an hour has not seen."""
    hours = hours_of(spec, HOURS)
    if len(content(database, hours)) < len(hours):
        return False
    with database.connect("worker", autocommit=True) as connection:
        return not {hour.hour_at for hour in due_hours(connection, datetime.now(UTC))}.intersection(hours)


def stored(database: Database) -> dict[str, list[tuple[object, ...]]]:
    """Return what is in the store, by what it is of instead of by id: any row lost or doubled shows.

    Hours of yesterday may be sealed while they are still sent: rows lie in the hot tables, or wait beside the segments.
    """
    device = "SELECT uuid, count(*), count(DISTINCT at), min(at), max(at), sum(energy_mj) FROM {} JOIN devices ON devices.id = device_id GROUP BY 1 ORDER BY 1"
    return {
        "device_samples": rows(
            database,
            device.format(
                "(SELECT at, device_id, energy_mj FROM device_samples UNION ALL "
                "SELECT at, device_id, energy_mj FROM late_samples) AS everywhere"
            ),
        ),
        "node_samples": rows(
            database,
            "SELECT nodes.name, count(*), count(DISTINCT at), sum(power_mw) FROM (SELECT at, meter_id, power_mw FROM "
            "node_samples UNION ALL SELECT at, meter_id, power_mw FROM late_node_samples) AS everywhere JOIN meters ON meters.id = meter_id JOIN nodes ON nodes.id = node_id GROUP BY 1 ORDER BY 1",
        ),
        "device_events": rows(database, "SELECT kind, count(*) FROM device_events GROUP BY 1 ORDER BY 1"),
        "allocations": rows(
            database,
            "SELECT native_id, count(*), min(start_at), max(end_at) FROM allocations JOIN jobs ON jobs.id = job_id "
            "WHERE superseded_at IS NULL GROUP BY 1 ORDER BY 1",
        ),
        "api_calls": rows(
            database,
            "SELECT api_key, count(*), sum(input_uncached_tokens), sum(output_text_tokens) FROM api_calls GROUP BY 1 ORDER BY 1",
        ),
    }


def bill(database: Database, hours: list[datetime]) -> list[tuple[object, ...]]:
    """Return the exact sums by tenant and category."""
    return rows(
        database,
        "SELECT coalesce(path, pool), charge_category, sum(effective_cost), sum(energy_mj), sum(carbon_gco2e), sum(quantity) "
        "FROM current_ledger_lines LEFT JOIN tenants ON tenants.id = tenant_id WHERE hour_at = ANY (%s) "
        "GROUP BY 1, 2 ORDER BY 1, 2",
        (hours,),
    )


def assert_like(calm: Calm, database: Database) -> None:
    assert stored(database) == stored(calm.database)
    assert bill(database, calm.hours) == bill(calm.database, calm.hours)
    assert content(database, calm.hours) == calm.content
    twice = "SELECT hour_at, line_key, revision FROM ledger_lines GROUP BY 1, 2, 3, site_id HAVING count(*) > 1"
    assert rows(database, twice) == []


@dataclass
class Site:
    """An installation under a supervisor and the feed that loads it, each a process that may be killed."""

    place: Place
    port: int
    log: Path
    stack: ExitStack = field(default_factory=ExitStack)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def logs(self) -> tuple[Path, ...]:
        """Return where all processes of the installation write."""
        return (self.place.root, self.place.home.log)

    def start_supervisor(self) -> subprocess.Popen[bytes]:
        words = ["up", str(self.place.root), str(self.port)]
        process = self.stack.enter_context(command(words, self.log, module="tests.e2e.fleet_processes"))

        def is_up() -> bool:
            assert process.poll() is None, seen(*self.logs)
            return answers(self.port) and self.pid("worker") is not None

        await_true(is_up, PATIENCE_S, "the installation is up", *self.logs)
        return process

    def start_feed(self) -> subprocess.Popen[bytes]:
        words = ["feed", str(self.place.root), self.url]
        return self.stack.enter_context(command(words, self.log, module="tests.e2e.fleet_processes"))

    def pid(self, name: str) -> int | None:
        return next(
            (child.pid for child in status(self.place.home).children if child.name == name and child.is_alive), None
        )

    def await_fed(self, hours: int) -> None:
        await_true(
            lambda: self.place.hours_fed() >= hours,
            PATIENCE_S,
            f"{hours} hours are fed",
            *self.logs,
            database=self.place.database,
        )

    def finish(self, feed: subprocess.Popen[bytes], spec: FleetSpec) -> None:
        database = self.place.database
        assert await_end(feed, PATIENCE_S, *self.logs, database=database) == 0, seen(*self.logs)
        await_true(lambda: is_closed(database, spec), PATIENCE_S, "the books close", *self.logs, database=database)


@contextmanager
def installed(calm: Calm) -> Iterator[Site]:
    root = quick_folder("wl-weather-")
    place = Place(root)
    place.home.create()
    place.write(calm.spec, HOURS)
    site = Site(place, free_port(), root / "test.log")
    try:
        with site.stack:
            yield site
    finally:
        down(place.home)
        if EmbeddedServer.in_home(root).placement.base.exists():
            EmbeddedServer.in_home(root).destroy()
        shutil.rmtree(root)


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def begin(site: Site, calm: Calm) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]:
    supervisor = site.start_supervisor()
    token = introduce(site.place.database, Fleet(calm.spec), calm.until_us, site.place.root)
    site.place.token.write_text(token)
    return supervisor, site.start_feed()


def test_each_process_killed_in_turn_during_one_load_leaves_the_books_as_if_nothing_had_been(calm: Calm) -> None:
    with installed(calm) as site:
        supervisor, feed = begin(site, calm)
        site.await_fed(2)
        kill(site.pid("serve"))
        site.await_fed(5)
        kill(site.pid("worker"))
        site.await_fed(8)
        kill(status(site.place.home).postgres_pid)
        site.await_fed(11)
        feed.kill()
        assert feed.wait() == -signal.SIGKILL, "the feed was done before it could be killed"
        feed = site.start_feed()
        site.await_fed(14)
        supervisor.kill()
        supervisor.wait()
        assert site.place.hours_fed() < HOURS
        site.start_supervisor()
        site.finish(feed, calm.spec)
        assert_like(calm, site.place.database)


def again(calm: Calm, database: Database) -> None:
    """Empty the books of a copy of the calm store: all is there but the ledger."""
    with database.connect("admin") as connection:
        connection.execute(
            "TRUNCATE ledger_hours, ledger_runs, usage_hours, hour_jobs, ledger_lines, findings, minute_rollups, watermarks CASCADE"
        )
        connection.execute(
            "INSERT INTO changes (site_id, from_at, to_at, kind) SELECT id, %s, %s, 'device_samples' FROM sites",
            (instant(calm.spec.start_at_us), instant(calm.until_us)),
        )


def family(pid: int) -> list[int]:
    """Return a process and its children, whichever of its threads started them."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [pid, *(int(child) for task in tasks for child in task.read_text(encoding="ascii").split())]


def signalled(pids: list[int], number: signal.Signals) -> list[int]:
    """Send a signal to all of them that are there, and return them."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    return pids


def stopped_worker(calm: Calm, server: EmbeddedServer, folder: Path, overtake: Callable[[Database], None]) -> None:
    """Stop a worker and its processes in the middle of a round, let a second one take over, wake the first; compare."""
    with copied(server, calm.database) as database, ExitStack() as stack:

        def worker(name: str) -> subprocess.Popen[bytes]:
            words = ["--home", str(folder), "worker", "--interval", "0.5"]
            return stack.enter_context(command(words, folder / f"{name}.log", {URL_VARIABLE: database.url}))

        def holder() -> str:
            return str(rows(database, "SELECT holder FROM watermarks WHERE name = 'worker/lease'"))

        def until(claim: Callable[[], bool], what: str) -> None:
            await_true(claim, PATIENCE_S, what, folder / "first.log", folder / "second.log", database=database)

        for _ in range(5):
            again(calm, database)
            first = worker("first")
            until(lambda: bool(rows(database, "SELECT FROM ledger_hours")), "the first worker saves hours")
            still = signalled(family(first.pid), signal.SIGSTOP)
            if len(content(database, hours_of(calm.spec, HOURS))) < HOURS:
                break
            signalled(still, signal.SIGCONT)
            first.kill()  # we were kept waiting and it was done before it could be stopped
            first.wait()
        else:
            pytest.fail("the first worker was five times done before it could be stopped")
        was = holder()
        overtake(database)
        worker("second")
        until(lambda: is_closed(database, calm.spec), "the second worker closes what is left")
        assert holder() != was
        counted = "SELECT count(*) FROM ledger_runs WHERE hour_at = ANY (%s)"
        runs = rows(database, counted, (calm.hours,))
        signalled(still, signal.SIGCONT)
        time.sleep(5)  # several of its rounds
        assert first.poll() is None, seen(folder)
        assert rows(database, counted, (calm.hours,)) == runs == [(len(calm.hours),)]
        assert holder() != was
        assert_like(calm, database)
        assert rows(database, "SELECT max(revision) FROM ledger_hours WHERE hour_at = ANY (%s)", (calm.hours,)) == [
            (1,)
        ]


def test_a_worker_that_stood_still_while_another_took_over_writes_nothing_twice(
    calm: Calm, server: EmbeddedServer, tmp_path: Path
) -> None:
    def lease_runs_out(database: Database) -> None:
        with database.connect("admin") as connection:
            connection.execute("UPDATE watermarks SET updated_at = now() - interval '1 minute'")

    stopped_worker(calm, server, tmp_path, lease_runs_out)


@pytest.mark.slow
def test_a_worker_stopped_for_a_minute_writes_nothing_twice(calm: Calm, server: EmbeddedServer, tmp_path: Path) -> None:
    stopped_worker(calm, server, tmp_path, lambda _: time.sleep(60))


@pytest.mark.slow
@pytest.mark.parametrize("hours", [1, 9, 17])
@pytest.mark.parametrize("victim", ["serve", "worker", "postgres", "feed", "supervisor"])
def test_one_process_killed_at_any_time_of_the_load(calm: Calm, victim: str, hours: int) -> None:
    with installed(calm) as site:
        supervisor, feed = begin(site, calm)
        site.await_fed(hours)
        if victim == "feed":
            feed.kill()
            feed.wait()
            feed = site.start_feed()
        elif victim == "supervisor":
            supervisor.kill()
            supervisor.wait()
            site.start_supervisor()
        else:
            kill(status(site.place.home).postgres_pid if victim == "postgres" else site.pid(victim))
        site.finish(feed, calm.spec)
        assert_like(calm, site.place.database)


@pytest.mark.slow
def test_a_database_that_is_away_for_some_seconds_costs_only_time(calm: Calm, tmp_path: Path) -> None:
    root = quick_folder("wl-weather-")
    place = Place(root)
    place.home.create()
    place.write(calm.spec, HOURS)
    own = EmbeddedServer.in_home(root)
    try:
        own.start()
        from ingest.store.migrate import upgrade  # noqa: PLC0415 - the test before it needs no alembic

        upgrade(own.database().url)
        place.token.write_text(introduce(own.database(), Fleet(calm.spec), calm.until_us, root))
        site = Site(place, 0, root / "test.log")
        with serving(own.database(), root) as url, site.stack:
            worker = site.stack.enter_context(
                command(["--home", str(root), "worker", "--interval", "0.5"], root / "worker.log")
            )
            feed = site.stack.enter_context(
                command(["feed", str(root), url], site.log, module="tests.e2e.fleet_processes")
            )
            for hours in (3, 10):
                site.await_fed(hours)
                own.stop()
                time.sleep(8)
                assert feed.poll() is None, seen(root)
                own.start()
                assert worker.poll() is None, seen(root)
            site.finish(feed, calm.spec)
            assert_like(calm, own.database())
    finally:
        own.destroy()
        shutil.rmtree(root)
