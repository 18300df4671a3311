"""People's names: replaced by pseudonyms at the door or when they are old, handed out on request, erased on request.

A pseudonym is made by the database under a key of this installation, so one person stays one person on every bill. An erased
name becomes one that nothing can be computed from. Ledger lines name no person: no figure changes. The audit keeps the
act and never the name. What it does not reach: bodies of dead letters, and names inside names (a job called after its owner).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, insert

from ingest.store import audit
from ingest.store.tables import control, metadata

_BLOCK_BYTES: Final = 64
"""Of SHA-256, to which HMAC pads its key (RFC 2104)."""
NAMED: Final = ("jobs", "queue_entries")
TOLD: Final = ("job_reports", "queue_entries", "actions", "decisions", "findings", "outbox", "spans", "lineage_events")
"""Tables whose JSON may name a person."""


@dataclass(frozen=True, slots=True)
class Privacy:
    """``names_kept_days`` None: for ever."""

    pseudonyms: bool = False
    names_kept_days: int | None = None


def read(conn: sa.Connection) -> Privacy:
    """Return the settings in force. Needs the owner, as all here."""
    table = control.privacy_settings
    row = conn.execute(sa.select(table.c.pseudonyms, table.c.names_kept_days)).one_or_none()
    return Privacy() if row is None else Privacy(*row)


def change(conn: sa.Connection, wanted: Privacy, *, actor: str) -> bool:
    """Put settings in force, making the installation's key at the first; say whether anything changed."""
    before = read(conn)
    values = {"pseudonyms": wanted.pseudonyms, "names_kept_days": wanted.names_kept_days}
    key = secrets.token_bytes(32).ljust(_BLOCK_BYTES, b"\0")
    pads = {"inner_pad": bytes(byte ^ 0x36 for byte in key), "outer_pad": bytes(byte ^ 0x5C for byte in key)}
    conn.execute(
        insert(control.privacy_settings)
        .values(id=1, **values, **pads)
        .on_conflict_do_update(index_elements=["id"], set_=values)
    )
    if wanted == before:
        return False
    was = {"pseudonyms": before.pseudonyms, "names_kept_days": before.names_kept_days}
    audit.note(conn, actor, "privacy.set", "privacy", before=was, after=values)
    return True


def pseudonym(conn: sa.Connection, name: str) -> str:
    """Return what a person is called here where names are replaced; the name itself while there is no key."""
    return str(conn.execute(sa.select(sa.func.pseudonym_of(name))).scalar_one())


def export(conn: sa.Connection, name: str) -> dict[str, list[dict[str, Any]]]:
    """Return every row that names a person, by name or by pseudonym, by table."""
    names = _called(conn, name)
    found: dict[str, list[dict[str, Any]]] = {}
    for table in dict.fromkeys((*NAMED, *TOLD)):
        of = metadata.tables[table]
        where: list[sa.ColumnElement[bool]] = [of.c.user_name.in_(names)] if table in NAMED else []
        where += [_mentions(column, names) for column in of.c if isinstance(column.type, JSONB)]
        rows = conn.execute(sa.select(of).where(sa.or_(*where))).mappings()
        kept = [_json(row) for row in rows if table in NAMED or _has(dict(row), names)]
        if kept:
            found[table] = kept
    return found


def erase(conn: sa.Connection, name: str, *, actor: str) -> tuple[str, Mapping[str, int]]:
    """Replace a person's name and pseudonym by one that nobody can compute, in every table; return it and rows by table."""
    names, erased = _called(conn, name), f"erased-{secrets.token_hex(10)}"
    counts: dict[str, int] = {}
    for table in NAMED:
        of = metadata.tables[table]
        done = conn.execute(sa.update(of).where(of.c.user_name.in_(names)).values(user_name=erased)).rowcount
        counts[table] = done
    for table in TOLD:
        of = metadata.tables[table]
        for column in (column for column in of.c if isinstance(column.type, JSONB)):
            place: tuple[sa.ColumnElement[Any], ...] = (
                sa.literal_column("tableoid").label("oid"),
                sa.literal_column("ctid::text").label("place"),
            )
            rows = conn.execute(sa.select(*place, column.label("value")).where(_mentions(column, names))).all()
            for row in rows:
                new = _renamed(row.value, names, erased)
                if new != row.value:
                    here = sa.text("tableoid = :oid AND ctid = CAST(:place AS tid)").bindparams(
                        oid=row.oid, place=row.place
                    )
                    conn.execute(sa.update(of).where(here).values({column.name: new}))
                    counts[table] = counts.get(table, 0) + 1
    counts = {table: count for table, count in counts.items() if count}
    audit.note(conn, actor, "privacy.erase", erased, rows=counts)
    return erased, counts


def _called(conn: sa.Connection, name: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((name, pseudonym(conn, name))))


def _mentions(column: sa.Column[Any], names: tuple[str, ...]) -> sa.ColumnElement[bool]:
    """A first look, which finds too much where a name is a part of something: what is found is looked at again."""
    text = sa.cast(column, sa.Text)
    return sa.or_(*(sa.func.strpos(text, sa.func.to_json(sa.cast(name, sa.Text)).cast(sa.Text)) > 0 for name in names))


def _has(value: Any, names: tuple[str, ...]) -> bool:
    if isinstance(value, Mapping):
        return any(_has(inner, names) for inner in value.values())
    if isinstance(value, list):
        return any(_has(inner, names) for inner in value)
    return value in names if isinstance(value, str) else False


def _renamed(value: Any, names: tuple[str, ...], new: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _renamed(inner, names, new) for key, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(inner, names, new) for inner in value]
    return new if isinstance(value, str) and value in names else value


def _json(row: Mapping[Any, Any]) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, datetime):
            return value.isoformat()
        return value if value is None or isinstance(value, bool | int | float | str | list | dict) else str(value)

    return {str(name): plain(value) for name, value in row.items()}
