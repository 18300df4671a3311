"""The page on schedulers shows events that are read, and its schema is the code's. ``python -m tests.unit.test_scheduler_docs`` renews it."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from analytics.io.disagreements import KINDS
from ingest.receivers.work import read_work
from ingest.receivers.work_events import schema

pytestmark = pytest.mark.unit
DOCS = Path(__file__).resolve().parents[2] / "docs"
SCHEMA = DOCS / "schedulers.schema.json"


def rendered() -> str:
    return json.dumps(schema(), indent=1, sort_keys=True) + "\n"


def test_the_published_schema_is_what_the_receiver_takes() -> None:
    assert SCHEMA.read_text() == rendered(), "run `python -m tests.unit.test_scheduler_docs`"


def test_the_body_on_the_page_is_read_whole() -> None:
    page = (DOCS / "schedulers.md").read_text()
    (body,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    work = read_work(body.encode(), datetime(2026, 11, 22, tzinfo=UTC))
    assert (work.told, work.refused) == (4, [])


def test_every_finding_of_sources_that_disagree_is_on_the_page() -> None:
    page = (DOCS / "schedulers.md").read_text()
    assert [kind for kind in KINDS if f"`{kind}`" not in page] == []


if __name__ == "__main__":
    SCHEMA.write_text(rendered())
