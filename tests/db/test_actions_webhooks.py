"""Messages leave at least once, signed, with a limit, and never with a secret in sight."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import sqlalchemy as sa

from analytics.actions.webhooks import MAX_ATTEMPTS, Deliverer
from analytics.io import budgets, outbox
from ingest.store.engine import Database
from ingest.store.tables import control

NOW = datetime(2026, 11, 11, 2, 20, tzinfo=UTC)
URL, SECRET = "https://hooks.example/s3cr3t-path", "hunter2"
ENVIRONMENT = {"OPS_URL": URL, "OPS_SECRET": SECRET}
POLICY = """\
version: 1
webhooks:
  ops: {url: "${OPS_URL}", secret: "${OPS_SECRET}"}
budgets:
  - name: b
    tenant: acme
    period: day
    limits: {tokens: 1}
    ladder: [{at: 80%, do: warn, webhook: ops}]
"""


@dataclass
class Post:
    engine: sa.Engine
    answers: list[int | Exception]
    now: datetime = NOW
    received: list[httpx.Request] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=lambda: dict(ENVIRONMENT))

    def queue(self, key: str = "k1", receiver: str = "ops") -> bool:
        with self.engine.begin() as conn:
            return outbox.queue(conn, key, "budget.rung_reached", receiver, {"budget": "b"}, self.now)

    def deliver(self) -> tuple[int, int]:
        with httpx.Client(transport=httpx.MockTransport(self._answer)) as client:
            return Deliverer(self.engine, client, self.environment, lambda: self.now, random.Random(1)).deliver_due()

    def row(self) -> sa.Row[tuple[object, ...]]:
        with self.engine.connect() as conn:
            return conn.execute(sa.select(control.outbox)).one()

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.received.append(request)
        answer = self.answers.pop(0) if self.answers else 200
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer)


@pytest.fixture
def post(db: Database) -> Iterator[Callable[..., Post]]:
    owner, engine = db.create_engine("owner"), db.create_engine("worker")
    with owner.begin() as conn:
        budgets.apply(conn, POLICY, NOW - timedelta(days=1), actor="test")
    owner.dispose()
    yield lambda *answers: Post(engine, list(answers))
    engine.dispose()


def test_a_message_is_signed_and_carries_its_key(post: Callable[..., Post]) -> None:
    office = post()
    assert office.queue()
    assert office.deliver() == (1, 0)
    (request,) = office.received
    assert str(request.url) == URL
    assert request.headers["idempotency-key"] == "k1"
    stamp, _, digest = request.headers["wattledger-signature"].partition(",v1=")
    wanted = hmac.new(SECRET.encode(), f"{int(NOW.timestamp())}.".encode() + request.content, hashlib.sha256)
    assert (stamp, digest) == (f"t={int(NOW.timestamp())}", wanted.hexdigest())
    assert json.loads(request.content) == {"budget": "b", "id": "k1"}


def test_a_delivered_message_is_not_sent_again_and_a_key_is_queued_once(post: Callable[..., Post]) -> None:
    office = post()
    office.queue()
    office.deliver()
    assert not office.queue()
    assert office.deliver() == (0, 0)
    assert len(office.received) == 1


@pytest.mark.parametrize(
    "trouble", [500, 503, 429, 408, httpx.ConnectError(f"cannot reach {URL}"), httpx.ReadTimeout("slow")]
)
def test_what_may_pass_is_retried_later(post: Callable[..., Post], trouble: int | Exception) -> None:
    office = post(trouble)
    office.queue()
    assert office.deliver() == (0, 1)
    assert office.deliver() == (0, 0)  # not yet
    office.now += timedelta(seconds=31)
    assert office.deliver() == (1, 0)
    assert len({request.headers["idempotency-key"] for request in office.received}) == 1


@pytest.mark.parametrize("answer", [400, 401, 404, 410])
def test_a_receiver_that_will_never_take_it_is_not_asked_again(post: Callable[..., Post], answer: int) -> None:
    office = post(answer)
    office.queue()
    office.deliver()
    office.now += timedelta(days=1)
    assert office.deliver() == (0, 0)
    assert office.row().last_error == f"the receiver answered {answer}"
    assert office.row().delivered_at is None


def test_attempts_have_a_limit_and_wait_longer_each_time(post: Callable[..., Post]) -> None:
    office = post(*[500] * 50)
    office.queue()
    sent_at = []
    for _ in range(24 * 60):
        if office.deliver() != (0, 0):
            sent_at.append(office.now)
        office.now += timedelta(minutes=1)
    assert len(sent_at) == MAX_ATTEMPTS
    waits = [later - earlier for earlier, later in itertools.pairwise(sent_at)]
    assert waits[-1] > 10 * waits[0]


def test_a_redirect_is_not_followed(post: Callable[..., Post]) -> None:
    office = post(307)
    office.queue()
    assert office.deliver() == (0, 1)
    assert len(office.received) == 1


@pytest.mark.parametrize("missing", ["OPS_URL", "OPS_SECRET"])
def test_a_reference_that_is_not_set_is_said_by_name_and_nothing_is_sent(
    post: Callable[..., Post], missing: str
) -> None:
    office = post()
    del office.environment[missing]
    office.queue()
    assert office.deliver() == (0, 1)
    assert office.row().last_error == f"${{{missing}}} is not set in the worker's environment"
    assert office.received == []


def test_a_receiver_no_longer_in_the_policy_is_said_by_name(post: Callable[..., Post]) -> None:
    office = post()
    office.queue(receiver="gone")
    office.deliver()
    assert office.row().last_error == "no webhook 'gone' in the policy in force"


def test_no_secret_is_ever_stored(post: Callable[..., Post]) -> None:
    office = post(httpx.ConnectError(f"cannot reach {URL}"))
    office.queue()
    office.deliver()
    stored = repr(tuple(office.row()))
    assert URL not in stored
    assert SECRET not in stored
    with office.engine.connect() as conn:
        assert SECRET not in repr(conn.execute(sa.select(control.budgets)).all())
