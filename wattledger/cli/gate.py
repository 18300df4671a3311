"""The `gate` command for CI: asks the running service whether a job fits its budgets. Exit codes 0 yes, 1 no, 2 no answer."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from wattledger.cli import chosen_home
from wattledger.cli.failure import fail
from wattledger.cli.listing import Listing
from wattledger.cli.output import UNITS_READ
from wattledger.cli.parameters import Text, TextFile

if TYPE_CHECKING:
    from wattledger.home import Home

TOKEN_VARIABLE: Final = "WATTLEDGER_API_TOKEN"  # noqa: S105 (names a variable)

_GAPS: Final = {
    "unpriced_lines": "lines without a price",
    "usage_unknown_calls": "API calls that told no usage",
    "unmeasured_lines": "lines without a reading",
}


@click.group(cls=Listing, epilog="\b\nExample:\n  wattledger gate check job.yaml")
def gate() -> None:
    """Ask whether a job fits its budgets, before it is submitted."""


@gate.command(
    epilog="""\b
Examples:
  wattledger gate check job.yaml
  wattledger gate check job.yaml --url https://ledger.example --token-file /run/secrets/gate
  printf 'accelerators: 64\\nmodel: NVIDIA H100\\nhours: 12\\ntenant: acme/nlp\\n' | wattledger gate check -
\b
job.yaml says what would be submitted; without a tenant the bindings decide from cluster, account, user_name …:
  accelerators: 64
  model: NVIDIA H100 80GB HBM3     as on the bill
  hours: 12
  tenant: acme/research/nlp
  site: berlin-1                   where there are several
\b
Exit codes: 0 it may run (a warning is printed), 1 no, 2 could not be answered.
"""
)
@click.argument("spec", type=TextFile())
@click.option("--url", envvar="WATTLEDGER_API_URL", help="Of the service. Default: the one running in this home.")
@click.option(
    "--token-file",
    envvar="WATTLEDGER_API_TOKEN_FILE",
    type=click.Path(path_type=Path),
    help=f"A token with the scope gate. Default: {TOKEN_VARIABLE}, else this home's own.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="How to print: for people, or whole as JSON.",
)
@click.pass_context
def check(ctx: click.Context, spec: Text, url: str | None, token_file: Path | None, format_: str) -> None:
    """Estimate a job's cost, energy and carbon, and say whether its budgets allow it."""
    from analytics.api import client

    asked = specification(spec)
    home = chosen_home(ctx)
    result = client.check(asked, url or running_url(home), _token(home, token_file))
    if format_ == "json":
        answer = dict(result.answer) or {"detail": result.message}
        click.echo(json.dumps({**answer, "exit_code": result.exit_code}, indent=2))
    elif result.exit_code != client.UNANSWERED:
        click.echo("\n".join(_lines(result.answer)))
    if result.exit_code == client.UNANSWERED:
        fail(result.message)
    ctx.exit(result.exit_code)


def specification(spec: Text) -> Mapping[str, str]:
    """Return a job specification as the texts that were written; the service knows the keys and judges the values."""
    from analytics.io.yaml_lines import read

    document = read(spec.content)
    if document.faults:
        fail(f"{spec.name}: " + "; ".join(str(fault) for fault in document.faults))
    data = document.data
    if not isinstance(data, dict):
        fail(f"{spec.name} must be a mapping like `accelerators: 64`; see `wattledger gate check --help`")
    asked: dict[str, str] = {}
    for key, value in data.items():
        if not isinstance(value, str):
            fail(f"{spec.name}, line {document.line_of((key,))}: {key} must be one value")
        asked[key] = value
    return asked


def running_url(home: Home) -> str:
    """Return the address of the service that `up` started in this home."""
    from wattledger.installation import HOST
    from wattledger.ports import own_address
    from wattledger.standing import read_state, supervisor_of

    state = read_state(home)
    ports = state.get("ports", {})
    port = ports.get("--port")
    if port is None or supervisor_of(home) is None:
        fail(f"no service runs in {home.root}; start it with `wattledger up`, or name one with --url")
    if "--internal-port" in ports:  # beside TLS, for this machine
        return f"http://{HOST}:{ports['--internal-port']}"
    return f"http://{own_address(state.get('hosts', {}).get('--port', HOST))}:{port}"


def _token(home: Home, token_file: Path | None) -> str:
    from wattledger.runtime import Secret

    if token_file is None and (given := os.environ.get(TOKEN_VARIABLE)):
        return given
    path = token_file or home.secrets / "dashboard.token"
    try:
        token = Secret(path).read()
    except (OSError, UnicodeDecodeError) as error:
        fail(f"the token in {path} cannot be read: {error}")
    if not token:
        fail(f"there is no token in {path}; make one: wattledger token create ci --scope gate --tenant acme > {path}")
    return token


def _lines(answer: Mapping[str, Any]) -> Iterator[str]:
    currency = answer["currency"] or ""
    facts = {
        "verdict": f"{answer['verdict']}: {answer['reason']}",
        "tenant": answer["tenant"],
        "cost": _figure(answer["cost"], currency),
        "energy": _figure(answer["energy_kwh"], "kWh"),
        "carbon": _figure(answer["carbon_kgco2e"], "kgCO2e"),
        "held": _figure(answer["accelerator_hours"], "accelerator-hours"),
    }
    width = len("forecast")
    yield from (f"{name:<{width}}  {fact}" for name, fact in facts.items())
    for budget in answer["budgets"]:
        if budget["name"] is None:
            yield f"{'budget':<{width}}  {budget['verdict']}: one above your tenants, on {budget['measure']}"
            continue
        unit = UNITS_READ.get(budget["unit"], budget["unit"])
        yield (
            f"{'budget':<{width}}  {budget['verdict']}: {budget['name']} of {budget['tenant']}, "
            f"{_figure(budget['left'])} of {_figure(budget['limit'])} {unit} left, {_figure(budget['left_after'])} after this job"
        )
        if gaps := [f"{budget[name]:,} {what}" for name, what in _GAPS.items() if budget[name]]:
            yield f"{'':<{width}}  not counted in it: {', '.join(gaps)}"
    yield from (f"{'forecast':<{width}}  {basis}" for basis in answer["basis"])
    if answer["origin"] != "live":
        yield f"{'note':<{width}}  figures are {answer['origin']}"


def _figure(amount: str | None, unit: str = "") -> str:
    return "unknown" if amount is None else f"{Decimal(amount):,.2f} {unit}".rstrip()
