"""What a token may be used for: one table, asked by every route. None includes another.

It names rights and who they may be confined to; it refuses to know tokens, routes or the database.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, Self


class Scope(StrEnum):
    """A right. ``read:tenant`` is another spelling of ``read``, under which rights to read were always stored."""

    AGENT = "agent"
    WRITE = "write"
    READ = "read"
    POLICY = "policy"
    APPROVE = "approve"
    PRICE = "price"
    CLOSE = "close"
    AUDIT = "audit"
    GATE = "gate"
    GATEWAY = "gateway"
    ADMIN = "admin"
    JOIN = "join"

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        return cls("read") if value == "read:tenant" else None


ALLOWS: Final[Mapping[Scope, str]] = {
    Scope.AGENT: "send what one node measured and was told, and fetch its orders; without a node, for all of its site",
    Scope.WRITE: "send traces, metrics, job events, lineage and outcomes of its site",
    Scope.READ: "see bills, budgets, findings, actions and lineage of its tenant subtree (also written read:tenant)",
    Scope.POLICY: "change the budgets of its tenant subtree",
    Scope.APPROVE: "approve and undo actions on its tenant subtree, dispute lines of its bills",
    Scope.PRICE: "change prices, tariffs and factors, which are everybody's",
    Scope.CLOSE: "reopen a month, resolve disputes, see checklists: everybody's",
    Scope.AUDIT: "read the audit, which is about everybody",
    Scope.GATE: "ask for budget verdicts of its tenant subtree",
    Scope.GATEWAY: "reserve and settle spend of its tenant subtree",
    Scope.ADMIN: "make and revoke tokens, set sites and bindings, erase people",
    Scope.JOIN: "let nodes of its site enrol, each of which gets an agent token of its own",
}

OF_A_SITE: Final = frozenset({Scope.AGENT, Scope.JOIN})
"""A token with one of these is bound to a site."""
OF_A_SUBTREE: Final = frozenset({Scope.READ, Scope.POLICY, Scope.APPROVE, Scope.GATE, Scope.GATEWAY})
"""A token with one of these names the tenant subtree it is for."""
OF_EVERYBODY: Final = frozenset({Scope.PRICE, Scope.CLOSE, Scope.AUDIT, Scope.ADMIN})
"""Cannot be confined: a token with one of these names no subtree, or all tenants."""


def known(names: list[str]) -> frozenset[Scope]:
    """Return the scopes among stored names; one of a later version is a right this one cannot give, so it is left out."""
    return frozenset(scope for scope in Scope if scope.value in names)
