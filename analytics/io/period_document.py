"""The document of a closed month: what it came to, the head of every hour's chain, and a root over all of it that can be signed.

Pure of any database: an auditor who has the file and a public key needs nothing else to see that it is whole. Where an hour's lines are not
what they were, the head beside its name in this file says so, whatever was made anew in the database.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from analytics.errors import CloseError
from analytics.io.signing import Signed, holds, key_id
from analytics.model.chain import follow, instant_text, start_of, told

FORMAT: Final = "wattledger/close/2"
ALL_SITES: Final = "*"
MOVED_TOLD: Final = 1_000
"""Lines that a document tells of those that moved; all of them are under the root, and in a file of their own (:func:`moved_link`)."""
_FIGURES: Final = ("closed_by", "closed_at", "apart", "totals", "checklist")
_PARTS: Final = {
    "period": dict,
    "closed_by": str,
    "closed_at": str,
    "apart": list,
    "totals": dict,
    "checklist": list,
    "moved": dict,
    "hours": list,
    "corrections": list,
    "root_sha256": str,
}
_PERIOD: Final = {"name": str, "site": str, "number": int, "from": str, "to": str}


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
    """Return the link of each entry and, last, the root, which covers the document's figures too, who closed it and when.

    ``head``: what the document says before its hours. Of ``moved`` the count and the last link are under the root, and so each of its lines.
    """
    period, moved = head["period"], head["moved"]
    start = start_of(FORMAT, period["name"], period["site"], period["number"], period["from"], period["to"])
    figures = {name: _exact(head[name]) for name in _FIGURES}
    return follow(
        start, [*(entry.text() for entry in entries), told(**figures, moved=_exact([moved["lines"], moved["sha256"]]))]
    )


def moved_start(name: str, site: str | None, number: int) -> bytes:
    """Return the beginning of the chain of what moved since a month was closed before."""
    return start_of("wattledger/moved/1", name, site or ALL_SITES, number)


def moved_link(before: bytes, texts: Iterable[str]) -> tuple[bytes, int]:
    """Return the last link and the count of lines that moved, each as :func:`moved_text` has it; however many, one is held at a time."""
    count = 0
    for text in texts:
        (before,) = follow(before, [text])
        count += 1
    return before, count


def moved_text(row: Mapping[str, Any]) -> str:
    """Return a line that moved as it is chained, and written to a file line by line."""
    return _exact(row)


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


def checked(found: Mapping[str, Any], called: str) -> Mapping[str, Any]:
    """Return a document that has the form of one; raises CloseError naming the first part that has not."""
    missing = [name for name in _PARTS if name not in found]
    if missing:
        raise CloseError(f"{called} lacks {', '.join(missing)}")
    for of, parts, told_as in ((found, _PARTS, ""), (found["period"], _PERIOD, "period.")):
        for name, kind in parts.items():
            if not isinstance(of, dict) or not isinstance(of.get(name), kind):
                raise CloseError(f"{called}: {told_as}{name} is not of the form of a document ({FORMAT}); is it whole?")
    moved = found["moved"]
    if not isinstance(moved.get("lines"), int) or not isinstance(moved.get("told"), list):
        raise CloseError(f"{called}: moved is not of the form of a document ({FORMAT}); is it whole?")
    for name, size in (("hours", 4), ("corrections", 5)):
        for place, row in enumerate(found[name], start=1):
            if not _is_entry(row, size):
                raise CloseError(f"{called}: {name}, entry {place}, is not of the form of a document; is it whole?")
    try:
        base64.b64decode(found.get("signature") or "", validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise CloseError(f"{called}: its signature is no base64; is it whole?") from None
    return found


def _is_entry(row: Any, size: int) -> bool:
    try:
        site, at, lines, head, *reason = row
        return (
            len(row) == size
            and datetime.fromisoformat(at).tzinfo is not None
            and isinstance(lines, int)
            and len(bytes.fromhex(head)) > 0
            and all(isinstance(word, str) for word in (site, *reason))
        )
    except (TypeError, ValueError):
        return False


def parsed(text: str, called: str) -> dict[str, Any]:
    """Return a document that was read from a file; raises CloseError for what is none."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise CloseError(f"{called} is no document of a closed month ({FORMAT}); `wattledger close` wrote it")
    checked(found, called)
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
    """Return what is wrong with a document (:func:`checked`) by itself: its root, and its signature by this key. Empty: nothing."""
    wrong = []
    root = links_of(found, entries_of(found))[-1].hex()
    if root != found["root_sha256"]:
        wrong.append(f"its hours and figures lead to the root {root}, it says {found['root_sha256']}")
    period, moved = found["period"], found["moved"]
    if moved["lines"] == len(moved["told"]):
        start = moved_start(period["name"], period["site"], period["number"])
        link, _ = moved_link(start, map(moved_text, moved["told"]))
        if moved["sha256"] != (link.hex() if period["number"] > 1 else None):
            wrong.append("the lines that it says moved are not those under its root")
    elif len(moved["told"]) != MOVED_TOLD or moved["lines"] < MOVED_TOLD:
        wrong.append(f"it tells {len(moved['told'])} of {moved['lines']} lines that moved")
    if key is None:
        return wrong
    if found.get("signature") is None:
        return [*wrong, "it is not signed"]
    if not holds(key, base64.b64decode(found["signature"]), message_of(found["period"], found["root_sha256"])):
        wrong.append(f"its signature (key {found.get('key_id')}) is not by the key {key_id(key)}")
    return wrong


def _exact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
