"""People's names: replaced by pseudonyms at the door or when they are old, handed out on request, erased on request.

A pseudonym is made by the database under a key of this installation, so one person stays one person on every bill. An erased
name becomes one that nothing can be computed from; no figure changes. The audit keeps the act and never the name. Which
columns may name a person is in :mod:`ingest.store.personal`. What it does not reach: names inside words (a job called
``ada-test``), segments sealed by versions that kept labels of jobs in them, backups.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from ingest.errors import BadBodyError
from ingest.receivers import redact
from ingest.store import audit
from ingest.store.personal import BODIES, OWN_ROWS, PERSONAL, UNIQUE, Kind
from ingest.store.tables import control, lineage, metadata, samples, work

_BLOCK_BYTES: Final = 64
"""Of SHA-256, to which HMAC pads its key (RFC 2104)."""
_LETTERS: Final = 100
"""Dead letters looked into at a time; each is some MB at most."""


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
    """Return every row that names a person, by name or by pseudonym, by table; of dead letters all but the body.

    Beside them the outcomes of calls made under the name, and what the audit has of it.
    """
    names = _called(conn, name)
    found: dict[str, list[dict[str, Any]]] = {}
    for table, columns in PERSONAL.items():
        of = metadata.tables[table]
        rows = conn.execute(sa.select(of).where(_look(of, columns, names))).mappings()
        kept = [_plain(row) for row in rows if any(_holds(kind, row[name], names) for name, kind in columns.items())]
        if table == "outcomes":
            kept += [row for row in _outcomes_of_calls(conn, names) if row not in kept]
        if kept:
            found[table] = kept
    letters = [_plain(row) for row, body in _letters(conn) if _reads(redact.names, body, names)]
    acts = [_plain(row) for row in _acts(conn, names)]
    return found | ({BODIES: letters} if letters else {}) | ({"audit": acts} if acts else {})


def erase(conn: sa.Connection, name: str, *, actor: str) -> tuple[str, Mapping[str, int]]:
    """Replace a person's name and pseudonym by one that nobody can compute, in every table; return it and rows by table."""
    names = _called(conn, name)
    erased, second = (f"erased-{secrets.token_hex(10)}" for _ in range(2))
    counts: dict[str, int] = {}
    for table, columns in PERSONAL.items():
        of = metadata.tables[table]
        news = dict(zip(names, (erased, second if table in UNIQUE else erased), strict=False))
        structured = {name: kind for name, kind in columns.items() if kind in {Kind.JSON, Kind.LIST}}
        texts = {name: kind for name, kind in columns.items() if name not in structured}
        if not structured:
            counts[table] = _replace(conn, of, texts, news)
        elif table in OWN_ROWS and texts:  # what is structured first: whose row it is, the texts say
            _rewrite(conn, of, structured, news)
            counts[table] = _replace(conn, of, texts, news)
        else:
            counts[table] = _rewrite(conn, of, columns, news)
    counts[BODIES] = _blank(conn, names)
    counts = {table: count for table, count in counts.items() if count}
    audit.note(conn, actor, "privacy.erase", erased, rows=counts)
    return erased, counts


def _called(conn: sa.Connection, name: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((name, pseudonym(conn, name))))


def _own(of: sa.Table, names: Sequence[str]) -> list[sa.ColumnElement[bool]]:
    whose = OWN_ROWS.get(of.name)
    return [] if whose is None else [sa.literal_column(whose, sa.Text).in_(names)]


def _look(of: sa.Table, columns: Mapping[str, Kind], names: Sequence[str]) -> sa.ColumnElement[bool]:
    """A first look, which may find too much where a name is a part of something: what is found is looked at again."""
    own = _own(of, names)
    return own[0] if own else sa.or_(*(_mentions(of.c[name], kind, names) for name, kind in columns.items()))


def _mentions(column: sa.Column[Any], kind: Kind, names: Sequence[str]) -> sa.ColumnElement[bool]:
    if kind is Kind.NAME:
        return column.in_(names)
    if kind is Kind.WORDS:
        return sa.or_(*(column.regexp_match(_pattern(name)) for name in names))
    text = sa.cast(column, sa.Text)
    spelt = (json.dumps(name, ensure_ascii=False)[1:-1] if kind is Kind.JSON else name for name in names)
    return sa.or_(*(sa.func.strpos(text, name) > 0 for name in spelt))


def _pattern(name: str) -> str:
    """Return PostgreSQL's regular expression for an entry, or the value of a pair, that is this name."""
    escaped = re.sub(r"([^0-9A-Za-z_])", r"\\\1", name)
    return rf"(^|,)([^=,]*=)?{escaped}(?=,|$)"


def _replace(conn: sa.Connection, of: sa.Table, columns: Mapping[str, Kind], news: Mapping[str, str]) -> int:
    """Replace names that are whole values or entries, in one statement; return how many rows had any."""
    names = tuple(news)
    values: dict[str, Any] = {}
    for name, kind in columns.items():
        new: Any = of.c[name]
        for old, becomes in news.items():
            if kind is Kind.NAME:
                new = sa.case((of.c[name] == old, becomes), else_=new)
            else:
                new = sa.func.regexp_replace(new, _pattern(old), rf"\1\2{becomes}", "g")
        values[name] = new
    if "line_key" in of.c:  # a line's key spells the columns it is made of
        values["line_key"] = sa.func.replace(
            of.c.line_key,
            sa.literal("|api:").concat(of.c.api_key).concat("|"),
            sa.literal("|api:").concat(values["api_key"]).concat("|"),
        )
    where = [sa.or_(*(_mentions(of.c[name], kind, names) for name, kind in columns.items())), *_own(of, names)]
    return conn.execute(sa.update(of).where(*where).values(values)).rowcount


def _rewrite(conn: sa.Connection, of: sa.Table, columns: Mapping[str, Kind], news: Mapping[str, str]) -> int:
    """Replace names inside JSON, arrays and what is beside them, row by row along the key; return how many rows had any."""
    key = _key(of)
    look = _look(of, columns, tuple(news))
    changed = 0
    found = sa.select(*key, *(of.c[name].label(f"_{name}") for name in columns)).where(look)
    # Locked: what is written below is made of what is read here, and nobody else's writing may come in between.
    for row in conn.execute(found.with_for_update(of=of)).all():
        told = dict(zip(columns, row[len(key) :], strict=True))
        if of.name in OWN_ROWS:  # what a scheduler says of the job, by field: an account of that name is no person
            new = {name: value | _renamed(_of_people(value), news) for name, value in told.items()}
        else:
            new = {name: _renamed(value, news) for name, value in told.items()}
        values = {name: value for name, value in new.items() if value != told[name]}
        if values:
            here = [part == value for part, value in zip(key, row[: len(key)], strict=True)]
            changed += conn.execute(sa.update(of).where(*here).values(values)).rowcount
    return changed


def _of_people(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {field: value for field, value in facts.items() if field in PERSONAL["jobs"]}


def _key(of: sa.Table) -> list[sa.Column[Any]]:
    unique = (entry for entry in of.constraints if isinstance(entry, sa.UniqueConstraint))
    return list(of.primary_key.columns) or list(next(unique).columns)


def _letters(conn: sa.Connection) -> Iterator[tuple[Mapping[Any, Any], bytes]]:
    letters = samples.dead_letters
    size = sa.func.octet_length(letters.c.body).label("body_bytes")
    query = sa.select(*(column for column in letters.c if column.name != "body"), size, letters.c.body)
    last = 0
    while (
        rows := conn.execute(query.where(letters.c.id > last).order_by(letters.c.id).limit(_LETTERS)).mappings().all()
    ):
        for row in rows:
            yield {name: value for name, value in row.items() if name != "body"}, bytes(row["body"])
        last = rows[-1]["id"]


def _blank(conn: sa.Connection, names: Sequence[str]) -> int:
    letters = samples.dead_letters
    done = 0
    for head, body in _letters(conn):
        new = _reads(redact.blanked, body, names)
        if new:
            conn.execute(sa.update(letters).where(letters.c.id == head["id"]).values(body=new))
            done += 1
    return done


def _reads(look: Any, body: bytes, names: Sequence[str]) -> Any:
    """Look into a body; one that no reader of ours can read was never kept by one, and names nobody here."""
    try:
        return look(body, names)
    except BadBodyError:
        return None


def _outcomes_of_calls(conn: sa.Connection, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    calls, outcomes = work.api_calls, lineage.outcomes
    made = (
        sa.select(calls.c.response_id, calls.c.trace_id, calls.c.span_id).where(calls.c.api_key.in_(names)).subquery()
    )
    query = sa.select(outcomes).where(
        outcomes.c.response_id.in_(sa.select(made.c.response_id))
        | sa.tuple_(outcomes.c.trace_id, outcomes.c.span_id).in_(sa.select(made.c.trace_id, made.c.span_id))
    )
    yield from (_plain(row) for row in conn.execute(query).mappings())


def _acts(conn: sa.Connection, names: Sequence[str]) -> Iterator[Mapping[Any, Any]]:
    acts = control.audit
    actors = [spelt for name in names for spelt in (name, f"{name} (command line)")]
    look = sa.or_(acts.c.actor.in_(actors), _mentions(acts.c.detail, Kind.JSON, names))
    for row in conn.execute(sa.select(acts).where(look).order_by(acts.c.id)).mappings():
        if row["actor"] in actors or _holds(Kind.JSON, row["detail"], names):
            yield row


def _holds(kind: Kind, value: Any, names: Sequence[str]) -> bool:
    if isinstance(value, Mapping):
        return any(_holds(kind, inner, names) for inner in value.values())
    if isinstance(value, list):
        return any(_holds(kind, inner, names) for inner in value)
    if not isinstance(value, str):
        return False
    return value in names or (kind is not Kind.NAME and _renamed(value, dict.fromkeys(names, "")) != value)


def _renamed(value: Any, news: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _renamed(inner, news) for key, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(inner, news) for inner in value]
    if not isinstance(value, str):
        return value
    if value in news:
        return news[value]
    return ",".join(_entry(entry, news) for entry in value.split(","))


def _entry(entry: str, news: Mapping[str, str]) -> str:
    key, equals, word = entry.partition("=")
    return f"{key}={news[word]}" if equals and word in news else news.get(entry, entry)


def _plain(row: Mapping[Any, Any]) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, datetime):
            return value.isoformat()
        return value if value is None or isinstance(value, bool | int | float | str | list | dict) else str(value)

    return {str(name): plain(value) for name, value in row.items()}
