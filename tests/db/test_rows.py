"""From SQL to the model's tables."""

from __future__ import annotations

import dataframely as dy
import pytest

from analytics.io.rows import fetch_frame
from ingest.store.engine import Database

pytestmark = pytest.mark.db


class _Held(dy.Schema):
    number = dy.Int64()
    share_ppm = dy.Int32(nullable=True)


def test_a_column_may_be_empty_for_hundreds_of_rows_before_its_first_value(database: Database) -> None:
    query = "SELECT n AS number, CASE WHEN n = 1000 THEN 428571 END AS share_ppm FROM generate_series(1, 1000) AS n"
    with database.connect("admin") as connection:
        found = fetch_frame(connection, query, {}, _Held)
    assert found["share_ppm"].null_count() == 999
    assert found["share_ppm"].to_list()[-1] == 428_571
