"""One call is one call: of several reports exactly one counts, whatever the order in which they come, and from whom."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from ingest.calls import ApiCall, CallSource, Report
from ingest.errors import BadBodyError
from ingest.store.call_stage import SiteReport
from ingest.store.calls import Written, keep_calls, write_calls
from ingest.store.engine import Database
from ingest.store.registry import Registry
from tests.db.ingest_harness import make_site

pytestmark = pytest.mark.db

NINE_US = 1_763_715_600_000_000
"""2025-11-21 09:00 UTC."""
MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US


def call(name: str, at_us: int = NINE_US, **told: Any) -> ApiCall:
    given: dict[str, Any] = {
        "provider": "openai",
        "model": "m",
        "usage_known": "input_uncached_tokens" in told,
        "origin": 1,
    }
    return ApiCall(called_at_us=at_us, dedupe_key=name, **(given | told))


SPAN = call("span/1/1", response_id="r-1", input_uncached_tokens=1_000, output_text_tokens=250, duration_us=7)
STREAM = call("span/1/1", response_id="r-1", streamed=True, span_id="1")
# The gateway's log says when the answer was complete: the next hour. It knows the cached part.
LOG = call(
    "log/7",
    NINE_US + HOUR_US,
    response_id="r-1",
    request_id="q-1",
    api_key="team-a",
    input_uncached_tokens=400,
    cache_read_tokens=600,
    output_text_tokens=250,
)
SETTLEMENT = call("settled/9", NINE_US - MINUTE_US, request_id="q-1", input_uncached_tokens=990, output_text_tokens=250)
# An invoice has days, not instants.
INVOICE = call(
    "invoice/3",
    NINE_US - 9 * HOUR_US + 24 * HOUR_US,
    response_id="r-1",
    input_uncached_tokens=1_000,
    output_text_tokens=250,
)


@pytest.fixture
def site(db: Database) -> int:
    make_site(db)
    return int(rows(db, "SELECT id FROM sites")[0][0])


@pytest.fixture
def engine(db: Database) -> Iterator[sa.Engine]:
    made = db.create_engine("writer")
    yield made
    made.dispose()


def write(engine: sa.Engine, site: int, source: CallSource, *calls: ApiCall) -> Written:
    return write_calls(engine, Registry(engine), site, calls, source=source)


def rows(db: Database, query: str) -> list[tuple[Any, ...]]:
    with db.connect("admin") as conn:
        return conn.execute(query.encode()).fetchall()


COUNTS = (
    "SELECT source, dedupe_key, extract(epoch FROM called_at - '2025-11-21 09:00Z')::int / 60, input_uncached_tokens, "
    "cache_read_tokens, output_text_tokens, api_key, duration_us FROM api_calls ORDER BY called_at, dedupe_key"
)


def test_a_better_report_takes_over_and_both_hours_are_told(db: Database, engine: sa.Engine, site: int) -> None:
    assert write(engine, site, CallSource.LOG, LOG) == Written(counted=1)
    assert rows(db, COUNTS) == [("log", "log/7", 60, 400, 600, 250, "team-a", None)]
    assert write(engine, site, CallSource.SPAN, SPAN) == Written(counted=1)
    # The span counts, at its own time; who called and the cached part of the same 1,000 tokens only the log knows.
    assert rows(db, COUNTS) == [("span", "span/1/1", 0, 400, 600, 250, "team-a", 7)]
    hours = "SELECT DISTINCT extract(epoch FROM from_at - '2025-11-21 09:00Z')::int / 60 FROM changes ORDER BY 1"
    assert rows(db, hours) == [(0,), (60,)]
    assert rows(db, "SELECT source FROM call_reports ORDER BY source") == [("log",), ("span",)]


def test_a_worse_report_that_comes_later_is_kept_and_counts_nothing(db: Database, engine: sa.Engine, site: int) -> None:
    write(engine, site, CallSource.SPAN, SPAN)
    before = rows(db, "SELECT count(*) FROM changes")
    assert write(engine, site, CallSource.INVOICE, INVOICE) == Written(superseded=1)
    assert rows(db, COUNTS) == [("span", "span/1/1", 0, 1_000, None, 250, None, 7)]
    assert rows(db, "SELECT count(*) FROM changes") == before
    assert rows(db, "SELECT source FROM call_reports ORDER BY source") == [("invoice",), ("span",)]


def test_equal_reports_sent_again_change_nothing(db: Database, engine: sa.Engine, site: int) -> None:
    everything = "SELECT (SELECT json_agg(c) FROM api_calls c), (SELECT json_agg(r) FROM call_reports r), (SELECT count(*) FROM changes)"
    write(engine, site, CallSource.SPAN, SPAN)
    write(engine, site, CallSource.LOG, LOG)
    before = rows(db, everything)
    assert write(engine, site, CallSource.SPAN, SPAN, SPAN) == Written(repeated=2)
    assert write(engine, site, CallSource.LOG, LOG) == Written(repeated=1)
    assert rows(db, everything) == before


def test_usage_a_stream_span_does_not_know_comes_from_the_log(db: Database, engine: sa.Engine, site: int) -> None:
    write(engine, site, CallSource.SPAN, STREAM)
    assert rows(db, "SELECT usage_known FROM api_calls") == [(False,)]
    write(engine, site, CallSource.LOG, LOG)
    assert rows(db, COUNTS) == [("span", "span/1/1", 0, 400, 600, 250, "team-a", None)]
    assert rows(db, "SELECT usage_known, streamed FROM api_calls") == [(True, True)]


def test_with_usage_beats_without_of_the_same_source(db: Database, engine: sa.Engine, site: int) -> None:
    proxy = replace(SPAN, dedupe_key="span/2/2", called_at_us=NINE_US + MINUTE_US)
    client = replace(STREAM, dedupe_key="span/1/1")
    write(engine, site, CallSource.SPAN, client)
    write(engine, site, CallSource.SPAN, proxy)
    assert [row[:4] for row in rows(db, COUNTS)] == [("span", "span/2/2", 1, 1_000)]


def test_a_settlement_found_through_the_logs_two_ids_counts_before_all(
    db: Database, engine: sa.Engine, site: int
) -> None:
    write(engine, site, CallSource.SPAN, SPAN)
    write(engine, site, CallSource.SETTLEMENT, SETTLEMENT)
    assert len(rows(db, COUNTS)) == 2  # nothing they share is known yet
    write(engine, site, CallSource.LOG, LOG)  # it has the response id of one and the request id of the other
    assert rows(db, COUNTS) == [("settlement", "settled/9", -1, 990, None, 250, "team-a", 7)]


def test_the_same_id_at_another_site_is_another_call(db: Database, engine: sa.Engine, site: int) -> None:
    other = int(rows(db, "INSERT INTO sites (name) VALUES ('elsewhere') RETURNING id")[0][0])
    write(engine, site, CallSource.SPAN, SPAN)
    write(engine, other, CallSource.SPAN, replace(SPAN, dedupe_key="span/3/3"))
    assert len(rows(db, COUNTS)) == 2


def test_a_thousand_calls_told_by_three_sources_are_a_thousand(db: Database, engine: sa.Engine, site: int) -> None:
    def told(source: str, later_us: int) -> list[ApiCall]:
        return [
            call(
                f"{source}/{n}",
                NINE_US + n * 1_000 + later_us,
                response_id=f"r-{n}",
                input_uncached_tokens=n,
                output_text_tokens=1,
            )
            for n in range(1_000)
        ]

    assert write(engine, site, CallSource.INVOICE, *told("invoice", 5 * HOUR_US)).counted == 1_000
    assert write(engine, site, CallSource.SPAN, *told("span", 0)).counted == 1_000
    assert write(engine, site, CallSource.LOG, *told("log", 2_000)).superseded == 1_000
    assert rows(db, "SELECT source, count(*), sum(input_uncached_tokens) FROM api_calls GROUP BY 1") == [
        ("span", 1_000, 499_500)
    ]
    assert rows(db, "SELECT count(*) FROM call_reports") == [(3_000,)]


def test_the_same_span_with_and_without_its_ids_is_one_call(db: Database, engine: sa.Engine, site: int) -> None:
    bare = replace(STREAM, response_id=None)
    for first, second in ((bare, SPAN), (SPAN, bare)):
        write(engine, site, CallSource.SPAN, first)
        write(engine, site, CallSource.SPAN, second)
        assert [row[:4] for row in rows(db, COUNTS)] == [("span", "span/1/1", 0, 1_000)]
        rows(db, "DELETE FROM call_keys RETURNING 1")
        rows(db, "DELETE FROM api_calls RETURNING 1")
    # The span without ids gave way to a settlement; then it comes with them.
    write(engine, site, CallSource.SPAN, replace(bare, request_id="q-1"))
    write(engine, site, CallSource.SETTLEMENT, SETTLEMENT)
    write(engine, site, CallSource.SPAN, SPAN)
    assert [row[:4] for row in rows(db, COUNTS)] == [("settlement", "settled/9", -1, 990)]


def test_a_call_at_the_same_instant_and_key_of_another_site_is_refused_not_lost(
    db: Database, engine: sa.Engine, site: int
) -> None:
    other = int(rows(db, "INSERT INTO sites (name) VALUES ('elsewhere') RETURNING id")[0][0])
    write(engine, site, CallSource.LOG, LOG)
    with pytest.raises(BadBodyError, match="another site"):
        write(engine, other, CallSource.LOG, LOG)


def test_a_storm_of_repeats_costs_each_report_the_same(db: Database, engine: sa.Engine, site: int) -> None:
    """Tables that grew since anybody counted their rows must not be joined in squares: that was 19 ms a report."""
    calls = [call(f"span/{n}/1", NINE_US + n, response_id=f"r-{n}", input_uncached_tokens=n) for n in range(5_000)]
    write(engine, site, CallSource.SPAN, *calls)
    with engine.begin() as conn:
        driver = conn.connection.driver_connection
        assert driver is not None
        driver.execute("SET LOCAL statement_timeout = '10s'")
        assert keep_calls(driver, [SiteReport(site, Report(one, CallSource.SPAN)) for one in calls]) == Written(
            repeated=5_000
        )


def reused(numbers: range) -> list[ApiCall]:
    """Calls of a gateway that answers each request with the same id."""
    return [
        call(f"span/{n}/1", NINE_US + n, response_id="chatcmpl-mock", input_uncached_tokens=100, output_text_tokens=10)
        for n in numbers
    ]


@pytest.mark.parametrize("at_once", [1, 7, 40])
def test_an_id_that_too_many_calls_carry_names_none_of_them(
    db: Database, engine: sa.Engine, site: int, at_once: int
) -> None:
    for begin in range(0, 40, at_once):
        write(engine, site, CallSource.SPAN, *reused(range(begin, min(begin + at_once, 40))))
        if at_once == 7 and begin == 7:  # so many may be one call's
            assert rows(db, "SELECT count(*) FROM api_calls") == [(1,)]
    total = "SELECT count(*), sum(input_uncached_tokens), sum(output_text_tokens) FROM api_calls"
    assert rows(db, total) == [(40, 4_000, 400)]
    assert rows(db, "SELECT count(*) FROM call_reports") == [(0,)]
    # Sent again they are known, and a span that comes without the id is known by its own name.
    assert write(engine, site, CallSource.SPAN, *reused(range(40))) == Written(repeated=40)
    assert write(engine, site, CallSource.SPAN, replace(reused(range(1))[0], response_id=None)) == Written(repeated=1)
    assert rows(db, total) == [(40, 4_000, 400)]
    assert rows(db, "SELECT kind, evidence ->> 'id' FROM findings") == [("response_id_reused", "chatcmpl-mock")]


def test_what_a_body_costs_does_not_depend_on_how_many_share_its_id(db: Database, engine: sa.Engine, site: int) -> None:
    for begin in range(0, 2_000, 250):
        write(engine, site, CallSource.SPAN, *reused(range(begin, begin + 250)))
    with engine.begin() as conn:
        driver = conn.connection.driver_connection
        assert driver is not None
        keep_calls(driver, [SiteReport(site, Report(one, CallSource.SPAN)) for one in reused(range(2_000, 2_250))])
        # New calls of a reused id are written like any others: nobody's lock is taken.
        locks = driver.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()")
        assert locks.fetchone() == (0,)
    assert rows(db, "SELECT count(*), sum(input_uncached_tokens) FROM api_calls") == [(2_250, 225_000)]


REPORTS: Sequence[Report] = [
    Report(SPAN, CallSource.SPAN),
    Report(STREAM, CallSource.SPAN),
    Report(LOG, CallSource.LOG),
    Report(SETTLEMENT, CallSource.SETTLEMENT),
    Report(INVOICE, CallSource.INVOICE),
]


def test_every_order_of_arrival_ends_the_same(db: Database, site: int) -> None:
    outcomes = set()
    with db.connect("writer") as conn:
        conn.execute("SELECT ensure_partitions('2025-11-21', '2025-11-23', ARRAY['api_calls'])")
        conn.commit()
        for order in itertools.permutations(REPORTS):
            for report in order:
                keep_calls(conn, [SiteReport(site, report)])
            outcomes.add(state(conn))
            conn.rollback()
        # All in one body, and the first again: the same.
        keep_calls(conn, [SiteReport(site, report) for report in (*REPORTS, REPORTS[0])])
        outcomes.add(state(conn))
    assert len(outcomes) == 1, outcomes


def state(conn: psycopg.Connection[Any]) -> str:
    query = (
        "SELECT (SELECT jsonb_agg(to_jsonb(c) - 'received_at' ORDER BY dedupe_key) FROM api_calls c)::text || "
        "(SELECT jsonb_agg(to_jsonb(r) - 'received_at' ORDER BY dedupe_key) FROM call_reports r)::text || "
        "(SELECT jsonb_agg(to_jsonb(k) ORDER BY key) FROM call_keys k)::text"
    )
    found = conn.execute(query).fetchone()
    assert found is not None
    return str(found[0])


def test_two_writers_at_once_count_each_call_once(db: Database, engine: sa.Engine, site: int) -> None:
    """Each of two connections writes 40 bodies of the same calls, in opposite orders and as different sources."""
    bodies = [
        [
            call(f"{{source}}/{n}", NINE_US + n, response_id=f"r-{n}", input_uncached_tokens=1)
            for n in range(at, at + 25)
        ]
        for at in range(0, 200, 5)
    ]
    failures: list[BaseException] = []

    def work(source: CallSource, order: int) -> None:
        try:
            for body in bodies[::order]:
                named = [replace(one, dedupe_key=one.dedupe_key.format(source=source.value)) for one in body[::order]]
                write(engine, site, source, *named)
        except BaseException as error:  # noqa: BLE001 - told by the test's thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=given) for given in ((CallSource.SPAN, 1), (CallSource.LOG, -1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    # The last body ends at 195 + 25.
    assert rows(db, "SELECT source, count(*), count(DISTINCT response_id) FROM api_calls GROUP BY 1") == [
        ("span", 220, 220)
    ]
    assert rows(db, "SELECT source, count(*) FROM call_reports GROUP BY 1 ORDER BY 1") == [("log", 220), ("span", 220)]
