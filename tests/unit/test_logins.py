"""Which database URL each process is told."""

from __future__ import annotations

import pytest

from ingest.store.engine import Database, DatabaseUrlError
from wattledger import logins

pytestmark = pytest.mark.unit
OWNER, SERVE, WORKER = (f"postgresql://{name}@db/ledger" for name in ("wattledger", "serve", "worker"))
ALL = {
    "WATTLEDGER_DATABASE_URL": OWNER,
    "WATTLEDGER_SERVE_DATABASE_URL": SERVE,
    "WATTLEDGER_WORKER_DATABASE_URL": WORKER,
    "PATH": "/bin",
}


@pytest.mark.parametrize(("process", "url"), [("serve", SERVE), ("worker", WORKER)])
def test_a_process_is_told_its_own_url_and_nobody_else_s(process: str, url: str) -> None:
    told = logins.env_of(process, ALL)
    assert Database.from_env(told) == Database.at_url(url)
    assert told["PATH"] == "/bin"
    assert [value for value in told.values() if value.startswith("postgresql:")] == [url]


def test_one_login_for_all_is_told_to_both_and_never_to_the_page() -> None:
    one = {"WATTLEDGER_DATABASE_URL": OWNER}
    assert {Database.from_env(logins.env_of(process, one)) for process in ("serve", "worker")} == {
        Database.at_url(OWNER)
    }
    assert Database.from_env(logins.env_of("dashboard", ALL)) is None
    assert Database.from_env(logins.env_of("serve", {})) is None


def test_a_file_of_its_own_replaces_the_url_of_everybody() -> None:
    told = logins.env_of("serve", {"WATTLEDGER_DATABASE_URL": OWNER, "WATTLEDGER_SERVE_DATABASE_URL_FILE": "/gone"})
    with pytest.raises(DatabaseUrlError, match="cannot read /gone"):
        Database.from_env(told)


def test_two_of_its_own_are_one_too_many() -> None:
    both = {**ALL, "WATTLEDGER_WORKER_DATABASE_URL_FILE": "f"}
    with pytest.raises(
        DatabaseUrlError, match="WATTLEDGER_WORKER_DATABASE_URL and WATTLEDGER_WORKER_DATABASE_URL_FILE"
    ):
        logins.env_of("worker", both)
