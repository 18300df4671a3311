"""The `wattledger` command. Commands are loaded when asked for, so that `--help` and the agent's neighbours stay quick.

It only wires: it reads options, calls a function of the package that owns the work, prints, and chooses the exit code.
Exit codes: 0 fine, 1 the answer is no, 2 could not be answered.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from wattledger.home import Home

COMMANDS: Final[dict[str, str]] = {
    "up": "wattledger.cli.processes:up",
    "down": "wattledger.cli.processes:down",
    "serve": "wattledger.cli.processes:serve",
    "worker": "wattledger.cli.processes:worker",
    "dashboard": "wattledger.cli.processes:dashboard",
    "migrate": "wattledger.cli.processes:migrate",
    "downgrade": "wattledger.cli.downgrade:downgrade",
    "demo": "wattledger.cli.demo:demo",
    "doctor": "wattledger.cli.doctor:doctor",
    "bill": "wattledger.cli.bill:bill",
    "import": "wattledger.cli.imports_usage:import_",
    "sites": "wattledger.cli.sites:sites",
    "prices": "wattledger.cli.prices:prices",
    "meters": "wattledger.cli.meters:meters",
    "tenants": "wattledger.cli.tenants:tenants",
    "policy": "wattledger.cli.policy:policy",
    "gate": "wattledger.cli.gate:gate",
    "actions": "wattledger.cli.actions:actions",
    "findings": "wattledger.cli.findings:findings",
    "lineage": "wattledger.cli.lineage:lineage",
    "token": "wattledger.cli.token:token",
    "close": "wattledger.cli.close:close",
    "why": "wattledger.cli.why:why",
    "disputes": "wattledger.cli.disputes:disputes",
    "recompute": "wattledger.cli.recompute:recompute",
    "diff": "wattledger.cli.diff:diff",
    "audit": "wattledger.cli.audit:audit",
    "privacy": "wattledger.cli.privacy:privacy",
    "fleet": "wattledger.cli.fleet:fleet",
    "watch": "wattledger.cli.watch:watch",
    "queue": "wattledger.cli.queue:queue",
    "deadletter": "wattledger.cli.deadletter:deadletter",
    "segments": "wattledger.cli.segments:segments",
    "backup": "wattledger.cli.backup:backup",
    "restore": "wattledger.cli.backup:restore",
}
EXIT_NO: Final = 1
EXIT_UNANSWERED: Final = 2


class LazyGroup(click.Group):
    """A group whose commands are imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        target = COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, _, name = target.partition(":")
        command = getattr(importlib.import_module(module), name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{target} is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, SUMMARIES[name]) for name in COMMANDS])


SUMMARIES: Final[dict[str, str]] = {
    "up": "start PostgreSQL, ingest + API, worker and dashboard, and keep them running",
    "down": "stop everything that `up` started, orphans included",
    "serve": "run ingest and the API alone",
    "worker": "run the worker alone: closes hours, evaluates budgets",
    "dashboard": "run the Streamlit dashboard alone",
    "migrate": "bring the database schema up to date",
    "downgrade": "take the schema back to an older version's, losing nothing unless told to",
    "demo": "fill 48 hours of a simulated fleet, print its bill, go on live",
    "doctor": "say what works, what does not, and what to do about it",
    "bill": "cost, energy and carbon by tenant, job or device",
    "import": "node and site power, jobs, sacct, LLM logs, FOCUS, LiteLLM, tariffs, intensity, prices from files",
    "sites": "list sites, set their zones, say what no device tells of them",
    "prices": "check and apply price books; what is in force, what was used without a price",
    "meters": "meters of nodes and above, and the gap between them and the books",
    "tenants": "apply, check and explain the tenant bindings",
    "policy": "check and apply the budget policy",
    "gate": "ask whether a job fits its budget; for CI",
    "actions": "list, pause and resume what enforcement does",
    "findings": "throttling and idle waste with their price",
    "lineage": "what an answer came from: serving, fine-tune, dataset, with cost and energy",
    "token": "create, list, rotate and revoke access tokens",
    "close": "close a month: checklist, freeze, one signed root; reopen it",
    "why": "a line of a bill explained: evidence, readings, price, each step of the arithmetic",
    "disputes": "lines of a bill that somebody says are wrong",
    "recompute": "compute past bills again from what they were made of, and compare to the byte",
    "diff": "what a restatement of an hour moved, line by line, and why",
    "audit": "who did what to this installation; whether the books are as they were written",
    "privacy": "pseudonyms of people, what is known of one, forgetting one",
    "queue": "what waits for accelerators, since when and why",
    "watch": "tell ingest what Slurm or Kubernetes knows of jobs and the queue",
    "fleet": "which agents report, are late or silent; signed orders to them",
    "deadletter": "list, show, replay and drop bodies that could not be taken",
    "segments": "which hours are sealed, whether their files are whole, make bad ones anew",
    "backup": "database and sealed hours at one point in time, while everything runs",
    "restore": "a backup into an empty home or database, checked before and after",
}


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""\b
Examples:
  wattledger demo --once                 a simulated fleet, its bill, and out again
  wattledger up                          run the service on this machine
  wattledger bill --from 2026-11-01 --group-by tenant
  wattledger doctor                      what is wrong, and what to do
""",
)
@click.version_option(package_name="wattledger")
@click.option(
    "--home",
    type=click.Path(file_okay=False),
    help="Folder of all state. Default: $XDG_DATA_HOME/wattledger, /var/lib/wattledger as root.",
)
@click.pass_context
def cli(ctx: click.Context, home: str | None) -> None:
    """What each GPU-second, joule, gram of CO2e and token cost, who caused it, and a stop when the budget is gone."""
    ctx.obj = {"home": home}


def main() -> None:
    """Run the command line; the console script `wattledger`."""
    from wattledger.cli.failure import explained

    with explained():
        cli(prog_name="wattledger")


def chosen_home(ctx: click.Context) -> Home:
    """Return the home folder the command line, the environment or the default names."""
    from wattledger.home import resolve_home

    return resolve_home(os.environ, ctx.find_root().obj["home"])
