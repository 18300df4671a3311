"""docs/methodology.md: its sections say what they must, and its worked examples are what the model answers."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import polars as pl
import pytest

from analytics.pipeline import read_meters
from analytics.policy import Policy
from analytics.units import to_us
from tests.fakes.site import HOUR, Site, at, device, holds, price, reading, steady, tariff
from tests.unit.test_model_overhead import METER
from tests.unit.test_model_overhead import _overhead as overhead_of
from tests.unit.test_model_overhead import _users as users_of

pytestmark = pytest.mark.unit
TEXT: Final = (Path(__file__).parents[2] / "docs" / "methodology.md").read_text()
SECTIONS: Final = dict(re.findall(r"^## (\d+)\. .*?$(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
EXAMPLES: Final = re.findall(r"^```example (\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
Row = dict[str, str]
Told = dict[str, list[Row]]
BOARD: Final = 1


def parsed(text: str) -> Told:
    """A table begins with ``name: column column``; the indented lines below are its rows; a ``-`` is nothing."""
    tables: Told = {}
    name, columns = "", list[str]()
    for line in text.splitlines():
        if not line.startswith(" "):
            name, told = line.split(":")
            columns = told.split()
            tables[name] = []
        else:
            tables[name].append(dict(zip(columns, line.split(), strict=True)))
    return tables


def _number(value: str) -> float | None:
    return None if value == "-" else float(value)


def _seconds(value: str) -> float:
    return float(value)


def _site(told: Told) -> Site:
    """One board: ``board`` (watts, floor), or ``readings`` (second, joules); ``holds``, ``looks``, ``rates``."""
    if "readings" in told:
        readings = [reading(BOARD, _seconds(row["second"]), float(row["joules"])) for row in told["readings"]]
        floor_w = 70.0
    else:
        (board,) = told["board"]
        readings, floor_w = steady(BOARD, -600, 4_200, float(board["watts"])), float(board["floor"])
    looks = [
        {
            "device_id": BOARD,
            "at": at(_seconds(row["to"])),
            "span_us": round((_seconds(row["to"]) - _seconds(row["from"])) * 1e6),
            "job_id": None if row["job"] == "-" else int(row["job"]),
            "sm_util_ppm": round(float(row["sm_percent"]) * 10_000),
            "method": "process_utilization",
        }
        for row in told.get("looks", [])
    ]
    (rates,) = told.get("rates", [{}])
    return Site(
        readings=readings,
        devices=[device(BOARD, idle_power_mw=round(floor_w * 1000))],
        allocations=[
            holds(int(row["job"]), BOARD, _seconds(row["from"]), _number(row["to"]), _number(row["share"]))
            for row in told.get("holds", [])
        ],
        prices=[price(1, rates["per_accelerator_hour"])] if rates else (),
        tariffs=[tariff(1, rates["per_kwh"])] if rates else (),
        shares=looks,
    )


def _usage(told: Told) -> None:
    """``expect``: holder joules held_s, and low high method where the example speaks of them."""
    rows = {row["holder"]: row for row in _site(told).close().usage.iter_rows(named=True) if row["hour_at"] == HOUR}
    assert set(rows) == {row["holder"] for row in told["expect"]}
    for expected in told["expect"]:
        row = rows[expected["holder"]]
        assert row["energy_mj"] == round(float(expected["joules"]) * 1000)
        assert row["held_us"] == round(float(expected["held_s"]) * 1e6)
        for column, name in (("low", "energy_low_mj"), ("high", "energy_high_mj")):
            if column in expected:
                joules = _number(expected[column])
                assert row[name] == (None if joules is None else round(joules * 1000))
        assert row["method"] == expected.get("method", row["method"])


def _energy(told: Told) -> None:
    """``expect``: from to joules, what the interpolated counter grew by."""
    (meter,) = read_meters(_site(told).inputs().usage, Policy()).meters
    for expected in told["expect"]:
        ends = [to_us(at(_seconds(expected[name]))) for name in ("from", "to")]
        asked = pl.DataFrame({"device_id": [BOARD] * 2, "at_us": ends}, schema_overrides={"device_id": pl.Int32})
        first, last = meter.at(asked)["energy_mj"]
        assert last - first == round(float(expected["joules"]) * 1000)


def _overhead(told: Told) -> None:
    """``boards``: board watts; ``node``: watts; ``expect``: holder joules, of overhead of an hour that both sides cover."""
    boards = {int(row["board"]): (row["holder"], float(row["watts"])) for row in told["boards"]}
    users = [(board, holder, round(watts * 3_600_000)) for board, (holder, watts) in boards.items()]
    shown = {board: (watts, [(0, 3600)]) for board, (_, watts) in boards.items()}
    found = overhead_of(shown, {METER: (float(told["node"][0]["watts"]), [(0, 3600)])}, users_of(*users))
    wanted = {row["holder"]: round(float(row["joules"]) * 1000) for row in told["expect"]}
    assert dict(found.rows.select("holder", "energy_mj").iter_rows()) == wanted


def _rating(told: Told) -> None:
    """``expect``: holder category cost, of the hour's lines."""
    lines = _site(told).close().lines.filter(pl.col("hour_at") == HOUR)
    found = {(row["holder_key"], row["charge_category"]): row["billed_cost"] for row in lines.iter_rows(named=True)}
    wanted = {(row["holder"], row["category"]): Decimal(row["cost"]) for row in told["expect"]}
    assert found == wanted


ANSWERS: Final[dict[str, Callable[[Told], Any]]] = {
    "energy": _energy,
    "holding": _usage,
    "sharing": _usage,
    "overhead": _overhead,
    "rating": _rating,
}


@pytest.mark.parametrize(("kind", "text"), EXAMPLES, ids=[f"{n}-{kind}" for n, (kind, _) in enumerate(EXAMPLES)])
def test_an_example_is_what_the_model_answers(kind: str, text: str) -> None:
    ANSWERS[kind](parsed(text))


def test_every_kind_of_example_is_there() -> None:
    assert {kind for kind, _ in EXAMPLES} == set(ANSWERS)


@pytest.mark.parametrize("word", ["Source", "Error", "Cannot know"])
def test_every_section_says_whence_its_formulas_are_how_far_they_are_off_and_what_they_cannot_know(word: str) -> None:
    assert [number for number, text in SECTIONS.items() if f"*{word}:*" not in text] == []
