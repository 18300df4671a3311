"""`wattledger lineage`: what an answer came from, hop by hop, from this installation's database."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

from wattledger.cli import EXIT_NO, EXIT_UNANSWERED, chosen_home
from wattledger.cli.output import Format, Shown, decimal_cell, format_option, print_rows

if TYPE_CHECKING:
    from analytics.io.lineage import Chain


@click.command(
    epilog="""\b
Examples:
  wattledger lineage chatcmpl-9f2c                 response, serving, fine-tune, datasets, with cost and energy
  wattledger lineage chatcmpl-9f2c --format json   every figure, with why those are unknown that are
\b
Exit code 0: the chain reaches its datasets, 1: it breaks, and the table says where, 2: nobody knows the response.
"""
)
@click.argument("response_id")
@click.option("--site", help="Where several sites know this response id, which.")
@format_option
@click.pass_context
def lineage(ctx: click.Context, response_id: str, site: str | None, format_: Format) -> None:
    """Follow one answer back to its serving, its fine-tune and the datasets, with cost and energy of each."""
    from analytics.io.lineage_formats import as_dict

    chain = _asked(ctx, response_id, site)
    whole = as_dict(chain)
    broken = chain.breaks_at
    if format_ == "json":
        click.echo(json.dumps(whole, indent=2))
    else:
        notes = [] if broken is None else [f"breaks at {broken.hop}: {broken.reason}"]
        print_rows(
            whole["hops"],
            _SHOWN,
            format_,
            title=f"lineage of {response_id}",
            notes=[*notes, *_doubts(whole), *_outcomes(whole)],
        )
    if broken is not None:
        ctx.exit(EXIT_NO)


def _asked(ctx: click.Context, response_id: str, site: str | None) -> Chain:
    from analytics.io import lineage as chains
    from analytics.io import lineage_rows
    from ingest.store.tenancy import ALL_TENANTS, tenant_scope
    from wattledger.runtime import ready_database

    engine = ready_database(chosen_home(ctx)).create_engine("api", pool_size=1, application="wattledger-lineage")
    try:
        with engine.begin() as conn, tenant_scope(conn, ALL_TENANTS):
            calls = [row for row in lineage_rows.any_call(conn, response_id) if site in {None, row.site}]
            if len(calls) > 1:
                raise click.UsageError(
                    f"several sites know {response_id!r}; say --site {'|'.join(c.site for c in calls)}"
                )
            call = calls[0] if calls else None
            owner = None if call is None else lineage_rows.owner(conn, call)
            outcomes = lineage_rows.outcomes_of(conn, response_id, call, owner)
            if call is None and not outcomes:
                click.echo(f"error: no response {response_id!r} is known, and no outcome names it", err=True)
                ctx.exit(EXIT_UNANSWERED)
            return chains.chain(conn, response_id, call, owner, outcomes)
    finally:
        engine.dispose()


def _doubts(whole: dict[str, Any]) -> list[str]:
    """Say of each hop that is shown with a cost what is not in it, and of which job it may not be."""
    return [
        f"{hop['hop']}: {why}"
        for hop in whole["hops"]
        if hop["found"] and hop["hop"] != "response" and hop["cost"] is not None
        for why in (hop["reason"], *hop["unknown"])
        if why is not None
    ]


def _outcomes(whole: dict[str, Any]) -> list[str]:
    def said(outcome: dict[str, Any]) -> str:
        parts = (outcome["label"], outcome["score"], outcome["value"], outcome["value_unit"])
        return f"{outcome['kind']} {' '.join(str(part) for part in parts if part is not None)}"

    return [f"outcome: {said(outcome)}" for outcome in whole["outcomes"]]


_SHOWN = (
    Shown("hop", "hop"),
    Shown("name", "name"),
    Shown("job", "job", leaves=3),
    Shown("state", "state", leaves=2),
    Shown("cost", "cost", lambda cost: decimal_cell(6)(Decimal(cost)), numeric=True),
    Shown("currency", "currency", leaves=4),
    Shown("energy_kwh", "energy kWh", lambda energy: decimal_cell(3)(Decimal(energy)), numeric=True),
    Shown("origins", "origin", ", ".join, leaves=1),
)
