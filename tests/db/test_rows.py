"""From SQL to the model's tables."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

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


class _Kinds(dy.Schema):
    at = dy.Datetime(time_unit="us", time_zone="UTC", nullable=True)
    amount = dy.Decimal(38, 18, nullable=True)
    ratio = dy.Float64(nullable=True)
    word = dy.String(nullable=True)
    flag = dy.Bool(nullable=True)


def test_each_kind_arrives_as_it_was_and_null_stays_null(database: Database) -> None:
    query = """
    SELECT * FROM (VALUES (0, NULL::timestamptz, NULL::numeric, NULL::float8, NULL::text, NULL::boolean),
        (1, '2026-11-19 08:00:00.000001+02', 0.000000000000000001, 0.1, '', false),
        (2, '1969-12-31 23:59:59.999999+00', 12345678901234567890.5, -2.5, 'x', true)) AS t (n, at, amount, ratio, word, flag)
    ORDER BY n
    """
    with database.connect("admin") as connection:
        connection.execute("SET TIME ZONE 'Asia/Tokyo'")
        found = fetch_frame(connection, query, {}, _Kinds)
        nothing = fetch_frame(connection, f"SELECT * FROM ({query}) AS t WHERE false", {}, _Kinds)
    assert found.rows() == [
        (None, None, None, None, None),
        (datetime(2026, 11, 19, 6, 0, 0, 1, UTC), Decimal("0.000000000000000001"), 0.1, "", False),
        (datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC), Decimal("12345678901234567890.5"), -2.5, "x", True),
    ]
    assert nothing.is_empty()
