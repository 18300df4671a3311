"""FOCUS exports to the last digit: real ones, restated ones, parts, credits and corrections, and rows that are wrong."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa

from analytics.io import charges
from ingest.importers.columns import Source
from ingest.importers.errors import MissingColumnError, OptionError
from ingest.importers.focus import FocusOptions, import_focus
from ingest.importers.report import ImportReport
from ingest.store.engine import Database

pytestmark = pytest.mark.db
NOW = datetime(2026, 11, 1, tzinfo=UTC)
YEAR = (datetime(2024, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
ROW = {
    "BilledCost": "1.10",
    "BillingAccountId": "acct",
    "BillingCurrency": "EUR",
    "BillingPeriodEnd": "2026-11-01T00:00:00Z",
    "BillingPeriodStart": "2026-10-01T00:00:00Z",
    "ChargeCategory": "Usage",
    "ChargeClass": "",
    "ChargePeriodEnd": "2026-10-02T00:00:00Z",
    "ChargePeriodStart": "2026-10-01T00:00:00Z",
    "EffectiveCost": "1.00",
    "InvoiceId": "INV-1",
    "ProviderName": "Cloud",
    "ServiceName": "GPU",
    "SkuId": "g1",
    "Tags": '{"team": "nlp"}',
}
Load = Callable[..., ImportReport]


@pytest.fixture
def conn(db: Database) -> Iterator[sa.Connection]:
    engine = db.create_engine("owner")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@pytest.fixture
def load(conn: sa.Connection, tmp_path: Path) -> Load:
    """Import rows as one file; each is ROW with changes."""
    numbers = iter(range(100))

    def loaded(*changes: dict[str, str], **options: Any) -> ImportReport:
        path = tmp_path / f"{next(numbers)}.csv"
        names = list(dict.fromkeys([*ROW, *(name for each in changes for name in each)]))
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, names, restval="")
            writer.writeheader()
            writer.writerows({**ROW, **each} for each in changes)
        return import_focus(conn, Source(path), FocusOptions("cloud", **options), now=NOW)

    return loaded


def rows(conn: sa.Connection, query: str) -> list[tuple[Any, ...]]:
    with conn.begin():
        return [tuple(row) for row in conn.execute(sa.text(query))]


COUNTS = "SELECT billed_cost, sku_id FROM imported_charges WHERE superseded_at IS NULL ORDER BY sku_id, billed_cost"


@pytest.mark.real
def test_the_published_sample_comes_in_to_the_last_digit(conn: sa.Connection, db: Database, shared: Path) -> None:
    path = shared / "data/billing/focus_1.0_sample.csv"
    report = import_focus(conn, Source(path), FocusOptions("cloud"), now=NOW)
    assert (report.rows_read, report.rejections.total, report.written["charges"]) == (500, 0, 500)
    assert "FOCUS 1.0 by its columns" in report.notes
    # Added up with decimals over the file itself: 500 amounts of 11 places.
    assert rows(conn, "SELECT sum(billed_cost), count(*), min(billed_cost) FROM imported_charges") == [
        (Decimal("14.66598547521"), 500, Decimal("-2.61370000000"))
    ]
    assert rows(conn, "SELECT category, count(*) FROM imported_charges GROUP BY 1 ORDER BY 1") == [
        ("adjustment", 1),
        ("credit", 1),
        ("usage", 498),
    ]
    with db.connect("worker") as worker:
        found = charges.invoices(worker)
        months = {(row.provider, row.invoice_issuer, row.period_start_at.month): row.rows for row in found}
        by_provider = {each.key: each.rows for each in charges.sums(worker, *YEAR, "provider")}
    assert sum(row.billed_cost for row in found) == Decimal("14.66598547521")
    assert by_provider == {"AWS": 471, "Microsoft": 25, "Oracle": 4}
    assert sum(months.values()) == 500
    again = import_focus(conn, Source(path), FocusOptions("cloud"), now=NOW)
    assert again.already_imported_at is not None


@pytest.mark.real
def test_the_sample_as_parquet_and_as_gzip_is_what_it_is_as_csv(
    conn: sa.Connection, shared: Path, tmp_path: Path
) -> None:
    path = shared / "data/billing/focus_1.0_sample.csv"
    import_focus(conn, Source(path), FocusOptions("cloud"), now=NOW)
    parquet = tmp_path / "sample.parquet"
    pl.read_csv(path, infer_schema=False).write_parquet(parquet)
    report = import_focus(conn, Source(parquet), FocusOptions("cloud"), now=NOW)
    assert (report.written["charges"], report.unchanged, report.rejections.total) == (0, 500, 0)


def test_a_corrected_file_replaces_what_it_restates_and_nothing_else(conn: sa.Connection, load: Load) -> None:
    load({"SkuId": "a"}, {"SkuId": "b", "BilledCost": "2"})
    report = load({"SkuId": "a"}, {"SkuId": "b", "BilledCost": "2.50"}, {"SkuId": "c", "BilledCost": "4"})
    assert (report.written["charges"], report.unchanged) == (2, 1)
    assert report.notes[1] == (
        "1 charges of earlier files are restated and count no longer (2 EUR): if the files are parts of one export, "
        "import them with --part"
    )
    assert rows(conn, COUNTS) == [(Decimal("1.10"), "a"), (Decimal("2.50"), "b"), (Decimal(4), "c")]
    assert rows(conn, "SELECT count(*) FROM imported_charges") == [(4,)]  # the old one is kept, superseded


def test_a_charge_that_gets_its_invoice_later_is_the_same_charge(conn: sa.Connection, load: Load) -> None:
    load({"InvoiceId": ""})
    load({"InvoiceId": "INV-9"})
    assert rows(conn, "SELECT invoice_id, billed_cost FROM imported_charges WHERE superseded_at IS NULL") == [
        ("INV-9", Decimal("1.10"))
    ]


def test_a_charge_that_is_tagged_later_is_the_same_charge_also_where_tags_split_it(
    conn: sa.Connection, load: Load
) -> None:
    load({"Tags": "", "BilledCost": "3"}, {"Tags": '{"team": "b"}', "BilledCost": "7"})
    load({"Tags": '{"team": "a"}', "BilledCost": "3"}, {"Tags": '{"team": "b"}', "BilledCost": "7"})
    query = "SELECT tags->>'team', billed_cost FROM imported_charges WHERE superseded_at IS NULL ORDER BY 1"
    assert rows(conn, query) == [("a", Decimal(3)), ("b", Decimal(7))]


def test_equal_rows_of_one_file_are_all_charged_and_once(conn: sa.Connection, load: Load) -> None:
    load({}, {}, {"SkuId": "x"})
    assert load({}, {}, {"SkuId": "x"}, {"SkuId": "y"}).written["charges"] == 1
    assert rows(conn, "SELECT count(*), sum(billed_cost) FROM imported_charges") == [(4, Decimal("4.40"))]


def test_parts_of_one_export_restate_nothing_of_each_other(conn: sa.Connection, load: Load) -> None:
    load({}, one_of_several=True)
    load({"BilledCost": "9"}, {"EffectiveCost": "1.000"}, one_of_several=True)
    assert rows(conn, COUNTS) == [(Decimal("1.10"), "g1"), (Decimal("1.10"), "g1"), (Decimal(9), "g1")]


def test_a_file_of_whole_periods_takes_out_what_it_no_longer_lists(conn: sa.Connection, load: Load) -> None:
    other = {"BillingPeriodStart": "2026-09-01T00:00:00Z", "BillingPeriodEnd": "2026-10-01T00:00:00Z"}
    load({"SkuId": "a"}, {"SkuId": "gone"}, {"SkuId": "september", **other})
    report = load({"SkuId": "a"}, {"SkuId": "b"}, whole_periods=True)
    assert report.notes[1].startswith("1 charges of earlier files are not in this one and count no longer (1.1 EUR)")
    assert [sku for _, sku in rows(conn, COUNTS)] == ["a", "b", "september"]


def test_credits_stay_negative_and_corrections_stand_beside_what_they_correct(load: Load, db: Database) -> None:
    load(
        {"BilledCost": "100"},
        {"BilledCost": "-30.5", "ChargeCategory": "Credit", "SkuId": ""},
        {"BilledCost": "-10", "ChargeClass": "Correction", "SkuId": "g1"},
        stated_totals={"INV-1": Decimal(60)},
    )
    with db.connect("worker") as worker:
        (invoice,) = charges.invoices(worker)
    assert (invoice.rows, invoice.billed_cost, invoice.credits, invoice.corrections) == (
        3,
        Decimal("59.5"),
        Decimal("-40.5"),
        Decimal(-10),
    )
    assert (invoice.stated_total, invoice.difference) == (Decimal(60), Decimal("0.5"))


def test_tokens_taken_back_go_with_the_calls_they_are_of_and_are_in_no_sum(
    conn: sa.Connection, load: Load, db: Database
) -> None:
    tokens = {
        "ConsumedUnit": "1M Tokens",
        "SkuPriceDetails": '{"ModelId": "gpt-4o"}',
        "SkuMeter": "Output tokens",
        "ConsumedQuantity": "2",
        "BilledCost": "5",
    }
    report = load(
        {"BilledCost": "100"},
        tokens,
        {**tokens, "ConsumedQuantity": "-2", "BilledCost": "-5"},
        {**tokens, "ConsumedQuantity": "-0.5", "BilledCost": "-1", "ChargeClass": "Correction"},
        {**tokens, "BilledCost": "-3", "ChargeCategory": "Credit"},
        {**tokens, "ConsumedQuantity": "1.2345678"},
        {**tokens, "ConsumedUnit": "tokens per minute"},
        # Of a call: 1,000 and 200 of them taken back are 800; of the other only what is taken back is here.
        {**tokens, "ConsumedUnit": "Tokens", "ConsumedQuantity": "1000", "x_ResponseId": "r-1"},
        {**tokens, "ConsumedUnit": "Tokens", "ConsumedQuantity": "-200", "x_ResponseId": "r-1"},
        {**tokens, "ConsumedUnit": "Tokens", "ConsumedQuantity": "-200", "x_ResponseId": "r-2"},
    )
    assert dict(report.rejections.by_reason) == {
        "not a whole number of tokens": 1,
        "unit of tokens is not understood": 1,
    }
    assert any(note.startswith("5 rows correct or credit token charges") for note in report.notes)
    assert rows(conn, "SELECT response_id, output_text_tokens FROM api_calls") == [("r-1", 800)]
    with db.connect("worker") as worker:
        (only,) = charges.sums(worker, datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC), "provider")
        (compared,) = charges.compared(worker, datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC))
    assert (only.rows, only.billed_cost) == (1, Decimal(100))
    # 5 - 5 - 1 - 3 + 3 * 5; 2,000,000 - 2,000,000 - 500,000 + 1,000 - 200 - 200
    assert (compared.billed_cost, compared.tokens) == (Decimal(11), -499_400)


def test_a_stated_total_of_an_invoice_that_is_not_there_stops_the_import(conn: sa.Connection, load: Load) -> None:
    with pytest.raises(OptionError, match="'INV-2' names 0 invoices"):
        load({}, stated_totals={"INV-2": Decimal(1)})
    assert rows(conn, "SELECT count(*) FROM imported_charges") == [(0,)]


def test_bad_rows_say_why_by_line_and_good_ones_are_kept(conn: sa.Connection, load: Load) -> None:
    report = load(
        {"BilledCost": "$1.10"},
        {"BilledCost": "1,10"},
        {"BilledCost": ""},
        {"BillingCurrency": "euro"},
        {"ChargeCategory": "Rent"},
        {"ChargeClass": "Oops"},
        {"ChargePeriodStart": "2026-12-01T00:00:00Z", "ChargePeriodEnd": "2026-12-02T00:00:00Z"},
        {"ChargePeriodEnd": "2026-09-01T00:00:00Z"},
        {"BillingPeriodStart": "October"},
        {"Tags": "{not json"},
        {"EffectiveCost": "1e90"},
        {"ProviderName": ""},
        {"SkuId": "good"},
    )
    assert [(each.line, each.reason) for each in sorted(report.rejections.examples, key=lambda each: each.line)] == [
        (2, "billed_cost is not a number"),
        (3, "billed_cost is not a number"),
        (4, "billed_cost is empty"),
        (5, "not a currency code"),
        (6, "unknown charge category"),
        (7, "unknown charge class"),
        (8, "in the future"),
        (9, "charge ends before it begins"),
        (10, "not an instant"),
        (11, "not a JSON object"),
        (12, "effective_cost is out of range"),
        (13, "provider is empty"),
    ]
    assert rows(conn, COUNTS) == [(Decimal("1.10"), "good")]


def test_an_invoice_with_what_is_paid_ahead_and_what_is_of_an_instant_adds_up(
    conn: sa.Connection, load: Load, db: Database
) -> None:
    coming = {"ChargePeriodStart": "2026-12-01T00:00:00Z", "ChargePeriodEnd": "2027-01-01T00:00:00Z"}
    instant = {"ChargePeriodStart": "2026-10-15T12:00:00Z", "ChargePeriodEnd": "2026-10-15T12:00:00Z"}
    report = load(
        {"BilledCost": "10"},
        coming | {"ChargeCategory": "Purchase", "ChargeFrequency": "Recurring", "BilledCost": "300"},
        coming | {"ChargeCategory": "Tax", "BilledCost": "57"},
        coming | {"ChargeFrequency": "Recurring", "BilledCost": "20"},  # a subscription that a provider calls usage
        instant | {"ChargeCategory": "Purchase", "ChargeFrequency": "One-Time", "BilledCost": "5.5"},
        instant | {"BilledCost": "0.5"},
        stated_totals={"INV-1": Decimal("393.0")},
    )
    assert report.rejections.total == 0
    assert [note for note in report.notes if "paid ahead" in note] == [
        "3 charges are paid ahead (377 EUR): their invoices have them now, sums of charges from when they begin"
    ]
    december = (datetime(2026, 12, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
    october = (datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC))
    with db.connect("worker") as worker:
        (invoice,) = charges.invoices(worker)
        assert (invoice.rows, invoice.billed_cost, invoice.difference) == (6, Decimal("393.0"), 0)
        told = {
            month[0].month: charges.sums(worker, *month, "provider")[0].billed_cost for month in (october, december)
        }
    assert told == {10: Decimal("16.0"), 12: Decimal(377)}


def test_what_cannot_be_charged_yet_is_refused(load: Load) -> None:
    coming = {"ChargePeriodStart": "2026-12-01T00:00:00Z", "ChargePeriodEnd": "2027-01-01T00:00:00Z"}
    late = {"ChargePeriodStart": "2046-12-01T00:00:00Z", "ChargePeriodEnd": "2047-01-01T00:00:00Z"}
    call = {"x_ResponseId": "r1", "x_ModelId": "m", "ConsumedQuantity": "10", "ConsumedUnit": "Tokens"}
    report = load(
        coming,  # metered usage
        coming | {"ChargeFrequency": "Usage-Based"},
        late | {"ChargeCategory": "Purchase"},
        coming | {"ChargeFrequency": "Recurring"} | call,
    )
    assert report.rejections.by_reason == {"in the future": 4}


def test_a_file_without_a_column_it_must_have_is_refused_by_name(conn: sa.Connection, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("BilledCost,BillingCurrency\n1,EUR\n")
    with pytest.raises(MissingColumnError, match="no column for 'provider'"):
        import_focus(conn, Source(path), FocusOptions("cloud"), now=NOW)


@pytest.mark.parametrize(
    ("changes", "version"),
    [({}, "1.2"), ({"SkuMeter": "m"}, "1.2"), ({"ServiceProviderName": "Cloud", "HostProviderName": "Host"}, "1.3")],
)
def test_the_version_is_told_by_the_columns(load: Load, changes: dict[str, str], version: str) -> None:
    assert load(changes).notes == [f"FOCUS {version} by its columns"]


def test_charges_go_to_tenants_by_tag_and_account_as_dated_bindings_say(
    conn: sa.Connection, load: Load, db: Database
) -> None:
    with conn.begin():
        conn.exec_driver_sql("INSERT INTO tenants (path) VALUES ('acme/nlp'), ('acme/it')")
        conn.exec_driver_sql(
            "INSERT INTO bindings (position, tenant_id, tag, account, valid_from) "
            "SELECT 1, id, 'team=nlp', NULL, '2026-01-01Z'::timestamptz FROM tenants WHERE path = 'acme/nlp' "
            "UNION ALL SELECT 2, id, NULL, 'sub-7', '2026-10-15Z' FROM tenants WHERE path = 'acme/it'"
        )
    late = {"ChargePeriodStart": "2026-10-20T00:00:00Z", "ChargePeriodEnd": "2026-10-21T00:00:00Z"}
    load(
        {"BilledCost": "1"},
        {"BilledCost": "2", "Tags": '{"team": "vision"}', "SubAccountId": "sub-7", **late},
        {"BilledCost": "4", "Tags": "", "SubAccountId": "sub-7"},
    )
    load({"BilledCost": "8", "Tags": "", "SkuId": "named"}, tenant="acme/it")
    with db.connect("worker") as worker:
        sums = {each.key: each.billed_cost for each in charges.sums(worker, *YEAR, "tenant")}
    assert sums == {"acme/nlp": Decimal(1), "acme/it": Decimal(10), None: Decimal(4)}
