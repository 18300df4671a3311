import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
import sqlalchemy as sa

from ingest.importers.columns import Source
from ingest.importers.errors import OptionError
from ingest.importers.facility import FacilityOptions, import_facility_factors
from ingest.importers.intensity import IntensityOptions, import_intensity
from ingest.importers.prices import PriceOptions, import_prices
from ingest.importers.tariffs import TariffOptions, import_tariffs
from ingest.store.engine import Database
from ingest.store.import_rates import FACILITY_FACTORS, DatedRows

pytestmark = pytest.mark.db
Write = Callable[[str, str], Source]


@pytest.fixture
def conn(db: Database) -> Iterator[sa.Connection]:
    engine = db.create_engine("owner")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def made(name: str, text: str) -> Source:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return Source(path)

    return made


def rows(conn: sa.Connection, query: str) -> list[tuple[object, ...]]:
    with conn.begin():
        return [tuple(row) for row in conn.execute(sa.text(query))]


CURRENT = (
    "SELECT amount::float8, valid_from::date::text, valid_to::date::text FROM prices "
    "WHERE superseded_at IS NULL ORDER BY valid_from"
)


def test_a_new_price_ends_the_old_one_and_leaves_what_was_known_readable(conn: sa.Connection, write: Write) -> None:
    header = "provider,model,meter,amount,unit,currency,valid_from\n"
    import_prices(
        conn,
        write("a.csv", header + "owned,H100,accelerator_hour,2.10,hour,USD,2026-01-01Z\n".replace("01Z", "01T00:00Z")),
        PriceOptions("lab"),
    )
    report = import_prices(
        conn,
        write("b.csv", header + "owned,H100,accelerator_hour,1.90,hour,USD,2026-06-01T00:00Z\n"),
        PriceOptions("lab"),
    )
    assert report.written == {"prices": 1}
    assert rows(conn, CURRENT) == [(2.10, "2026-01-01", "2026-06-01"), (1.90, "2026-06-01", None)]
    assert rows(conn, "SELECT amount::float8, valid_to FROM prices WHERE superseded_at IS NOT NULL") == [(2.10, None)]
    # Only June on is to be billed anew.
    assert rows(conn, "SELECT from_at::date::text FROM changes ORDER BY id") == [("2026-01-01",), ("2026-06-01",)]


def test_dated_rows_of_one_file_end_where_the_next_begins(conn: sa.Connection, write: Write) -> None:
    text = "factor,category,valid_from\n1.4,1,2026-01-01T00:00Z\n1.3,2,2026-02-01T00:00Z\n0.9,1,2026-03-01T00:00Z\n"
    report = import_facility_factors(conn, write("f.csv", text), FacilityOptions("lab"))
    assert report.rejections.by_reason == {"out of range": 1}
    assert rows(conn, "SELECT factor::float8, valid_to::date::text FROM facility_factors ORDER BY valid_from") == [
        (1.4, "2026-02-01"),
        (1.3, None),
    ]


def test_the_same_facts_in_another_file_change_nothing(conn: sa.Connection, write: Write) -> None:
    text = "datetime_utc,price_eur_per_mwh\n2026-01-01 00:00,100\n2026-01-01 01:00,-3.3622368\n"
    import_tariffs(conn, write("a.csv", text), TariffOptions("lab"))
    report = import_tariffs(conn, write("b.csv", text + "2026-01-01 02:00,5\n"), TariffOptions("lab"))
    assert (report.written["tariffs"], report.unchanged) == (1, 2)
    assert rows(conn, "SELECT amount_per_kwh, currency FROM tariffs ORDER BY valid_from") == [
        (Decimal("0.100000000000000000"), "EUR"),
        (Decimal("-0.003362236800000000"), "EUR"),
        (Decimal("0.005000000000000000"), "EUR"),
    ]


def test_rows_that_overlap_within_a_file_are_refused(conn: sa.Connection, write: Write) -> None:
    text = "start,price_eur_per_kwh\n2026-01-01T00:00Z,1\n2026-01-01T00:00Z,2\n2026-01-01T00:30Z,3\n"
    report = import_tariffs(conn, write("a.csv", text), TariffOptions("lab"))
    assert report.rejections.by_reason == {"overlaps an earlier row": 1, "not on the step": 1}


@pytest.mark.real
def test_empty_hours_of_the_us_grid_stay_missing(conn: sa.Connection, shared: Path) -> None:
    source = Source(shared / "data/carbon/us_grid_hourly_2022_eia.csv")
    report = import_intensity(conn, source, IntensityOptions("lab"))
    # 4 zones x 8,760 h; 26 cells are empty (data/README.md: PJM 23, CISO 3).
    assert report.rows_read == 35_040
    assert report.rejections.by_reason == {"no value, stays missing": 26}
    assert report.written["intensity"] == 35_014
    assert rows(conn, "SELECT grid_zone, count(*) FROM intensity GROUP BY 1 ORDER BY 1") == [
        ("CISO", 8_757),
        ("ERCO", 8_760),
        ("NYIS", 8_760),
        ("PJM", 8_737),
    ]
    again = import_intensity(conn, source, IntensityOptions("lab"))
    assert again.already_imported_at is not None


@pytest.mark.real
def test_hourly_market_prices_need_a_zone_and_keep_their_sign(conn: sa.Connection, shared: Path) -> None:
    source = Source(shared / "data/price/electricity_hourly_usd_mwh.csv")
    with pytest.raises(OptionError, match=r"4 zones \(DE-LU, FR, US-CAL-CISO, US-TEX-ERCO\)"):
        import_tariffs(conn, source, TariffOptions("lab"))
    report = import_tariffs(conn, source, TariffOptions("lab", zone="DE-LU"))
    assert report.written["tariffs"] == 8_760
    # 278 prices such as -3.5292709999999996 USD/MWh have 19 decimals per kWh.
    assert report.rounded == 278
    # -3.3622368 USD/MWh
    assert rows(conn, "SELECT amount_per_kwh FROM tariffs ORDER BY valid_from LIMIT 1") == [
        (Decimal("-0.003362236800000000"),)
    ]


@pytest.mark.real
def test_llm_prices_are_exact_to_the_last_decimal(conn: sa.Connection, shared: Path) -> None:
    source = Source(shared / "data/billing/llm_prices_litellm_1.109.1.csv")
    options = PriceOptions("lab", valid_from=datetime(2023, 1, 1, tzinfo=UTC))
    report = import_prices(conn, source, options)
    assert report.rows_read == 4_552
    query = "SELECT meter, amount FROM prices WHERE provider = 'azure' AND model = 'azure/gpt-4' ORDER BY 1"
    # 3e-05 and 6e-05 in the file.
    assert rows(conn, query) == [("input_tokens", Decimal("0.000030")), ("output_tokens", Decimal("0.000060"))]
    finest = rows(conn, "SELECT max(min_scale(amount)) FROM prices")
    # Float noise such as 1.3200000000000002e-07 has 23 decimals; it is kept to 18 and counted.
    assert report.rounded > 0
    assert finest[0][0] == 18


def test_the_examples_that_are_shipped_come_in(conn: sa.Connection) -> None:
    folder = Path(__file__).resolve().parents[2] / "deploy/examples"
    reports = [
        import_tariffs(conn, Source(folder / "tariffs.csv"), TariffOptions("lab")),
        import_prices(conn, Source(folder / "prices.csv"), PriceOptions("lab")),
        import_intensity(conn, Source(folder / "intensity.csv"), IntensityOptions("lab")),
        import_facility_factors(conn, Source(folder / "facility-factors.csv"), FacilityOptions("lab")),
    ]
    assert [report.rows_written for report in reports] == [2, 5, 4, 1]
    assert [report.rejections.total for report in reports] == [0, 0, 0, 0]  # a newcomer's first imports end with 0


def test_an_hour_without_a_value_stays_missing_and_is_counted(conn: sa.Connection, write: Write) -> None:
    text = "zone,datetime_utc,gco2e_per_kwh\nDE,2026-01-01T00:00,312.4\nDE,2026-01-01T01:00,\n"
    report = import_intensity(conn, write("i.csv", text), IntensityOptions("lab"))
    assert (report.rows_written, dict(report.rejections.by_reason)) == (1, {"no value, stays missing": 1})


def test_an_import_that_began_first_and_ends_last_replaces_what_was_known_only_from_its_end(
    conn: sa.Connection, db: Database, write: Write
) -> None:
    header = "factor,category,valid_from\n"
    other = db.create_engine("owner")
    with other.connect() as early, early.begin():
        early.execute(sa.text("SELECT 1"))  # now() of this transaction is from here on
        time.sleep(0.02)
        import_facility_factors(conn, write("f.csv", header + "1.4,1,2026-01-01T00:00Z\n"), FacilityOptions("lab"))
        (site_id,) = early.execute(sa.text("SELECT id FROM sites")).one()
        series = DatedRows(early, FACILITY_FACTORS)
        series.add([(1, 1_767_225_600_000_000, None, site_id, Decimal("1.2"), 1)])
        assert series.store("test", until_next=True, site_id=site_id).superseded == 1
    other.dispose()
    known = "SELECT old.factor::float8, new.factor::float8, old.recorded_at < old.superseded_at, old.superseded_at = "
    assert rows(
        conn, known + "new.recorded_at FROM facility_factors AS old JOIN facility_factors AS new ON new.id > old.id"
    ) == [(1.4, 1.2, True, True)]
