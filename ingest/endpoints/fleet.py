"""What agents ask of ingest beside sending: to join the fleet, and whether there are orders for their node."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

import orjson
import sqlalchemy as sa

from collector.wire import ENROLL_PATH, Command
from ingest.endpoints.post import Post
from ingest.errors import BadBodyError, ForbiddenError, UnauthorizedError, UnavailableError
from ingest.http import Answer, Request
from ingest.runtime import Runtime
from ingest.store import commands, tokens
from ingest.store.tokens import NodeTakenError, Scope, TokenRefusedError

MAX_BODY_BYTES: Final = 4_096


async def enrol(runtime: Runtime, request: Request) -> Answer:
    """Give a node that shows a join token an agent token of its own; raises IngestError."""
    principal = await runtime.principal(request.headers.get(b"authorization"))
    principal.require(Scope.JOIN)
    node = _node_of(request.body)
    join = (request.text(b"authorization") or "").partition(" ")[2].strip()
    secret = await runtime.in_thread(_enrol, runtime.engine, join, node)
    return Answer(200, orjson.dumps({"node": node, "token": secret}))


async def orders(runtime: Runtime, request: Request) -> Answer:
    """Answer with the orders that wait for the bearer's node; raises IngestError."""
    principal = await runtime.principal(request.headers.get(b"authorization"))
    principal.require(Scope.AGENT)
    node_id = principal.token.node_id
    if node_id is None:
        raise ForbiddenError("no_node", "orders are for one node; this token is bound to none")
    found = await runtime.in_thread(_waiting, runtime.engine, node_id)
    return Answer(200, orjson.dumps([asdict(command) for command in found]))


def _node_of(body: bytes) -> str:
    try:
        asked: Any = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadBodyError("malformed", f"the body is not JSON: {error}") from error
    node = asked.get("node") if isinstance(asked, dict) else None
    if not isinstance(node, str) or not 0 < len(node) <= 255 or not node.isprintable():
        raise BadBodyError("malformed", 'send {"node": "the name of the node, 1 to 255 printable characters"}')
    return node


def _enrol(engine: sa.Engine, join: str, node: str) -> str:
    try:
        with engine.begin() as conn:
            return tokens.enrol(conn, join, node)
    except TokenRefusedError:
        raise UnauthorizedError("token_refused", "this token no longer lets nodes join") from None
    except NodeTakenError:
        raise _TakenError(node) from None
    except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
        raise UnavailableError("database_unavailable", "the database does not answer; try again", 2) from error


def _waiting(engine: sa.Engine, node_id: int) -> list[Command]:
    try:
        with engine.begin() as conn:
            return commands.waiting(conn, node_id, datetime.now(UTC))
    except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
        raise UnavailableError("database_unavailable", "the database does not answer; try again", 2) from error


class _TakenError(ForbiddenError):
    status = 409
    title = "The node has joined before"

    def __init__(self, node: str) -> None:
        super().__init__(
            "node_taken",
            f"node {node!r} has a valid token; revoke it first (`wattledger token list`, `wattledger token revoke ID`)",
        )


ENDPOINTS: Final = (Post("enroll", ENROLL_PATH, enrol, MAX_BODY_BYTES, refusals=(_TakenError,)),)
