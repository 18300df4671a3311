"""Tokens in use are believed for a while, and verified again together before that while is over."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from ingest.auth import Authenticator
from ingest.errors import UnauthorizedError
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


def test_without_a_cache_every_use_is_verified(db: Database) -> None:
    site = make_site(db)
    engine = db.create_engine("writer")
    authenticator = Authenticator(engine, cache_s=0)
    header = f"Bearer {site.site_token}".encode()
    authenticator.verify(header)
    assert authenticator.recall(header) is None
    engine.dispose()
