"""One installation going up: PostgreSQL, schema, tokens of its own, then its processes, all at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

import httpx
import sqlalchemy as sa

from ingest.store import tokens
from ingest.store.engine import Database
from ingest.store.migrate import upgrade
from wattledger import first_token, logins
from wattledger.first_token import OWN_TOKEN
from wattledger.home import Home
from wattledger.listening import Listening
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
    metrics: int = 0
    """Of the worker, on loopback; 0: any that is free."""


@dataclass(frozen=True, slots=True)
class Installation:
    """A home that is up; valid while its supervisor's block lasts."""

    home: Home
    database: Database
    ports: Ports
    dashboard_token: Secret
    listening: Listening = field(default_factory=Listening)
    """Where ingest and API listen; the dashboard stays on loopback."""

    @property
    def service_url(self) -> str:
        """Where processes of this machine reach ingest and API: beside TLS in the clear, on loopback."""
        if self.listening.internal_port:
            return f"http://{HOST}:{self.listening.internal_port}"
        return f"http://{own_address(self.listening.host)}:{self.ports.service}"

    @property
    def public_url(self) -> str:
        """Where others reach ingest and API, as far as this machine knows."""
        scheme = "https" if self.listening.is_tls else "http"
        return f"{scheme}://{own_address(self.listening.host)}:{self.ports.service}"

    @property
    def metrics_url(self) -> str:
        """Where the worker shows its own metrics; those of ingest and API are with the service."""
        return f"http://{HOST}:{self.ports.metrics}/metrics"

    @property
    def dashboard_url(self) -> str:
        return f"http://{HOST}:{self.ports.dashboard}"


def bring_up(
    supervisor: Supervisor,
    wanted: Ports,
    env: Mapping[str, str],
    *,
    say: Callable[[str], None],
    listening: Listening | None = None,
    enforced: bool = False,
    with_worker: bool = True,
) -> Installation:
    """Start what belongs to an installation and wait until it answers; ports are checked before anything starts.

    ``listening`` is where ingest and API listen, its ports aside; ``enforced`` lets armed budgets act, else everything stays
    a dry run. Raises ListeningError where others could reach a service that would let tokens travel in the clear, or that
    nobody has a token for.
    """
    listening = listening or Listening()
    listening.check()
    taken = supervisor.take_ports({"--port": wanted.service}, listening.host)
    internal = {"--internal-port": 0} if listening.is_tls else {}
    beside = {"--dashboard-port": wanted.dashboard, "--metrics-port": wanted.metrics}
    taken |= supervisor.take_ports({**beside, **internal}, HOST)
    listening = replace(listening, port=taken["--port"], internal_port=taken.get("--internal-port", 0))
    ports = Ports(taken["--port"], taken["--dashboard-port"], taken["--metrics-port"])
    named = Database.from_env(env)
    if named is None:
        say("starting PostgreSQL")
        database = supervisor.start_postgres()
    else:
        database = named
        supervisor.use_database(database)
    upgrade(database.url)
    first_token.check(
        database,
        listening,
        "start on loopback (`wattledger up`), make one (`wattledger token create --help`), and start again",
    )
    own = _own_token(supervisor.home, database)
    installation = Installation(supervisor.home, database, ports, own, listening)
    workers = [_worker(installation, enforced=enforced)] if with_worker else []
    # Together: each spends its first seconds on imports, and none asks another for anything while it starts.
    children = [_service(installation), _dashboard(installation), *workers]
    say(f"starting ingest, API{', worker' if with_worker else ''} and dashboard")
    supervisor.start(*(replace(child, env={**logins.overlay(child.name, env), **child.env}) for child in children))
    return installation


def start_worker(
    supervisor: Supervisor, installation: Installation, env: Mapping[str, str], *, interval_s: float = 10.0
) -> None:
    """Start the worker process of an installation that is up; ``env`` may name its own login."""
    supervisor.start(replace(_worker(installation, interval_s), env=logins.overlay("worker", env)))


def _command(installation: Installation, *words: str) -> list[str]:
    return [sys.executable, "-m", "wattledger", "--home", str(installation.home.root), *words]


def _worker(installation: Installation, interval_s: float = 10.0, *, enforced: bool = False) -> Child:
    words = ["--interval", f"{interval_s:g}", "--metrics-port", str(installation.ports.metrics)]
    return Child("worker", _command(installation, "worker", *words, *(["--enforced"] if enforced else [])))


def _service(installation: Installation) -> Child:
    return Child(
        "serve",
        _command(installation, "serve", *installation.listening.words()),
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
    with _as_admin(database) as connection:
        if kept is not None and _is_known(connection, kept):
            return secret
        issued = tokens.create(
            connection,
            OWN_TOKEN,
            {tokens.Scope.READ, tokens.Scope.GATE},
            actor="wattledger up",
            tenant_path="*",
        )
    secret.write(issued.secret)
    return secret


@contextmanager
def _as_admin(database: Database) -> Iterator[sa.Connection]:
    engine = sa.create_engine("postgresql+psycopg://", creator=lambda: database.connect("admin"), poolclass=sa.NullPool)
    with engine.begin() as connection:
        yield connection


def _is_known(connection: sa.Connection, secret: str) -> bool:
    now = connection.execute(sa.select(sa.func.now())).scalar_one()
    try:
        tokens.verify(connection, secret, now)
    except tokens.TokenRefusedError:
        return False
    return True
