"""A file of many days of calls makes their partitions some at a time, so that no transaction needs more locks than a server has."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from ingest.importers.columns import Source
from ingest.importers.errors import ImportFileError
from ingest.importers.llm_log import LlmLogOptions, import_llm_log
from ingest.store import imports
from ingest.store.engine import Database

pytestmark = pytest.mark.db
NOW = datetime(2026, 1, 1, tzinfo=UTC)
NOON_S = 1_715_342_400  # 2024-05-10


@pytest.fixture
def conn(db: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[sa.Connection]:
    monkeypatch.setattr(imports, "_DAYS_AT_ONCE", 2)
    monkeypatch.setattr(imports, "_DAYS_OF_A_NEW_SITE", 2)
    engine = db.create_engine("owner", pool_size=2)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def log(tmp_path: Path, days: int) -> Source:
    path = tmp_path / f"{days}.csv"
    lines = (f"r{day},{NOON_S + day * 86_400},gpt-4,10,20\n" for day in range(days))
    path.write_text("response_id,created,model,input_tokens,output_tokens\n" + "".join(lines), encoding="utf-8")
    return Source(path)


def test_days_of_a_known_site_are_made_some_at_a_time_and_a_new_one_begins_with_fewer(
    conn: sa.Connection, tmp_path: Path
) -> None:
    options = LlmLogOptions("lab", provider="azure")
    with pytest.raises(ImportFileError, match="3 different days of a site that is not known yet, and at most 2"):
        import_llm_log(conn, log(tmp_path, 3), options, now=NOW)
    assert import_llm_log(conn, log(tmp_path, 2), options, now=NOW).written == {"api_calls": 2}
    begun: list[object] = []
    sa.event.listen(conn.engine, "begin", begun.append)
    assert import_llm_log(conn, log(tmp_path, 5), options, now=NOW).written == {"api_calls": 3}
    assert len(begun) == 1 + 1 + 3  # the import's, the look at the site, and five days two at a time
