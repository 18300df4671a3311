"""What is said of the meters of nodes: whether they bill, what they cover, where they begin anew. Dated twice, one word a row.

A word takes the place of what was known for its own time only; where nothing is said, the meter's own row holds. It closes no hour.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, LiteralString

import psycopg

WORDS: Final[tuple[LiteralString, ...]] = ("bills", "covers", "wrap_mj")
_NEVER: Final = datetime(9999, 12, 31, tzinfo=UTC)
Span = tuple[datetime, datetime | None]


def said(word: LiteralString, at: LiteralString = "'infinity'::timestamptz") -> LiteralString:
    """Return the SQL of a word of ``meters`` as it is known now: what holds until ``at``, usually without an end."""
    return _SAID.replace("{word}", word).replace("{at}", at)


_SAID: Final = """coalesce((SELECT said.{word} FROM meter_words AS said WHERE said.meter_id = meters.id AND said.{word} IS NOT NULL
    AND said.superseded_at IS NULL AND said.valid_from < {at} AND (said.valid_to IS NULL OR said.valid_to >= {at})), meters.{word})"""


@dataclass(frozen=True, slots=True)
class _Known:
    id: int
    from_at: datetime
    to_at: datetime
    value: Any


def say(
    connection: psycopg.Connection[Any], meter_id: int, word: LiteralString, value: Any, holds: Span, now: datetime
) -> list[Span]:
    """Have a word hold in its time; return the spans in which something else was known, none: nothing changed.

    In the caller's transaction, which lets nobody else speak of the meter meanwhile.
    """
    start, end = holds[0], holds[1] or _NEVER
    query = f"SELECT id, valid_from, valid_to, {word} FROM meter_words WHERE meter_id = %s AND {word} IS NOT NULL AND superseded_at IS NULL"  # noqa: S608 (constants)
    rows = connection.execute(query, [meter_id]).fetchall()
    known = sorted((_Known(row[0], row[1], row[2] or _NEVER, row[3]) for row in rows), key=lambda each: each.from_at)
    ((base,),) = connection.execute(f"SELECT {word} FROM meters WHERE id = %s", [meter_id]).fetchall()  # noqa: S608
    over = [each for each in known if each.from_at < end and each.to_at > start]
    pieces, at = list[tuple[datetime, datetime, Any]](), start
    for each in over:
        pieces += [(at, each.from_at, base), (max(at, each.from_at), min(each.to_at, end), each.value)]
        at = min(each.to_at, end)
    pieces.append((at, end, base))
    differs = [(low, high) for low, high, was in pieces if low < high and was != value]
    if not differs:
        return []
    connection.execute(
        "UPDATE meter_words SET superseded_at = %s WHERE id = ANY (%s)", [now, [each.id for each in over]]
    )
    stays = [(each.from_at, start, each.value) for each in over if each.from_at < start]
    stays += [(end, each.to_at, each.value) for each in over if each.to_at > end]
    with connection.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO meter_words (meter_id, {word}, valid_from, valid_to, recorded_at) VALUES (%s, %s, %s, %s, %s)",  # noqa: S608
            [(meter_id, what, low, _open(high), now) for low, high, what in (*stays, (start, end, value))],
        )
    return [(low, _open(high)) for low, high in differs]


def _open(at: datetime) -> datetime | None:
    return None if at == _NEVER else at
