"""The document of a closed month: what it came to, the head of every hour's chain, and a root over all of it that can be signed.

Pure of any database: an auditor who has the file and a public key needs nothing else to see that it is whole. Where an hour's lines are not
what they were, the head beside its name in this file says so, whatever was made anew in the database.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from analytics.errors import CloseError
from analytics.io.signing import Signed, holds, key_id
from analytics.model.chain import follow, instant_text, start_of, told

FORMAT: Final = "wattledger/close/1"
ALL_SITES: Final = "*"


@dataclass(frozen=True, slots=True)
class Entry:
    """One link of a month: an hour of it, or what one run posted in it for an hour of a closed month (``reason`` set)."""

    site: str
    hour_at: datetime
    lines: int
    head: bytes
    reason: str | None = None

    def text(self) -> str:
        at = {"site": self.site, "hour": instant_text(self.hour_at), "lines": str(self.lines), "head": self.head.hex()}
        return told(**at) if self.reason is None else told(corrects=at["site"], **at, reason=self.reason)


def links_of(head: Mapping[str, Any], entries: list[Entry]) -> list[bytes]:
    """Return the link of each entry and, last, the root, which covers the document's figures too.

    ``head``: ``period`` (name, site, number, from, to), ``totals``, ``checklist`` and ``moved``, as in the document.
    """
    period = head["period"]
    start = start_of(FORMAT, period["name"], period["site"], period["number"], period["from"], period["to"])
    figures = {name: _exact(head[name]) for name in ("totals", "checklist", "moved")}
    return follow(start, [*(entry.text() for entry in entries), told(**figures)])


def message_of(period: Mapping[str, Any], root: str) -> bytes:
    """Return the bytes that are signed."""
    return "\n".join((FORMAT, period["name"], period["site"], str(period["number"]), root, "")).encode()


def document(head: Mapping[str, Any], entries: list[Entry], root: bytes, signed: Signed | None) -> dict[str, Any]:
    """Return the document as JSON keeps it."""
    return {
        "format": FORMAT,
        **head,
        "hours": [
            [each.site, instant_text(each.hour_at), each.lines, each.head.hex()]
            for each in entries
            if each.reason is None
        ],
        "corrections": [
            [each.site, instant_text(each.hour_at), each.lines, each.head.hex(), each.reason]
            for each in entries
            if each.reason is not None
        ],
        "root_sha256": root.hex(),
        "signature": None if signed is None else base64.b64encode(signed.signature).decode(),
        "key_id": None if signed is None else signed.key_id,
        "public_key": None if signed is None else signed.public_pem,
    }


def parsed(text: str, called: str) -> dict[str, Any]:
    """Return a document that was read from a file; raises CloseError for what is none."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise CloseError(f"{called} is no document of a closed month ({FORMAT}); `wattledger close` wrote it")
    missing = [
        name
        for name in ("period", "totals", "checklist", "moved", "hours", "corrections", "root_sha256")
        if name not in found
    ]
    if missing:
        raise CloseError(f"{called} lacks {', '.join(missing)}")
    return found


def entries_of(found: Mapping[str, Any]) -> list[Entry]:
    return [
        *(
            Entry(site, datetime.fromisoformat(at), lines, bytes.fromhex(head))
            for site, at, lines, head in found["hours"]
        ),
        *(
            Entry(site, datetime.fromisoformat(at), lines, bytes.fromhex(head), reason)
            for site, at, lines, head, reason in found["corrections"]
        ),
    ]


def faults(found: Mapping[str, Any], key: Ed25519PublicKey | None) -> list[str]:
    """Return what is wrong with a document by itself: its root, and its signature by this key. Empty: nothing."""
    wrong = []
    try:
        root = links_of(found, entries_of(found))[-1].hex()
    except (TypeError, ValueError, KeyError):
        return ["its hours and figures are not of the form of a document"]
    if root != found["root_sha256"]:
        wrong.append(f"its hours and figures lead to the root {root}, it says {found['root_sha256']}")
    if key is None:
        return wrong
    if found.get("signature") is None:
        return [*wrong, "it is not signed"]
    if not holds(key, base64.b64decode(found["signature"]), message_of(found["period"], found["root_sha256"])):
        wrong.append(f"its signature (key {found.get('key_id')}) is not by the key {key_id(key)}")
    return wrong


def _exact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
