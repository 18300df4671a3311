"""Queries of statements, by what they are grouped."""

import pytest

from analytics.io.statement_sql import queries

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("group_by", ["job", "run", "device"])
def test_each_grouping_has_queries_of_lines_times_and_waste(group_by: str) -> None:
    assert all(query is not None and query.lstrip().startswith(("SELECT", "WITH")) for query in queries(group_by))


def test_of_tenants_there_is_no_query_of_lines_to_be_asked_by_mistake() -> None:
    lines, times, waste = queries("tenant")
    assert lines is None
    assert times
    assert waste


def test_what_is_no_grouping_is_refused_and_not_taken_for_devices() -> None:
    with pytest.raises(ValueError, match="tenant, job, run or device"):
        queries("node")
