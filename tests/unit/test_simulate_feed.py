"""The feed against an ingest that is busy, broken, refusing or killed: nothing lost, nothing in another batch."""

import json
from collections import Counter
from pathlib import Path
from threading import Event, Lock

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector import wire
from tests.fakes.bodies import read_body
from wattledger.simulate import feed as feed_module
from wattledger.simulate.cursor import Cursor, CursorError, Step
from wattledger.simulate.feed import Feed, FeedError, Progress
from wattledger.simulate.fleet import Fleet
from wattledger.simulate.spec import BLOCK_US, US_PER_S, FleetSpec

START_US = 1_790_000_400 * US_PER_S
SPEC = FleetSpec(start_at_us=START_US, nodes=2, devices_per_node=1, plants=frozenset())


class Ingest:
    """Takes bodies, remembers their ids, and misbehaves for the first ``failures`` requests."""

    def __init__(self, *failures: httpx.Response | Exception) -> None:
        self.ids: Counter[tuple[str, int]] = Counter()
        self.spans = 0
        self.headers: list[httpx.Headers] = []
        self._failures = list(failures)
        self._lock = Lock()

    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        with self._lock:
            if self._failures:
                failure = self._failures.pop(0)
                if isinstance(failure, Exception):
                    raise failure
                return failure
            self.headers.append(request.headers)
            if request.url.path == "/v1/traces":
                export = ExportTraceServiceRequest.FromString(request.content)
                self.spans += len(export.resource_spans[0].scope_spans[0].spans)
            else:
                meta = read_body(request.content).meta
                self.ids[meta.spool, meta.sequence] += 1
            return httpx.Response(200)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "FIRST_BACKOFF_S", 0.001)
    monkeypatch.setattr(feed_module, "LONGEST_PAUSE_S", 0.02)


def _feed(ingest: Ingest, cursor: Cursor | None = None, stop: Event | None = None) -> Feed:
    return Feed(Fleet(SPEC), "http://ingest", "secret", cursor=cursor, stop=stop, transport=ingest.transport())


def test_history_arrives_whole_with_its_headers_and_spans() -> None:
    ingest, reports = Ingest(), list[Progress]()
    with _feed(ingest) as feed:
        done = feed.catch_up(START_US + 2 * BLOCK_US + 20 * US_PER_S, reports.append)
    # Two hours of half-hour batches and two live windows, for two nodes.
    assert len(ingest.ids) == 2 * (4 + 2)
    assert done.until_us == START_US + 2 * BLOCK_US + 20 * US_PER_S
    assert done.rows == sum(batch.rows for batch in Fleet(SPEC).batches(START_US, START_US + 2 * BLOCK_US, 1800)) + 4
    assert ingest.spans == done.spans == len(Fleet(SPEC).calls(START_US, done.until_us))
    assert reports[-1] == done or reports[-1].rows == done.rows
    headers = next(found for found in ingest.headers if found["content-type"] == wire.CONTENT_TYPE)
    assert headers["content-encoding"] == "zstd"
    assert headers["authorization"] == "Bearer secret"
    assert headers[wire.SENT_AT_HEADER].isdecimal()


def test_a_busy_or_broken_ingest_is_asked_again() -> None:
    ingest = Ingest(
        httpx.Response(429, headers={"Retry-After": "1"}), httpx.Response(503), httpx.ConnectError("refused")
    )
    with _feed(ingest) as feed:
        done = feed.catch_up(START_US + BLOCK_US)
    assert done.retries == 3
    assert len(ingest.ids) == 2 * 2


def test_a_refused_body_stops_the_feed_and_says_why() -> None:
    ingest = Ingest(httpx.Response(401, text="unknown token"))
    with _feed(ingest) as feed, pytest.raises(FeedError, match="HTTP 401: unknown token"):
        feed.catch_up(START_US + BLOCK_US)


def test_an_ingest_that_stays_away_ends_the_feed_after_its_attempts() -> None:
    ingest = Ingest(*[httpx.ConnectError("refused") for _ in range(1000)])
    with _feed(ingest) as feed, pytest.raises(FeedError, match=r"gave up on /v1/(samples|traces) after 12 attempts"):
        feed.catch_up(START_US + BLOCK_US)


def test_a_feed_that_was_cut_off_sends_its_step_again_in_the_same_batches(tmp_path: Path) -> None:
    path = tmp_path / "cursor.json"
    broken = Ingest(httpx.Response(400, text="no"))
    with pytest.raises(FeedError), _feed(broken, Cursor(path, START_US)) as feed:
        feed.catch_up(START_US + 2 * BLOCK_US)
    # Restarted twenty minutes of wall clock later: the step in hand is still the first hour in half-hour batches.
    again = Cursor(path, START_US)
    assert again.next_step(START_US + 2 * BLOCK_US + 1200 * US_PER_S) == Step(START_US, START_US + BLOCK_US, 1800)
    whole = Ingest()
    with _feed(whole, again) as feed:
        feed.catch_up(START_US + 2 * BLOCK_US)
    assert set(broken.ids) <= set(whole.ids)
    assert len(whole.ids) == 2 * 4


def test_the_next_step_is_sent_while_the_last_answers_of_one_are_awaited_and_a_crash_repeats_both(
    tmp_path: Path,
) -> None:
    path = tmp_path / "cursor.json"
    ingest, second_hour = Ingest(), Event()

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == wire.SAMPLES_PATH:
            sequence = read_body(request.content).meta.sequence
            if sequence == 180:  # half past the first hour: answered once something of the second hour has come
                assert second_hour.wait(10)
                return httpx.Response(400, text="the server is killed here")
            if sequence == 360:
                second_hour.set()
        return ingest.transport().handler(request)  # type: ignore[return-value]

    broken = Feed(
        Fleet(SPEC), "http://ingest", cursor=Cursor(path, START_US), transport=httpx.MockTransport(answer), traces=False
    )
    with pytest.raises(FeedError, match="killed here"), broken as feed:
        feed.catch_up(START_US + 3 * BLOCK_US)
    kept = json.loads(path.read_text())
    hours = [Step(START_US + hour * BLOCK_US, START_US + (hour + 1) * BLOCK_US, 1800) for hour in range(2)]
    assert kept["done_until_us"] == START_US
    assert [Step(**step) for step in kept["in_hand"]] == hours
    again = Cursor(path, START_US)
    for hour in hours:
        assert again.next_step(START_US + 3 * BLOCK_US) == hour
        again.begin(hour)
    assert again.next_step(START_US + 3 * BLOCK_US) == Step(hours[1].end_us, START_US + 3 * BLOCK_US, 1800)


def test_live_goes_on_where_history_ended_until_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    ingest, stop = Ingest(), Event()
    clock = iter([START_US + BLOCK_US + second * US_PER_S for second in range(0, 600, 5)])

    def report(progress: Progress) -> None:
        if progress.until_us >= START_US + BLOCK_US + 30 * US_PER_S:
            stop.set()

    cursor = Cursor(None, START_US)
    with _feed(ingest, cursor, stop) as feed:
        feed.catch_up(START_US + BLOCK_US)
        monkeypatch.setattr(stop, "wait", lambda _timeout: stop.is_set())
        feed.live(report, lambda: next(clock))
    sequences = sorted(sequence for spool, sequence in ingest.ids if spool == SPEC.spool(0))
    # Slots of ten seconds: two batches of 180 slots, then one slot each.
    assert sequences == [0, 180, 360, 361, 362]


def test_a_cursor_of_another_fleet_or_a_broken_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cursor.json"
    Cursor(path, START_US).finish(Step(START_US, START_US + BLOCK_US, 600))
    assert json.loads(path.read_text())["done_until_us"] == START_US + BLOCK_US
    with pytest.raises(CursorError, match="belongs to a fleet that began at"):
        Cursor(path, START_US + BLOCK_US)
    path.write_text("{")
    with pytest.raises(CursorError, match="no feed cursor"):
        Cursor(path, START_US)


def test_a_feed_that_lags_takes_the_longest_batches_that_fit() -> None:
    cursor = Cursor(None, START_US)
    now_us = START_US + BLOCK_US + 1250 * US_PER_S
    steps = []
    while (step := cursor.next_step(now_us)) is not None:
        steps.append(((step.end_us - step.start_us) // US_PER_S, step.batch_seconds))
        cursor.finish(step)
    assert steps == [(3600, 1800), (600, 60), (600, 60), *[(10, 10)] * 5]
