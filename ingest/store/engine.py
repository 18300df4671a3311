"""How to connect: one `Database` value that knows the server and turns a role into a connection.

Embedded: each role logs in over the socket. A server named by WATTLEDGER_DATABASE_URL: everyone logs in as that URL does
and switches to the role, which the URL's user must be a member of (or be superuser). Migrations use the `admin`
role, which is the URL as it is. Refuses to print passwords and never keeps a connection itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import psycopg
import sqlalchemy

from ingest.store.outages import as_outages

Role = Literal["admin", "owner", "writer", "worker", "api"]
DATABASE_NAME = "wattledger"
ROLE_NAMES: Mapping[str, str] = {role: f"wattledger_{role}" for role in ("owner", "writer", "worker", "api")}
URL_VARIABLE = "WATTLEDGER_DATABASE_URL"
URL_FILE_VARIABLE = "WATTLEDGER_DATABASE_URL_FILE"
CONNECT_TIMEOUT_S = 10
POOL_TIMEOUT_S = 30
"""How long somebody waits for a connection that others have; then it is an outage."""
_LINK: Mapping[str, int] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""Seconds, but for the last, which is milliseconds: a network that goes away without a word ends a connection after 20 to
25 s, not after TCP's quarter of an hour. Of no meaning on a socket of this machine; what the URL says of them wins."""
_WRITE = frozenset({"writer", "worker"})
"""Roles of no use on a server that is read-only; the API reads."""


class DatabaseUrlError(ValueError):
    """The URL of the database cannot be used; the message never repeats its password."""


@dataclass(frozen=True)
class Database:
    """One database and how its roles are reached; holds no connection and may be pickled to a worker."""

    url: str = field(repr=False)
    roles_log_in: bool
    """True on the embedded server; False where the URL's user switches with SET ROLE."""

    def __repr__(self) -> str:
        return f"Database({self.display_url!r}, roles_log_in={self.roles_log_in})"

    @classmethod
    def on_socket(cls, socket_dir: Path, name: str = DATABASE_NAME) -> "Database":
        """Describe a database of the embedded server."""
        # The port is named because libpq would otherwise take a user's PGPORT.
        host = urlencode({"host": str(socket_dir), "port": "5432"}, quote_via=quote)
        return cls(f"postgresql://postgres@/{quote(name, safe='')}?{host}", roles_log_in=True)

    @classmethod
    def at_url(cls, url: str) -> "Database":
        """Describe a database by a libpq URI; `postgresql+psycopg://` is taken too. Raises DatabaseUrlError."""
        parts = urlsplit(url)
        if parts.scheme not in {"postgresql", "postgres", "postgresql+psycopg"}:
            raise DatabaseUrlError(
                f"{URL_VARIABLE} must look like postgresql://user@host:5432/database, not {parts.scheme or 'a path'}:…"
            )
        url = urlunsplit(parts._replace(scheme="postgresql"))
        try:
            psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.ProgrammingError:
            # The driver's message repeats the URL, password included.
            raise DatabaseUrlError(f"{URL_VARIABLE} is not a valid libpq URI; percent-encode the password") from None
        return cls(url, roles_log_in=False)

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "Database | None":
        """Return the database WATTLEDGER_DATABASE_URL names, None where the embedded one is meant.

        WATTLEDGER_DATABASE_URL_FILE names a file that holds the URL, for secrets that are mounted. Raises DatabaseUrlError.
        """
        url, file = env.get(URL_VARIABLE), env.get(URL_FILE_VARIABLE)
        if url and file:
            raise DatabaseUrlError(f"{URL_VARIABLE} and {URL_FILE_VARIABLE} are both set; keep one of them")
        if file:
            try:
                url = Path(file).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
                raise DatabaseUrlError(f"{URL_FILE_VARIABLE}: cannot read {file}: {reason}") from None
            if not url:  # not the embedded database, which is what no URL means
                raise DatabaseUrlError(f"{URL_FILE_VARIABLE}: {file} is empty; put the database's URL into it")
        return cls.at_url(url) if url else None

    @property
    def name(self) -> str:
        return str(psycopg.conninfo.conninfo_to_dict(self.url).get("dbname", ""))

    @property
    def display_url(self) -> str:
        """The URL without its password, for messages."""
        parts = urlsplit(self.url)
        user_info, at, hosts = parts.netloc.rpartition("@")
        kept = [(key, value) for key, value in parse_qsl(parts.query) if key not in {"password", "sslpassword"}]
        return urlunsplit(
            parts._replace(netloc=user_info.partition(":")[0] + at + hosts, query=urlencode(kept, safe="/"))
        )

    def named(self, name: str) -> "Database":
        """Return the same server's database of another name."""
        return replace(self, url=urlunsplit(urlsplit(self.url)._replace(path=f"/{quote(name, safe='')}")))

    def as_login(self, login: str) -> str:
        """Return a libpq URI with this login name instead of the URL's, without its password."""
        parts = urlsplit(self.url)
        hosts = parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=f"{quote(login, safe='')}@{hosts}"))

    def libpq_uri(self, role: Role) -> str:
        """Return the libpq URI for a role, as psycopg, ADBC and pg_dump take it; it may hold a password: do not log."""
        if role == "admin":
            return self.url
        if self.roles_log_in:
            return self.as_login(ROLE_NAMES[role])
        parts = urlsplit(self.url)
        query = parse_qsl(parts.query, keep_blank_values=True)
        given = " ".join(value for key, value in query if key == "options")
        rest = [(key, value) for key, value in query if key != "options"]
        options = f"{given} -c role={ROLE_NAMES[role]}".strip()
        return urlunsplit(parts._replace(query=urlencode([*rest, ("options", options)], quote_via=quote)))

    connect_info = libpq_uri

    def connect(
        self, role: Role, *, autocommit: bool = False, application: str = "wattledger"
    ) -> psycopg.Connection[tuple[object, ...]]:
        """Open a psycopg connection as a role; OperationalError also where writer or worker could not write."""
        uri = self.libpq_uri(role)
        said = psycopg.conninfo.conninfo_to_dict(uri)
        link = {name: value for name, value in _LINK.items() if name not in said}
        connection = psycopg.connect(
            psycopg.conninfo.make_conninfo(uri, **link),
            autocommit=autocommit,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name=application,
        )
        if role in _WRITE and _is_read_only(connection):
            connection.close()
            raise psycopg.OperationalError(f"{self.display_url} keeps nothing: it is a standby, or was made read-only")
        return connection

    def create_engine(
        self,
        role: Role,
        *,
        pool_size: int = 2,
        application: str = "wattledger",
        pool_timeout_s: float = POOL_TIMEOUT_S,
        echo: bool = False,
    ) -> sqlalchemy.Engine:
        """Return a SQLAlchemy engine (psycopg) as a role; the caller disposes of it.

        At most pool_size connections: the embedded server has 60 for everybody.
        """
        engine = sqlalchemy.create_engine(
            "postgresql+psycopg://",
            creator=lambda: self.connect(role, application=application),
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=pool_timeout_s,
            pool_pre_ping=True,  # a restarted server costs one retry inside the pool instead of a failed request
            echo=echo,
        )
        as_outages(engine)
        if role in _WRITE:
            sqlalchemy.event.listen(engine, "checkout", _refuse_read_only)
        return engine


def _refuse_read_only(connection: Any, *_: object) -> None:
    """Have the pool connect anew instead of giving out a connection that writes nothing."""
    if _is_read_only(connection):
        raise sqlalchemy.exc.DisconnectionError("the server is read-only")


def _is_read_only(connection: psycopg.Connection[Any]) -> bool:
    """Say what the server (14 or newer) tells by itself of being a standby or read-only; nothing is asked."""
    told = connection.info.parameter_status
    return "on" in (told("in_hot_standby"), told("default_transaction_read_only"))
