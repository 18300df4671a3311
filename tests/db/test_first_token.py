"""A service that other machines reach does not start while nobody has a token, unless it is told that tokens come later."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ingest.store import tokens
from ingest.store.engine import Database
from ingest.store.tokens import Scope
from wattledger import first_token, service
from wattledger.cli import cli
from wattledger.listening import Listening, ListeningError

pytestmark = pytest.mark.db
OPEN = Listening("0.0.0.0", behind_proxy=True)


class StartedError(Exception):
    """The application would be made now."""


def make(db: Database, name: str = "t", *, ends: datetime | None = None) -> None:
    engine = db.create_engine("admin")
    with engine.begin() as conn:
        tokens.create(conn, name, [Scope.READ], actor="test", tenant_path="*", expires_at=ends)
    engine.dispose()


def test_others_may_reach_it_once_somebody_but_its_own_pages_has_a_token_that_is_good_now(db: Database) -> None:
    for _ in range(2):
        with pytest.raises(ListeningError, match="nobody has a token yet; make one"):
            first_token.check(db, OPEN, "make one")
        first_token.check(db, Listening("127.0.0.1"), "make one")
        make(db, first_token.OWN_TOKEN)
        make(db, ends=datetime.now(UTC) - timedelta(seconds=1))
    make(db)
    first_token.check(db, OPEN, "make one")


@pytest.mark.parametrize(
    ("words", "env", "outcome"),
    [
        ("", {}, ListeningError),
        ("--allow-no-tokens-yet", {}, StartedError),
        ("", {"WATTLEDGER_ALLOW_NO_TOKENS_YET": "1"}, StartedError),
        ("", {"WATTLEDGER_ALLOW_NO_TOKENS_YET": "0"}, ListeningError),
    ],
)
def test_serve_says_how_a_first_start_is_told(
    db: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    env: dict[str, str],
    outcome: type[Exception],
) -> None:
    def made(*_: object, **__: object) -> object:
        raise StartedError

    monkeypatch.setattr(service, "create_service", made)
    (tmp_path / "home").mkdir()

    def serve() -> Result:
        asked = [
            "--home",
            str(tmp_path / "home"),
            "serve",
            "--host",
            "0.0.0.0",
            "--behind-proxy",
            "--port",
            "0",
        ]
        return CliRunner().invoke(cli, [*asked, *words.split()], env={"WATTLEDGER_DATABASE_URL": db.url, **env})

    done = serve()
    assert isinstance(done.exception, outcome), done.output
    if outcome is ListeningError:
        assert "or say --allow-no-tokens-yet where tokens are made later" in str(done.exception)
    make(db)
    assert isinstance(serve().exception, StartedError)
