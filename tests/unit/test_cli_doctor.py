"""What the doctor says of facts: the verdict, the words, and always what to do."""

from dataclasses import fields
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from analytics.io.fleet import NodeStatus
from analytics.io.health import LayoutFacts, LeaseFacts, LedgerFacts, Mapped, RoleFacts, ServerFacts, SiteRates, Waiting
from wattledger import diagnosis
from wattledger.diagnosis import Check, Verdict, exit_code
from wattledger.standing import ChildStatus, Status

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
ROLES = ("wattledger_owner", "wattledger_writer", "wattledger_worker", "wattledger_api")
HARMLESS = RoleFacts(is_superuser=False, bypasses_rls=False, owns_tables=False)


def server(**api: bool) -> ServerFacts:
    facts = {"is_superuser": False, "bypasses_rls": False, "owns_tables": False} | api
    return ServerFacts("18.1", 0.01, dict.fromkeys(ROLES, HARMLESS) | {"wattledger_api": RoleFacts(**facts)})


def ledger(**given: object) -> LedgerFacts:
    quiet: dict[str, object] = {
        "unguarded_tables": (),
        "layout": LayoutFacts("native", "native", "the server has no timescaledb", None, None, 0),
        "last_partition": {},
        "lease": None,
        "last_closed_at": {},
        "overdue_hours": 0,
        "oldest_overdue_at": None,
        "waiting": (),
        "rejected_rows": {},
        "site_rates": (),
        "unpriced_models": (),
        "mapped": (),
    }
    return LedgerFacts(**(quiet | given))  # type: ignore[arg-type]


def test_broken_outweighs_unanswered_and_warnings_are_allowed() -> None:
    fine = diagnosis.fine("a", "works")
    warned = diagnosis.warning("b", "soon full", "free some")
    unasked = diagnosis.unanswered("c", "no rights", "run as root")
    broken = diagnosis.broken("d", "gone", "start it")
    assert exit_code([fine, warned]) == 0
    assert exit_code([fine, unasked]) == 2
    assert exit_code([unasked, broken, warned]) == 1


def test_what_is_not_fine_must_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="says not what to do"):
        Check("disk", Verdict.BROKEN, "full")


@pytest.mark.parametrize(
    ("free_gib", "verdict"), [(0.4, Verdict.BROKEN), (0.6, Verdict.WARNING), (4.9, Verdict.WARNING), (5, Verdict.FINE)]
)
def test_little_disk_space_is_a_warning_and_almost_none_is_broken(free_gib: float, verdict: Verdict) -> None:
    assert diagnosis.check_disk("/srv", int(free_gib * (1 << 30))).verdict is verdict


def test_a_missing_package_is_named() -> None:
    check = diagnosis.check_packages("3.11.7", {"polars": "2.1.0"}, ["duckdb is missing"])
    assert (check.verdict, check.found) == (Verdict.BROKEN, "duckdb is missing")
    assert diagnosis.check_packages("3.11.7", {"polars": "2.1.0"}, []).found == "Python 3.11.7, polars 2.1.0"


def test_a_dead_child_names_its_log() -> None:
    children = (
        ChildStatus("serve", 11, is_alive=True, log=Path("/h/log/serve.log")),
        ChildStatus("worker", 12, is_alive=False, log=Path("/h/log/worker.log")),
    )
    status = Status(10, 9, children, {}, None)
    verdicts = [(check.subject, check.verdict) for check in diagnosis.check_processes(status, is_external=False)]
    assert verdicts == [("supervisor", Verdict.FINE), ("serve", Verdict.FINE), ("worker", Verdict.BROKEN)]
    assert "/h/log/worker.log" in (diagnosis.check_processes(status, is_external=False)[2].remedy or "")


def test_without_a_supervisor_an_external_database_is_somebody_elses_business() -> None:
    nobody = Status(None, None, (), {}, None)
    assert [check.verdict for check in diagnosis.check_processes(nobody, is_external=False)] == [Verdict.BROKEN]
    assert [check.verdict for check in diagnosis.check_processes(nobody, is_external=True)] == [Verdict.NOTE]


@pytest.mark.parametrize("fault", ["is_superuser", "bypasses_rls", "owns_tables"])
def test_an_api_role_past_row_level_security_is_broken(fault: str) -> None:
    check = diagnosis.check_roles(server(**{fault: True}), ROLES, [])
    assert check.verdict is Verdict.BROKEN
    assert "tenants can see each other's rows" in check.found


def test_a_tenant_table_without_forced_policies_is_broken() -> None:
    assert diagnosis.check_roles(server(), ROLES, []).verdict is Verdict.FINE
    check = diagnosis.check_roles(server(), ROLES, ["ledger_lines"])
    assert (check.verdict, check.found.split(":")[0]) == (Verdict.BROKEN, "not forced on ledger_lines")


def test_a_missing_role_asks_for_migrations() -> None:
    facts = ServerFacts("18.1", 0.0, {"wattledger_api": HARMLESS})
    assert diagnosis.check_roles(facts, ROLES, []).remedy == "run `wattledger migrate`"


@pytest.mark.parametrize(
    ("ahead_s", "verdict"),
    [(0.5, Verdict.FINE), (-2.0, Verdict.WARNING), (59.9, Verdict.WARNING), (-60.0, Verdict.BROKEN)],
)
def test_two_clocks_that_disagree_are_told_in_seconds(ahead_s: float, verdict: Verdict) -> None:
    assert diagnosis.check_clock(ahead_s).verdict is verdict


def test_an_old_server_is_broken() -> None:
    assert diagnosis.check_server(ServerFacts("14.9", 0.0, {}), 15)[0].verdict is Verdict.BROKEN
    assert diagnosis.check_server(ServerFacts("15.2", 0.0, {}), 15)[0].verdict is Verdict.FINE


def test_the_layout_is_told_with_the_extension_and_what_its_licence_allows() -> None:
    native = LayoutFacts("native", "native", "the server has no timescaledb", None, None, 0)
    assert diagnosis.check_layout(native).found == "daily partitions of PostgreSQL (the server has no timescaledb)"
    apache = LayoutFacts("hypertables", "hypertables", "asked for", "2.19.3", "apache", 0)
    assert diagnosis.check_layout(apache).found == "hypertables of TimescaleDB 2.19.3, licence apache: no columnstore"
    community = LayoutFacts("hypertables", "hypertables", "asked for", "2.19.3", "timescale", 7)
    assert diagnosis.check_layout(community).found.endswith("timescale: columnstore for older days of 7 tables")
    other = LayoutFacts("hypertables", "native", "asked for", "2.19.3", "apache", 0)
    assert diagnosis.check_layout(other).verdict is Verdict.BROKEN


def test_partitions_must_reach_tomorrow() -> None:
    today = date(2026, 11, 21)
    reached = {"device_samples": date(2026, 11, 22), "spans": date(2026, 11, 23)}
    assert diagnosis.check_partitions(reached, today).found == "made ahead to 2026-11-22"
    short = diagnosis.check_partitions(reached | {"api_calls": today, "node_samples": None}, today)
    assert short.verdict is Verdict.WARNING
    assert short.found == "not made ahead to 2026-11-22: api_calls, node_samples"


def test_a_lease_nobody_renews_means_no_worker() -> None:
    assert diagnosis.check_lease(None).verdict is Verdict.BROKEN
    assert diagnosis.check_lease(LeaseFacts(None, 5.0)).verdict is Verdict.BROKEN
    assert diagnosis.check_lease(LeaseFacts("host/1", 61.0)).verdict is Verdict.BROKEN
    assert diagnosis.check_lease(LeaseFacts("host/1", 12.0)).verdict is Verdict.FINE


def test_the_lag_of_the_ledger_is_counted_from_the_end_of_the_last_closed_hour() -> None:
    check = diagnosis.check_hours(ledger(last_closed_at={"lab": NOW - timedelta(hours=2)}), NOW)
    assert (check.verdict, check.found) == (Verdict.FINE, "lab closed to 2026-11-21 11:00Z (1 h 0 min ago)")


def test_overdue_hours_are_counted_with_the_oldest() -> None:
    check = diagnosis.check_hours(ledger(overdue_hours=3, oldest_overdue_at=NOW - timedelta(hours=5)), NOW)
    assert check.verdict is Verdict.WARNING
    assert check.found == "3 waiting to be closed, the oldest of 2026-11-21 07:00Z"


def test_dead_letters_and_rejected_rows_are_told_by_reason() -> None:
    letters = (Waiting("clock_skew", 2, NOW - timedelta(minutes=90)), Waiting("wrong_node", 1, NOW))
    waiting, rejected = diagnosis.check_intake(ledger(waiting=letters, rejected_rows={"device_samples: nan": 4}), NOW)
    assert waiting.found == "3 bodies wait, the oldest for 1 h 30 min: 2 clock_skew, 1 wrong_node"
    assert rejected.found == "4 today: 4 device_samples: nan"
    assert [check.verdict for check in diagnosis.check_intake(ledger(), NOW)] == [Verdict.FINE, Verdict.FINE]


def test_a_site_without_tariff_or_intensity_is_named_with_what_it_lacks() -> None:
    sites = [
        SiteRates(
            "lab",
            has_tariff=True,
            grid_zone="FR",
            time_zone="Europe/Paris",
            has_intensity=True,
            has_facility_factor=True,
        ),
        SiteRates(
            "attic", has_tariff=False, grid_zone=None, time_zone="UTC", has_intensity=False, has_facility_factor=True
        ),
        SiteRates(
            "cellar",
            has_tariff=True,
            grid_zone="DE",
            time_zone="Europe/Berlin",
            has_intensity=False,
            has_facility_factor=False,
        ),
    ]
    rates, prices, zones = diagnosis.check_rates(sites, ["NVIDIA H100"], [Mapped("api", 10, 0, 7, 3)])
    assert rates.found == (
        "attic: no tariff, no grid zone, so no carbon; "
        "cellar: no carbon intensity for zone DE now, no facility factor, so IT energy only"
    )
    assert rates.remedy == (
        "`wattledger import tariffs FILE --site attic`, `wattledger sites set attic --grid-zone ZONE`, "
        "`wattledger import intensity FILE --zone DE` and 1 more"
    )
    assert (zones.verdict, zones.found) == (Verdict.NOTE, "attic: UTC, as every new site")
    assert zones.remedy == "`wattledger sites set attic --time-zone ZONE`, if it stands elsewhere"
    assert prices.found == "no rate for NVIDIA H100; 7 ledger lines of the last day without a price"
    assert [check.verdict for check in diagnosis.check_rates(sites[:1], [], [])] == [Verdict.FINE, Verdict.FINE]
    abroad = diagnosis.check_rates(sites[:1], [], [], ["EUR", "GBP"])[1]
    assert abroad.found == "prices or tariffs in EUR, GBP, which is not the currency of the books"


def test_calls_that_told_no_usage_lack_no_price() -> None:
    check = diagnosis.check_rates([], [], [Mapped("api", 10, 0, 0, 3), Mapped("job", 5, 0, 0, 0)])[1]
    assert check == diagnosis.fine(
        "prices", "everything in use has one; 3 API calls of the last day told no usage to price"
    )


def test_the_unmapped_share_is_told_apart_for_jobs_and_tokens() -> None:
    pools = [Mapped("job", 1000, 40, 0, 0), Mapped("api", 200, 20, 0, 0)]
    check = diagnosis.check_mapping(pools)
    assert (check.verdict, check.found) == (
        Verdict.WARNING,
        "10.0 % of API tokens unmapped, 4.0 % of job time unmapped",
    )
    assert diagnosis.check_mapping(pools[:1]).verdict is Verdict.FINE
    assert diagnosis.check_mapping([]).verdict is Verdict.NOTE


def test_agents_that_are_silent_or_missing_are_named() -> None:
    assert diagnosis.check_agents([]).verdict is Verdict.NOTE
    reporting, late = node("a1", "reporting"), node("a2", "late")
    assert diagnosis.check_agents([reporting, late, node("a3", "gone")]) == Check("agents", Verdict.FINE, "2 report")
    found = diagnosis.check_agents([reporting, node("b1", "silent"), node("b2", "silent"), node("c", "no_agent")])
    assert found.verdict is Verdict.WARNING
    assert found.found == "1 report; 2 silent: b[1-2]; 1 used by the scheduler without an agent: c"


def node(name: str, state: str) -> NodeStatus:
    unknown = dict.fromkeys(field.name for field in fields(NodeStatus))
    return NodeStatus(**{**unknown, "site": "s", "node": name, "state": state})  # type: ignore[arg-type]
