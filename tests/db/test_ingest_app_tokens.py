"""Tokens in use are believed for a while, and verified again together before that while is over."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from ingest.app import create_app
from ingest.auth import Authenticator
from ingest.errors import UnauthorizedError
from ingest.runtime import Runtime
from ingest.settings import Settings
from ingest.store import tokens
from ingest.store.engine import Database
from tests.db.ingest_harness import make_site

pytestmark = pytest.mark.db


def test_a_refresh_keeps_good_tokens_and_drops_revoked_and_unused_ones(db: Database) -> None:
    site = make_site(db)
    good, revoked, unused = (f"Bearer {secret}".encode() for secret in (*site.node_tokens.values(), site.site_token))
    engine, admin = db.create_engine("writer"), db.create_engine("admin")
    authenticator = Authenticator(engine, cache_s=3_600)
    try:
        for header in (good, revoked, unused):
            assert authenticator.recall(header) is None
            authenticator.verify(header)
        for header in (good, revoked):
            assert authenticator.recall(header) is not None
        with admin.begin() as conn:
            assert tokens.revoke(conn, authenticator.verify(revoked).token.id, datetime.now(UTC), actor="t")
        assert authenticator.recall(revoked) is not None  # believed until asked again
        authenticator.refresh()
        assert authenticator.recall(revoked) is None
        with pytest.raises(UnauthorizedError):
            authenticator.verify(revoked)
        found = authenticator.recall(good)
        assert found is not None
        assert found.node == "node-1"
        authenticator.refresh()
        assert authenticator.recall(good) is not None
    finally:
        engine.dispose()
        admin.dispose()


def test_senders_whose_time_is_up_at_once_are_verified_in_one_question(db: Database) -> None:
    site = make_site(db)
    secrets = [*site.node_tokens.values(), site.site_token]
    headers = [f"Bearer {secret}".encode() for secret in secrets]

    async def scenario() -> None:
        app = create_app(Settings(db))
        async with app.router.lifespan_context(app):
            runtime: Runtime = app.state.ingest
            for header in headers:
                await runtime.principal(header)
            for known in runtime.authenticator._known.values():
                known.believed_until_s = time.monotonic() - 60
            asked: list[str] = []
            sa.event.listen(runtime.tokens_engine, "before_cursor_execute", lambda *args: asked.append(args[2]))
            found = await asyncio.gather(*(runtime.principal(header) for header in headers))
            assert [principal.node for principal in found] == [*site.node_tokens, None]
            assert len([statement for statement in asked if "token_by_digest" in statement]) == 1

    asyncio.run(scenario())


def test_a_token_revoked_while_its_sender_was_silent_is_refused(db: Database) -> None:
    site = make_site(db)
    header = f"Bearer {site.site_token}".encode()

    async def scenario() -> None:
        app = create_app(Settings(db))
        async with app.router.lifespan_context(app):
            runtime: Runtime = app.state.ingest
            token = (await runtime.principal(header)).token
            runtime.authenticator._known[header].believed_until_s = time.monotonic() - 60
            admin = db.create_engine("admin")
            with admin.begin() as conn:
                tokens.revoke(conn, token.id, datetime.now(UTC), actor="t")
            admin.dispose()
            with pytest.raises(UnauthorizedError):
                await runtime.principal(header)

    asyncio.run(scenario())


def test_without_a_cache_every_use_is_verified(db: Database) -> None:
    site = make_site(db)
    engine = db.create_engine("writer")
    authenticator = Authenticator(engine, cache_s=0)
    header = f"Bearer {site.site_token}".encode()
    authenticator.verify(header)
    assert authenticator.recall(header) is None
    engine.dispose()
