"""What becomes of a batch, answer by answer."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from collector import wire
from collector.errors import AgentError
from collector.ship import MAX_FORWARD_TRIES, Shipper
from collector.spool import Envelope, Lane, Spool
from tests.fakes.clock import FixedClock
from tests.fakes.rude_server import Serve, answer, trickle
from tests.fakes.rude_server import server as server_of

Answer = httpx.Response | Exception


class Server:
    """An ingest that answers what it was told to and remembers what it got."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.requests: list[httpx.Request] = []
        self.bodies: list[bytes] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.bodies.append(request.read())
        answer = self.answers.pop(0) if self.answers else httpx.Response(204)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path / "spool.db", max_bytes=1 << 20)
    for _ in range(3):
        spool.put(lambda _uuid, sequence: f"body {sequence}".encode(), 0)
    yield spool
    spool.close()


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock()


@pytest.fixture
def shipper(server: Server, spool: Spool, clock: FixedClock) -> Iterator[Shipper]:
    with httpx.Client(transport=httpx.MockTransport(server), base_url="https://ledger.test") as client:
        # Without jitter the pause is its shortest: half of the backoff, all of Retry-After.
        yield Shipper(client, spool, clock, token=lambda: "secret", jitter=lambda: 0.0)


def attempt(shipper: Shipper, server: Server, clock: FixedClock) -> float:
    """Go on until the next request was answered; return the seconds that passed before it."""
    began_us, answered = clock.monotonic_us, len(server.requests)
    while True:
        pause_s = shipper.step()
        if len(server.requests) > answered:
            return (clock.monotonic_us - began_us) / 1_000_000
        clock.wait(pause_s)


def waiting(spool: Spool) -> list[int]:
    found: list[int] = []
    while (batch := spool.oldest(after=found[-1] if found else 0)) is not None:
        found.append(batch.sequence)
    return found


def test_batches_leave_oldest_first_and_are_forgotten_once_accepted(
    shipper: Shipper, server: Server, spool: Spool
) -> None:
    assert [shipper.step() for _ in range(3)] == [0.0, 0.0, 0.0]
    assert server.bodies == [b"body 1", b"body 2", b"body 3"]
    assert shipper.step() > 0
    assert waiting(spool) == []
    assert shipper.state.sent_batches == 3


def test_a_request_says_what_it_carries_who_sends_it_and_when(
    shipper: Shipper, server: Server, clock: FixedClock
) -> None:
    shipper.step()
    (request,) = server.requests
    assert str(request.url) == "https://ledger.test/v1/samples"
    assert request.headers["Content-Type"] == wire.CONTENT_TYPE
    assert request.headers["Content-Encoding"] == "zstd"
    assert request.headers["Authorization"] == "Bearer secret"
    assert request.headers[wire.SENT_AT_HEADER] == str(clock.wall_us)


@pytest.mark.parametrize("code", [400, 409, 413, 415, 422])
def test_a_refused_batch_is_set_aside_with_the_reason_and_the_next_goes_on(
    code: int, shipper: Shipper, server: Server, spool: Spool
) -> None:
    server.answers = [httpx.Response(code, text="clock off by 900 s")]
    assert shipper.step() == 0.0
    assert waiting(spool) == [2, 3]
    assert [reason for _, _, reason in spool.refusals()] == [f"HTTP {code}: clock off by 900 s"]
    shipper.step()
    assert server.bodies == [b"body 1", b"body 2"]


@pytest.mark.parametrize(
    "answer",
    [
        *(httpx.Response(code) for code in (302, 401, 403, 404, 407, 408, 425, 429, 500, 502, 503, 504)),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.ConnectTimeout("slow"),
        httpx.RemoteProtocolError("cut off"),
        httpx.DecodingError("garbage"),
    ],
    ids=str,
)
def test_what_says_nothing_about_the_batch_keeps_it(
    answer: Answer, shipper: Shipper, server: Server, spool: Spool, clock: FixedClock
) -> None:
    server.answers = [answer]
    attempt(shipper, server, clock)
    assert waiting(spool) == [1, 2, 3]
    assert spool.refusals() == []
    assert shipper.state.failed_attempts == 1
    assert attempt(shipper, server, clock) == 0.5
    assert server.bodies == [b"body 1", b"body 1"]


def test_a_token_of_another_node_empties_nothing_and_the_right_one_sends_all(
    shipper: Shipper, server: Server, spool: Spool, clock: FixedClock
) -> None:
    server.answers = [httpx.Response(403, text="the token is of node-2") for _ in range(2)]
    assert [attempt(shipper, server, clock) for _ in range(2)] == [0, 0.5]
    assert (waiting(spool), spool.refusals()) == ([1, 2, 3], [])
    assert shipper.state.last_failure == "HTTP 403: the token is of node-2"
    assert [attempt(shipper, server, clock) for _ in range(3)] == [1, 0, 0]
    shipper.step()
    assert waiting(spool) == []


def test_the_pause_doubles_up_to_a_minute_and_starts_over_after_success(
    shipper: Shipper, server: Server, clock: FixedClock
) -> None:
    server.answers = [httpx.Response(503) for _ in range(8)]
    assert [attempt(shipper, server, clock) for _ in range(9)] == [0, 0.5, 1, 2, 4, 8, 16, 30, 30]
    server.answers = [httpx.Response(503)]
    assert [attempt(shipper, server, clock) for _ in range(2)] == [0, 0.5]


def test_jitter_spreads_the_pause_over_its_upper_half(server: Server, spool: Spool, clock: FixedClock) -> None:
    with httpx.Client(transport=httpx.MockTransport(server), base_url="https://ledger.test") as client:
        shipper = Shipper(client, spool, clock, token=lambda: None, jitter=lambda: 1.0)
        server.answers = [httpx.Response(503), httpx.Response(503)]
        assert [attempt(shipper, server, clock) for _ in range(3)] == [0, 1, 2]
    assert "Authorization" not in server.requests[0].headers


@pytest.mark.parametrize(
    ("header", "pause_s"),
    [
        ("7", 7.0),
        ("99999999", 3_600.0),
        ("Fri, 15 Jan 2027 08:00:20 GMT", 20.0),  # the clock stands at 08:00:00
        ("Fri, 15 Jan 2027 07:00:00 GMT", 0.5),
        ("soon", 0.5),
        ("-3", 0.5),
    ],
)
def test_retry_after_is_honoured_within_reason(
    header: str, pause_s: float, shipper: Shipper, server: Server, clock: FixedClock
) -> None:
    server.answers = [httpx.Response(429, headers={"Retry-After": header})]
    assert [attempt(shipper, server, clock) for _ in range(2)] == [0, pause_s]


def test_an_endless_answer_is_cut_off(shipper: Shipper, server: Server, spool: Spool) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"no " * 1_000

    server.answers = [httpx.Response(400, content=endless())]
    shipper.step()
    ((_, _, reason),) = spool.refusals()
    assert len(reason) <= 1_000


def test_a_token_that_cannot_be_read_keeps_the_batches(server: Server, spool: Spool, clock: FixedClock) -> None:
    def unreadable() -> str | None:
        raise AgentError("cannot read the token from /run/token")

    stopping = _StopAfter(2)
    with httpx.Client(transport=httpx.MockTransport(server), base_url="https://ledger.test") as client:
        shipper = Shipper(client, spool, clock, token=unreadable, jitter=lambda: 0.0)
        shipper.run(stopping)  # type: ignore[arg-type]
    assert server.requests == []
    assert waiting(spool) == [1, 2, 3]
    assert clock.waits_s == [0.5, 1.0]
    assert shipper.state.last_failure == "cannot read the token from /run/token"


def test_an_unforeseen_fault_does_not_end_the_thread(server: Server, spool: Spool, clock: FixedClock) -> None:
    turns = iter([True, False])
    with httpx.Client(transport=httpx.MockTransport(server), base_url="https://ledger.test") as client:
        shipper = Shipper(client, spool, clock, token=lambda: _unforeseen(next(turns)), jitter=lambda: 0.0)
        shipper.run(_StopAfter(2))  # type: ignore[arg-type]
    assert server.bodies == [b"body 1"]


def _unforeseen(fault: bool) -> str | None:  # noqa: FBT001
    if fault:
        raise ZeroDivisionError
    return None


class _StopAfter:
    """An event that is set after it was asked so many times."""

    def __init__(self, turns: int) -> None:
        self._left = turns

    def is_set(self) -> bool:
        self._left -= 1
        return self._left < 0


def test_after_an_outage_the_newest_batch_gets_its_turn_between_four_of_the_backlog(
    shipper: Shipper, server: Server, spool: Spool, clock: FixedClock
) -> None:
    for _ in range(9):
        spool.put(lambda _uuid, sequence: f"body {sequence}".encode(), 0)
    for _ in range(7):
        assert shipper.step() == 0.0
    spool.put(lambda _uuid, sequence: f"body {sequence}".encode(), clock.wall_us)
    for _ in range(6):
        shipper.step()
    sent = [int(body.split()[1]) for body in server.bodies]
    # 12 is the newest after four; then four more; 13 came meanwhile.
    assert sent == [1, 2, 3, 4, 12, 5, 6, 7, 8, 13, 9, 10, 11]
    shipper.step()
    assert waiting(spool) == []


def test_without_a_backlog_the_order_is_that_of_storing(server: Server, spool: Spool, clock: FixedClock) -> None:
    clock.wall_us = 30_000_000
    with httpx.Client(transport=httpx.MockTransport(server), base_url="https://ledger.test") as client:
        shipper = Shipper(client, spool, clock, token=lambda: None)
        for _ in range(6):
            spool.put(lambda _uuid, sequence: f"body {sequence}".encode(), 0)
        for _ in range(9):
            shipper.step()
    assert [int(body.split()[1]) for body in server.bodies] == list(range(1, 10))


def test_what_is_sent_keeps_to_its_rate(server: Server, spool: Spool, clock: FixedClock) -> None:
    with httpx.Client(transport=httpx.MockTransport(server), base_url="https://ledger.test") as client:
        shipper = Shipper(client, spool, clock, token=lambda: None, max_bytes_per_s=12)
        assert shipper.step() == 0.5  # "body 1" has 6 bytes


def test_a_backlog_is_sent_at_so_many_bodies_a_second_and_gives_way_until_it_is_gone(
    server: Server, spool: Spool, clock: FixedClock
) -> None:
    for _ in range(6):
        spool.put(lambda _uuid, sequence: f"body {sequence}".encode(), 0)
    with httpx.Client(transport=httpx.MockTransport(server), base_url="https://ledger.test") as client:
        shipper = Shipper(client, spool, clock, token=lambda: None, bodies_per_s=4.0)
        assert not shipper.slow_down()  # nothing says yet that there is a backlog
        assert shipper.step() == 0.25
        assert shipper.slow_down()
        assert shipper.step() == 0.5
        assert [shipper.slow_down(), shipper.slow_down()] == [True, False]  # at the slowest
        assert [shipper.step() for _ in range(7)] == [1.0] * 7
        shipper.step()  # finds nothing to send
        assert not shipper.slow_down()
        spool.put(lambda _uuid, sequence: f"body {sequence}".encode(), clock.wall_us)
        assert shipper.step() == 0.25


def test_batches_of_a_backlog_are_forgotten_ten_at_a_time_and_at_the_latest_when_something_goes_wrong(
    shipper: Shipper, server: Server, spool: Spool, clock: FixedClock
) -> None:
    for _ in range(12):
        spool.put(lambda _uuid, sequence: f"body {sequence}".encode(), 0)
    for _ in range(9):
        shipper.step()
    assert waiting(spool) == list(range(1, 16))
    shipper.step()
    assert waiting(spool) == [10, 11, 12, 13, 14]  # nine in order, and the newest in between
    shipper.step()
    server.answers = [httpx.Response(503)]
    shipper.step()
    assert waiting(spool) == [11, 12, 13, 14]
    while waiting(spool):
        clock.wait(shipper.step())
    assert sorted(_sent(server)) == sorted([*range(1, 16), 11])  # what was answered 503 was sent again


def test_in_a_spool_started_anew_nothing_is_forgotten_that_was_not_sent(
    shipper: Shipper, server: Server, spool: Spool
) -> None:
    shipper.step()
    shipper.step()
    spool.uuid = "another"  # as after damage: its numbers begin at 1 again
    shipper.step()
    assert waiting(spool) == [1, 2, 3]
    assert server.bodies[-1] == b"body 1"


def _sent(server: Server) -> list[int]:
    return [int(body.split()[1]) for body in server.bodies]


def test_a_forwarded_body_goes_to_its_own_path_as_it_came(server: Server, spool: Spool, clock: FixedClock) -> None:
    spool.put_forward(b"spans", Envelope("/v1/traces", "application/x-protobuf", "gzip"), -5)
    spool.put_forward(b"{}", Envelope("/v1/traces", "application/json"), -4)
    with httpx.Client(transport=httpx.MockTransport(server), base_url="https://ledger.test") as client:
        shipper = Shipper(client, spool, clock, token=lambda: "secret")
        server.answers = [httpx.Response(200), httpx.Response(400, text="no spans")]
        shipper.step()
        shipper.step()
    first, second = server.requests
    assert (first.url.path, server.bodies[0], first.headers["Content-Encoding"]) == ("/v1/traces", b"spans", "gzip")
    assert (second.headers["Content-Type"], "Content-Encoding" in second.headers) == ("application/json", False)
    assert waiting(spool) == [1, 2, 3]
    assert [reason for _, _, reason in spool.refusals()] == ["HTTP 400: no spans"]


class TracesFail:
    """An ingest that takes batches and answers every trace with one code."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.posts: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.posts.append(request.url.path)
        return httpx.Response(self.code if request.url.path == "/v1/traces" else 204)


def _ten_minutes_of(code: int, spool: Spool, clock: FixedClock) -> TracesFail:
    """Send for ten minutes, a batch stored each ten seconds, beside one trace that is never taken."""
    answers = TracesFail(code)
    # Numbers of the two lanes have nothing to do with each other: this trace's is far above those of the batches.
    for number in range(1, 201):
        spool.put_forward(b"spans", Envelope("/v1/traces", "application/json"), clock.wall_us)
        if number < 200:
            spool.acknowledge(number, Lane.FORWARDS)
    with httpx.Client(transport=httpx.MockTransport(answers), base_url="https://ledger.test") as client:
        shipper = Shipper(client, spool, clock, token=lambda: None, jitter=lambda: 0.0)
        until_us = clock.monotonic_us + 600_000_000
        due_us = clock.monotonic_us
        while clock.monotonic_us < until_us:
            if clock.monotonic_us >= due_us:
                spool.put(lambda _uuid, sequence: f"body {sequence}".encode(), clock.wall_us)
                due_us += 10_000_000
            clock.wait(max(0.001, shipper.step()))
    return answers


@pytest.mark.parametrize("code", [403, 404, 429, 503])
def test_a_trace_that_is_not_taken_holds_up_no_batch(code: int, spool: Spool, clock: FixedClock) -> None:
    posts = _ten_minutes_of(code, spool, clock).posts
    assert posts.count("/v1/samples") == 63  # the 60 of these ten minutes and the 3 from before
    assert waiting(spool) == []
    assert 10 <= posts.count("/v1/traces") <= 26  # the pauses are 0.5 s doubled up to 30 s


def test_a_trace_the_server_fails_on_ten_times_while_it_takes_batches_is_set_aside(
    spool: Spool, clock: FixedClock
) -> None:
    answers = _ten_minutes_of(500, spool, clock)
    assert [reason for _, _, reason in spool.refusals()] == ["HTTP 500: "]
    assert answers.posts.count("/v1/samples") == 63
    assert spool.oldest(lane=Lane.FORWARDS) is None


def test_in_an_outage_of_the_server_no_trace_is_blamed(
    shipper: Shipper, server: Server, spool: Spool, clock: FixedClock
) -> None:
    spool.put_forward(b"spans", Envelope("/v1/traces", "application/json"), 0)
    server.answers = [httpx.Response(500) for _ in range(60)]
    for _ in range(60):
        attempt(shipper, server, clock)
    assert spool.refusals() == []
    assert server.bodies.count(b"spans") > MAX_FORWARD_TRIES


def test_the_distance_to_the_server_s_clock_is_measured_from_its_answers(
    shipper: Shipper, server: Server, clock: FixedClock
) -> None:
    # The server's second 08:00:20 is 08:00:20.5 on the average; the clock stands at 08:00:00.
    server.answers = [httpx.Response(204, headers={"Date": "Fri, 15 Jan 2027 08:00:20 GMT"})]
    shipper.step()
    assert shipper.state.clock_skew_us == -20_500_000
    server.answers = [httpx.Response(204, headers={"Date": "yesterday"})]
    shipper.step()
    assert shipper.state.clock_skew_us == -20_500_000


def test_once_told_to_stop_what_is_left_is_sent_while_the_server_answers(
    shipper: Shipper, server: Server, spool: Spool, clock: FixedClock
) -> None:
    stopped = threading.Event()
    stopped.set()
    server.answers = [httpx.Response(204), httpx.Response(503)]
    shipper.run(stopped)
    assert server.bodies == [b"body 1", b"body 2"]
    assert waiting(spool) == [2, 3]


@pytest.mark.contract
@pytest.mark.parametrize(
    "serve",
    [
        trickle(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x"),
        answer(b"200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4", b"abcd"),
        answer(b"200 OK\r\nContent-Encoding: gzip", gzip.compress(bytes(30_000_000))),
    ],
    ids=["a body that trickles", "a body that is not what it says", "a body that unpacks to 30 MB"],
)
def test_the_status_decides_whatever_the_body_is_and_that_it_cannot_be_read_is_counted(
    serve: Serve, spool: Spool, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.ship.ANSWER_S", 0.3)
    with server_of(serve) as url, httpx.Client(base_url=url, timeout=30) as client:
        shipper = Shipper(client, spool, clock, token=lambda: None)
        for _ in range(4):
            shipper.step()
    assert waiting(spool) == []
    assert (shipper.state.sent_batches, shipper.state.failed_attempts) == (3, 3)
    assert shipper.state.last_failure


@pytest.mark.contract
def test_a_head_that_trickles_is_a_failure_and_given_up_in_time(
    spool: Spool, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.ship.LIMIT_S", 0.3)
    serve = trickle(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n")
    with server_of(serve) as url, httpx.Client(base_url=url, timeout=30) as client:
        shipper = Shipper(client, spool, clock, token=lambda: None)
        began_s = time.monotonic()
        shipper.step()
        assert time.monotonic() - began_s < 3
    assert waiting(spool) == [1, 2, 3]
    assert shipper.state.failed_attempts == 1


@pytest.mark.parametrize("header", ["Date", "Retry-After"])
def test_a_date_without_sense_is_no_reason_to_send_again(
    header: str, shipper: Shipper, server: Server, clock: FixedClock
) -> None:
    absurd = {header: "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"}
    server.answers = [httpx.Response(503, headers=absurd), httpx.Response(200, headers=absurd)]
    attempt(shipper, server, clock)
    attempt(shipper, server, clock)
    assert server.bodies == [b"body 1", b"body 1"]
    attempt(shipper, server, clock)
    assert server.bodies[-1] == b"body 2"
    assert shipper.state.last_failure == "HTTP 503: "
