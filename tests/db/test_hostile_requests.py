"""Requests made from the OpenAPI document, with tokens of each kind: what is answered is what the document says, and never a 500."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from ingest.store import tokens
from ingest.store.engine import Database
from ingest.store.tokens import Scope
from tests.db.ingest_harness import make_site
from tests.db.served import serving
from wattledger.connections import ConnectionLimits
from wattledger.service import create_service

pytestmark = pytest.mark.db
SECONDS = float(os.environ.get("WATTLEDGER_FUZZ_SECONDS", "40")) / 2
SEED = int(time.time()) if "WATTLEDGER_FUZZ_SECONDS" in os.environ else 7
EXAMPLES = 4
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def secrets(db: Database) -> Iterator[str | None]:
    """Yield a token of all scopes, which reaches furthest; one of each; none, and a wrong one."""
    site = make_site(db)
    soon = datetime.now(UTC) + timedelta(hours=1)
    engine = db.create_engine("admin")
    with engine.begin() as conn:
        bound = {"actor": "test", "site_id": site.site_id, "tenant_path": "acme", "expires_at": soon}
        everything = [scope for scope in Scope if scope is not Scope.JOIN]
        yield tokens.create(conn, "all", everything, **{**bound, "tenant_path": "*"}).secret  # type: ignore[arg-type]
        for scope in Scope:
            confined = {**bound, "tenant_path": "acme" if scope is Scope.READ else "*"}
            yield tokens.create(conn, scope.value, [scope], **confined).secret  # type: ignore[arg-type]
    engine.dispose()
    yield from (None, "wl_wrong")


@schemathesis.serializer("application/vnd.apache.arrow.stream", "application/x-protobuf")
def plain_bytes(_: object, value: Any) -> bytes:
    """Say how bodies of these types travel: as they are."""
    return bytes(getattr(value, "data", None) or str(value).encode())


def ask(operation: APIOperation[Any, Any, Any, Any], base: str, secret: str | None, number: int) -> None:
    """Ask one operation a few times, in ways the document allows."""
    headers = {} if secret is None else {"authorization": f"Bearer {secret}"}

    @seed(number)
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def asked(case: Case[Any]) -> None:
        case.call_and_validate(base_url=base, headers=headers, checks=CHECKS)

    asked()


def test_what_is_answered_is_what_the_document_says(db: Database) -> None:
    application = create_service(db, {"WATTLEDGER_INGEST_NODE_BODIES_PER_S": "0"})
    document = application.openapi()
    tried = 0
    with serving(application, ConnectionLimits()) as port:
        base = f"http://127.0.0.1:{port}"
        schema = schemathesis.openapi.from_dict(document)
        operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
        assert {(each.method, each.path) for each in operations} == {
            (method, path) for path, methods in document["paths"].items() for method in methods
        }
        ends_at, turn = time.monotonic() + SECONDS, 0
        holders = list(secrets(db))
        while turn < len(holders) or "WATTLEDGER_FUZZ_SECONDS" in os.environ:
            secret = holders[turn % len(holders)]
            for operation in operations:
                if turn and time.monotonic() > ends_at:
                    break
                with suppress(Unsatisfiable):
                    ask(operation, base, secret, SEED + turn)
                tried += 1
            if time.monotonic() > ends_at:
                break
            turn += 1
        assert httpx.get(f"{base}/readyz").json()["status"] == "ready"
    assert tried >= len(operations), "the time is up before every operation was asked once"
