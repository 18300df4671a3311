"""What a file says of a site becomes dated rows; a changed file supersedes, and closes again only what it reaches."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from analytics.io.site_facts import SiteFactsError, check
from analytics.io.site_facts_store import Applied, apply
from ingest.store.engine import Database
from tests.db.ledger_fixture import SmallFleet, small_fleet

pytestmark = pytest.mark.db
NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)
FILE = """\
meters:
  - {meter: grid, level: utility, error_percent: 0.5}
  - {meter: pdu-a, level: pdu, parent: grid}
  - {node: n1, meter: redfish, parent: pdu-a}
overhead:
  - {nodes: "n*", idle_w: 200, from: 2026-11-01}
shared_it:
  - {name: filer, kind: storage, meter: pdu-a, from: 2026-11-01}
capacity:
  - {device: GPU-1, kind: reservation, tenant: acme/research/nlp, from: 2026-11-02, to: 2026-11-03}
assets:
  - {asset: A-1, device: GPU-1, capitalized: 2026-01-01, disposed: 2030-01-01}
idle:
  - {policy: fixed, tenant: acme/research/nlp, share_percent: 40}
"""


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    found = small_fleet(db)
    found.rows("INSERT INTO meters (node_id, name) VALUES (%s, 'redfish') RETURNING id", found.node_id)
    return found


def applied(fleet: SmallFleet, text: str) -> Applied:
    with fleet.database.connect("owner") as connection:
        return apply(connection, check(text), "s1", NOW)


def test_a_file_is_stored_once_and_its_words_are_rows(fleet: SmallFleet) -> None:
    assert applied(fleet, FILE) == Applied(added=5, superseded=0, meters_described=3)
    assert applied(fleet, FILE) == Applied(0, 0, 0)
    assert fleet.rows("SELECT node_glob, idle_mw, error_ppm, recorded_xid IS NOT NULL FROM overhead_models") == [
        ("n*", 200_000, 300_000, True)
    ]
    assert fleet.rows("SELECT meters.name, error_ppm FROM shared_it JOIN meters ON meters.id = meter_id") == [
        ("pdu-a", 0)
    ]
    assert fleet.rows("SELECT kind, device_id, path FROM capacity_holds JOIN tenants ON tenants.id = tenant_id") == [
        ("reservation", fleet.device_id, "acme/research/nlp")
    ]
    assert fleet.rows("SELECT asset, capitalized_at = valid_from, disposed_at = valid_to FROM assets") == [
        ("A-1", True, True)
    ]
    assert fleet.rows("SELECT policy, fixed_ppm FROM idle_policies") == [("fixed", 400_000)]
    tree = "SELECT m.name, m.level, p.name, m.gain_ppm FROM meters AS m LEFT JOIN meters AS p ON p.id = m.parent_meter_id ORDER BY 1"
    assert fleet.rows(tree) == [
        ("grid", "utility", None, 5_000),
        ("pdu-a", "pdu", "grid", 20_000),
        ("redfish", "node", "pdu-a", 20_000),
    ]


def test_a_changed_fact_supersedes_and_marks_its_own_hours(fleet: SmallFleet) -> None:
    applied(fleet, FILE)
    fleet.rows("DELETE FROM changes RETURNING 1")
    done = applied(fleet, FILE.replace("to: 2026-11-03", "to: 2026-11-04"))
    assert (done.added, done.superseded) == (1, 1)
    assert fleet.rows("SELECT valid_to::date::text, superseded_at IS NULL FROM capacity_holds ORDER BY id") == [
        ("2026-11-03", False),
        ("2026-11-04", True),
    ]
    assert fleet.rows("SELECT DISTINCT kind, from_at::date::text FROM changes") == [("capacity_holds", "2026-11-02")]


def test_a_section_that_is_not_there_stays_and_an_empty_one_ends_all_of_it(fleet: SmallFleet) -> None:
    applied(fleet, FILE)
    assert applied(fleet, "idle: []\n") == Applied(0, 1, 0)
    assert fleet.rows("SELECT count(*) FROM overhead_models WHERE superseded_at IS NULL") == [(1,)]


def test_a_file_that_names_what_is_not_there_changes_nothing(fleet: SmallFleet) -> None:
    with pytest.raises(SiteFactsError) as caught:
        applied(
            fleet,
            FILE.replace("GPU-1, kind", "GPU-9, kind").replace(
                "tenant: acme/research/nlp, share", "tenant: nobody, share"
            ),
        )
    assert [str(fault) for fault in caught.value.faults] == [
        "line 10: device: there is no device 'GPU-9' at the site",
        "line 14: tenant: there is no tenant 'nobody' at the site",
    ]
    assert fleet.rows("SELECT count(*) FROM overhead_models") == [(0,)]
    with pytest.raises(SiteFactsError, match="hangs on itself"):
        applied(fleet, "meters:\n  - {meter: a, level: pdu, parent: b}\n  - {meter: b, level: pdu, parent: a}\n")
    with pytest.raises(SiteFactsError, match="no node meter 'n1/ipmi'"):
        applied(fleet, "meters:\n  - {node: n1, meter: ipmi, bills: false}\n")


def test_which_meter_bills_matters_to_the_books_and_where_it_hangs_does_not(fleet: SmallFleet) -> None:
    applied(fleet, "meters:\n  - {node: n1, meter: redfish, error_percent: 3}\n")
    assert fleet.rows("SELECT count(*) FROM changes") == [(0,)]
    applied(fleet, "meters:\n  - {node: n1, meter: redfish, bills: false}\n")
    assert fleet.rows("SELECT kind, from_at::date::text FROM changes") == [("meters", "1970-01-01")]


def test_words_of_meters_reach_back_as_far_as_they_say(fleet: SmallFleet) -> None:
    applied(fleet, "meters:\n  - {node: n1, meter: redfish, bills: false, from: 2026-11-01}\n")
    assert fleet.rows("SELECT kind, from_at::date::text FROM changes") == [("meters", "2026-11-01")]


WORDS = (
    "SELECT bills, covers, valid_from::date::text, valid_to::date::text FROM meter_words WHERE superseded_at IS NULL "
    "ORDER BY covers NULLS FIRST, valid_from"
)


def test_a_word_of_a_meter_takes_the_place_of_what_was_known_for_its_own_time(fleet: SmallFleet) -> None:
    applied(fleet, "meters:\n  - {node: n1, meter: redfish, bills: false, from: 2026-11-01}\n")
    assert fleet.rows(WORDS) == [(False, None, "2026-11-01", None)]
    # Of its time only: what is said of November stays, and it covers what it did.
    both = "  - {node: n1, meter: redfish, bills: true, covers: all, from: 2026-12-01}\n"
    assert applied(fleet, f"meters:\n{both}").meters_described == 1
    known = [(False, None, "2026-11-01", "2026-12-01"), (True, None, "2026-12-01", None)]
    assert fleet.rows(WORDS) == [*known, (None, "all", "2026-12-01", None)]
    ends = "SELECT from_at::date::text FROM changes ORDER BY id"
    assert fleet.rows(ends) == [("2026-11-01",), ("2026-12-01",)]
    assert applied(fleet, f"meters:\n{both}") == Applied(0, 0, 0)
    # Two entries of one file follow each other; that of November says what is known.
    earlier = "  - {node: n1, meter: redfish, bills: false, from: 2026-10-01}\n"
    assert applied(fleet, f"meters:\n{both}{earlier}").meters_described == 1
    assert fleet.rows(WORDS)[:2] == [(False, None, "2026-10-01", "2026-12-01"), (True, None, "2026-12-01", None)]
    told = "SELECT from_at::date::text, to_at::date::text FROM changes ORDER BY id DESC LIMIT 1"
    assert fleet.rows(told) == [("2026-10-01", "2026-11-01")]
    assert fleet.rows("SELECT count(*) FROM meter_words WHERE superseded_xid IS NOT NULL") == [(2,)]
    # The meter's own row is what it was made with.
    assert fleet.rows("SELECT bills, covers FROM meters WHERE name = 'redfish'") == [(True, "it")]


def test_what_is_said_of_a_meter_of_the_site_is_in_no_books_and_closes_nothing(fleet: SmallFleet) -> None:
    applied(fleet, "meters:\n  - {meter: grid, level: utility}\n")
    assert applied(fleet, "meters:\n  - {meter: grid, covers: it}\n").meters_described == 1
    assert fleet.rows("SELECT covers FROM meters WHERE name = 'grid'") == [("it",)]
    assert fleet.rows("SELECT count(*) FROM changes") == fleet.rows("SELECT count(*) FROM meter_words") == [(0,)]


def test_of_a_node_booked_as_one_device_a_word_counts_for_all_hours(fleet: SmallFleet) -> None:
    fleet.rows("UPDATE devices SET kind = 'node' RETURNING 1")
    applied(fleet, "meters:\n  - {node: n1, meter: redfish, bills: false, from: 2026-11-01}\n")
    assert fleet.rows("SELECT min(from_at)::date::text FROM changes") == [("1970-01-01",)]
