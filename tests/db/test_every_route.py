"""Every route of the assembled service, asked from outside by all who must not be answered, and by the tenant next door.

A route that nobody described here fails the first test: say which scopes it is for, and how one tenant would ask for another.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from starlette.routing import BaseRoute, Mount, Route

from analytics.io import budgets
from ingest.store import audit, tokens
from ingest.store.engine import Database
from ingest.store.scopes import OF_A_SITE, OF_A_SUBTREE, Scope
from ingest.store.tables import books as book_tables
from ingest.store.tables import control, lineage, reference, work
from ingest.store.tables import periods as period_tables
from tests.fakes.books import KWH_MJ, MODEL, Books, usage
from tests.fakes.serving import serving
from wattledger.service import create_service

pytestmark = pytest.mark.db

THIS_HOUR = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
HOUR_OF_LINES = f"{THIS_HOUR - timedelta(hours=2):%Y-%m-%dT%H:00Z}"
FROM, TO = (THIS_HOUR - timedelta(hours=3)).isoformat(), THIS_HOUR.isoformat()
POLICY = """\
version: 1
budgets:
  - name: owl-budget
    tenant: victim/owls
    period: year
    currency: USD
    limits: {cost: 7777}
    ladder: [{at: 1%, do: cancel}]
"""
SECRETS = ("victim", "owls", "owl-", "61.6161", "616161", "7777", "secret-response", "nightjar")
"""What only the other tenant may see: its name, its people, jobs, models and budgets, and what it cost."""
PUBLIC = {
    ("GET", path)
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc")
}
"""Shown to anybody who reaches the port; the last test says that nothing of a tenant is in them."""


@dataclass(frozen=True)
class Asked:
    """What a route is for, and how it is asked for a tenant ({tenant}), a person, an account or a response of it."""

    scopes: frozenset[Scope]
    query: dict[str, str] = field(default_factory=dict)
    path: dict[str, str] = field(default_factory=dict)
    json: Any = None
    content: bytes = b"{}"


def asked(*scopes: Scope, **how: Any) -> Asked:
    return Asked(frozenset(scopes), **how)


PERIOD = {"from": FROM, "to": TO}
GATE = {"accelerators": 1, "model": MODEL, "hours": 1}
ROUTES: dict[tuple[str, str], list[Asked]] = {
    ("POST", "/v1/samples"): [asked(Scope.AGENT)],
    ("POST", "/api/v1/write"): [asked(Scope.WRITE, Scope.AGENT)],
    ("POST", "/v1/traces"): [asked(Scope.WRITE, Scope.AGENT)],
    ("POST", "/v1/logs"): [asked(Scope.WRITE, Scope.AGENT)],
    ("POST", "/v1/metrics"): [asked(Scope.WRITE, Scope.AGENT)],
    ("POST", "/v1/jobs/events"): [asked(Scope.WRITE)],
    ("POST", "/v1/enroll"): [asked(Scope.JOIN)],
    ("POST", "/api/v1/lineage"): [asked(Scope.WRITE)],
    ("POST", "/api/v1/lineage/batch"): [asked(Scope.WRITE)],
    ("POST", "/v1/outcomes"): [asked(Scope.WRITE)],
    ("GET", "/v1/agent/commands"): [asked(Scope.AGENT)],
    ("GET", "/v1/bill"): [
        asked(Scope.READ, query=PERIOD | {"tenant": "{tenant}"}),
        *(asked(Scope.READ, query=PERIOD | {"group_by": by}) for by in ("tenant", "job", "device")),
    ],
    ("GET", "/v1/budgets"): [asked(Scope.READ)],
    ("GET", "/v1/budgets/{path:path}"): [asked(Scope.READ, path={"path:path": "{tenant}"})],
    ("GET", "/v1/findings"): [asked(Scope.READ), asked(Scope.READ, query=PERIOD | {"kind": "idle_waste"})],
    ("GET", "/v1/actions"): [asked(Scope.READ)],
    ("GET", "/v1/fleet/power"): [asked(Scope.READ, query=PERIOD)],
    ("GET", "/v1/meters/gap"): [asked(Scope.READ, query=PERIOD)],
    ("GET", "/v1/tenants/energy"): [
        asked(Scope.READ, query=PERIOD),
        asked(Scope.READ, query=PERIOD | {"step_s": "3600", "tenant": "{tenant}"}),
    ],
    ("GET", "/v1/lineage/{response_id:path}"): [
        asked(Scope.READ, path={"response_id:path": "{response}"}),
        asked(Scope.READ, path={"response_id:path": "{response}"}, query={"site": "lab"}),
    ],
    ("POST", "/v1/gate"): [
        asked(Scope.GATE, json=GATE | {"tenant": "{tenant}"}),
        asked(Scope.GATE, json=GATE | {"account": "{account}"}),
        asked(Scope.GATE, json=GATE | {"account": "{account}", "user_name": "{user}", "site": "lab"}),
    ],
    ("GET", "/v1/audit"): [asked(Scope.AUDIT)],
    ("GET", "/v1/periods"): [asked(Scope.READ)],
    ("GET", "/v1/periods/{name}"): [asked(Scope.CLOSE, path={"name": "2026-10"})],
    ("GET", "/v1/lines"): [
        asked(Scope.READ, query={"hour": "{hour}"}),
        asked(Scope.READ, query={"hour": "{hour}", "tenant": "{tenant}"}),
    ],
    ("GET", "/v1/why"): [
        asked(Scope.READ, query={"what": "{line}"}),
        asked(Scope.READ, query={"what": "{job}"}),
        asked(Scope.READ, query={"what": "lab/{job}", "hour": "{hour}"}),
    ],
    ("GET", "/v1/disputes"): [asked(Scope.READ), asked(Scope.READ, query={"resolved": "true"})],
    ("POST", "/v1/disputes"): [asked(Scope.APPROVE, json={"line": "{line}", "reason": "wrong"})],
    ("POST", "/v1/disputes/{number}/resolution"): [
        asked(Scope.CLOSE, path={"number": "99"}, json={"resolution": "right"})
    ],
}
THE_OTHER = {"tenant": "victim/owls", "account": "owl-account", "response": "secret-response", "user": "nightjar"}
THE_OTHER |= {"hour": HOUR_OF_LINES, "line": f"{HOUR_OF_LINES}/{'ab' * 6}", "job": "owl-job"}
NOBODY = {"tenant": "nobody/known", "account": "some-account", "response": "other-response", "user": "sombody"}
NOBODY |= {"hour": HOUR_OF_LINES, "line": f"{HOUR_OF_LINES}/{'00' * 6}", "job": "any-job"}
CASES = [(*key, each) for key, ways in ROUTES.items() for each in ways]
NAMED = [f"{method} {path} {number}" for number, (method, path, _) in enumerate(CASES)]


@dataclass
class World:
    client: httpx.Client
    conn: sa.Connection
    site_id: int
    routes: set[tuple[str, str]]
    spec: dict[str, Any]
    made: dict[str, str] = field(default_factory=dict)

    def secret(self, scope: Scope, tenant: str = "*", *, expires_at: datetime | None = None) -> str:
        """A token with one scope, bound as widely as that scope allows."""
        ends = expires_at or (datetime.now(UTC) + timedelta(days=1))
        key = f"{scope} {tenant} {expires_at}"
        if key not in self.made:
            self.made[key] = tokens.create(
                self.conn,
                "t",
                [scope],
                actor="test",
                expires_at=ends,
                site_id=self.site_id if scope in OF_A_SITE | {Scope.WRITE} else None,
                tenant_path=tenant if scope in OF_A_SUBTREE else None,
            ).secret
        return self.made[key]

    def ask(self, method: str, path: str, how: Asked, header: str | None, names: dict[str, str]) -> httpx.Response:
        for name, value in how.path.items():
            path = path.replace(f"{{{name}}}", value.format(**names))
        query = {name: value.format(**names) for name, value in how.query.items()}
        headers = {} if header is None else {b"authorization": header.encode("latin-1")}
        if how.json is None:
            content = how.content if method == "POST" else None
            return self.client.request(method, path, params=query, headers=headers, content=content)
        body = {name: value.format(**names) if isinstance(value, str) else value for name, value in how.json.items()}
        return self.client.request(method, path, params=query, headers=headers, json=body)


def routes_of(routes: list[BaseRoute], prefix: str = "") -> Iterator[tuple[str, str]]:
    for route in routes:
        if isinstance(route, Mount):
            yield from routes_of(route.routes, prefix + route.path)
        elif isinstance(route, Route):
            for method in (route.methods or set()) - {"HEAD"}:
                yield method, prefix + route.path
        elif hasattr(route, "original_router"):  # how FastAPI keeps what was included
            yield from routes_of(route.original_router.routes, prefix)
        else:
            pytest.fail(f"a kind of route this test does not know: {route!r}")


@pytest.fixture(scope="module")
def world(server: Any, database: Database) -> Iterator[World]:
    """The service over a database in which the other tenant has a job, a cost, a budget, a finding, an action and a call."""
    name = "wattledger_routes"
    with server.database("postgres").connect("admin", autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE {database.name} OWNER wattledger_owner".encode())
    db = server.database(name)
    engine = db.create_engine("admin")
    app = create_service(db, {"WATTLEDGER_INGEST_TOKEN_CACHE_S": "0", "WATTLEDGER_INGEST_MIN_FREE_MIB": "0"})
    with (
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn,
        serving(app) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        site_id = fill(conn)
        yield World(client, conn, site_id, set(routes_of(app.routes)), app.openapi())
    engine.dispose()
    with server.database("postgres").connect("admin", autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def fill(conn: sa.Connection) -> int:
    made = Books.open(conn)
    owls, ours = made.tenant("victim/owls"), made.tenant("asker")
    job = made.job("victim/owls", "owl-job", user_name="nightjar", account="owl-account", name="owl-training")
    own = made.job("asker", "ours", user_name="us")
    number = (THIS_HOUR - datetime(2026, 11, 11, tzinfo=UTC)) // timedelta(hours=1)
    made.close(
        number - 2,
        [
            usage(job_id=job, tenant_id=owls, devices={made.device_ids[0]: KWH_MJ}, cost="61.6161"),
            usage(job_id=own, tenant_id=ours, devices={made.device_ids[1]: KWH_MJ}, cost="1"),
        ],
    )
    link = sa.text(
        "UPDATE ledger_lines SET chain_sha256 = decode(repeat(:digits, 32), 'hex') "
        "WHERE line_key = (SELECT min(line_key) FROM ledger_lines WHERE tenant_id = :tenant)"
    )
    conn.execute(link, {"digits": "ab", "tenant": owls})
    conn.execute(link, {"digits": "cd", "tenant": ours})
    owls_dispute = {
        "site_id": made.site_id,
        "hour_at": THIS_HOUR - timedelta(hours=2),
        "line_sha256": b"\xef",
        "line": "victim/owls",
    }
    said = {"opened_by": "nightjar", "reason": "owl-wrong", "currency": "USD", "tenant_id": owls}
    conn.execute(sa.insert(period_tables.line_disputes).values(**owls_dispute, **said))
    minutes = {"site_id": made.site_id, "minute_at": THIS_HOUR - timedelta(minutes=70), "energy_mj": 61_616_100}
    conn.execute(sa.insert(book_tables.tenant_minutes).values(**minutes, tenant_id=owls))
    early = THIS_HOUR - timedelta(days=9)
    price = {"provider": "owned", "model": MODEL, "meter": "accelerator_hour", "amount": 1, "unit": "hour"}
    conn.execute(sa.insert(reference.prices).values(**price, currency="USD", source="test", valid_from=early))
    conn.execute(
        sa.insert(reference.bindings).values(position=1, tenant_id=owls, account="owl-account", valid_from=early)
    )
    budgets.apply(conn, POLICY, THIS_HOUR - timedelta(days=1), actor="victim admin")
    period = {"start_at": THIS_HOUR - timedelta(hours=2), "end_at": THIS_HOUR}
    common = {"dedupe_key": "a", "site_id": made.site_id, "kind": "idle_waste", "job_id": job, "tenant_id": owls}
    conn.execute(
        sa.insert(book_tables.findings).values(**common, **period, evidence={"owl": 1}, confidence=0.9, origin=1)
    )
    action = {"idempotency_key": "owl", "kind": "cancel", "plane": "slurm", "target": {"user": "nightjar"}}
    conn.execute(
        sa.insert(control.actions).values(**action, tenant_id=owls, status="dry_run", dry_run=True, evidence={})
    )
    conn.execute(sa.text("SELECT ensure_partitions(CURRENT_DATE - 1, CURRENT_DATE + 2, NULL)"))
    call = {"called_at": datetime.now(UTC) - timedelta(minutes=5), "dedupe_key": "x", "site_id": made.site_id}
    named = {"provider": "openai", "model": "owl-7b", "response_id": "secret-response", "usage_known": True}
    conn.execute(sa.insert(work.api_calls).values(**call, **named, tenant_id=owls, source="span", origin=1))
    outcome = {
        "response_id": "secret-response",
        "kind": "owl-graded",
        "dedupe_key": "o",
        "source": "test",
        "origin": 1,
    }
    conn.execute(
        sa.insert(lineage.outcomes).values(**outcome, judged_at=datetime.now(UTC), site_id=made.site_id, tenant_id=owls)
    )
    audit.note(conn, "victim admin", "tenants.apply", "owl", after={"tenant": "victim/owls"})
    return made.site_id


def test_every_route_is_described_here_and_none_that_is_gone(world: World) -> None:
    assert world.routes == {*ROUTES, *PUBLIC}
    documented = {(method.upper(), path) for path, ways in world.spec["paths"].items() for method in ways}
    assert documented <= {(method, re.sub(r":path}", "}", path)) for method, path in world.routes}


@pytest.mark.parametrize(("method", "path", "how"), CASES, ids=NAMED)
def test_nobody_is_let_in_without_a_token_that_is_good_now(world: World, method: str, path: str, how: Asked) -> None:
    scope = min(how.scopes)
    good = world.secret(scope)
    late = world.secret(scope, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    forged = re.sub(r".{20}$", "A" * 20, good)
    headers = [
        None,
        "",
        "Bearer",
        "Bearer x",
        "Bearer wl_1_\xe9",
        f"Basic {good}",
        f"Bearer {late}",
        f"Bearer {forged}",
    ]
    for header in headers:
        answer = world.ask(method, path, how, header, THE_OTHER)
        assert answer.status_code == 401, (header, answer.text)
        assert answer.headers["www-authenticate"] == "Bearer"
        assert_tells_nothing(answer)
    for name in ("token", "access_token", "api_key"):  # a secret in an address ends in logs
        query = world.client.request(method, path, params={name: good})
        assert query.status_code in {401, 400}


@pytest.mark.parametrize(("method", "path", "how"), CASES, ids=NAMED)
def test_a_token_with_any_other_scope_is_refused(world: World, method: str, path: str, how: Asked) -> None:
    for scope in set(Scope) - how.scopes:
        answer = world.ask(method, path, how, f"Bearer {world.secret(scope)}", THE_OTHER)
        assert answer.status_code == 403, (scope, answer.text)
        assert "lacks the scope" in answer.text  # in the words of each wire: OTLP answers as OTLP asks
        assert_tells_nothing(answer)
    for scope in how.scopes:
        allowed = world.ask(method, path, how, f"Bearer {world.secret(scope)}", THE_OTHER)
        assert allowed.status_code not in {401, 500}, allowed.text
        assert "lacks the scope" not in allowed.text


SUBTREE_CASES = [case for case in CASES if case[2].scopes & OF_A_SUBTREE]


@pytest.mark.parametrize(
    ("method", "path", "how"), SUBTREE_CASES, ids=[f"{method} {path}" for method, path, _ in SUBTREE_CASES]
)
def test_a_tenant_is_told_of_another_what_it_is_told_of_one_that_is_not_there(
    world: World, method: str, path: str, how: Asked
) -> None:
    (scope,) = how.scopes
    header = f"Bearer {world.secret(scope, 'asker')}"
    other = world.ask(method, path, how, header, THE_OTHER)
    nobody = world.ask(method, path, how, header, NOBODY)
    assert other.status_code == nobody.status_code < 500
    # Word for word the same, but for the names that were asked for.
    assert renamed(other.text, THE_OTHER, NOBODY) == nobody.text
    assert_tells_nothing(other, told=THE_OTHER)
    # The table is worth something: whom it belongs to, and who covers all, are shown what the neighbour is not.
    whole = world.ask(method, path, how, f"Bearer {world.secret(scope, '*')}", THE_OTHER)
    assert whole.status_code == 200, whole.text
    assert (
        scope is Scope.GATE
        or path in {"/v1/fleet/power", "/v1/meters/gap", "/v1/periods"}
        or any(word in whole.text for word in SECRETS)
    )


def test_the_page_says_of_each_scope_whether_a_route_asks_for_it() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "security.md").read_text()
    said = dict(re.findall(r"^\| `(\w+)`[^|]*\|[^|]*\|[^|]*\| (.*) \|$", page, re.MULTILINE))
    asking = {scope for ways in ROUTES.values() for way in ways for scope in way.scopes}
    assert {scope: "no route yet" not in said[scope.value] for scope in Scope} == {
        scope: scope in asking for scope in Scope
    }


def test_what_a_neighbour_writes_about_a_tenants_response_is_not_shown_to_it(world: World) -> None:
    """A token to write is of its site; what it says bears its own tenant, and is nobody else's to see."""
    forger = tokens.create(
        world.conn, "w", [Scope.WRITE], actor="test", site_id=world.site_id, tenant_path="asker"
    ).secret
    told = {"response_id": "secret-response", "kind": "forged-verdict", "label": "bad", "at": FROM}
    taken = world.client.post("/v1/outcomes", json=told, headers={"authorization": f"Bearer {forger}"})
    assert taken.status_code == 201
    assert_tells_nothing(taken)
    for tenant, is_shown in (("victim", False), ("*", True)):
        reader = f"Bearer {world.secret(Scope.READ, tenant)}"
        shown = world.client.get("/v1/lineage/secret-response", headers={"authorization": reader})
        assert shown.status_code == 200
        assert "owl-graded" in shown.text
        assert ("forged-verdict" in shown.text) is is_shown
    own = world.client.get(
        "/v1/lineage/secret-response", headers={"authorization": f"Bearer {world.secret(Scope.READ, 'asker')}"}
    )
    assert "forged-verdict" in own.text  # what it said itself, and nothing of whose response it is
    assert_tells_nothing(own, told=THE_OTHER)
    world.conn.execute(sa.text("DELETE FROM outcomes WHERE kind = 'forged-verdict'"))


def test_only_the_audit_scope_shows_acts_and_it_shows_all(world: World) -> None:
    answer = world.client.get("/v1/audit", headers={"authorization": f"Bearer {world.secret(Scope.AUDIT)}"})
    assert "victim/owls" in answer.text
    assert not any(secret in answer.text for secret in world.made.values())


@pytest.mark.parametrize("path", sorted(path for _, path in PUBLIC))
def test_what_anybody_may_see_holds_nothing_of_a_tenant(world: World, path: str) -> None:
    answer = world.client.get(path)
    assert answer.status_code == 200
    assert_tells_nothing(answer)


def test_a_connection_of_the_pool_shows_a_tenant_nothing_of_who_used_it_before(world: World) -> None:
    everybody, asker = (f"Bearer {world.secret(Scope.READ, tenant)}" for tenant in ("*", "asker"))
    for _ in range(20):  # more than the pool has connections, each of which saw everything
        assert "victim" in world.client.get("/v1/bill", params=PERIOD, headers={"authorization": everybody}).text
        assert (
            world.client.get("/v1/bill", params={"from": "x"}, headers={"authorization": everybody}).status_code == 400
        )
        assert_tells_nothing(world.client.get("/v1/bill", params=PERIOD, headers={"authorization": asker}))


def test_no_secret_is_logged_however_much_is_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("uvicorn", "sqlalchemy", "psycopg", "ingest", "analytics", "wattledger"):
        caplog.set_level(logging.DEBUG, name)
    join = tokens.create(
        world.conn,
        "t",
        [Scope.JOIN],
        actor="test",
        site_id=world.site_id,
        expires_at=datetime.now(UTC) + timedelta(days=1),
    ).secret
    enrolled = world.client.post("/v1/enroll", headers={"authorization": f"Bearer {join}"}, json={"node": "new"})
    assert enrolled.status_code == 200
    rotated = tokens.rotate(
        world.conn, int(join.split("_")[1]), datetime.now(UTC), grace=timedelta(hours=1), actor="test"
    )
    assert rotated is not None
    secrets = {join, enrolled.json()["token"], rotated.secret}
    for method, path, how in CASES:
        for scope in (min(how.scopes), Scope.ADMIN):
            secret = world.secret(scope)
            secrets |= {secret, f"{secret[:-4]}AAAA"}  # one that is wrong at its end is a secret with a typing error
            for sent in (f"Bearer {secret}", f"Bearer {secret[:-4]}AAAA", f"bearer  {secret}"):
                world.ask(method, path, how, sent, THE_OTHER)
    logged = "\n".join(
        f"{record.getMessage()} {record.__dict__}" for record in caplog.records if not record.name.startswith("http")
    )
    logged += world.client.get("/metrics").text
    assert len(logged) > 100
    # Neither whole nor by its random part, nor what the database knows it by.
    for secret in secrets:
        random = secret.split("_", 2)[2]
        digest = hashlib.sha256(random.encode()).hexdigest()
        assert not any(form in logged for form in (random, random[:-4], digest)), secret


def assert_tells_nothing(answer: httpx.Response, told: dict[str, str] | None = None) -> None:
    text = f"{answer.text} {answer.headers}"
    for name in (told or THE_OTHER).values():  # what the asker said himself is no news to him
        text = text.replace(name, "")
    assert not [word for word in SECRETS if word in text], text


def renamed(text: str, names: dict[str, str], others: dict[str, str]) -> str:
    for key, name in names.items():
        text = text.replace(name, others[key])
    return text
