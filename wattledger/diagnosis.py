"""What `wattledger doctor` thinks of what it found: facts in, checks out. Pure: no clock, disk, network or database.

A check that is not fine says what to do. Refuses to call anything fine that could not be looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import Final

from analytics.io.fleet import NodeStatus
from analytics.io.health import LayoutFacts, LeaseFacts, LedgerFacts, Mapped, ServerFacts, SiteRates
from analytics.io.segments import SegmentFacts
from analytics.model.hostlist import fold
from wattledger.standing import ChildStatus, Status

GIB: Final = 1 << 30
FREE_BROKEN_BYTES: Final = GIB // 2
"""Below this PostgreSQL is about to stop: one WAL segment group and one hour of 1,000 GPUs do not fit."""
FREE_WARNING_BYTES: Final = 5 * GIB
LEASE_WARNING_S: Final = 60.0
"""Twice the lease's life: somebody else should have taken it by then."""
CLOCK_WARNING_S: Final = 2.0
CLOCK_BROKEN_S: Final = 60.0
"""Hours close by the server's clock and skew is measured by ours: a minute apart they contradict each other."""
UNMAPPED_WARNING_RATIO: Final = 0.05
OVERDUE_AFTER: Final = timedelta(minutes=25)
"""15 minutes of lateness allowance, and ten for the worker to get to it."""
API_ROLE: Final = "wattledger_api"
_COMMANDS_NAMED: Final = 3


class Verdict(StrEnum):
    """How a check came out, best first."""

    FINE = "fine"
    NOTE = "note"
    WARNING = "warning"
    BROKEN = "broken"
    UNANSWERED = "unanswered"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; what is not fine carries a remedy."""

    subject: str
    verdict: Verdict
    found: str
    remedy: str | None = None

    def __post_init__(self) -> None:
        if self.verdict in {Verdict.WARNING, Verdict.BROKEN, Verdict.UNANSWERED} and not self.remedy:
            raise ValueError(f"check {self.subject!r} is {self.verdict} and says not what to do: {self.found}")


def exit_code(checks: Iterable[Check]) -> int:
    """Return 1 when something is broken, else 2 when something could not be looked at, else 0; warnings are allowed."""
    verdicts = {check.verdict for check in checks}
    if Verdict.BROKEN in verdicts:
        return 1
    return 2 if Verdict.UNANSWERED in verdicts else 0


def fine(subject: str, found: str) -> Check:
    return Check(subject, Verdict.FINE, found)


def note(subject: str, found: str, remedy: str | None = None) -> Check:
    return Check(subject, Verdict.NOTE, found, remedy)


def warning(subject: str, found: str, remedy: str) -> Check:
    return Check(subject, Verdict.WARNING, found, remedy)


def broken(subject: str, found: str, remedy: str) -> Check:
    return Check(subject, Verdict.BROKEN, found, remedy)


def unanswered(subject: str, found: str, remedy: str) -> Check:
    return Check(subject, Verdict.UNANSWERED, found, remedy)


def check_packages(python: str, versions: Mapping[str, str], faults: Iterable[str]) -> Check:
    """``faults``: requirements of ours that are missing or of another version than asked for."""
    subject = "Python and packages"
    wrong = sorted(faults)
    if wrong:
        return broken(subject, "; ".join(wrong), "install Wattledger again into this environment")
    return fine(subject, ", ".join([f"Python {python}", *(f"{name} {version}" for name, version in versions.items())]))


def check_disk(folder: str, free_bytes: int) -> Check:
    subject = "disk space"
    found = f"{free_bytes / GIB:,.1f} GiB free for {folder}"
    remedy = "free some space or move the home (`--home`) to a larger disk"
    if free_bytes < FREE_BROKEN_BYTES:
        return broken(subject, found, f"{remedy}; PostgreSQL stops when it is full")
    return warning(subject, found, remedy) if free_bytes < FREE_WARNING_BYTES else fine(subject, found)


def check_processes(status: Status, *, is_external: bool) -> list[Check]:
    """``is_external``: the database is named by URL, so the processes may be run by systemd or Kubernetes as well."""
    if not status.is_up:
        found = "no `wattledger up` runs on this home"
        if is_external:
            return [note("supervisor", f"{found}; whoever runs the processes looks after them")]
        return [broken("supervisor", found, "run `wattledger up`")]
    supervisor = fine("supervisor", f"pid {status.supervisor_pid}")
    return [supervisor, *(_check_child(child) for child in status.children)]


def _check_child(child: ChildStatus) -> Check:
    if child.is_alive:
        return fine(child.name, f"pid {child.pid}")
    remedy = f"it is restarted within seconds; if not, see {child.log}"
    return broken(child.name, f"pid {child.pid} is gone", remedy)


def check_server(facts: ServerFacts, oldest_major: int) -> list[Check]:
    major = int(facts.version.partition(".")[0])
    if major < oldest_major:
        server = broken("PostgreSQL", f"version {facts.version}", f"use PostgreSQL {oldest_major} or newer")
    else:
        server = fine("PostgreSQL", f"answers, version {facts.version}")
    return [server, check_clock(facts.clock_ahead_s)]


def check_clock(ahead_s: float) -> Check:
    """``ahead_s``: the database server's clock minus this machine's."""
    found = f"the database server's is {abs(ahead_s):.3f} s {'ahead of' if ahead_s >= 0 else 'behind'} this machine's"
    remedy = "synchronise both clocks (NTP or chrony)"
    if abs(ahead_s) >= CLOCK_BROKEN_S:
        return broken("clock", found, remedy)
    return warning("clock", found, remedy) if abs(ahead_s) >= CLOCK_WARNING_S else fine("clock", found)


def check_roles(facts: ServerFacts, wanted: Iterable[str], unguarded_tables: Iterable[str]) -> Check:
    """The api role must be subject to row-level security, or tenants see each other's bills."""
    subject = "roles and row-level security"
    missing = sorted(set(wanted) - facts.roles.keys())
    if missing:
        return broken(subject, f"missing: {', '.join(missing)}", "run `wattledger migrate`")
    api = facts.roles[API_ROLE]
    faults = {
        "is a superuser": api.is_superuser,
        "bypasses row-level security": api.bypasses_rls,
        "owns tables": api.owns_tables,
    }
    wrong = [text for text, is_so in faults.items() if is_so]
    if wrong:
        remedy = f"ALTER ROLE {API_ROLE} NOSUPERUSER NOBYPASSRLS, and give its tables to wattledger_owner"
        return broken(subject, f"{API_ROLE} {' and '.join(wrong)}: tenants can see each other's rows", remedy)
    open_tables = list(unguarded_tables)
    if open_tables:
        return broken(
            subject,
            f"not forced on {', '.join(open_tables)}: tenants can see each other's rows",
            "ALTER TABLE … FORCE ROW LEVEL SECURITY on each, and find out who switched it off",
        )
    if facts.owning_logins:
        return warning(
            subject,
            f"services log in as {', '.join(facts.owning_logins)}, which may become wattledger_owner: what makes one of them run SQL "
            "of others may read tokens and change the audit",
            "give `serve` and the worker logins of their own (docs/databases.md)",
        )
    return fine(subject, f"{len(facts.roles)} roles; {API_ROLE} is bound by row policies")


def check_schema(current: str | None, behind: tuple[str, ...]) -> Check:
    if behind:
        return broken(
            "schema",
            f"at {current or 'nothing'}, {len(behind)} migrations behind ({behind[0]} next)",
            "run `wattledger migrate`",
        )
    return fine("schema", f"{current}, this version's")


def check_layout(layout: LayoutFacts) -> Check:
    """The layout is recorded once and never changed in place."""
    subject = "layout"
    if layout.recorded != layout.found:
        found = f"recorded is {layout.recorded}, the tables are {layout.found}"
        return broken(
            subject, found, "restore the dump into an empty database that was migrated with the same --layout"
        )
    if layout.found == "native":
        return fine(subject, f"daily partitions of PostgreSQL ({layout.reason})")
    licence = layout.timescale_licence or "unknown"
    tables = layout.columnstore_tables
    columns = f"columnstore for older days of {tables} tables" if tables else "no columnstore"
    return fine(subject, f"hypertables of TimescaleDB {layout.timescale_version}, licence {licence}: {columns}")


def check_partitions(last_partition: Mapping[str, date | None], today: date) -> Check:
    """A table without tomorrow's partition still takes rows (the writer makes it), but more slowly at midnight."""
    subject = "partitions"
    tomorrow = today + timedelta(days=1)
    short = [name for name, last in last_partition.items() if last is None or last < tomorrow]
    if short:
        return warning(
            subject,
            f"not made ahead to {tomorrow}: {', '.join(short)}",
            "the worker makes them; see that one is running",
        )
    return fine(subject, f"made ahead to {min(last for last in last_partition.values() if last is not None)}")


def check_lease(lease: LeaseFacts | None) -> Check:
    remedy = "start one with `wattledger up` or `wattledger worker`"
    if lease is None:
        return broken("worker's lease", "no worker has ever worked on this database", remedy)
    if lease.holder is None:
        return broken("worker's lease", f"given back {lease.silent_s:,.0f} s ago: no worker is running", remedy)
    found = f"held by {lease.holder}, renewed {lease.silent_s:,.0f} s ago"
    if lease.silent_s > LEASE_WARNING_S:
        return broken("worker's lease", f"{found}: the worker is gone or stuck", f"{remedy}; its log says why")
    return fine("worker's lease", found)


def check_hours(facts: LedgerFacts, now: datetime) -> Check:
    subject = "ledger hours"
    if facts.oldest_overdue_at is not None:
        found = f"{facts.overdue_hours} waiting to be closed, the oldest of {_hour(facts.oldest_overdue_at)}"
        return warning(
            subject, found, "wait while history loads; else see the worker's log for hours that do not balance"
        )
    if not facts.last_closed_at:
        return note(subject, "none closed yet; an hour closes 15 minutes after its end")
    lags = (
        f"{site} closed to {_hour(at + timedelta(hours=1))} ({_ago(now - at - timedelta(hours=1))} ago)"
        for site, at in facts.last_closed_at.items()
    )
    return fine(subject, "; ".join(lags))


def check_segments(facts: SegmentFacts) -> Check:
    """A damaged file is a hole in what a past bill can be computed from; until it is closed the hour cannot be restated."""
    subject = "sealed hours"
    if facts.damaged_files:
        return broken(
            subject,
            f"{facts.damaged_files} files are missing or damaged, {facts.first_damaged} first",
            "`wattledger segments rebuild` makes them anew while their rows are hot; else restore them from a backup",
        )
    if facts.last_hour_at is None:
        return note(subject, "none yet; an hour is sealed three hours after its end")
    return fine(
        subject, f"{facts.sealed_hours:,} to {_hour(facts.last_hour_at)}, {facts.size_bytes / GIB:,.3f} GiB in segments"
    )


def check_intake(facts: LedgerFacts, now: datetime) -> list[Check]:
    """Bodies that wait for a person, and rows that were refused."""
    letters = sum(waiting.letters for waiting in facts.waiting)
    if letters:
        reasons = ", ".join(f"{waiting.letters} {waiting.reason}" for waiting in facts.waiting)
        oldest = _ago(now - min(waiting.oldest_at for waiting in facts.waiting))
        waiting = warning(
            "dead letters",
            f"{letters} bodies wait, the oldest for {oldest}: {reasons}",
            "look with `wattledger deadletter list`, send again with `deadletter replay`; a clock off by minutes is the usual reason",
        )
    else:
        waiting = fine("dead letters", "none")
    rejected = sum(facts.rejected_rows.values())
    if rejected:
        reasons = ", ".join(f"{rows:,} {reason}" for reason, rows in list(facts.rejected_rows.items())[:5])
        rows = warning(
            "rejected rows",
            f"{rejected:,} today: {reasons}",
            "the reason names the column; look at the node that sends it",
        )
    else:
        rows = fine("rejected rows", "none today")
    return [waiting, rows]


def check_agents(nodes: Iterable[NodeStatus]) -> Check:
    """Judge who of the fleet reports; nodes gone for over a week are history."""
    subject, see = (
        "agents",
        "`wattledger fleet status` names versions and states; look at the agent's service on those nodes",
    )
    by_state: dict[str, list[str]] = {}
    for node in nodes:
        by_state.setdefault(node.state, []).append(node.node)
    missing = [
        f"{len(by_state[state])} {words}: {fold(by_state[state])}"
        for state, words in (("silent", "silent"), ("no_agent", "used by the scheduler without an agent"))
        if by_state.get(state)
    ]
    heard = len(by_state.get("reporting", ())) + len(by_state.get("late", ()))
    if missing:
        return warning(subject, f"{heard} report; {'; '.join(missing)}", see)
    if not heard:
        return note(subject, "none has reported in the last week", "`wattledger token create --scope agent` lets one")
    return fine(subject, f"{heard} report")


def check_rates(
    sites: Iterable[SiteRates],
    unpriced_models: Iterable[str],
    mapped: Iterable[Mapped],
    other_currencies: Iterable[str] = (),
) -> list[Check]:
    """What has no price stays unpriced in the books; it never becomes 0."""
    known = list(sites)
    gaps = {site.site: lacks for site in known if (lacks := _lacking(site))}
    commands = list(dict.fromkeys(command for lacks in gaps.values() for _, command in lacks))
    more = f" and {len(commands) - _COMMANDS_NAMED} more" if len(commands) > _COMMANDS_NAMED else ""
    checks = [
        warning(
            "tariffs and intensity",
            "; ".join(f"{site}: {', '.join(what for what, _ in lacks)}" for site, lacks in gaps.items()),
            ", ".join(f"`{command}`" for command in commands[:_COMMANDS_NAMED]) + more,
        )
        if gaps
        else fine("tariffs and intensity", "every site has them" if known else "no site yet that would need them")
    ]
    checks.append(_check_prices(list(unpriced_models), list(mapped), list(other_currencies)))
    on_utc = [site.site for site in known if site.time_zone == "UTC"]
    if on_utc:
        # What a new site begins with, so nobody may have chosen it; tariffs and days of a budget go by it.
        found = f"{', '.join(on_utc)}: UTC, as every new site"
        checks.append(
            note("time zones", found, f"`wattledger sites set {on_utc[0]} --time-zone ZONE`, if it stands elsewhere")
        )
    return checks


def _lacking(site: SiteRates) -> list[tuple[str, str]]:
    """Return what a site lacks for a whole bill, each with the command that gives it."""
    lacks = []
    if not site.has_tariff:
        lacks.append(("no tariff", f"wattledger import tariffs FILE --site {site.site}"))
    if site.grid_zone is None:
        lacks.append(("no grid zone, so no carbon", f"wattledger sites set {site.site} --grid-zone ZONE"))
    elif not site.has_intensity:
        found = f"no carbon intensity for zone {site.grid_zone} now"
        lacks.append((found, f"wattledger import intensity FILE --zone {site.grid_zone}"))
    if not site.has_facility_factor:
        factor = f"wattledger import facility-factors FILE --site {site.site}"
        lacks.append(("no facility factor, so IT energy only", factor))
    return lacks


def _check_prices(models: list[str], mapped: list[Mapped], other_currencies: list[str]) -> Check:
    """Only a price that somebody can load is a warning; a call that told no usage has nothing to price."""
    lines = sum(pool.unpriced_lines for pool in mapped)
    faults = [f"no rate for {', '.join(models)}"] if models else []
    if lines:
        faults.append(f"{lines:,} ledger {'line' if lines == 1 else 'lines'} of the last day without a price")
    if other_currencies:
        faults.append(f"prices or tariffs in {', '.join(other_currencies)}, which is not the currency of the books")
    if faults:
        return warning("prices", "; ".join(faults), "load them with `wattledger import prices`")
    calls = sum(pool.usage_unknown_calls for pool in mapped)
    silent = f"; {calls:,} API {'call' if calls == 1 else 'calls'} of the last day told no usage to price"
    return fine("prices", f"everything in use has one{silent if calls else ''}")


def check_mapping(mapped: Iterable[Mapped]) -> Check:
    subject = "mapping to tenants"
    names = {"job": "of job time", "api": "of API tokens"}
    shares = {names[pool.pool]: pool.unmapped / pool.total for pool in mapped if pool.total}
    if not shares:
        return note(subject, "no jobs or API calls in the last day")
    found = ", ".join(f"{100 * share:.1f} % {what} unmapped" for what, share in sorted(shares.items()))
    if max(shares.values()) > UNMAPPED_WARNING_RATIO:
        return warning(subject, found, "see `wattledger tenants unmapped --top 20` and add bindings")
    return fine(subject, found)


def _hour(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M}Z"


def _ago(span: timedelta) -> str:
    minutes = max(0, int(span.total_seconds() // 60))
    days, rest = divmod(minutes, 24 * 60)
    hours, minutes = divmod(rest, 60)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
