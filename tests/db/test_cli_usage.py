"""`wattledger import focus`, `litellm` and what shows them, as a person runs them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.store.engine import Database
from tests.fakes.terminal import Terminal

pytestmark = pytest.mark.db
HEADER = (
    "BilledCost,EffectiveCost,BillingAccountId,BillingCurrency,BillingPeriodStart,BillingPeriodEnd,ChargePeriodStart,ChargePeriodEnd,"
    "ChargeCategory,ServiceProviderName,InvoiceIssuerName,InvoiceId,ServiceName,ConsumedQuantity,ConsumedUnit,x_ModelId\n"
)
PERIODS = "2025-10-01T00:00:00Z,2025-11-01T00:00:00Z,2025-10-05T00:00:00Z,2025-10-06T00:00:00Z"
GPU = f"100.25,90,acct,USD,{PERIODS},Usage,Cloud,Cloud Inc,INV-1,GPU,8,Hours,\n"
CREDIT = f"-0.2500000001,0,acct,USD,{PERIODS},Credit,Cloud,Cloud Inc,INV-1,,,,\n"
TOKENS = f"3.50,3.50,org,USD,{PERIODS},Usage,OpenAI,OpenAI,INV-2,API,1000000,Tokens,gpt-4o\n"


@pytest.fixture
def terminal(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Terminal:
    return Terminal.on(db, tmp_path / "home", monkeypatch, capsys)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    path = tmp_path / "focus.csv"
    path.write_text(HEADER + GPU + CREDIT + TOKENS)
    return path


def test_an_export_is_taken_in_and_shown_by_invoice_service_and_file(terminal: Terminal, export: Path) -> None:
    ran = terminal.run("import", "focus", export, "--site", "cloud", "--invoice-total", "INV-1=100")
    assert (ran.exit_code, ran.err) == (0, "")
    assert "written       3 charges" in ran.out
    assert "FOCUS 1.3 by its columns" in ran.out
    shown = terminal.run("import", "invoices")
    assert shown.exit_code == 1  # a stated total differs
    assert [line.split()[-3:] for line in shown.out.splitlines()[1:]] == [
        ["100.00", "0.0000000001", "USD"],
        ["-", "-", "USD"],
    ]
    period = ["--from", "2025-10-01", "--to", "2025-11-01"]
    by_service = terminal.run("import", "charges", *period, "--group-by", "service", "--format", "json").json
    # Tokens are of calls: they are compared with them, and are no charge.
    assert [(row["key"], row["billed_cost"]) for row in by_service] == [("GPU", "100.25"), (None, "-0.2500000001")]
    assert "focus.csv" in terminal.run("import", "list").out
    again = terminal.run("import", "focus", export, "--site", "cloud")
    assert (again.exit_code, "imported before" in again.out) == (0, True)


def test_token_charges_nobody_called_are_a_difference_and_no_cost(terminal: Terminal, export: Path) -> None:
    terminal.run("import", "focus", export, "--site", "cloud")
    (row,) = terminal.run("import", "compare", "--from", "2025-10-01", "--format", "json").json
    assert (row["model"], row["calls"], row["tokens"], row["tokens_difference"]) == ("gpt-4o", 0, 1_000_000, 1_000_000)
    assert (row["billed_cost"], row["booked_cost"], row["cost_difference"]) == ("3.50", None, None)
    assert "gpt-4o" in terminal.run("import", "compare", "--from", "2025-10-01").out


def test_a_parquet_with_tags_as_a_map_and_amounts_as_decimals_and_doubles(terminal: Terminal, tmp_path: Path) -> None:
    names = HEADER.strip().split(",")
    cells = dict(zip(names, GPU.strip().split(","), strict=True))
    columns = {name: pa.array([cell]) for name, cell in cells.items()}
    columns["BilledCost"] = pa.array([3.4e-05])
    columns["EffectiveCost"] = pa.array(["0.000000000000000001"]).cast(pa.decimal128(38, 18))
    columns["Tags"] = pa.array([[("team", "nlp"), ("env", "prod")]], pa.map_(pa.string(), pa.string()))
    for name in names:
        if "Period" in name:
            columns[name] = columns[name].cast(pa.timestamp("us", "UTC"))
    path = tmp_path / "focus.parquet"
    pq.write_table(pa.table(columns), path)
    assert terminal.run("import", "focus", path, "--site", "cloud").exit_code == 0
    (row,) = terminal.run("import", "charges", "--from", "2025-10-01", "--format", "json").json
    assert (row["billed_cost"], row["effective_cost"]) == ("0.000034", "0.000000000000000001")


def test_what_cannot_be_meant_is_refused_before_anything_is_written(terminal: Terminal, export: Path) -> None:
    both = terminal.run("import", "focus", export, "--site", "cloud", "--part", "--whole-periods")
    amount = terminal.run("import", "focus", export, "--site", "cloud", "--invoice-total", "INV-1=much")
    assert (both.exit_code, amount.exit_code) == (2, 2)
    assert "either one part of several or the whole" in both.err
    assert "'much' is no amount" in amount.err
    assert terminal.run("import", "list").out == "none\n"


def test_spend_logs_come_in_by_command(terminal: Terminal, tmp_path: Path) -> None:
    path = tmp_path / "spend.csv"
    path.write_text(
        "request_id,startTime,model,custom_llm_provider,prompt_tokens,completion_tokens,spend\n"
        "r-1,2025-10-05 10:00:00,gpt-4o,openai,10,5,0.1\nr-2,2025-10-05 10:00:00,gpt-4o,openai,x,5,0.1\n"
    )
    ran = terminal.run("import", "litellm", path, "--site", "cloud")
    assert (ran.exit_code, ran.err) == (1, "1 of 2 rows were refused\n")
    assert "1 api_calls" in ran.out
    assert "line 3  not a whole number  'x'" in ran.out
