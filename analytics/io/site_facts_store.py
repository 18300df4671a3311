"""Stores a file of site facts as dated rows. A changed file supersedes rows, it updates none; only meters it describes.

What the books ask of meters of nodes is dated like all else (``meter_words``). Only hours that a changed fact reaches are closed again.
"""
# ruff: noqa: S608 - the SQL is made of this module's own names; what a file says travels as parameters

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, LiteralString

import psycopg

from analytics.io.meter_words import Span, say
from analytics.io.site_facts import EVER, OVERHEAD_ERROR_PPM, POWER_ERROR_PPM, Fact, SiteFacts, SiteFactsError
from analytics.io.yaml_lines import Fault


@dataclass(frozen=True, slots=True)
class Applied:
    """What a file changed. All zero: it says what was known."""

    added: int
    superseded: int
    meters_described: int


@dataclass(frozen=True, slots=True)
class _Table:
    name: str
    columns: tuple[str, ...]
    row: Callable[[Fact, _Names], tuple[Any, ...]]
    of_site: str = "site_id = %(site_id)s"


def apply(connection: psycopg.Connection[Any], facts: SiteFacts, site: str, now: datetime) -> Applied:
    """Make the file's sections what holds of the site; raise SiteFactsError and change nothing if it names what is not there."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('wattledger.site_facts', 0))")
        names = _Names.of(connection, site)
        described = _meters(connection, facts.sections.get("meters", ()), names, now)
        names = _Names.of(connection, site)
        told = [(table, facts.sections[section]) for section, table in TABLES.items() if section in facts.sections]
        rows = [(table, names.resolved(section, table.row)) for table, section in told]
        if names.faults:
            raise SiteFactsError(tuple(sorted(names.faults)))
        counts = [_replace(connection, table, wanted, names.site_id, now) for table, wanted in rows]
        return Applied(sum(added for added, _ in counts), sum(gone for _, gone in counts), described)


class _Names:
    """Ids of what a file names, and what it names that is not there."""

    def __init__(self, site_id: int, ids: Mapping[str, Mapping[Any, int]]) -> None:
        self.site_id = site_id
        self.faults: list[Fault] = []
        self._ids = ids
        self._line = 0

    @classmethod
    def of(cls, connection: psycopg.Connection[Any], site: str) -> _Names:
        row = connection.execute("SELECT id FROM sites WHERE name = %s", [site]).fetchone()
        if row is None:
            raise SiteFactsError((Fault(1, "site", f"there is no site {site!r}; `wattledger sites list` names them"),))
        site_id = int(row[0])
        queries = {
            "node": "SELECT name, id FROM nodes WHERE site_id = %(site_id)s",
            "device": "SELECT DISTINCT devices.uuid, devices.id FROM devices JOIN placements ON placements.device_id = devices.id "
            "JOIN nodes ON nodes.id = node_id WHERE site_id = %(site_id)s",
            "tenant": "SELECT path, id FROM tenants",
            "meter": "SELECT name, id FROM meters WHERE site_id = %(site_id)s",
            "node meter": "SELECT nodes.name || '/' || meters.name, meters.id FROM meters JOIN nodes ON nodes.id = node_id "
            "WHERE nodes.site_id = %(site_id)s",
        }
        asked = {"site_id": site_id}
        return cls(
            site_id, {kind: dict(connection.execute(query, asked).fetchall()) for kind, query in queries.items()}
        )

    def resolved(self, facts: Iterable[Fact], row: Callable[[Fact, _Names], tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        found = []
        for fact in facts:
            self._line = fact.line
            found.append(row(fact, self))
        return found

    def of_kind(self, kind: str, name: str | None) -> int | None:
        """Return the id of what a fact names, None where it names nothing; what is not there is noted as a fault."""
        if name is None:
            return None
        found = self._ids[kind].get(name)
        if found is None:
            self.faults.append(Fault(self._line, kind, f"there is no {kind} {name!r} at the site"))
        return found

    def meter(self, fact: Fact) -> int | None:
        if fact["node"] is None:
            return self.of_kind("meter", fact["meter"])
        return self.of_kind("node meter", f"{fact['node']}/{fact['meter']}")


def _holds(fact: Fact) -> tuple[datetime, datetime | None]:
    return fact["from"] or EVER, fact["to"]


def _overhead(fact: Fact, names: _Names) -> tuple[Any, ...]:
    error = OVERHEAD_ERROR_PPM if fact["error_percent"] is None else fact["error_percent"]
    return (names.site_id, fact["nodes"], fact["idle_w"], fact["active_percent"] or 0, error, *_holds(fact))


def _shared(fact: Fact, names: _Names) -> tuple[Any, ...]:
    usual = 0 if fact["power_w"] is None else POWER_ERROR_PPM
    error = usual if fact["error_percent"] is None else fact["error_percent"]
    meter = None if fact["meter"] is None else names.meter(fact)
    return (names.site_id, fact["name"], fact["kind"], fact["power_w"], meter, error, *_holds(fact))


def _capacity(fact: Fact, names: _Names) -> tuple[Any, ...]:
    ids = [names.of_kind(kind, fact[kind]) for kind in ("node", "device", "tenant")]
    return (names.site_id, *ids, fact["kind"], *_holds(fact))


def _asset(fact: Fact, names: _Names) -> tuple[Any, ...]:
    ids = [names.of_kind(kind, fact[kind]) for kind in ("node", "device")]
    start, end = fact["from"] or fact["capitalized"], fact["to"] or fact["disposed"]
    return (fact["asset"], *ids, fact["capitalized"], fact["disposed"], start, end)


def _idle(fact: Fact, names: _Names) -> tuple[Any, ...]:
    tenant = names.of_kind("tenant", fact["tenant"])
    return (names.site_id, fact["policy"], fact["basis"], tenant, fact["share_percent"], *_holds(fact))


_DATES: Final = ("valid_from", "valid_to")
TABLES: Final[Mapping[str, _Table]] = {
    "overhead": _Table(
        "overhead_models",
        ("site_id", "node_glob", "idle_mw", "per_accelerator_active_ppm", "error_ppm", *_DATES),
        _overhead,
    ),
    "shared_it": _Table(
        "shared_it", ("site_id", "name", "kind", "power_mw", "meter_id", "error_ppm", *_DATES), _shared
    ),
    "capacity": _Table("capacity_holds", ("site_id", "node_id", "device_id", "tenant_id", "kind", *_DATES), _capacity),
    "assets": _Table(
        "assets",
        ("asset", "node_id", "device_id", "capitalized_at", "disposed_at", *_DATES),
        _asset,
        "(node_id IN (SELECT id FROM nodes WHERE site_id = %(site_id)s) OR device_id IN (SELECT device_id FROM placements "
        "JOIN nodes ON nodes.id = placements.node_id WHERE site_id = %(site_id)s))",
    ),
    "idle": _Table("idle_policies", ("site_id", "policy", "basis", "tenant_id", "fixed_ppm", *_DATES), _idle),
}


def _replace(
    connection: psycopg.Connection[Any], table: _Table, wanted: Sequence[tuple[Any, ...]], site_id: int, now: datetime
) -> tuple[int, int]:
    columns = ", ".join(table.columns)
    asked = {"site_id": site_id}
    query = f"SELECT id, {columns} FROM {table.name} WHERE superseded_at IS NULL AND {table.of_site}"
    known = {tuple(row[1:]): int(row[0]) for row in connection.execute(query.encode(), asked).fetchall()}
    added = [row for row in dict.fromkeys(wanted) if row not in known]
    gone = [row for row in known if row not in set(wanted)]
    connection.execute(
        f"UPDATE {table.name} SET superseded_at = %s WHERE id = ANY (%s)".encode(), [now, [known[row] for row in gone]]
    )
    with connection.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO {table.name} ({columns}, recorded_at) VALUES ({', '.join(['%s'] * (len(table.columns) + 1))})".encode(),
            [(*row, now) for row in added],
        )
    _changed(connection, site_id, table.name, [row[-2:] for row in (*added, *gone)], now)
    return len(added), len(gone)


def _changed(
    connection: psycopg.Connection[Any],
    site_id: int,
    kind: str,
    spans: Sequence[tuple[datetime, datetime | None]],
    now: datetime,
) -> None:
    """Mark the hours that the changed facts reach; an open end means until now, since no later hour is closed."""
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO changes (site_id, from_at, to_at, kind) VALUES (%s, %s, %s, %s)",
            [
                (site_id, start, end or max(now + timedelta(hours=1), start), kind)
                for start, end in dict.fromkeys(spans)
            ],
        )


_DESCRIBED: Final = {"level": "level", "gain_ppm": "error_percent"}
"""What of a meter is for comparing: it is written over, and closes no hour again."""
_WORDS: Final[Mapping[LiteralString, str]] = {"bills": "bills", "covers": "covers", "wrap_mj": "wrap_kwh"}
"""What the books are made with: of meters of nodes it is dated. Those of the site are in no books but by what they were read."""


def _meters(connection: psycopg.Connection[Any], facts: Sequence[Fact], names: _Names, now: datetime) -> int:
    """Describe meters that are known, make those of the site that are not, and hang them where they hang."""
    described, spans = 0, list[Span]()
    for fact in facts:
        names.resolved([fact], lambda *_: ())
        if fact["node"] is None and fact["level"] is not None:
            connection.execute(
                "INSERT INTO meters (site_id, name, level, covers) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
                [names.site_id, fact["meter"], fact["level"], "all" if fact["level"] == "utility" else "it"],
            )
    fresh = _Names.of(connection, _site_name(connection, names.site_id))
    for fact in facts:
        (found,) = fresh.resolved(
            [fact], lambda fact, all_names: (all_names.meter(fact), all_names.of_kind("meter", fact["parent"]))
        )
        meter, parent = found
        if meter is None:
            continue
        of_site = _WORDS if fact["node"] is None else {}
        values = {column: fact[key] for column, key in {**_DESCRIBED, **of_site}.items() if fact[key] is not None}
        if parent is not None:
            values["parent_meter_id"] = parent
        is_new = bool(values) and _described(connection, meter, values)
        for word in _WORDS if fact["node"] is not None else ():
            if fact[_WORDS[word]] is not None:
                told = say(connection, meter, word, fact[_WORDS[word]], _said_for(fact, facts, _WORDS[word]), now)
                is_new |= bool(told)
                spans += told
                if told and _is_a_device(connection, meter):
                    spans.append((EVER, None))
        described += is_new
    names.faults.extend(fresh.faults)
    _no_circle(connection, names)
    if names.faults:
        raise SiteFactsError(tuple(sorted(names.faults)))
    _changed(connection, names.site_id, "meters", spans, now)
    return described


def _described(connection: psycopg.Connection[Any], meter: int, values: Mapping[str, Any]) -> bool:
    differs = " OR ".join(f"{column} IS DISTINCT FROM %({column})s" for column in values)
    sets = ", ".join(f"{column} = %({column})s" for column in values)
    query = f"UPDATE meters SET {sets} WHERE id = %(id)s AND ({differs})"
    return connection.execute(query.encode(), {**values, "id": meter}).rowcount > 0


def _said_for(fact: Fact, facts: Sequence[Fact], key: str) -> Span:
    """Return since when an entry's word holds, and until when: the next entry of the file that says another of the same meter."""
    since = fact["from"] or EVER
    others = (
        other["from"] or EVER
        for other in facts
        if (other["node"], other["meter"]) == (fact["node"], fact["meter"]) and other[key] is not None
    )
    return since, min((at for at in others if at > since), default=None)


def _is_a_device(connection: psycopg.Connection[Any], meter: int) -> bool:
    """Say whether the meter's node is booked as one device: of that all hours go by the word that holds without an end."""
    query = (
        "SELECT FROM meters JOIN placements AS placed ON placed.node_id = meters.node_id AND placed.superseded_at IS NULL "
        "JOIN devices ON devices.id = placed.device_id AND devices.kind = 'node' WHERE meters.id = %s LIMIT 1"
    )
    return connection.execute(query, [meter]).fetchone() is not None


def _no_circle(connection: psycopg.Connection[Any], names: _Names) -> None:
    row = connection.execute(
        "WITH RECURSIVE above AS (SELECT id, parent_meter_id, ARRAY[id] AS way FROM meters WHERE site_id = %s "
        "UNION ALL SELECT above.id, meters.parent_meter_id, way || meters.id FROM above JOIN meters ON meters.id = above.parent_meter_id "
        "WHERE meters.id <> ALL (way)) SELECT meters.name FROM above JOIN meters ON meters.id = above.id "
        "WHERE above.parent_meter_id = above.id LIMIT 1",
        [names.site_id],
    ).fetchone()
    if row is not None:
        names.faults.append(Fault(1, "meters", f"meter {row[0]!r} hangs on itself, or on one that hangs on it"))


def _site_name(connection: psycopg.Connection[Any], site_id: int) -> str:
    row = connection.execute("SELECT name FROM sites WHERE id = %s", [site_id]).fetchone()
    return "" if row is None else str(row[0])
