"""Looks at an installation for `wattledger doctor`: home, programs, processes, database, service, driver.

It looks and changes nothing: no server is started, no schema migrated, no folder made. What cannot be looked at becomes
a check that says so, so that one failure never hides the others.
"""

from __future__ import annotations

import platform
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution, version
from typing import Final

import httpx
import psycopg
import pynvml
from packaging.requirements import Requirement

from analytics.actions.pause import paused
from analytics.io.fleet import fleet
from analytics.io.health import LedgerFacts, ServerFacts, ledger_facts, server_facts
from analytics.io.segments import segment_facts
from ingest.store.embedded import EmbeddedError
from ingest.store.embedded.account import server_account
from ingest.store.embedded.binaries import find_binaries
from ingest.store.embedded.placement import find_placement
from ingest.store.engine import ROLE_NAMES, URL_FILE_VARIABLE, URL_VARIABLE, Database, DatabaseUrlError
from ingest.store.migrate import MINIMUM_SERVER_VERSION, MigrationError, current, pending
from wattledger import diagnosis
from wattledger.diagnosis import Check, broken, fine, note, unanswered, warning
from wattledger.home import Home
from wattledger.installation import API_URL_VARIABLE, HOST
from wattledger.ports import own_address
from wattledger.runtime import Secret
from wattledger.standing import StandingError, Status, status

_SHOWN_PACKAGES: Final = ("wattledger", "polars", "sqlalchemy", "psycopg", "streamlit")
_TIMEOUT_S: Final = 5.0
UP: Final = "run `wattledger up`"


def examine(home: Home, env: Mapping[str, str], now: datetime | None = None) -> Iterator[Check]:
    """Yield every check in the order in which one builds on the other; ``now`` is only for tests."""
    yield _packages()
    checks = list(_home(home))
    yield from checks
    found = _standing(home)
    if isinstance(found, Check):
        yield found
    standing = found if isinstance(found, Status) else None
    is_external = bool(env.get(URL_VARIABLE) or env.get(URL_FILE_VARIABLE))
    if not is_external:
        yield _binaries(env)
    if standing is not None:
        yield from diagnosis.check_processes(standing, is_external=is_external)
    yield from _database(home, env, standing, now)
    yield from _services(env, standing)
    yield from _last_things(home)


def _packages() -> Check:
    faults = []
    for text in distribution("wattledger").requires or []:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(wanted.name)
        except PackageNotFoundError:
            faults.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(installed, prereleases=True):
            faults.append(f"{wanted.name} is {installed}, needed is {wanted.specifier}")
    shown = {name: version(name) for name in _SHOWN_PACKAGES if not any(fault.startswith(name) for fault in faults)}
    return diagnosis.check_packages(platform.python_version(), shown, faults)


def _home(home: Home) -> Iterator[Check]:
    subject = "home folder"
    if not home.root.is_dir():
        yield broken(subject, f"{home.root} ({home.origin}) does not exist", f"{UP}, or name another with --home")
        return
    try:
        with tempfile.TemporaryFile(dir=home.root):
            pass
    except OSError as error:
        yield broken(
            subject,
            f"{home.root} ({home.origin}) cannot be written to: {error.strerror}",
            "run as the user who owns it, or name another with --home",
        )
    else:
        yield fine(subject, f"{home.root} ({home.origin})")
    yield diagnosis.check_disk(str(home.root), shutil.disk_usage(home.root).free)
    token = Secret(home.secrets / "dashboard.token").path
    try:
        mode = stat.S_IMODE(token.stat().st_mode)
    except OSError:
        return  # there is none before the first `up`, or it is somebody else's home: said above
    if mode & 0o077:
        yield broken("token of the pages", f"{token} is readable by others (mode {mode:04o})", f"chmod 600 {token}")


def _standing(home: Home) -> Status | Check:
    try:
        return status(home)
    except (StandingError, EmbeddedError, OSError) as error:
        return unanswered("supervisor", str(error), "run this as the user who started it")


def _binaries(env: Mapping[str, str]) -> Check:
    subject = "PostgreSQL's programs"
    try:
        found = find_binaries(env, server_account())
    except EmbeddedError as error:
        return broken(subject, str(error), "install Wattledger again, or see above for the variables that help")
    return fine(subject, f"version {found.major} in {found.bindir}")


def _database(home: Home, env: Mapping[str, str], standing: Status | None, now: datetime | None) -> Iterator[Check]:
    subject = "PostgreSQL"
    try:
        database = _find_database(home, env)
    except (DatabaseUrlError, EmbeddedError) as error:
        yield broken(subject, str(error), f"correct {URL_VARIABLE} or the home")
        return
    if database is None:
        yield broken(subject, "was never started in this home", UP)
        return
    try:
        with database.connect("admin", autocommit=True, application="wattledger-doctor") as connection:
            server = server_facts(connection, list(ROLE_NAMES.values()), datetime.now(UTC))
        yield from diagnosis.check_server(server, MINIMUM_SERVER_VERSION)
        behind = pending(database.url)
        yield diagnosis.check_schema(current(database.url), behind)
        if behind:
            return
        with database.connect("worker", autocommit=True, application="wattledger-doctor") as connection:
            facts = ledger_facts(connection, now or datetime.now(UTC), diagnosis.OVERDUE_AFTER)
            nodes = fleet(connection, now or datetime.now(UTC))
            sealed = segment_facts(connection)
    except MigrationError as error:
        yield broken("schema", str(error), "install the version that wrote it, or newer")
    except psycopg.OperationalError as error:
        remedy = UP if database.roles_log_in else f"start the server that {URL_VARIABLE} names, or correct the variable"
        ran = standing is not None and standing.postgres_pid is not None
        if ran and database.roles_log_in:
            remedy = f"it runs but does not answer: see {home.log / 'postgres.log'}"
        yield broken(subject, f"{database.display_url} does not answer: {_first_line(error)}", remedy)
    except psycopg.Error as error:
        yield unanswered(
            subject, f"does not say how it is: {_first_line(error)}", "run this as the owner of the database"
        )
    else:
        yield from _store(server, facts, now or datetime.now(UTC))
        yield diagnosis.check_segments(sealed)
        yield diagnosis.check_agents(nodes)


def _find_database(home: Home, env: Mapping[str, str]) -> Database | None:
    """Find the database as it is; `EmbeddedServer.in_home` would make folders for one that never was."""
    named = Database.from_env(env)
    if named is not None:
        return named
    placement = find_placement(home.root)
    return None if placement is None else Database.on_socket(placement.socket_dir)


def _store(server: ServerFacts, facts: LedgerFacts, now: datetime) -> Iterator[Check]:
    yield diagnosis.check_roles(server, ROLE_NAMES.values(), facts.unguarded_tables)
    yield diagnosis.check_layout(facts.layout)
    if facts.last_partition:
        yield diagnosis.check_partitions(facts.last_partition, now.astimezone(UTC).date())
    yield diagnosis.check_lease(facts.lease)
    yield diagnosis.check_hours(facts, now)
    yield from diagnosis.check_intake(facts, now)
    yield from diagnosis.check_rates(facts.site_rates, facts.unpriced_models, facts.mapped, facts.other_currencies)
    yield diagnosis.check_mapping(facts.mapped)


def _services(env: Mapping[str, str], standing: Status | None) -> Iterator[Check]:
    ports = {} if standing is None else standing.ports
    host = HOST if standing is None else own_address(standing.hosts.get("--port", HOST))
    at = f"{HOST}:{ports['--internal-port']}" if "--internal-port" in ports else f"{host}:{ports.get('--port')}"
    service = env.get(API_URL_VARIABLE) or (f"http://{at}" if "--port" in ports else None)
    if service is None:
        yield note("service", f"its address is not known: nothing runs here and {API_URL_VARIABLE} is not set")
    else:
        yield _answer("service", f"{service.rstrip('/')}/readyz")
    if "--dashboard-port" in ports:
        yield _answer("dashboard", f"http://{HOST}:{ports['--dashboard-port']}/_stcore/health")


def _answer(subject: str, url: str) -> Check:
    try:
        answer = httpx.get(url, timeout=_TIMEOUT_S)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        return broken(subject, f"{url} does not answer: {error}", f"{UP}; if it does run, see its log in the home")
    if answer.is_success:
        return fine(subject, f"{url} answers")
    return broken(
        subject, f"{url} answers {answer.status_code}: {answer.text.strip()[:200]}", "see the log of serve in the home"
    )


def _last_things(home: Home) -> Iterator[Check]:
    pause = paused(home.root) if home.root.is_dir() else None
    if pause is not None:
        yield warning(
            "actions", f"paused by {pause.by} at {pause.at}: {pause.reason}", "`wattledger actions resume` ends it"
        )
    else:
        yield fine("actions", "not paused")
    yield _driver()


def _driver() -> Check:
    subject = "NVML on this machine"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return note(subject, f"no NVIDIA driver here ({error}); needed on GPU nodes only, where the agent runs")
    try:
        return note(subject, f"driver {pynvml.nvmlSystemGetDriverVersion()}, {pynvml.nvmlDeviceGetCount()} devices")
    except pynvml.NVMLError as error:
        return note(subject, f"the NVIDIA driver does not say what it is ({error}); try `wattledger-agent check`")
    finally:
        pynvml.nvmlShutdown()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
