"""Forgetting somebody while others write of them."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from ingest.store import privacy
from ingest.store.engine import Database
from tests.db.ledger_fixture import small_fleet

pytestmark = pytest.mark.db


def test_what_others_write_comes_before_or_after_and_is_never_overwritten(db: Database) -> None:
    fleet = small_fleet(db)
    fleet.rows(
        "INSERT INTO findings (dedupe_key, site_id, kind, start_at, end_at, evidence, confidence, origin) "
        """VALUES ('k', %s, 'x', now(), now(), '{"user": "ada", "seen": 1}', 1, 1) RETURNING id""",
        fleet.site_id,
    )
    tries: list[type[Exception] | None] = []

    def write_in_between(_: Any, __: Any, statement: str, *___: Any) -> None:
        if not statement.lstrip().startswith("UPDATE findings") or tries:
            return
        with db.connect("admin", autocommit=True) as other:
            other.execute("SET lock_timeout = '200ms'")
            try:
                other.execute("UPDATE findings SET evidence = jsonb_set(evidence, '{seen}', '2')")
                tries.append(None)
            except psycopg.errors.LockNotAvailable as refused:
                tries.append(type(refused))

    engine = db.create_engine("owner")
    sa.event.listen(engine, "before_cursor_execute", write_in_between)
    with engine.begin() as connection:
        erased, counts = privacy.erase(connection, "ada", actor="me")
    engine.dispose()
    assert tries == [psycopg.errors.LockNotAvailable], "it waits for the erasure to be done"
    assert counts == {"findings": 1}
    assert fleet.rows("UPDATE findings SET evidence = jsonb_set(evidence, '{seen}', '2') RETURNING evidence") == [
        ({"user": erased, "seen": 2},)
    ]
