"""Who each process is to the database: a login of its own where it has one, the one login of a small installation otherwise.

One variable names the database, WATTLEDGER_DATABASE_URL or its _FILE. Where one environment is handed to several processes, as `up`
does, `serve` and the worker find their own logins in variables of theirs. It makes no login and changes no right.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from ingest.store.engine import URL_FILE_VARIABLE, URL_VARIABLE, Database, DatabaseUrlError
from ingest.store.role_rights import owning_login

_LOG = logging.getLogger(__name__)
_OWN: Final[Mapping[str, tuple[str, str]]] = {
    "serve": ("WATTLEDGER_SERVE_DATABASE_URL", "WATTLEDGER_SERVE_DATABASE_URL_FILE"),
    "worker": ("WATTLEDGER_WORKER_DATABASE_URL", "WATTLEDGER_WORKER_DATABASE_URL_FILE"),
}
_ALL: Final = (URL_VARIABLE, URL_FILE_VARIABLE, *(name for names in _OWN.values() for name in names))
ADVICE: Final = "give `serve` and the worker logins of their own (docs/databases.md)"


def overlay(process: str, env: Mapping[str, str]) -> dict[str, str]:
    """Return what a process of that name is told instead of what ``env`` says of databases: its own URL, and nobody else's.

    Empty means unset. ``dashboard`` is told of none. Raises DatabaseUrlError where both of its own variables are set.
    """
    if process not in _OWN:
        return dict.fromkeys(_ALL, "")
    own_url, own_file = _OWN[process]
    url, file = env.get(own_url, ""), env.get(own_file, "")
    if url and file:
        raise DatabaseUrlError(f"{own_url} and {own_file} are both set; keep one of them")
    others = dict.fromkeys(_ALL[2:], "")
    return others | {URL_VARIABLE: url, URL_FILE_VARIABLE: file} if url or file else others


def env_of(process: str, env: Mapping[str, str]) -> dict[str, str]:
    """Return a process's environment with the URL that is its own."""
    return {**env, **overlay(process, env)}


def warn_of_an_owner(process: str, database: Database) -> str | None:
    """Log and return the login of a process that may become the owner of all tables; None where there is nothing to say."""
    if database.roles_log_in:
        return None
    with database.connect("admin", autocommit=True, application="wattledger-start") as connection:
        login = owning_login(connection)
    if login is not None:
        _LOG.warning(
            "%s logs in as %s, which may become wattledger_owner: what makes it run SQL of others may read tokens and change the "
            "audit; %s",
            process,
            login,
            ADVICE,
        )
    return login
