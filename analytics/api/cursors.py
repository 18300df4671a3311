"""Cursors: opaque texts that say where the next page begins. What a position means is its endpoint's business."""

from __future__ import annotations

import base64
import binascii

from analytics.api.problems import ApiError


def cursor_of(position: str | int) -> str:
    return base64.urlsafe_b64encode(str(position).encode()).decode().rstrip("=")


def position_of(cursor: str | None) -> str | None:
    """Return where a cursor points, or raise 400 for one that is not ours."""
    if cursor is None:
        return None
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise ApiError(400, "invalid_cursor", "this cursor is not one this API gave; start without it") from None


def id_position(cursor: str | None) -> int | None:
    position = position_of(cursor)
    if position is not None and not (position.isascii() and position.isdigit() and len(position) < 19):
        raise ApiError(400, "invalid_cursor", "this cursor is not one this API gave; start without it")
    return None if position is None else int(position)
