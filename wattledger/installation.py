"""One installation going up: PostgreSQL, schema, tokens of its own, then its processes, all at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import httpx
import sqlalchemy as sa

from ingest.store import tokens
from ingest.store.engine import Database
from ingest.store.migrate import upgrade
from wattledger.home import Home
from wattledger.ports import own_address
from wattledger.runtime import Secret
from wattledger.supervise import Child, Supervisor

HOST: Final = "127.0.0.1"
API_URL_VARIABLE: Final = "WATTLEDGER_API_URL"
API_TOKEN_FILE_VARIABLE: Final = "WATTLEDGER_API_TOKEN_FILE"  # noqa: S105 (names a file)


@dataclass(frozen=True, slots=True)
class Ports:
    """The TCP ports an installation listens on."""

    service: int = 8470
    dashboard: int = 8471


@dataclass(frozen=True, slots=True)
class Installation:
    """A home that is up; valid while its supervisor's block lasts."""

    home: Home
    database: Database
    ports: Ports
    dashboard_token: Secret
    host: str = HOST
    """The address ingest and API listen on; the dashboard stays on loopback."""

    @property
    def service_url(self) -> str:
        """Where processes of this machine reach ingest and API."""
        return f"http://{own_address(self.host)}:{self.ports.service}"

    @property
    def dashboard_url(self) -> str:
        return f"http://{HOST}:{self.ports.dashboard}"


def bring_up(
    supervisor: Supervisor,
    wanted: Ports,
    env: Mapping[str, str],
    *,
    say: Callable[[str], None],
    host: str = HOST,
    enforced: bool = False,
    with_worker: bool = True,
) -> Installation:
    """Start what belongs to an installation and wait until it answers; ports are checked before anything starts.

    ``host`` is where ingest and API listen; ``enforced`` lets armed budgets act, else everything stays a dry run.
    """
    taken = supervisor.take_ports({"--port": wanted.service}, host)
    taken |= supervisor.take_ports({"--dashboard-port": wanted.dashboard}, HOST)
    ports = Ports(taken["--port"], taken["--dashboard-port"])
    named = Database.from_env(env)
    if named is None:
        say("starting PostgreSQL")
        database = supervisor.start_postgres()
    else:
        database = named
        supervisor.use_database(database)
    upgrade(database.url)
    installation = Installation(supervisor.home, database, ports, _own_token(supervisor.home, database), host)
    workers = [_worker(installation, enforced=enforced)] if with_worker else []
    # Together: each spends its first seconds on imports, and none asks another for anything while it starts.
    children = [_service(installation), _dashboard(installation), *workers]
    say(f"starting ingest, API{', worker' if with_worker else ''} and dashboard")
    supervisor.start(*children)
    return installation


def start_worker(supervisor: Supervisor, installation: Installation, *, interval_s: float = 10.0) -> None:
    """Start the worker process of an installation that is up."""
    supervisor.start(_worker(installation, interval_s))


def _command(installation: Installation, *words: str) -> list[str]:
    return [sys.executable, "-m", "wattledger", "--home", str(installation.home.root), *words]


def _worker(installation: Installation, interval_s: float = 10.0, *, enforced: bool = False) -> Child:
    switch = ["--enforced"] if enforced else []
    return Child("worker", _command(installation, "worker", "--interval", f"{interval_s:g}", *switch))


def _service(installation: Installation) -> Child:
    port = installation.ports.service
    return Child(
        "serve",
        _command(installation, "serve", "--host", installation.host, "--port", str(port)),
        is_ready=_answers(f"{installation.service_url}/readyz"),
    )


def _dashboard(installation: Installation) -> Child:
    return Child(
        "dashboard",
        _command(installation, "dashboard", "--port", str(installation.ports.dashboard)),
        env={
            API_URL_VARIABLE: installation.service_url,
            API_TOKEN_FILE_VARIABLE: str(installation.dashboard_token.path),
        },
        is_ready=_answers(f"{installation.dashboard_url}/_stcore/health"),
    )


def _answers(url: str) -> Callable[[], bool]:
    def ask() -> bool:
        try:
            return httpx.get(url, timeout=2.0).is_success
        except httpx.TransportError:
            return False

    return ask


def _own_token(home: Home, database: Database) -> Secret:
    """Keep one read token for the pages and commands of this home; a database that does not know it gets a new one."""
    secret = Secret(home.secrets / "dashboard.token")
    kept = secret.read()
    engine = sa.create_engine("postgresql+psycopg://", creator=lambda: database.connect("admin"), poolclass=sa.NullPool)
    with engine.begin() as connection:
        if kept is not None and _is_known(connection, kept):
            return secret
        issued = tokens.create(
            connection,
            "this installation",
            {tokens.Scope.READ, tokens.Scope.GATE},
            actor="wattledger up",
            tenant_path="*",
        )
    secret.write(issued.secret)
    return secret


def _is_known(connection: sa.Connection, secret: str) -> bool:
    now = connection.execute(sa.select(sa.func.now())).scalar_one()
    try:
        tokens.verify(connection, secret, now)
    except tokens.TokenRefusedError:
        return False
    return True
